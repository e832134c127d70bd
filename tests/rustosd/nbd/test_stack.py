"""Connections of NBD's listener on our own stack: what was sent arrives, and nothing of them stays."""

import asyncio
import contextlib
import os
import socket
import time

import pytest
import structlog

from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.nbd.stack import StackListener
from rustosd.pump import Pump
from tests.netstack.sockets.conftest import until

PORT = 10809


class Host:
    """A stack with nothing but its loopback interface, and a listener whose clients are this test."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        stack = Stack(os.urandom(32), now=time.monotonic_ns())
        self.network = AsyncStack(stack, loop, lambda: self.pump.kick())
        self.pump = Pump(loop, stack, self.network.dispatch, busy_poll_us=0)
        self.admitted = []
        self.listener = StackListener(self.network, PORT, 8, self.admitted.append)

    async def connected(self):
        """Streams on the stack, and the socket that NBD's server gets."""
        reader, writer = await self.network.open_connection("127.0.0.1", PORT)
        await until(lambda: self.admitted)
        served = self.admitted.pop()
        served.setblocking(False)
        return reader, writer, served

    def close(self):
        self.listener.close()
        self.network.abort()
        self.pump.close()


@pytest.fixture
async def host():
    with structlog.testing.capture_logs() as said:
        with contextlib.closing(Host()) as made:
            yield made
        assert said == []


async def taken(served, octets):
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(served, octets), 60)


@pytest.mark.parametrize("how", ["client", "server", "reset", "abort"])
async def test_nothing_stays_of_connections_that_have_ended(host, how):
    before = None
    for round_ in range(20):
        reader, writer, served = await host.connected()
        writer.write(b"question %d" % round_)
        assert await taken(served, 100) == b"question %d" % round_
        served.send(b"answer")
        assert await reader.read(100) == b"answer"
        if how == "client":
            writer.close()
            assert await taken(served, 100) == b""
        elif how == "server":
            served.shutdown(socket.SHUT_RDWR)
            assert await reader.read(100) == b""
        elif how == "reset":
            writer.transport.abort()
            with pytest.raises(ConnectionResetError):
                await taken(served, 100)
        else:
            served.close()
        served.close()
        await until(lambda: not host.listener._bridges)
        writer.transport.abort()
        await until(lambda: not host.network.connections)
        descriptors = set(os.listdir("/proc/self/fd"))
        before = before or descriptors
        assert len(descriptors) <= len(before)


async def test_the_listeners_end_ends_its_connections(host):
    reader, writer, served = await host.connected()
    host.listener.close()
    assert await asyncio.wait_for(reader.read(1), 60) == b""
    writer.close()
    served.close()
    with pytest.raises(ConnectionRefusedError):
        await host.network.open_connection("127.0.0.1", PORT)
