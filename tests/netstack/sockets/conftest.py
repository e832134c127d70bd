"""One test body, several networks: uvloop on the kernel's sockets is what ours must not be told from."""

import asyncio
import functools
import gc
import os
import socket
import struct
import subprocess
import sys
import time

import pytest
import uvloop

from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.pump import Pump
from tests.netstack.sockets.fake_core import FakeStack
from tests.netstack.sockets.virtual import VirtualLoop


class Recorder(asyncio.Protocol):
    """Notes every callback; data that arrives in pieces is one entry."""

    def __init__(self, keep_open=False, on_data=None, pause=False):
        self.log = []
        self.keep_open = keep_open
        self.on_data = on_data
        self.pause = pause
        self.transport = None
        self.exception = None
        self.lost = asyncio.get_running_loop().create_future()

    @property
    def data(self):
        return b"".join(entry for entry in self.log if isinstance(entry, bytes))

    @property
    def names(self):
        return ["data" if isinstance(entry, bytes) else entry for entry in self.log]

    def connection_made(self, transport):
        self.transport = transport
        self.log.append("made")
        if self.pause:
            transport.pause_reading()

    def data_received(self, data):
        if self.log and isinstance(self.log[-1], bytes):
            self.log[-1] += data
        else:
            self.log.append(data)
        if self.on_data:
            self.on_data(self, data)

    def eof_received(self):
        self.log.append("eof")
        return self.keep_open

    def connection_lost(self, exc):
        self.log.append("lost" if exc is None else type(exc).__name__)
        self.exception = exc
        self.lost.set_result(exc)

    def pause_writing(self):
        self.log.append("pause")

    def resume_writing(self):
        self.log.append("resume")


class Kernel:
    """The loop's own sockets on the loopback interface."""

    name = "kernel"
    open_connection = staticmethod(asyncio.open_connection)
    start_server = staticmethod(asyncio.start_server)

    def __init__(self, loop):
        self.create_server = loop.create_server
        self.create_connection = loop.create_connection
        self.create_datagram_endpoint = loop.create_datagram_endpoint
        self.start_tls = loop.start_tls

    def send_reset(self, transport):
        """Make the peer see a reset."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def stop(self):
        pass


class Fake(AsyncStack):
    """Our face on the stand-in for the core."""

    name = "fake"

    def __init__(self, loop, ring=65536):
        core = FakeStack(loop, ring)
        super().__init__(core, loop, core.kick)
        core.face = self

    def send_reset(self, transport):
        transport.abort()

    async def stop(self):
        self.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not self.connections, "handles were never released"
        assert not self.servers
        assert not self.endpoints


class Loopback(AsyncStack):
    """The real stack with the daemon's pump, on its own loopback interface."""

    name = "stack"

    def __init__(self, loop):
        stack = Stack(os.urandom(16), now=time.monotonic_ns())
        self.pump = Pump(loop, stack, self.dispatch)
        super().__init__(stack, loop, self.pump.kick)

    def send_reset(self, transport):
        transport.abort()

    async def stop(self):
        self.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        self.pump.close()
        assert not self.connections, "handles were never released"
        assert all(row["released"] for row in self.tcp.connections())
        assert not self.tcp.listeners()
        assert not self.udp.rows()


PATIENCE_S = 60
NETWORKS = {"kernel": Kernel, "fake": Fake, "stack": Loopback}
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}


def pytest_configure(config):
    config.addinivalue_line("markers", "uvloop_differs(how): uvloop's own sockets are no measure here")
    config.addinivalue_line("markers", "asyncio_differs(how): asyncio's own sockets are none from Python 3.12 on")
    config.addinivalue_line("markers", "virtual_time: runs on a loop whose clock jumps")


def pytest_asyncio_loop_factories(config, item):
    return {"virtual": VirtualLoop} if item.get_closest_marker("virtual_time") else LOOPS


def unfit(item):
    """Is this the kernel's sockets under a loop that is known (its marker says how) to differ from the documentation?"""
    markers = {"uvloop": item.get_closest_marker("uvloop_differs"),
               "asyncio": sys.version_info >= (3, 12) and item.get_closest_marker("asyncio_differs")}
    return any(marker and "kernel" in item.callspec.params.values() and loop in item.callspec.id.split("-")
               for loop, marker in markers.items())


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if unfit(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


async def running(network):
    loop = asyncio.get_running_loop()
    problems = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    network.problems = problems

    def give_up():
        problems.append(f"{PATIENCE_S} s are over")      # a test that waits for a cancellation would be content with ours
        for task in asyncio.all_tasks(loop):
            task.cancel(problems[-1])

    watchdog = loop.call_later(PATIENCE_S, give_up)
    yield network
    await network.stop()
    watchdog.cancel()
    gc.collect()
    assert not problems, problems


@pytest.fixture(params=NETWORKS)
async def net(request):
    """Each network in turn."""
    async for network in running(NETWORKS[request.param](asyncio.get_running_loop())):
        yield network


@pytest.fixture(params=[name for name in NETWORKS if name != "kernel"])
async def ours(request):
    """Each network with our sockets."""
    async for network in running(NETWORKS[request.param](asyncio.get_running_loop())):
        yield network


@pytest.fixture
async def fake():
    async for network in running(Fake(asyncio.get_running_loop())):
        yield network


async def join(net, client_factory=Recorder, server_factory=Recorder, host="127.0.0.1", **options):
    """Connect two protocols; (client, server): recorders, or whatever the factories make."""
    made = asyncio.get_running_loop().create_future()

    def factory():
        protocol = server_factory()
        made.set_result(protocol)
        return protocol

    server = await net.create_server(factory, host, 0)
    _, client = await net.create_connection(client_factory, host, server.sockets[0].getsockname()[1], **options)
    accepted = await made
    await until(lambda: accepted.transport)
    server.close()
    return client, accepted


@pytest.fixture
def joined(net):
    """`join` on this network."""
    return functools.partial(join, net)


async def until(condition, seconds=PATIENCE_S):
    """Wait for a condition that the loop's other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate, key) for localhost, signed by itself."""
    where = tmp_path_factory.mktemp("tls")
    cert, key = where / "cert.pem", where / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    return cert, key
