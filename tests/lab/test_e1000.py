"""The e1000 driver against QEMU's 82540EM, 82545EM and 82574L, on the real vfio-pci and on uio_pci_generic.

Linux is the peer at the other end of the cable. Nothing here asks how long a thing takes: waits end with what is waited for.
"""

import hashlib
import json

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.lab import inside_e1000 as inside
from tests.lab.cable import PATIENCE_S, Conversation, Repeated, captured, pattern, wait_for, wire
from tests.lab.guest import CARDS, EDU
from tests.support.offload import offloaded

V4, V6 = "10.9.0.2", "fd09::2"
OURS = [f"{V4}/24", f"{V6}/64"]
PEER = ["10.9.0.1/24", "fd09::1/64"]
BYTES = 3_000_000
JUMBO = 9000
EXPRESS = {"e1000e"}
CASES = [       # card, interrupt, backend, options
    ("e1000", "intx", "vfio", {}), ("e1000-45", "intx", "vfio", {"mtu": JUMBO}),
    ("e1000e", "msix", "vfio", {}), ("e1000e", "msi", "vfio", {"mtu": JUMBO, "legacy": True}), ("e1000e", "intx", "vfio", {}),
    ("e1000", "intx", "uio", {"mtu": JUMBO}), ("e1000-45", "intx", "uio", {}), ("e1000e", "intx", "uio", {}),
]
ONE_OF_EACH = ["e1000", "e1000e"]


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    guest.preload("tests.lab.inside_e1000")
    guest.run("sysctl -q vm.nr_hugepages=24 && modprobe uio_pci_generic")
    before = faults(guest)
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")
    assert faults(guest) == before


def faults(guest):
    """How many accesses the IOMMU has stopped."""
    return int(guest.run("dmesg | grep -c 'DMAR:.*fault' || true").stdout)


class Served:
    """Our host on one card, and what the peer does to it."""

    def __init__(self, guest, name, kind, backend="vfio", **options):
        self.guest, self.card, self.conversations = guest, CARDS[name], []
        guest.netns.run("ip", "link", "set", name, "mtu", str(options.get("mtu", 1500)))
        for address in PEER:
            guest.netns.run("ip", "addr", "add", address, "dev", name, "nodad")
        beside = [EDU] if (name, backend) == ("e1000-45", "vfio") else []
        self.call = guest.start(inside.serve, self.card.bdf, [kind], OURS, backend, beside, timeout=600, **options)
        self.hello = self.call.next()
        self.answers(V4)

    def answers(self, host):
        """Ping until it answers."""
        wait_for(lambda: not self.peer("ping", "-q", "-c", "1", "-W", "1", host, check=False).returncode,
                 f"an answer of {host}")

    def peer(self, *command, **options):
        return self.guest.netns.run(*command, timeout=PATIENCE_S, **options)

    def until(self, word):
        """Wait until it has told this."""
        while self.call.next() != word:
            continue

    def signal(self, name):
        self.guest.run(f"kill -{name} {self.hello['pid']}")

    def talk(self):
        """A conversation that must not end."""
        self.conversations.append(Conversation(self.guest.netns, V4))
        return self.conversations[-1]

    def end(self):
        """Its counters."""
        self.signal("TERM")
        return self.call.result()

    def clean(self):
        for one in self.conversations:
            one.abort()
        self.call.kill()
        self.peer("ip", "addr", "flush", "dev", self.card.name)
        self.peer("ip", "link", "set", self.card.name, "mtu", "1500")


@pytest.fixture
def serve(guest):
    served = []

    def start(name, kind, *backend, **options):
        served.append(Served(guest, name, kind, *backend, **options))
        return served[-1]

    yield start
    for one in served:
        one.clean()


def iperf3(served, host, *arguments):
    """Octets that arrived."""
    answer = json.loads(served.peer("iperf3", "-c", host, "--json", "-n", str(BYTES), *arguments, check=False).stdout)
    assert "error" not in answer
    return answer["end"]["sum_received"]["bytes"]


