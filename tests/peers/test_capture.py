"""Capturing on a running daemon: what tshark, capinfos and tcpdump make of it while Linux talks to the stack."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from rustosd.capture.pcapng import Reader
from tests.peers.conftest import CONTROL, V4, V6, need, url

NEVER_THERE_S = 30


class Capturing:
    """`rustosctl capture` with some words, under way when the block begins and at its end when the block ends."""

    def __init__(self, peer, *words, stop=signal.SIGINT, **options):
        self.peer, self.words, self.stop, self.options = peer, words, stop, options

    def __enter__(self):
        command = [sys.executable, "-c", CONTROL, "--socket", str(self.peer.control), "capture", *self.words]
        # not by `ip netns exec`, which would be what signals reach: the control socket is a path
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, **{"stdout": subprocess.PIPE, **self.options})
        line = self.process.stderr.readline().decode()
        assert line.startswith("capturing on"), line + self.process.stderr.read().decode()
        return self

    def __exit__(self, kind, *_):
        if self.stop is not None and self.process.poll() is None:
            self.process.send_signal(self.stop)
        try:
            self.out, self.err = self.process.communicate(timeout=NEVER_THERE_S)
        finally:
            self.process.kill()
        if kind is None:
            assert self.process.returncode == 0, self.err


def ping(peer, host=V4, *words):
    return peer.netns.run("ping", "-c1", "-W5", *words, host)


def tshark(file, *words):
    done = subprocess.run([need("tshark"), "-n", "-r", str(file), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields(file, *names, wanted=""):
    out = tshark(file, "-T", "fields", *[word for name in names for word in ("-e", name)], "-Y", wanted)
    return [tuple(line.split("\t")) for line in out.splitlines()]


def test_both_directions_in_a_file_that_wireshark_reads(peer, tmp_path):
    file = tmp_path / "x.pcapng"
    with Capturing(peer, "rustos0", "-w", str(file), "icmp or icmp6 or tcp port 80") as capturing:
        ping(peer)
        ping(peer, V6)
        peer.netns.run("curl", "-sfo", "/dev/null", url(V4, "/bytes/300000"))
    assert re.search(rb"\d+ frames captured, \d+ of \d+ passed the filter\n", capturing.err)
    assert fields(file, "frame.interface_name", "frame.packet_flags_direction", wanted="icmp") == [
        ("rustos0", "0x00000001"), ("rustos0", "0x00000002")]
    about = subprocess.run([need("capinfos"), str(file)], capture_output=True, text=True, timeout=60).stdout
    assert "nanoseconds (9)" in about and "Filter string = icmp or icmp6 or tcp port 80" in about
    assert "Number of stat entries = 1" in about and "Name = rustos0" in about and "Capture application: rustosd" in about
    # every octet of the transfer, in super-segments as they crossed; and nothing that Wireshark would call an error
    sizes = [int(size) for (size,) in fields(file, "tcp.len", wanted="tcp.srcport == 80 && tcp.len > 0")]
    assert sum(sizes) > 300_000 and max(sizes) > 1448
    assert fields(file, "frame.number", wanted="_ws.malformed || tcp.analysis.lost_segment || icmp.checksum.status == 0") == []


def test_tshark_reads_it_live(peer):
    with Capturing(peer, "-w", "-", "icmp6", stop=None) as capturing:
        command = [need("tshark"), "-n", "-l", "-r", "-", "-Y", "icmpv6.type == 129"]
        with subprocess.Popen(command, stdin=capturing.process.stdout, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as live:
            capturing.process.stdout.close()
            os.set_blocking(live.stdout.fileno(), False)
            shown, end = b"", time.monotonic() + NEVER_THERE_S
            while b"Echo (ping) reply" not in shown and time.monotonic() < end:
                ping(peer, V6)
                time.sleep(0.1)
                shown += live.stdout.read() or b""
            assert b"Echo (ping) reply" in shown and capturing.process.poll() is None
            capturing.process.send_signal(signal.SIGTERM)
            live.stdout.close()
            assert live.wait(NEVER_THERE_S) == 0, live.stderr.read()
        capturing.process.stdout = None


def test_drops_say_why(peer, tmp_path):
    file = tmp_path / "drops.pcapng"
    with Capturing(peer, "--drops", "-w", str(file), "udp"):
        ping(peer)
        peer.netns.run("nc", "-u", "-w1", V4, "9", input="x\n", check=False)
        peer.netns.run("nc", "-u", "-w1", V4, "7", input="echo\n", check=False)
    assert fields(file, "frame.comment", "udp.dstport") == [("dropped: udp_port_closed", "9")]
    with Capturing(peer, "--reason", "udp_port_closed", "--direction", "in") as lines:
        peer.netns.run("nc", "-u", "-w1", V6, "9", input="x\n", check=False)
    (line,) = lines.out.decode().splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d{{6}} rustos0 In  IP6 fd77::1\.\d+ > {V6}\.9: UDP, length 2 "
                        r"\[dropped: udp_port_closed\]", line)


def test_lines_are_tcpdumps_for_the_same_frames(peer, tmp_path):
    file, lines = tmp_path / "x.pcapng", []
    with Capturing(peer, "-i", "rustos0", "tcp port 7 or arp or icmp") as text, \
            Capturing(peer, "-i", "rustos0", "-w", str(file), "tcp port 7 or arp or icmp"):
        ping(peer)
        peer.netns.run("nc", "-N", V4, "7", input="hello\n" * 100)
    for line in text.out.decode().splitlines():
        lines.append(re.sub(r" rustos0 (In |Out) ", " ", line))
    tcpdump = subprocess.run([need("tcpdump"), "-nSr", str(file)], capture_output=True, text=True, timeout=60).stdout
    shown = tcpdump.splitlines()
    assert len(lines) >= 10 and lines == [line for line in shown if line in lines]
    assert len(shown) == len(lines)


def test_loopback_and_several_interfaces_at_once(peer):
    with Capturing(peer, "lo", "rustos0", "-w", "-", "icmp") as capturing:
        ping(peer)
        peer.ctl("ping", "127.0.0.1", "-c", "1")
    reader = Reader()
    packets = reader.feed(capturing.out)[1]
    assert [(packet.interface, packet.direction) for packet in packets] == [
        ("rustos0", "in"), ("rustos0", "out"), ("lo", "in"), ("lo", "in")]
    assert reader.complete and set(reader.tallies) == {"lo", "rustos0"}


def test_a_count_and_a_duration_end_it(peer):
    with Capturing(peer, "-c", "2", "-s", "20", "-w", "-", "icmp", stop=None) as capturing:
        ping(peer)
    packets = Reader().feed(capturing.out)[1]
    assert [(len(packet.octets), packet.length) for packet in packets] == [(20, 98)] * 2
    with Capturing(peer, "--duration", "0.2", stop=None):
        pass


def test_a_reader_that_is_killed_leaves_nothing_behind(peer):
    with Capturing(peer, "-w", "-", stop=signal.SIGKILL) as capturing:
        capturing.process.kill()
        capturing.process.wait(10)
        capturing.process.returncode = 0
    end = time.monotonic() + NEVER_THERE_S
    while '"event": "capture_ended"' not in peer.log.read_text().rpartition("capture_started")[2]:
        assert time.monotonic() < end, peer.log.read_text()
        ping(peer)
    assert json.loads(peer.log.read_text().splitlines()[-1])["event"] == "capture_ended"


def test_on_a_terminal_it_shows_lines_and_refuses_octets(peer):
    main, side = pty.openpty()
    command = [sys.executable, "-c", CONTROL, "--socket", str(peer.control), "capture"]
    with subprocess.Popen([*command, "-c", "1", "icmp"], stdout=side, stderr=subprocess.PIPE) as shown:
        assert shown.stderr.readline().startswith(b"capturing on")
        ping(peer)
        assert shown.wait(NEVER_THERE_S) == 0
        assert b"ICMP echo request" in os.read(main, 4096)
    refused = subprocess.run([*command, "-w", "-"], stdout=side, stderr=subprocess.PIPE, timeout=60)
    os.close(side)
    os.close(main)
    assert refused.returncode == 2 and b"pcapng is nothing for a terminal" in refused.stderr


@pytest.mark.parametrize(("words", "status", "complaint"), [
    (("-i", "eth9"), 1, "there is no interface eth9; there is lo, rustos0"),
    (("tcp", "prt", "80"), 2, "no filter: .*syntax error"),
    (("--reason", "udp_port_close"), 1, "did you mean udp_port_closed?"),
    (("-w", "/nowhere/x"), 1, "cannot write /nowhere/x: No such file or directory"),
    (("-s", "3"), 2, "Invalid value for '-s'"),
])
def test_what_cannot_be_captured_says_what_to_do(peer, words, status, complaint):
    done = subprocess.run([sys.executable, "-c", CONTROL, "--socket", str(peer.control), "capture", *words],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == status and re.search(complaint.replace("?", r"\?"), done.stderr), done.stderr
