"""`rustosctl` on one interface or connection, traceroute, captures: what they show, what they refuse, a terminal.

`golden/` has what each command prints; look at the difference, then at the new output, before you replace a file there.
"""

import json
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from rustosd.capture.captures import Wish
from rustosd.capture.pcapng import Reader
from tests.rustosd.fake_network import DETAILS, User
from tests.rustosd.goldens import reads_as_promised
from tests.rustosd.terminal import on_a_terminal, rustosctl_command
from tests.support.host import Host

GOLDEN = Path(__file__).with_name("golden")
SHOWN = {
    "nic-show": (0, "nic", "show", "rustos0"), "nic-show-lo": (0, "nic", "show", "lo"),
    "nic-show-device": (0, "nic", "show", "eth0"),
    "conn-show": (0, "conn", "show", "7.2"), "conn-show-process": (0, "conn", "show", "8.1"),
    "traceroute": (0, "traceroute", "203.0.113.9"), "traceroute-icmp": (0, "traceroute", "203.0.113.9", "-I", "-q", "1"),
    "traceroute-prohibited": (1, "traceroute", "203.0.113.7", "-q", "2"),
    "traceroute-silence": (1, "traceroute", "203.0.113.8", "-m", "3"),
}


@pytest.fixture
def network(core, machine):
    """More of a network than the fake has by itself."""
    core.stack.nics.append(core.stack.nics[1] | {"index": 2, "name": "eth0", "mac": "02:00:5e:10:00:02"})
    core.stack.connection_rows.append(core.stack.connection_rows[0] | {"handle": 8 | 1 << 32, "remote_port": 40001})
    core.users[8 | 1 << 32] = User(pid=4711)
    comm = machine.root / "proc/4711/comm"
    comm.parent.mkdir(parents=True, exist_ok=True)
    comm.write_text("nc\n")
    return core


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, network, name):
    expected, *words = SHOWN[name]
    reads_as_promised(rustosctl, name, words, status=expected)


@pytest.mark.parametrize("name", ["nic-show-device", "conn-show", "traceroute"])
def test_a_terminal_shows_the_same_words(socket_path, network, name):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, 80, *SHOWN[name][1:]))
    assert sorted(shown.split()) == sorted((GOLDEN / f"{name}.txt").read_text().split())
    assert max(map(len, shown.splitlines())) <= 80


def test_a_connection_is_closed_by_whoever_has_it(rustosctl, network):
    http, process = network.users[7 | 2 << 32], network.users[8 | 1 << 32]
    assert rustosctl("conn", "close", "7.2") == (0, "", "")
    assert rustosctl("conn", "close", "8.1", "--reset") == (0, "", "")
    assert (http.calls, process.calls, network.kicks) == (["close"], ["abort"], 2)


@pytest.mark.parametrize(("state", "released", "complaint"), [
    ("TIME_WAIT", True, "7.2 is closing already, time_wait; --reset ends it at once"),
    ("SYN_RECEIVED", False, "7.2 is syn_received and nobody's yet; --reset ends it at once"),
])
def test_a_connection_that_nobody_has_is_only_reset(rustosctl, network, state, released, complaint):
    network.users.clear()
    network.stack.connection_rows[0] |= {"state": state, "released": released}
    assert rustosctl("conn", "close", "7.2") == (1, "", f"rustosctl: {complaint}\n")
    shown = rustosctl("conn", "show", "7.2")[1]
    assert f"owner  {'nobody any more' if released else 'a listener'}\n" in shown
    assert rustosctl("conn", "close", "7.2", "--reset") == (0, "", "")
    assert [row["handle"] for row in network.stack.connection_rows] == [8 | 1 << 32]


@pytest.mark.parametrize(("words", "status", "complaint"), [
    (("nic", "show", "eth9"), 1, "there is no interface eth9; there is lo, rustos0, eth0"),
    (("conn", "show", "9.9"), 1, "there is no connection 9.9; see: rustosctl conn list"),
    (("conn", "show", "4294967303.1"), 1, "there is no connection 4294967303.1; see"),
    (("conn", "close", "9.9"), 1, "there is no connection 9.9"),
    (("conn", "show", "seven"), 2, "'seven' is no connection's ID, which is two numbers: 7.2"),
    (("traceroute", "nowhere"), 2, "nowhere"),
    (("traceroute", "198.51.100.1"), 1, "no route to the destination"),
    (("traceroute", "203.0.113.9", "-q", "11"), 2, "'-q'"),
    (("capture", "-i", "eth9"), 1, "there is no interface eth9; there is lo, rustos0"),
    (("capture", "--reason", "ipv4_checksums"), 1, "no frame is dropped as ipv4_checksums; did you mean ipv4_checksum?"),
    (("capture", "--reason", "delivered"), 1, "no frame is dropped as delivered"),
    (("capture", "-w", "/nowhere/x"), 1, "cannot write /nowhere/x: No such file or directory"),
    (("capture", "-s", "13"), 2, "'-s'"),
])
def test_errors_say_what_is_wrong(rustosctl, network, words, status, complaint):
    got, out, err = rustosctl(*words)
    assert got == status and complaint in err and err.count("\n") == 1
    assert "traceroute" in words or not out


