"""Sockets of the kernel and of a real daemon, in every pairing, for one body of expectations."""

import ctypes
import os
import socket as kernel
import threading
from collections.abc import Iterator

import pytest

import rustosd.client as ours
from rustosd.client import Daemon
from tests.peers.conftest import V4, V6, Peer, need
from tests.rustosd.handoff.host import Host
from tests.support.netns import unavailable

KERNEL_HOSTS = {kernel.AF_INET: "127.0.0.1", kernel.AF_INET6: "::1"}
OUR_HOSTS = {kernel.AF_INET: V4, kernel.AF_INET6: V6}
LINUX_HOSTS = {kernel.AF_INET: "10.77.0.1", kernel.AF_INET6: "fd77::1"}
PATIENCE_S = 60


def inside(path, make):
    """What `make` returns in a thread that is in the network namespace: a socket stays where it was made."""
    result = []

    def run():
        with open(path) as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):
                raise OSError(ctypes.get_errno(), "setns")
        result.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


class Side:
    """Where sockets are made, and how the others find them."""

    def __init__(self, name, make, hosts):
        self.name = name
        self.make = make
        self.hosts = hosts

    def socket(self, family, kind=kernel.SOCK_STREAM):
        made = self.make(family, kind)
        made.settimeout(PATIENCE_S)
        return made


class Net:
    """A client side and a server side with one address family."""

    def __init__(self, client, server, family):
        self.client = client
        self.server = server
        self.family = family
        self.opened = []

    @property
    def host(self):
        return self.server.hosts[self.family]

    def keep(self, sock):
        self.opened.append(sock)
        return sock

    def listener(self, backlog=16):
        sock = self.keep(self.server.socket(self.family))
        sock.bind((self.host, 0))
        sock.listen(backlog)
        return sock

    def connect(self, listener):
        sock = self.keep(self.client.socket(self.family))
        sock.connect(listener.getsockname()[:2])
        return sock

    def pair(self):
        """A connection: the client's socket and the server's."""
        listener = self.listener()
        client = self.connect(listener)
        server, _ = listener.accept()
        server.settimeout(PATIENCE_S)
        listener.close()
        return client, self.keep(server)

    def datagrams(self):
        """Two bound datagram sockets."""
        made = []
        for side in (self.client, self.server):
            sock = self.keep(side.socket(self.family, kernel.SOCK_DGRAM))
            sock.bind((side.hosts[self.family], 0))
            made.append(sock)
        return made

    def close(self):
        for sock in self.opened:
            sock.close()


@pytest.fixture(scope="session")
def peer(tmp_path_factory) -> Iterator[Peer]:
    """One daemon for all tests of this directory."""
    if why := unavailable():
        pytest.skip(why)
    for tool in ("ping", "curl"):
        need(tool)
    running = Peer(tmp_path_factory.mktemp("handoff"))
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def daemon(peer) -> Daemon:
    return Daemon(str(peer.control))


@pytest.fixture
def environment(peer):
    """For programs that are to find the daemon."""
    return os.environ | {"RUSTOSD_SOCKET": str(peer.control)}


@pytest.fixture(scope="session")
def sides(peer, daemon):
    return {
        "kernel": Side("kernel", kernel.socket, KERNEL_HOSTS),
        "ours": Side("ours", lambda family, kind: ours.Socket(family, kind, daemon=daemon), OUR_HOSTS),
        "linux": Side("linux", lambda family, kind: inside(peer.netns.path, lambda: kernel.socket(family, kind)),
                      LINUX_HOSTS),
    }


PAIRINGS = ("kernel-kernel", "ours-linux", "linux-ours", "ours-ours")


@pytest.fixture(params=PAIRINGS)
def pairing(request):
    return request.param


@pytest.fixture(params=[kernel.AF_INET, kernel.AF_INET6], ids=["ipv4", "ipv6"])
def net(request, pairing, sides):
    """Each pairing of client and server in each family; the kernel's with itself says what to expect."""
    client, server = pairing.split("-")
    made = Net(sides[client], sides[server], request.param)
    yield made
    made.close()


@pytest.fixture
async def host():
    """The daemon's half alone."""
    made = Host()
    yield made
    made.close()