@pytest.mark.parametrize(("name", "kind", "backend", "options"), CASES,
                         ids=["-".join([*case[:3], *case[3]]) for case in CASES])
def test_ping_curl_sha256_and_iperf3(serve, name, kind, backend, options):
    served = serve(name, kind, backend, **options)
    hello, mtu = served.hello, options.get("mtu", 1500)
    assert (hello["mac"], hello["kind"], hello["link"], hello["mtu"]) == (served.card.mac, kind, True, mtu)
    assert hello["negotiation"].up and hello["negotiation"].complete
    served.answers(V6)
    expected = hashlib.sha256(pattern(BYTES)).hexdigest()
    for host, direction in ((V4, []), (V6, ["-R"])):
        full = str(mtu - (48 if ":" in host else 28))
        # Bursts, for ping(8) waits no longer for the last answer than -i says.
        for count, size in (("3", full), ("100", "56"), ("100", "56")):
            said = served.peer("ping", "-q", "-c", count, "-l", count, "-i", "30", "-M", "do", "-s", size, host).stdout
            assert " 0% packet loss" in said, said
        url = f"http://[{host}]/bytes/{BYTES}" if ":" in host else f"http://{host}/bytes/{BYTES}"
        assert served.peer("sh", "-c", f"curl -sSgf '{url}' | sha256sum").stdout.split()[0] == expected
        assert iperf3(served, host, *direction) > 0
    end = served.end()
    nic = end["nic"]
    assert end["pump"]["errors"] == end["pump"]["tx_refused"] == nic["tx_dropped"] == nic["resets"] == 0
    assert nic["tx_super_segments"] > 0 and nic["hw_super_segments_sent"] > 0
    assert 0 < nic["wakeups"] < nic["rx_frames"]
    assert nic["hw_good_frames_received"] >= nic["rx_frames"] and nic["hw_good_octets_sent"] > BYTES
    if name in EXPRESS:             # QEMU's 8254x verify nothing and say so
        assert nic["rx_checksums"] >= BYTES // mtu


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_connection_outlives_all_that_happens_to_its_card(serve, guest, name):
    served = serve(name, "msix" if name in EXPRESS else "intx")
    talk = served.talk()
    talk.goes_on()
    for up, word in (False, "link down"), (True, "link up"):
        guest.monitor("set_link", name=name, up=up)
        served.until(word)
    for signal, word in ("USR1", "reset"), ("HUP", "resized"), ("USR2", "recovered"), ("USR1", "reset"):
        talk.goes_on()
        served.signal(signal)
        served.until(word)
    talk.goes_on(2_000_000)     # more than what is on its way
    assert talk.end() > 3_000_000
    end = served.end()
    assert (end["nic"]["resets"], end["pump"]["errors"], end["rings"]) == (4, 0, (256, 512))
    assert end["nic"]["link_changes"] >= 2


GROUPS = [bytes.fromhex("01005e000009"), bytes.fromhex("33330000000f")]
STRANGER = bytes.fromhex("020000000099")
SETTINGS = [
    ({}, ["ours", "nine", "fifteen", "vlan5", "vlan6"]),
    ({"multicast": [GROUPS[0]]}, ["ours", "nine", "vlan5", "vlan6"]),
    ({"vlans": [5]}, ["ours", "nine", "fifteen", "vlan5"]),
    ({"promiscuous": True}, ["ours", "stranger", "nine", "fifteen", "vlan5", "vlan6"]),
]


