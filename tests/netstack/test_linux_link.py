"""ARP, Neighbor Discovery, ICMP and UDP against the Linux kernel, over a TAP in a namespace of its own."""

import errno
import os
import select
import shutil
import subprocess
import sys
import threading
import time

import pytest

from drivers.tap import Tap
from mm.frame import RxBurst, TxBurst
from netstack.stack import Stack
from tests.support.netns import Netns, unavailable

MAC = bytes.fromhex("020000000002")
V4, V6, LINUX_V4, LINUX_V6 = "10.77.0.2", "fd77::2", "10.77.0.1", "fd77::1"


class Peer:
    """A stack that runs in a thread, on a TAP whose other end is Linux in a namespace."""

    def __init__(self, netns, offload):
        self.netns = netns
        self.tap = Tap.open(f"rustt{os.getpid() % 100000}%d", MAC, offload=offload)
        name = self.name = self.tap.name
        # the descriptor keeps working when the interface moves
        subprocess.run(["ip", "link", "set", name, "netns", netns.name], check=True)
        netns.run("ip", "addr", "add", f"{LINUX_V4}/24", "dev", name)
        netns.run("ip", "addr", "add", f"{LINUX_V6}/64", "dev", name, "nodad")
        netns.run("ip", "link", "set", name, "up")
        self.stack = Stack(os.urandom(16), now=time.monotonic_ns())
        self.index = self.stack.add_interface("tap0", MAC, 1500, self.tap.features)
        self.stack.add_address(self.index, f"{V4}/24")
        self.lock = threading.Lock()
        self.stop = False
        self.echo = self.stack.udp.bind(None, 7)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        rx, tx = RxBurst(), TxBurst()
        while not self.stop:
            select.select([self.tap.fileno()], [], [], 0.01)
            with self.lock:
                while self.tap.receive(rx) > 0:
                    self.stack.receive(self.index, time.monotonic_ns(), rx)
                    self._serve()
                    self._flush(tx)
                self.stack.advance(time.monotonic_ns())
                self._flush(tx)

    def _serve(self):
        for id in self.stack.udp.ready():
            if id == self.echo:
                for data, host, port in self.stack.udp.receive(id):
                    self.stack.udp.send(id, data, host, port)

    def _flush(self, tx):
        while self.stack.transmit(self.index, time.monotonic_ns(), tx):
            self.tap.transmit(tx)
            tx.clear()

    def wait(self, condition, seconds=10):
        """Wait until the stack, asked under the lock, has something true to say, and return that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self.lock:
                if answer := condition(self.stack):
                    return answer
            time.sleep(0.005)
        raise AssertionError("it never happened")

    def address_state(self, address):
        return self.wait(lambda stack: next(
            (row["state"] for row in stack.addresses() if row["address"] == address and row["state"] != "tentative"),
            None))

    def close(self):
        self.stop = True
        self.thread.join()
        self.tap.close()


@pytest.fixture(scope="module", params=[True, False], ids=["offload", "plain"])
def peer(request):
    """One for all tests of the module, since duplicate address detection takes a second."""
    if why := unavailable():
        pytest.skip(why)
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun (modprobe tun)")
    with Netns() as netns:
        peer = Peer(netns, request.param)
        try:
            with peer.lock:
                peer.stack.add_address(peer.index, f"{V6}/64")
            assert peer.address_state(f"{V6}/64") == "preferred"
            yield peer
        finally:
            peer.close()


def linux(netns, program, *arguments):
    """Run Python source inside the namespace; its output."""
    return netns.run(sys.executable, "-c", program, *map(str, arguments), timeout=60).stdout


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("size", [56, 1400])
def test_linux_pings_us(peer, host, size):
    if not shutil.which("ping"):
        pytest.skip("needs ping (apt install iputils-ping)")
    answer = peer.netns.run("ping", "-n", "-f", "-c", "2000", "-s", str(size), host).stdout
    assert "2000 received, 0% packet loss" in answer
    assert MAC.hex(":") in peer.netns.run("ip", "neigh", "show", "to", host).stdout


def test_linux_pings_all_nodes(peer):
    answer = peer.netns.run("ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", f"ff02::1%{peer.name}").stdout
    # from the scope of the address Linux chose to ask from
    assert f"from {V6}" in answer or "from fe80::ff:fe00:2" in answer


@pytest.mark.parametrize("host", [LINUX_V4, LINUX_V6])
def test_we_ping_linux(peer, host):
    for sequence in range(5):
        with peer.lock:
            peer.stack.ping_send(time.monotonic_ns(), host, 0x1234, sequence, 1000)
        ((identifier, got, source, _, hop_limit, octets, error),) = peer.wait(lambda stack: stack.ping_replies())
        assert (identifier, got, source, hop_limit, octets, error) == (0x1234, sequence, host, 64, 1008, None)
    row = next(row for row in peer.stack.neighbors() if row["address"] == host)
    assert row["state"] in ("reachable", "delay", "probe") and row["idle_ns"] is not None


@pytest.mark.parametrize("host", [V4, V6])
def test_linux_gets_its_datagrams_back(peer, host):
    answer = linux(peer.netns, """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 7))
for n in list(range(0, 1400, 7)) + [1451, 1452]:
    data = bytes(i * n & 0xFF for i in range(n))
    s.send(data)
    assert s.recv(2000) == data, n
print("all")
""", host)
    assert answer.strip() == "all"


@pytest.mark.parametrize("host", [V4, V6])
def test_linux_is_told_that_a_port_is_closed(peer, host):
    answer = linux(peer.netns, """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 9))
s.send(b"anybody?")
try:
    s.recv(10)
except ConnectionRefusedError:
    print("refused")
""", host)
    assert answer.strip() == "refused"


@pytest.mark.parametrize("host", [LINUX_V4, LINUX_V6])
def test_linux_tells_us_that_a_port_is_closed(peer, host):
    with peer.lock:
        id = peer.stack.udp.bind(None, 0)
        peer.stack.udp.connect(id, host, 9)
        peer.stack.udp.send(id, b"anybody?")
    assert type(peer.wait(lambda stack: stack.udp.error(id))) is ConnectionRefusedError


def test_address_linux_has_is_not_ours(peer):
    peer.netns.run("ip", "addr", "add", "fd77::77/64", "dev", peer.name, "nodad")
    with peer.lock:
        peer.stack.add_address(peer.index, "fd77::77/64")
    assert peer.address_state("fd77::77/64") == "duplicate"
    assert peer.stack.counters()["dad_conflicts"] == 1


def test_address_we_have_is_not_linux_s(peer):
    peer.netns.run("ip", "addr", "add", f"{V6}/64", "dev", peer.name)
    deadline = time.monotonic() + 10
    while "dadfailed" not in (state := peer.netns.run("ip", "-6", "addr", "show", "dev", peer.name).stdout):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    peer.netns.run("ip", "addr", "del", f"{V6}/64", "dev", peer.name)


def test_silent_neighbor_fails_in_three_seconds(peer):
    start = time.monotonic()
    with peer.lock:
        before = peer.stack.unsent()["neighbor_failed"]
        peer.stack.ping_send(time.monotonic_ns(), "10.77.0.99", 1, 1)
    peer.wait(lambda stack: stack.unsent()["neighbor_failed"] > before)
    assert time.monotonic() - start > 2.5
    with peer.lock, pytest.raises(OSError) as caught:
        peer.stack.ping_send(time.monotonic_ns(), "10.77.0.99", 1, 2)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert peer.stack.unsent()["neighbor_failed"] == before + 2
