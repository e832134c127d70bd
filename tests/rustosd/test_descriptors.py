"""Ends of socketpairs that travel with octets: what arrives is what was sent, and nothing is left open."""

import os
import socket

import pytest

from rustosd.descriptors import End, make_pair, receive_with, send_now
from tests.support.descriptors import open_descriptors


def test_an_end_travels_with_octets_and_speaks_with_its_other_one():
    before = len(open_descriptors())
    ours, theirs = make_pair(socket.SOCK_STREAM, 65536)
    left, travels = make_pair(socket.SOCK_STREAM, 65536)
    assert ours.hand_over(b"record", travels) and travels.fileno() == -1
    octets, fd = receive_with(theirs.fileno(), 6)
    assert octets == b"record" and not os.get_inheritable(fd)
    send_now(fd, b"hello")
    assert (left.drain(), left.drain()) == (5, 0)
    assert receive_with(theirs.fileno(), 6) is None
    ours.send(b"alone")
    assert receive_with(theirs.fileno(), 6) == (b"alone", -1)
    ours.close()
    ours.close()
    assert receive_with(theirs.fileno(), 6) == (b"", -1)
    os.close(fd)
    del ours, theirs, left, travels
    assert len(open_descriptors()) == before


def test_python_reads_what_was_handed_over():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert End(os.dup(ours.fileno())).hand_over(b"x", End(os.dup(0)))
        octets, fds, _, _ = socket.recv_fds(theirs, 10, 4)
        assert octets == b"x" and len(fds) == 1
        os.close(fds[0])
        socket.send_fds(ours, [b"y"], [0, 1])       # one more than there is room for: the kernel closes it
        octets, fd = receive_with(theirs.fileno(), 10)
        assert octets == b"y" and fd >= 0
        os.close(fd)


def test_a_full_or_closed_pair_refuses_and_what_should_travel_is_closed():
    before = len(open_descriptors())
    ours, theirs = make_pair(socket.SOCK_STREAM, 4096)
    with pytest.raises(OSError):
        while True:
            ours.send(bytes(4096))
    assert not ours.hand_over(bytes(4096), End(os.dup(0)))
    theirs.close()
    with pytest.raises(OSError):
        ours.send(b"x")
    assert not ours.hand_over(b"x", End(os.dup(0)))
    ours.close()
    assert len(open_descriptors()) == before


def test_room_is_as_large_as_asked():
    ours, theirs = make_pair(socket.SOCK_STREAM, 1 << 20)
    with socket.socket(fileno=os.dup(ours.fileno())) as one:
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 << 20
    theirs.limit(5000)
    with socket.socket(fileno=os.dup(theirs.fileno())) as one:
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 10000
