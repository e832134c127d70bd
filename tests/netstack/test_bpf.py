"""The packet filter: libpcap is the judge, of programs (bpf_validate) and of what they say to frames (bpf_filter)."""

import ctypes
import random

import pytest
from scapy.all import ARP, IP, TCP, UDP, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, Raw

from netstack.bpf import BPF_MOST, INSTRUCTION, BpfProgram
from rustosd.cli.libpcap import FilterError, compiled, load

JUMPS = [0x15, 0x1D, 0x25, 0x2D, 0x35, 0x3D, 0x45, 0x4D]
MEMORY = [0x60, 0x61, 0x02, 0x03]
PLAIN = [0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x80, 0x00, 0x01, 0x81, 0xB1, 0x07, 0x87, 0x84]
ALU = [op << 4 | source | 4 for op in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10) for source in (0, 8)]
RETURNS = [0x06, 0x16]
CODES = [*JUMPS, *MEMORY, *PLAIN, *ALU, 0x05, *RETURNS]
# libpcap does not clear its cells, ours are zero: each program of the fuzzer begins by filling them.
FILL = [(0x00, 0, 0, 0x1234567)] + [(0x02, 0, 0, cell) for cell in range(16)]

FRAMES = [bytes(frame) for frame in (
    Ether() / IP(src="10.0.0.1", dst="10.0.0.2", ttl=3) / TCP(sport=40000, dport=80, flags="S"),
    Ether() / IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=53, dport=4000) / Raw(b"x" * 100),
    Ether() / Dot1Q(vlan=7) / IP() / TCP(dport=443),
    Ether() / IPv6(src="fd77::1", dst="fd77::2") / TCP(dport=80, flags="FA") / Raw(b"GET /"),
    Ether() / IPv6(src="fd77::1", dst="ff02::1") / ICMPv6EchoRequest(),
    Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, pdst="10.0.0.2"),
    b"\x01\x00\x5e\x00\x00\x01" + bytes(8), b"\xff" * 13, b"", bytes(range(256)) * 6,
)]
EXPRESSIONS = [
    "tcp", "udp port 53", "tcp port 80", "host 10.0.0.1", "src net 10.0.0.0/30 and not port 53", "ip6", "arp", "icmp6",
    "ether broadcast", "ether multicast", "vlan 7 and tcp port 443", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "len > 100",
    "greater 60 and less 1000", "(ip[8] * 3) % 7 = 2", "tcp portrange 70-90", "ip[2:2] / (ip[8] - 3) > 1", "net fd77::/64",
    "ip6 proto 6 and port 80", "ether[0] & 1 = 0 or dst host ff02::1", "(tcp or udp) and (port 80 or 53)",
]


