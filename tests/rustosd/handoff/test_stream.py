"""What the socket API promises of a TCP connection: the same for the kernel's sockets and ours, in every pairing."""

import errno
import hashlib
import os
import random
import select
import socket
import struct
import threading
import time

import pytest

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
BLOCK = random.Random(7).randbytes(1 << 20)


def read_all(sock):
    octets = b""
    while part := sock.recv(65536):
        octets += part
    return octets


def ready(sock, events, timeout=10.0):
    """What poll says, after at most `timeout` seconds."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(timeout * 1000)
    return found[0][1] if found else 0


def fill(sock):
    """Send until it would block, and go on doing so until that stays: how much it was."""
    sock.setblocking(False)
    total, quiet = 0, 0
    while quiet < 5:
        try:
            total += sock.send(BLOCK)
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.05)
    return total


def test_names_agree(net):
    listener = net.listener()
    client = net.connect(listener)
    server, peer = listener.accept()
    assert client.getpeername() == server.getsockname() == listener.getsockname()
    assert client.getsockname() == server.getpeername() == peer
    assert len(peer) == (2 if net.family == socket.AF_INET else 4)
    assert (client.family, client.type) == (server.family, server.type) == (net.family, socket.SOCK_STREAM)
    server.close()


def test_octets_go_both_ways_and_eof_follows(net):
    client, server = net.pair()
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    server.close()
    assert read_all(client) == b"answer"
    assert client.recv(1) == b""


@pytest.mark.parametrize("closer", ["client", "server"])
def test_half_a_connection_still_carries_the_other_half(net, closer):
    first, second = net.pair() if closer == "client" else reversed(net.pair())
    first.sendall(b"all I have")
    first.shutdown(socket.SHUT_WR)
    assert read_all(second) == b"all I have"
    assert second.recv(1) == b""
    second.sendall(BLOCK[:300_000])
    second.close()
    assert read_all(first) == BLOCK[:300_000]


def test_sending_after_shutdown_is_a_broken_pipe(net):
    client, server = net.pair()
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        client.send(b"x")
    assert read_all(server) == b""


@pytest.mark.parametrize("resetter", ["client", "server"])
def test_a_reset_is_an_error_after_what_came_before_it(net, resetter):
    first, second = net.pair() if resetter == "client" else reversed(net.pair())
    first.sendall(b"last words")
    assert ready(second, select.POLLIN)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    first.close()
    assert ready(second, select.POLLHUP) & select.POLLHUP
    assert second.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        second.recv(100)
    assert second.recv(100) == b""      # an error is told once
    with pytest.raises(BrokenPipeError):
        second.send(b"x")


def test_a_reset_before_a_single_octet_is_an_error(net):
    client, server = net.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_reset_is_told_by_the_next_send_too(net):
    client, server = net.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    server.close()
    assert ready(client, select.POLLHUP) & select.POLLHUP
    with pytest.raises(ConnectionResetError):
        client.send(b"x")
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


@pytest.mark.parametrize("closer", ["client", "server"])
def test_closing_with_unread_octets_resets(net, closer):
    first, second = net.pair() if closer == "client" else reversed(net.pair())
    second.sendall(b"never read")
    assert ready(first, select.POLLIN)
    first.close()
    with pytest.raises(ConnectionResetError):
        second.recv(1)


def test_sending_to_who_has_closed_ends_in_an_error(net):
    client, server = net.pair()
    server.close()
    assert client.recv(1) == b""
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(200):
            client.send(b"anybody there?")
            time.sleep(0.01)


def test_a_closed_port_refuses(net):
    listener = net.listener()
    address = listener.getsockname()[:2]
    listener.close()
    sock = net.keep(net.client.socket(net.family))
    with pytest.raises(ConnectionRefusedError):
        sock.connect(address)
    assert net.keep(net.client.socket(net.family)).connect_ex(address) == errno.ECONNREFUSED


def test_a_connection_that_is_under_way_becomes_writable_when_it_is_made(net):
    listener = net.listener()
    sock = net.keep(net.client.socket(net.family))
    sock.setblocking(False)
    assert sock.connect_ex(listener.getsockname()[:2]) in (0, errno.EINPROGRESS)
    assert ready(sock, select.POLLOUT) == select.POLLOUT
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.connect_ex(listener.getsockname()[:2]) in (0, errno.EISCONN)
    server, _ = listener.accept()
    sock.send(b"hello")
    assert server.recv(100) == b"hello"
    assert sock.getpeername() == listener.getsockname()
    server.close()


def test_a_connection_that_is_refused_becomes_writable_with_the_error(net):
    listener = net.listener()
    address = listener.getsockname()[:2]
    listener.close()
    sock = net.keep(net.client.socket(net.family))
    sock.setblocking(False)
    if sock.connect_ex(address) == errno.EINPROGRESS:
        assert ready(sock, select.POLLOUT) & (select.POLLOUT | select.POLLERR | select.POLLHUP) > select.POLLOUT
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize(("option", "usual", "good", "bad"), [
    (socket.TCP_KEEPIDLE, 7200, 30, [0, -1, 32768]), (socket.TCP_KEEPINTVL, 75, 5, [0, 32768]),
    (socket.TCP_KEEPCNT, 9, 127, [0, 128]), (socket.TCP_USER_TIMEOUT, 0, 30_000, [-1])])
def test_times_of_keepalive_and_the_user_timeout_have_ranges(net, option, usual, good, bad):
    listener = net.listener()
    client = net.connect(listener)
    assert client.getsockopt(socket.IPPROTO_TCP, option) == usual
    client.setsockopt(socket.IPPROTO_TCP, option, good)
    for value in bad:
        with pytest.raises(OSError, match="Invalid") as refused:
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        assert refused.value.errno == errno.EINVAL
    assert client.getsockopt(socket.IPPROTO_TCP, option) == good


def test_poll_tells_the_truth(net):
    client, server = net.pair()
    everything = select.POLLIN | select.POLLOUT | select.POLLRDHUP
    assert ready(client, everything) == select.POLLOUT
    server.sendall(b"x")
    assert ready(client, select.POLLIN) == select.POLLIN
    assert select.select([client], [client], [], 0) == ([client], [client], [])
    assert client.recv(10) == b"x"
    assert select.select([client], [], [], 0.01) == ([], [], [])
    server.shutdown(socket.SHUT_WR)
    assert ready(client, select.POLLIN | select.POLLRDHUP) == select.POLLIN | select.POLLRDHUP


def test_edge_triggered_epoll_tells_each_arrival(net):
    client, server = net.pair()
    with select.epoll() as epoll:
        epoll.register(client, select.EPOLLIN | select.EPOLLET)
        for k in range(3):
            server.sendall(b"x")
            assert epoll.poll(10) == [(client.fileno(), select.EPOLLIN)]
            assert epoll.poll(0) == [], k       # though nothing was read
        assert client.recv(10) == b"xxx"


@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_side_that_does_not_read_stops_the_other_until_it_does(net, sender):
    first, second = net.pair() if sender == "client" else reversed(net.pair())
    sent = fill(first)
    while ready(first, select.POLLOUT, 0.5):        # what is on its way may still find room
        sent += fill(first)
        assert sent < 64 << 20
    assert sent
    read = 0
    while not ready(first, select.POLLOUT, 0):
        read += len(second.recv(1 << 16))
        assert read <= sent
    first.shutdown(socket.SHUT_WR)
    while part := second.recv(1 << 16):
        read += len(part)
    assert read == sent


def test_large_streams_both_ways_at_once_arrive_whole(net):
    client, server = net.pair()
    digests = {}

    def send(sock, blocks):
        for _ in range(blocks):
            sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)

    def receive(sock, name):
        digest = hashlib.sha256()
        while part := sock.recv(100_000):
            digest.update(part)
        digests[name] = digest.hexdigest()

    threads = [threading.Thread(target=target, args=arguments) for target, arguments in (
        (send, (client, 30)), (send, (server, 20)), (receive, (client, "client")), (receive, (server, "server")))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert digests == {"server": hashlib.sha256(BLOCK * 30).hexdigest(), "client": hashlib.sha256(BLOCK * 20).hexdigest()}


@pytest.mark.parametrize("connected", [True, False])
def test_small_buffers_do_not_hold_anything_up(net, connected):
    listener = net.listener()
    client = net.keep(net.client.socket(net.family))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    client.setblocking(connected)
    client.connect_ex(listener.getsockname()[:2])
    server = net.keep(listener.accept()[0])
    ready(client, select.POLLOUT)
    client.settimeout(20)
    if not connected:
        os.set_blocking(client.fileno(), True)
    thread = threading.Thread(target=lambda: os.write(client.fileno(), BLOCK) if not connected else client.sendall(BLOCK))
    thread.start()
    received = 0
    while received < len(BLOCK):
        received += len(server.recv(1 << 16))
    thread.join()
    server.sendall(BLOCK[:500_000])
    received = 0
    while received < 500_000:
        received += len(client.recv(1 << 16))


def test_single_octets_go_back_and_forth(net):
    client, server = net.pair()
    for k in range(300):
        client.send(bytes([k & 0xFF]))
        assert server.recv(10) == bytes([k & 0xFF])
        server.send(bytes([k & 0xFF]))
        assert client.recv(10) == bytes([k & 0xFF])


def test_timeouts(net):
    client, _server = net.pair()
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    listener = net.listener()
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_listener_is_readable_when_there_is_somebody_to_accept(net):
    listener = net.listener()
    assert not ready(listener, select.POLLIN, 0.01)
    clients = [net.connect(listener) for _ in range(5)]
    names = set()
    for _ in clients:
        assert ready(listener, select.POLLIN) == select.POLLIN
        names.add(net.keep(listener.accept()[0]).getpeername())
    assert names == {client.getsockname() for client in clients}
    assert not ready(listener, select.POLLIN, 0.01)


def test_a_port_that_is_listened_on_is_in_use(net):
    listener = net.listener()
    other = net.keep(net.server.socket(net.family))
    with pytest.raises(OSError) as caught:
        other.bind(listener.getsockname()[:2])
        other.listen()
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError) as caught:
        net.keep(net.server.socket(net.family)).bind(("192.0.2.1" if net.family == socket.AF_INET else "2001:db8::1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_port_is_free_as_soon_as_its_socket_is_closed(net):
    listener = net.listener()
    address = listener.getsockname()[:2]
    for _ in range(50):
        listener.close()
        listener = net.keep(net.server.socket(net.family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()


def test_a_socket_without_a_connection_has_no_peer(net):
    sock = net.keep(net.client.socket(net.family))
    for use in (sock.getpeername, lambda: sock.recv(1), lambda: sock.shutdown(socket.SHUT_WR)):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")


def test_the_other_ways_to_read_and_write(net):
    client, server = net.pair()
    assert client.sendmsg([b"one ", b"two ", bytearray(b"three")]) == 13
    assert ready(server, select.POLLIN)
    time.sleep(0.05)
    assert server.recv(100, socket.MSG_PEEK) == b"one two three"
    buffer = bytearray(8)
    assert server.recv_into(buffer) == 8
    assert buffer == b"one two "
    assert server.recv(3) == b"thr"
    assert server.recvfrom(100)[0] == b"ee"
    with server.makefile("rw", encoding="utf-8", newline="\n") as file:
        client.sendall("Grüße\n".encode())
        assert file.readline() == "Grüße\n"
        file.write("zurück\n")
        file.flush()
        assert client.recv(100) == "zurück\n".encode()
    with client.dup() as twin:
        twin.sendall(b"by another name")
        assert twin.getpeername() == client.getpeername()
    assert server.recv(100) == b"by another name"


def test_options(net):
    client, _server = net.pair()
    for level, option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)):
        assert client.getsockopt(level, option) == 0
        client.setsockopt(level, option, 1)
        assert client.getsockopt(level, option)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_after_shutting_down_the_receiving_side_there_is_nothing_to_read(net):
    client, server = net.pair()
    client.shutdown(socket.SHUT_RD)
    assert client.recv(1) == b""
    client.sendall(b"still sending")
    assert server.recv(100) == b"still sending"


def test_a_connection_survives_its_listener(net):
    listener = net.listener()
    client = net.connect(listener)
    server, _ = listener.accept()
    listener.close()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    server.close()


def test_a_listener_that_closes_resets_who_was_not_accepted(net):
    listener = net.listener()
    client = net.connect(listener)
    assert ready(listener, select.POLLIN)
    listener.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_octets_sent_before_the_accept_are_there(net):
    listener = net.listener()
    client = net.connect(listener)
    client.sendall(b"early")
    client.close()
    server, _ = listener.accept()
    server.settimeout(10)
    assert read_all(server) == b"early"
    server.close()
