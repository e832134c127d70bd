"""Datagram endpoints, against the kernel's and ours."""

import asyncio
import errno
import socket

import pytest

from tests.netstack.sockets.conftest import until


class Post(asyncio.DatagramProtocol):
    """Notes everything; answers if told how."""

    def __init__(self, answer=None):
        self.received = []
        self.errors = []
        self.answer = answer
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        if self.answer:
            self.answer(self, data, addr)

    def error_received(self, exc):
        self.errors.append(exc)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


def echo(post, data, addr):
    post.transport.sendto(data, addr)


@pytest.mark.parametrize(("host", "length"), [("127.0.0.1", 2), ("::1", 4)])
async def test_echo(net, host, length):
    served, server = await net.create_datagram_endpoint(lambda: Post(echo), local_addr=(host, 0))
    address = served.get_extra_info("sockname")
    assert len(address) == length
    assert served.get_extra_info("peername") is None
    transport, client = await net.create_datagram_endpoint(Post, remote_addr=address[:2])
    assert transport.get_extra_info("peername") == address
    for data in (b"one", bytearray(b"two"), memoryview(b"three"), bytes(8000)):
        transport.sendto(data)
    await until(lambda: len(client.received) == 4)
    assert client.received == [(b"one", address), (b"two", address), (b"three", address), (bytes(8000), address)]
    sock = transport.get_extra_info("socket")
    assert sock.type == socket.SOCK_DGRAM
    assert sock.family == (socket.AF_INET if length == 2 else socket.AF_INET6)
    assert sock.getsockname() == server.received[0][1]
    assert not transport.is_closing()
    transport.close()
    transport.close()
    assert transport.is_closing()
    assert await client.lost is None
    served.abort()
    assert await server.lost is None


async def test_unconnected_endpoint_sends_to_many(net):
    posts = [(await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0)))[1] for _ in range(3)]
    addresses = [post.transport.get_extra_info("sockname") for post in posts]
    for address in addresses[1:]:
        posts[0].transport.sendto(b"for %d" % address[1], address)
    await until(lambda: posts[1].received and posts[2].received)
    for post, address in zip(posts[1:], addresses[1:], strict=True):
        assert post.received == [(b"for %d" % address[1], addresses[0])]
    for post in posts:
        post.transport.close()
        await post.lost


async def test_connected_endpoint_hears_its_peer_only(net):
    served, server = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    transport, client = await net.create_datagram_endpoint(
        Post, local_addr=("127.0.0.1", 0), remote_addr=served.get_extra_info("sockname"))
    other, stranger = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    name = transport.get_extra_info("sockname")
    other.sendto(b"from a stranger", name)
    served.sendto(b"from the peer", name)
    await until(lambda: client.received)
    await asyncio.sleep(0.01)
    assert client.received == [(b"from the peer", served.get_extra_info("sockname"))]
    for post in (server, client, stranger):
        post.transport.close()
        await post.lost


async def test_closed_port_is_an_error_for_the_connected(net):
    served, server = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    address = served.get_extra_info("sockname")
    served.close()
    await server.lost
    transport, client = await net.create_datagram_endpoint(Post, remote_addr=address)
    transport.sendto(b"x")
    await until(lambda: client.errors)
    assert isinstance(client.errors[0], ConnectionRefusedError)
    assert client.errors[0].errno == errno.ECONNREFUSED
    transport.close()
    await client.lost


@pytest.mark.parametrize("bad", ["text", 7])
async def test_sending_no_buffer_is_an_error(net, bad):
    transport, post = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    with pytest.raises(TypeError):
        transport.sendto(bad, ("127.0.0.1", 9))
    transport.close()
    await post.lost


async def test_connected_endpoint_has_one_destination(net):
    served, server = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    address = served.get_extra_info("sockname")
    transport, client = await net.create_datagram_endpoint(Post, remote_addr=address)
    with pytest.raises(ValueError):
        transport.sendto(b"x", ("127.0.0.1", 9))
    transport.sendto(b"y", address)
    await until(lambda: server.received)
    for post in (server, client):
        post.transport.close()
        await post.lost


async def test_too_long_a_datagram(net):
    transport, post = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    transport.sendto(bytes(66000), transport.get_extra_info("sockname"))
    await until(lambda: post.errors)
    assert post.errors[0].errno == errno.EMSGSIZE
    transport.close()
    await post.lost


@pytest.mark.uvloop_differs("the OSError has no errno")
async def test_addresses_that_cannot_be(net):
    transport, post = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    with pytest.raises(OSError, match=r".") as caught:
        await net.create_datagram_endpoint(Post, local_addr=transport.get_extra_info("sockname"))
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match=r".") as caught:
        await net.create_datagram_endpoint(Post, local_addr=("203.0.113.9", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(ValueError):
        await net.create_datagram_endpoint(Post)
    with pytest.raises(ValueError):
        await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0), remote_addr=("::1", 9))
    transport.close()
    await post.lost


async def test_family_alone_is_any_address(net):
    transport, post = await net.create_datagram_endpoint(Post, family=socket.AF_INET)
    assert transport.get_extra_info("sockname")[0] == "0.0.0.0"
    transport.close()
    await post.lost


async def test_order_and_fairness_of_a_flood(net):
    """More datagrams than one delivery takes arrive in order, and all of them."""
    served, server = await net.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    transport, client = await net.create_datagram_endpoint(Post, remote_addr=served.get_extra_info("sockname"))
    for number in range(200):
        transport.sendto(b"%d" % number)
    await until(lambda: len(server.received) == 200)
    assert [int(data) for data, _ in server.received] == list(range(200))
    for post in (server, client):
        post.transport.close()
        await post.lost


async def test_closing_within_datagram_received_is_the_last_word(ours):
    served, server = await ours.create_datagram_endpoint(
        lambda: Post(lambda me, data, addr: me.transport.close()), local_addr=("127.0.0.1", 0))
    transport, _ = await ours.create_datagram_endpoint(Post, remote_addr=served.get_extra_info("sockname"))
    for _ in range(3):
        transport.sendto(b"x")
    await server.lost
    assert len(server.received) == 1
    assert served.get_extra_info("sockname")[1]
    served.sendto(b"too late", ("127.0.0.1", 9))


async def test_raising_callback_is_reported_and_the_next_datagram_comes(ours):
    def fail(me, data, addr):
        raise ZeroDivisionError

    served, server = await ours.create_datagram_endpoint(lambda: Post(fail), local_addr=("127.0.0.1", 0))
    transport, _ = await ours.create_datagram_endpoint(Post, remote_addr=served.get_extra_info("sockname"))
    transport.sendto(b"one")
    transport.sendto(b"two")
    await until(lambda: len(server.received) == 2)
    assert [type(problem["exception"]) for problem in ours.problems] == [ZeroDivisionError] * 2
    ours.problems.clear()


async def test_no_destination_is_an_error(ours):
    transport, _ = await ours.create_datagram_endpoint(Post, local_addr=("127.0.0.1", 0))
    with pytest.raises(ValueError, match="addr must be given"):
        transport.sendto(b"x")
    assert transport.get_write_buffer_size() == 0


async def test_raising_factory_leaves_nothing_behind(ours):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ours.create_datagram_endpoint(fail, local_addr=("127.0.0.1", 0))
    assert not ours.endpoints