class Judge:
    """libpcap's own interpreter and checker."""

    def __init__(self):
        try:
            self.library = load()
        except FilterError as error:
            pytest.skip(str(error))
        self.library.bpf_filter.restype = ctypes.c_uint

    def run(self, program, frame):
        return self.library.bpf_filter(ctypes.c_char_p(program), ctypes.c_char_p(frame), len(frame), len(frame))

    def valid(self, program):
        return bool(self.library.bpf_validate(ctypes.c_char_p(program), len(program) // 8))


@pytest.fixture(scope="module")
def judge():
    return Judge()


def octets(rows):
    return b"".join(INSTRUCTION.pack(*row) for row in rows)


def cut(frame, draw):
    """The frame in three parts, as what is sent lies in memory."""
    a, b = sorted((draw.randint(0, len(frame)), draw.randint(0, len(frame))))
    return frame[:a], frame[a:b], frame[b:]


def random_row(draw, left):
    """An instruction that is right when `left` more follow."""
    code = draw.choice(CODES)
    k = draw.choice([draw.randint(0, 40), draw.randint(0, 0xFFFFFFFF), 0xFFFFFFFF, 0xFFFFFFFC, 0, 1, 31])
    jumps = (draw.randint(0, min(left - 1, 255)), draw.randint(0, min(left - 1, 255))) if code in JUMPS else (0, 0)
    if code == 0x05:
        k = draw.randint(0, left - 1)
    elif code in MEMORY:
        k = draw.randint(0, 15)
    elif code in (0x34, 0x94):
        k = k or 1
    elif code in (0x64, 0x74):
        k %= 32
    return code, *jumps, k


def random_program(draw):
    count = draw.randint(1, 40)
    rows = [random_row(draw, left) for left in range(count, 0, -1)]
    return FILL + rows + [draw.choice([(0x16, 0, 0, 0), (0x06, 0, 0, draw.randint(0, 0xFFFFFFFF))])]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_libpcap_compiles_says_the_same_here(judge, expression):
    program, draw = compiled(expression, 262144), random.Random(1)
    checked, verdicts = BpfProgram(program), set()
    for frame in FRAMES:
        for length in range(len(frame) + 1) if len(frame) < 300 else [len(frame)]:
            verdict = judge.run(program, frame[:length])
            verdicts.add(verdict)
            assert checked.run(frame[:length]) == checked.run(*cut(frame[:length], draw)) == verdict
    assert len(verdicts) == 2


def test_random_programs_say_what_libpcap_says(judge):
    draw = random.Random(20261128)
    seen = set()
    for _ in range(4000):
        program = octets(random_program(draw))
        assert judge.valid(program)
        checked = BpfProgram(program)
        for frame in draw.sample(FRAMES, 3):
            verdict = judge.run(program, frame)
            assert checked.run(frame) == checked.run(*cut(frame, draw)) == verdict, (program.hex(), frame.hex())
            seen.add(verdict)
    assert len(seen) > 1000


def test_damaged_programs_that_pass_here_pass_libpcap_and_run_alike(judge):
    draw = random.Random(7)
    passed = refused = 0
    for _ in range(6000):
        program = bytearray(octets(random_program(draw)[:-1 if draw.random() < 0.2 else None]))
        for _ in range(draw.randint(1, 3)):
            program[draw.randrange(8 * len(FILL), len(program))] = draw.choice([0, 1, 255, draw.randrange(256)])
        try:
            checked = BpfProgram(bytes(program))
        except ValueError:
            refused += 1
            continue
        passed += 1
        assert judge.valid(bytes(program)), program.hex()
        frame = draw.choice(FRAMES)
        assert checked.run(frame) == judge.run(bytes(program), frame), program.hex()
    assert passed > 500 and refused > 500


@pytest.mark.parametrize(("rows", "words"), [
    ([], "not 0 octets"),
    ([(0x06, 0, 0, 0)] * (BPF_MOST + 1), f"1 to {BPF_MOST} instructions"),
    ([(0x00, 0, 0, 0)], "instruction 0 leads beyond the end"),
    ([(0x15, 1, 0, 0), (0x06, 0, 0, 0)], "instruction 0 leads beyond the end"),
    ([(0x15, 0, 255, 0), (0x06, 0, 0, 0)], "instruction 0 leads beyond the end"),
    ([(0x05, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)], "instruction 0 leads beyond the end"),
    ([(0x60, 0, 0, 16), (0x06, 0, 0, 0)], "no memory cell 16"),
    ([(0x02, 0, 0, 1 << 31), (0x06, 0, 0, 0)], "no memory cell"),
    ([(0x34, 0, 0, 0), (0x06, 0, 0, 0)], "divides by zero"),
    ([(0x94, 0, 0, 0), (0x06, 0, 0, 0)], "divides by zero"),
    ([(0x64, 0, 0, 32), (0x06, 0, 0, 0)], "shifts by 32 bits"),
    ([(0xFF, 0, 0, 0), (0x06, 0, 0, 0)], "no code 0xff"),
    ([(0x06, 0, 0, 0), (0x0E, 0, 0, 0)], "instruction 1: there is no code 0xe"),
])
def test_a_wrong_program_is_refused_by_its_fault(rows, words):
    with pytest.raises(ValueError, match=words):
        BpfProgram(octets(rows))


def test_half_an_instruction_is_refused():
    with pytest.raises(ValueError, match="not 12 octets"):
        BpfProgram(bytes(12))


def test_an_expression_that_is_none_is_refused_in_libpcaps_words():
    with pytest.raises(FilterError, match=r"no filter: .*syntax error"):
        compiled("tcp prt 80", 262144)
    assert compiled("  ", 262144) == b""


def test_without_libpcap_the_error_says_what_to_install(monkeypatch):
    def missing(_name):
        raise OSError("no such file")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    with pytest.raises(FilterError, match=r"apt-get install libpcap0\.8"):
        compiled("tcp", 262144)
