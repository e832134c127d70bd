"""Packets between a supervisor and its pager: a JSON object each, with at most one descriptor."""

import json
import select
import socket
from typing import Any, Final

MOST: Final = 64 << 10


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * MOST)
    return ends


def send(end: socket.socket, packet: dict[str, Any], fd: int = -1) -> None:
    """Waits while the other one has much to read. Raises OSError when it has gone."""
    octets = json.dumps(packet).encode()
    while True:
        try:
            if fd < 0:
                end.send(octets)
            else:
                socket.send_fds(end, [octets], [fd])
            return
        except BlockingIOError:
            ready = select.poll()
            ready.register(end, select.POLLOUT)
            ready.poll()


def receive(end: socket.socket) -> tuple[dict[str, Any], int] | None:
    """A packet and its descriptor or -1; None: the other one has gone. Raises BlockingIOError."""
    try:
        octets, fds, _, _ = socket.recv_fds(end, MOST, 1)
    except ConnectionError:
        return None
    if not octets:
        return None
    return json.loads(octets), fds[0] if fds else -1