def bare_frames(mac, number):
    """A batch of frames, begun and ended by broadcasts."""
    def frame(to, name, tag=b"", length=60):
        return (to + STRANGER[:5] + b"\x01" + tag + inside.ETHERTYPE + name.encode()).ljust(length, b"\0")

    everyone = b"\xff" * 6
    return [
        frame(everyone, f"begin {number}"), frame(mac, "ours", length=1514), frame(STRANGER, "stranger"),
        frame(GROUPS[0], "nine"), frame(GROUPS[1], "fifteen"), frame(mac, "vlan5", b"\x81\x00\x20\x05", 1518),
        frame(mac, "vlan6", b"\x81\x00\x00\x06", 64), frame(mac, "long", length=9014), frame(everyone, f"end {number}"),
    ]


@pytest.mark.parametrize(("name", "kind", "mtu"), [("e1000", "intx", 1500), ("e1000e", "msix", JUMBO)])
def test_filters_tags_and_long_frames(guest, name, kind, mtu):
    """QEMU's cards do not look at frames they send, so the other way it is the frames themselves that tell."""
    card = CARDS[name]
    mac = bytes.fromhex(card.mac.replace(":", ""))
    sent, expected = frames_to_send(mac, mtu)
    guest.netns.run("ip", "link", "set", name, "mtu", str(JUMBO))
    try:
        with wire(guest.netns, name) as sock:
            call = guest.start(inside.bare, card.bdf, [kind], [setting for setting, _ in SETTINGS], sent, mtu=mtu, timeout=600)
            assert call.next() == "listening"
            with Repeated(sock, lambda number: bare_frames(mac, number)):
                for _ in SETTINGS[1:]:
                    assert call.next() == "listening"
                assert call.next() == "sending"
            answer = call.result()
            came = []
            while len(came) < len(expected):
                octets = captured(sock)
                if octets[6:12] == mac and octets[0] == STRANGER[0]:
                    came.append(octets)
    finally:
        guest.netns.run("ip", "link", "set", name, "mtu", "1500")
    lengths = {"ours": 1514, "vlan5": 1518, "vlan6": 64, "long": 9014}
    for (setting, names), seen in zip(SETTINGS, answer["seen"], strict=True):
        wanted = [*names, "long"] if mtu == JUMBO else names
        assert seen == [(each, lengths.get(each, 60)) for each in wanted], setting
    assert came == expected
    nic = answer["nic"]
    assert (answer["mtu"], nic["tx_frames"], nic["hw_good_frames_sent"]) == (mtu, len(sent), len(expected))
    assert nic["hw_multicasts_received"] > 0 < nic["hw_broadcasts_received"]
    assert (nic["hw_oversize"] > 0) == (mtu < JUMBO)


def frames_to_send(mac, mtu):
    """For `inside.bare`: what the driver is given, and what is to come out. The tag is in the frames, as the stack puts it."""
    tagged = Ether(src=mac, dst=STRANGER) / Dot1Q(vlan=5)
    plain = [bytes(Ether(src=mac, dst=STRANGER, type=0x88B5)).ljust(mtu + 14, b"p"),
             bytes(tagged / Raw(b"t" * mtu))]
    datagram = tagged / IP(src="10.9.0.2", dst="10.9.0.1") / UDP(sport=1, dport=2) / (b"datagram" * 9)
    sent, expected = [(octets, {}) for octets in plain], list(plain)
    if mtu == 1500:         # a card with offloads of QEMU's own leaves what these two do to the tap behind it
        sent.append(offloaded(datagram))
        expected.append(bytes(datagram))
        data, size = bytes(range(250)) * 12, 1448
        def segment(at, flags, number):
            return tagged / IP(src="10.9.0.2", dst="10.9.0.1", id=7 + number) / TCP(seq=at, flags=flags) / data[at:at + size]
        octets, offload = offloaded(tagged / IP(src="10.9.0.2", dst="10.9.0.1", id=7) / TCP(seq=0, flags="PA") / data)
        sent.append((octets, offload | {"segment_size": size}))
        expected += [bytes(segment(0, "A", 0)), bytes(segment(size, "A", 1)), bytes(segment(2 * size, "PA", 2))]
    return sent, expected
