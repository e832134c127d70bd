"""What this machine does at its end of a guest's cable: bare frames, and a TCP conversation that goes on through anything."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable

from tests.support.netns import Netns

PATIENCE_S = 300
"""For anything that comes within seconds on a machine that is not busy."""
PATTERN = bytes(range(251)) * 4096
"""No power of two divides its period, so that nothing can be exchanged unseen."""
_PIECE = 65536
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_VLAN_VALID = 263, 8, 1 << 4


def wait_for(come: Callable[[], object], what: str, every_s: float = 0.05) -> None:
    """Until it has come; AssertionError when it does not."""
    limit = time.monotonic() + PATIENCE_S
    while not come():
        assert time.monotonic() < limit, f"{what} did not come within {PATIENCE_S} s"
        time.sleep(every_s)


def pattern(length: int, begin: int = 0) -> bytes:
    """So many octets of the endless pattern that the daemon's /bytes/N answers with, from `begin` on."""
    shift = begin % 251
    octets = PATTERN if length + shift <= len(PATTERN) else bytes(range(251)) * ((length + shift) // 251 + 1)
    return octets[shift:shift + length]


def in_netns(netns: Netns, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket made inside the namespace. It belongs there wherever it is used."""
    ours, theirs = socket.socketpair()

    def give() -> None:
        with make() as made:
            socket.send_fds(theirs, [b"."], [made.fileno()])

    with ours, theirs:
        netns.call(give, timeout=PATIENCE_S)
        return socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])


def wire(netns: Netns, interface: str) -> socket.socket:
    """A socket for whole frames; read it with `captured`."""
    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((interface, _ETH_P_ALL))
        made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        return made

    return in_netns(netns, make)


def captured(sock: socket.socket) -> bytes:
    """The next frame, with the tag that Linux keeps apart. Raises TimeoutError."""
    sock.settimeout(PATIENCE_S)
    octets, (control,), _, _ = sock.recvmsg(1 << 17, socket.CMSG_SPACE(20))
    status, _, _, _, _, tag, ethertype = struct.unpack("IIIHHHH", control[2])
    return octets[:12] + struct.pack(">HH", ethertype, tag) + octets[12:] if status & _TP_STATUS_VLAN_VALID else octets


class Conversation:
    """A TCP connection to an echo server that carries as much as it can both ways, each octet checked."""

    def __init__(self, netns: Netns, host: str) -> None:
        self._socket = in_netns(netns, lambda: socket.create_connection((host, 7), PATIENCE_S))
        self._socket.settimeout(PATIENCE_S)
        self._over = threading.Event()
        self._wrong: list[BaseException] = []
        self.sent = self.returned = 0
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._send, self._check)]
        for thread in self._threads:
            thread.start()

    def goes_on(self, octets: int = 300_000) -> None:
        """Wait until so many more have come back."""
        goal = self.returned + octets
        wait_for(lambda: self._wrong or self.returned >= goal, "more of the conversation")
        assert not self._wrong, self._wrong

    def end(self) -> int:
        """Let it come to its own end; how many octets went each way. AssertionError unless all came back."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()
        assert not self._wrong, self._wrong
        assert self.returned == self.sent
        return self.sent

    def abort(self) -> None:
        """End it whatever its state. May be called after `end`."""
        self._over.set()
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, AssertionError) as error:
            self._wrong.append(error)

    def _send(self) -> None:
        while not self._over.is_set():
            self._socket.sendall(pattern(_PIECE, self.sent))
            self.sent += _PIECE
        self._socket.shutdown(socket.SHUT_WR)

    def _check(self) -> None:
        while octets := self._socket.recv(_PIECE):
            assert octets == pattern(len(octets), self.returned), f"damage near octet {self.returned}"
            self.returned += len(octets)


class Repeated:
    """Context: batch after batch of frames on a wire, for a card may be deaf for a moment; `make` gets their number."""

    def __init__(self, sock: socket.socket, make: Callable[[int], list[bytes]], pause_s: float = 0.2) -> None:
        self._socket, self._make, self._pause_s = sock, make, pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Repeated":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        for number in itertools.count(1):
            for octets in self._make(number):
                self._socket.send(octets)
            if self._over.wait(self._pause_s):
                return
