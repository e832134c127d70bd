"""A control server with a fake daemon behind it, and `rustosctl` in front."""

import asyncio
import inspect
import io
import threading

import pytest
import structlog

from rustosd import log
from rustosd.cli import control, shell
from rustosd.control.operations import Operations
from rustosd.control.server import ControlServer
from tests.drivers.pci.tree import Machine
from tests.rustosd import fake_devices
from tests.rustosd.fake import FakeCore


@pytest.fixture
def machine(tmp_path_factory):
    """The host that operations look at."""
    made = Machine(tmp_path_factory.mktemp("host"))
    fake_devices.fill(made)
    return made


@pytest.fixture
def core(machine):
    made = FakeCore()
    made.devices = fake_devices.FakeDevices(machine)
    return made


@pytest.fixture
def in_loop():
    """A loop in a thread of its own: `in_loop(function)` calls it there with the loop, and awaits what it returns."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(function):
        async def there():
            result = function(loop)
            return await result if inspect.isawaitable(result) else result
        return asyncio.run_coroutine_threadsafe(there(), loop).result(30)

    yield run
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def socket_path(core, machine, tmp_path, in_loop):
    """A control server; the path of its socket."""
    log.configure("error", to=io.StringIO())
    server = ControlServer(str(tmp_path / "control.sock"), Operations(core, clock=lambda: 0.0, root=machine.root))
    in_loop(lambda loop: server.start())
    yield str(server.path)
    in_loop(lambda loop: server.stop())
    structlog.reset_defaults()


@pytest.fixture
def rustosctl(socket_path, capsys):
    """Runs a command line; (exit status, stdout, stderr)."""
    def run(*words):
        status = shell.run(control.app, "rustosctl", ["--socket", socket_path, *words])
        return (status, *capsys.readouterr())
    return run