def test_a_capture_in_lines(rustosctl, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    status, out, err = rustosctl("capture")
    assert (status, err) == (0, "capturing on lo, rustos0\n3 frames captured, 3 of 4 passed the filter\n")
    arp = "ARP, Request who-has 10.77.0.99 tell 10.77.0.1, length 28"
    assert re.sub(r"^\d\d:\d\d:\d\d", "TIME", out, flags=re.MULTILINE).splitlines() == [
        f"TIME.123456 rustos0 In  {arp} [dropped: arp_not_for_us]",
        "TIME.123456 rustos0 In  IP 0.0.0.0 > 0.0.0.0: wrong header, length 0 [dropped: ethernet_not_for_us]",
        f"TIME.123457 rustos0 Out {arp}",
    ]


def test_a_capture_in_a_file(rustosctl, tmp_path):
    file = tmp_path / "x.pcapng"
    assert rustosctl("capture", "-w", str(file))[:2] == (0, "")
    reader = Reader()
    octets = file.read_bytes()
    whole, packets = reader.feed(octets)
    assert whole == octets and reader.complete and [packet.length for packet in packets] == [42, 60, 42]


def test_words_become_a_wish(rustosctl, core, tmp_path):
    file = str(tmp_path / "x")
    rustosctl("capture", "-w", file)
    assert core.captures.wish == Wish(buffer_octets=4 << 20)
    rustosctl("capture", "rustos0", "lo", "-w", file, "--direction", "in", "-c", "5", "-s", "96", "--duration", "1.5",
              "-B", "100")
    assert core.captures.wish == Wish(interfaces=("rustos0", "lo"), outgoing=False, count=5, snap_octets=96, duration_s=1.5,
                                      buffer_octets=128 << 10)
    rustosctl("capture", "--drops", "-w", file)
    assert core.captures.wish.reasons == {"ipv4_checksum", "no_route"}
    rustosctl("capture", "--reason", "no_route", "-w", file)
    assert core.captures.wish.reasons == {"no_route"}


def test_a_filter_is_compiled_here_and_sent_as_a_program(rustosctl, core, tmp_path):
    status, _, err = rustosctl("capture", "-i", "rustos0", "-w", str(tmp_path / "x"), "udp", "port", "53")
    if "apt-get install libpcap0.8" in err:
        pytest.skip("needs libpcap")
    assert status == 0 and core.captures.wish.expression == "udp port 53" and len(core.captures.wish.program) % 8 == 0
    assert struct.unpack_from("<HBBI", core.captures.wish.program)[::3] == (0x28, 12)       # ldh [12]: the EtherType


def test_octets_are_not_for_a_terminal(socket_path):
    command = rustosctl_command("--socket", socket_path, "capture", "-w", "-")
    piped = subprocess.run(command, capture_output=True, timeout=60)
    assert piped.returncode == 0 and piped.stdout[:4] == b"\x0a\x0d\x0d\x0a"
    assert "dropped: ethernet_not_for_us" in on_a_terminal(socket_path, 80, "capture")


@pytest.mark.parametrize(("method", "parameters"), [
    ("conn.show", {"id": "7.2; reboot"}), ("conn.show", {"id": "1" * 50}), ("conn.close", {"id": "7"}),
    ("top.sample", {"most": 65}), ("trace.hop", {"address": "10.0.0.1", "hop_limit": 256}),
    ("trace.hop", {"address": "10.0.0.1", "hop_limit": 1, "probes": 11}), ("capture.start", {"interfaces": ["a" * 99]}),
    ("capture.start", {"program": "A" * 50000}), ("capture.start", {"buffer_kib": 1 << 40}),
    ("capture.start", {"duration_ms": 0}), ("capture.start", {"expression": "x" * 5000}),
])
def test_what_is_out_of_bounds_is_refused_by_type(socket_path, method, parameters):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path)
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode() + b"\n")
        error = json.loads(client.makefile("rb").readline())["error"]
    assert error["code"] == -32602 and method in error["message"]


def test_a_word_that_is_neither_interface_nor_filter_says_both(rustosctl):
    status, _, err = rustosctl("capture", "rustos9")
    if "libpcap, which is not installed" in err:
        pytest.skip("needs libpcap")
    assert status == 2 and "no filter" in err and "nor is it an interface; see: rustosctl nic" in err


def test_the_fake_tells_what_the_stack_tells():
    host = Host()
    handle = host.stack.tcp.connect(host.now, "10.77.0.1", 80)
    real = host.stack.tcp.details(handle, host.now)
    assert set(DETAILS) <= set(real) and real["timers"] == {} and real["mss"] > 0


@pytest.mark.parametrize(("words", "found"), [
    ("conn show 7", ["7.2"]), ("conn close ", ["7.2", "8.1"]), ("nic show r", ["rustos0"]),
    ("capture --reason ipv4", ["ipv4_checksum"]), ("capture -i l", ["lo"]), ("capture e", ["eth0"]),
])
def test_names_are_completed(socket_path, network, words, found):
    environment = os.environ | {"_RUSTOSCTL_COMPLETE": "complete_bash", "COMP_WORDS": f"rustosctl {words}",
                                "COMP_CWORD": str(words.count(" ") + 1), "RUSTOSD_SOCKET": socket_path}
    done = subprocess.run(rustosctl_command(), env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == found, done.stderr
