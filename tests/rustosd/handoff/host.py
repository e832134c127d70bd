"""The daemon's half of handed-out sockets alone, on a stack with nothing but its loopback interface."""

import asyncio
import json
import os
import select
import socket
import time

from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.client.wire import SPARES_MOST
from rustosd.handoff import Handoff
from rustosd.pump import Pump
from tests.netstack.sockets.conftest import until


class Host:
    """A stack with its pump, and a session of a client that is this test."""

    def __init__(self, limits=None):
        loop = asyncio.get_running_loop()
        self.stack = Stack(os.urandom(32), now=time.monotonic_ns())
        self.network = AsyncStack(self.stack, loop, lambda: self.pump.kick())
        self.pump = Pump(loop, self.stack, self._on_events, busy_poll_us=0)
        self.handoff = Handoff(self.network, limits, pump=self.pump)
        self.session = self.handoff.open_session(1)
        self.dispatched = 0

    def _on_events(self):
        self.dispatched += 1
        self.network.dispatch()

    async def ask(self, op, **fields):
        """(answer, the sockets that came along)."""
        self.session.send(json.dumps({"op": op, **fields}).encode())
        await until(lambda: readable(self.session))
        octets, fds, _, _ = socket.recv_fds(self.session, 5000, SPARES_MOST)
        return json.loads(octets), [socket.socket(fileno=fd) for fd in fds]

    async def stream(self):
        answer, (end,) = await self.ask("open", type="stream", family=4)
        end.setblocking(False)
        return answer["id"], end

    async def connected(self, port):
        identity, end = await self.stream()
        answer, _ = await self.ask("connect", id=identity, host="127.0.0.1", port=port)
        assert "errno" not in answer
        return identity, end

    def close(self):
        self.handoff.close()
        self.network.abort()
        self.session.close()
        self.pump.close()


def readable(sock):
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) is not None
    except BlockingIOError:
        return False


def writable(sock):
    return bool(select.select([], [sock], [], 0)[1])
