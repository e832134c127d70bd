"""Services on the kernel's own sockets, under both event loops, so that real clients can judge them."""

import asyncio
import contextlib
import shutil
import socket

import pytest
import uvloop

PATIENCE_S = 60.0


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HOSTS = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here"))]


def free_port() -> int:
    """A port that is free on TCP and UDP now."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        return port


@pytest.fixture
async def serve():
    """`await serve(ServiceClass, **arguments)` starts one on a free port; all are stopped at the end."""
    services = []

    async def start(service_class, **arguments):
        service = service_class(**{"port": free_port(), "hosts": ("127.0.0.1",), **arguments})
        await service.start(asyncio.get_running_loop())
        services.append(service)
        return service

    yield start
    for service in services:
        await service.stop(0)
        assert service.connections() == 0


async def run(program: str, *arguments: str, seconds: float = PATIENCE_S) -> tuple[int, bytes, bytes]:
    """(exit status, stdout, stderr) of a real client; skips the test where it is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode, out, err


async def until(condition, seconds: float = PATIENCE_S) -> None:
    """Waits until `condition()` holds; fails the test when it does not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


class FakeTransport(asyncio.Transport):
    """Keeps what is written. `room` is how many octets it takes before it pauses its protocol; `drain` resumes."""

    def __init__(self, protocol, room: float = float("inf")):
        super().__init__({"peername": ("192.0.2.1", 4242)})
        self.protocol = protocol
        self.room = room
        self.written = bytearray()
        self.unread = 0
        self.reading = True
        self.ended = False
        self.closing = False
        self.aborted = False
        self.write_paused = False
        protocol.connection_made(self)

    def write(self, data):
        assert not self.ended, "written after the end"
        if not self.closing:
            self.written += data
            self.unread += len(data)
            if self.unread > self.room and not self.write_paused:
                self.write_paused = True
                self.protocol.pause_writing()

    def drain(self):
        self.unread = 0
        if self.write_paused:
            self.write_paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self):
        return 0

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.ended = True

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def abort(self):
        self.closing = self.aborted = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class FakeLoop:
    """call_soon and call_later without a loop: `turn` runs what is due soon, timers wait for `expire`."""

    def __init__(self):
        self.soon = []
        self.later = []

    def call_soon(self, callback, *arguments):
        self.soon.append((callback, arguments))

    def call_later(self, delay, callback, *arguments):
        self.later.append((delay, callback, arguments))
        return asyncio.TimerHandle(0, callback, arguments, self)

    def _timer_handle_cancelled(self, handle):
        pass

    def get_debug(self):
        return False

    def turn(self):
        while self.soon:
            callback, arguments = self.soon.pop(0)
            callback(*arguments)
