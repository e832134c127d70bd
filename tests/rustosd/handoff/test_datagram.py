"""What the socket API promises of UDP: the same for the kernel's sockets and ours, in every pairing."""

import errno
import select
import socket

import pytest


def test_datagrams_keep_their_bounds_and_senders(net):
    one, two = net.datagrams()
    for octets in (b"first", b"", b"x" * 1400):
        assert one.sendto(octets, two.getsockname()[:2]) == len(octets)
    for octets in (b"first", b"", b"x" * 1400):
        assert two.recvfrom(2000) == (octets, one.getsockname())
    two.sendto(b"back", one.getsockname()[:2])
    assert one.recvfrom(100) == (b"back", two.getsockname())


def test_answers_go_to_whom_they_are_for_whoever_spoke_last(net):
    server, one = net.datagrams()
    two = net.keep(net.client.socket(net.family, socket.SOCK_DGRAM))
    senders = []
    for client, word in ((one, b"1"), (two, b"2"), (one, b"3"), (one, b"4"), (two, b"5")):
        client.sendto(word, server.getsockname()[:2])
        data, sender = server.recvfrom(100)
        senders.append(sender)
        for to in (sender, senders[0]):         # the last one, and one before
            assert server.sendto(data, to) == 1
    assert [one.recv(9) for _ in range(8)] == [b"1", b"1", b"2", b"3", b"3", b"4", b"4", b"5"]
    assert [two.recv(9) for _ in range(2)] == [b"2", b"5"]
    for nobody in (None, ()):
        with pytest.raises(TypeError):
            server.sendto(b"x", nobody)
    with pytest.raises(ValueError, match="negative"):
        server.recv(-1)


def test_what_does_not_fit_the_buffer_is_cut_and_gone(net):
    one, two = net.datagrams()
    for octets in (b"0123456789", b"abcdefghij", b"klmnopqrst", b"next"):
        one.sendto(octets, two.getsockname()[:2])
    assert two.recv(4) == b"0123"
    data, _, flags, sender = two.recvmsg(4)
    assert (data, flags, sender) == (b"abcd", socket.MSG_TRUNC, one.getsockname())
    buffer = bytearray(3)
    assert two.recvfrom_into(buffer) == (3, one.getsockname())
    assert buffer == b"klm"
    assert two.recv(4, socket.MSG_PEEK) == b"next"
    assert two.recv(100) == b"next"


def test_a_connected_socket_hears_its_peer_alone(net):
    one, two = net.datagrams()
    stranger = net.keep(net.client.socket(net.family, socket.SOCK_DGRAM))
    stranger.sendto(b"before", two.getsockname()[:2])
    assert two.recv(100) == b"before"
    two.connect(one.getsockname()[:2])
    assert two.getpeername() == one.getsockname()
    stranger.sendto(b"unheard", two.getsockname()[:2])
    one.sendto(b"heard", two.getsockname()[:2])
    assert two.recv(100) == b"heard"
    two.send(b"to the peer")
    assert one.recvfrom(100) == (b"to the peer", two.getsockname())


def test_a_closed_port_refuses(net):
    one, two = net.datagrams()
    address = two.getsockname()[:2]
    two.close()
    one.connect(address)
    one.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        one.recv(100)
    one.settimeout(0.05)
    with pytest.raises(TimeoutError):
        one.recv(100)       # told once


def test_a_port_is_had_by_one_unless_both_share_it(net):
    one, _ = net.datagrams()
    other = net.keep(net.client.socket(net.family, socket.SOCK_DGRAM))
    with pytest.raises(OSError) as caught:
        other.bind(one.getsockname()[:2])
    assert caught.value.errno == errno.EADDRINUSE
    sharing = [net.keep(net.client.socket(net.family, socket.SOCK_DGRAM)) for _ in range(2)]
    for sock in sharing:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sharing[0].bind((net.client.hosts[net.family], 0))
    sharing[1].bind(sharing[0].getsockname()[:2])
    assert sharing[0].getsockname() == sharing[1].getsockname()


def test_poll_timeouts_and_addresses_that_are_missing(net):
    one, two = net.datagrams()
    assert select.select([one], [one], [], 0) == ([], [one], [])
    two.sendto(b"x", one.getsockname()[:2])
    assert select.select([one], [], [], 10) == ([one], [], [])
    assert one.recv(10) == b"x"
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        one.recv(10)
    with pytest.raises(OSError) as caught:
        one.send(b"to whom?")
    assert caught.value.errno == errno.EDESTADDRREQ
    with pytest.raises(OSError) as caught:
        one.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(OSError) as caught:
        one.sendto(bytes(65508 if net.family == socket.AF_INET else 65528), two.getsockname()[:2])
    assert caught.value.errno == errno.EMSGSIZE


def test_many_go_through_while_the_other_reads(net):
    one, two = net.datagrams()
    for start in range(0, 1000, 20):
        for k in range(start, start + 20):
            one.sendto(k.to_bytes(4, "big") * 250, two.getsockname()[:2])
        assert [two.recv(2000)[:4] for _ in range(20)] == [k.to_bytes(4, "big") for k in range(start, start + 20)]


@pytest.mark.parametrize("pairing", ["ours-linux"])
def test_what_cannot_be_sent_is_told_by_the_next_receive(net):
    one, _two = net.datagrams()
    one.sendto(b"nowhere", ("0.0.0.1" if net.family == socket.AF_INET else "ff02::1", 9)[:2])
    one.sendto(bytes(2000), (net.host, 9))      # more than the link takes, and there are no fragments
    codes = set()
    while errno.EMSGSIZE not in codes:
        with pytest.raises(OSError) as caught:
            one.recv(100)
        assert caught.value.errno, "timed out"
        codes.add(caught.value.errno)
