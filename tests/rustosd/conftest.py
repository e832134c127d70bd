"""A control server with a fake daemon behind it, and `rustosctl` in front."""

import asyncio
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
def socket_path(core, machine, tmp_path):
    """A control server on a loop in a thread of its own; the path of its socket."""
    log.configure("error", to=io.StringIO())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ControlServer(str(tmp_path / "control.sock"), Operations(core, clock=lambda: 0.0, root=machine.root))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield str(server.path)
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    structlog.reset_defaults()


@pytest.fixture
def rustosctl(socket_path, capsys):
    """Runs a command line; (exit status, stdout, stderr)."""
    def run(*words):
        status = shell.run(control.app, "rustosctl", ["--socket", socket_path, *words])
        return (status, *capsys.readouterr())
    return run
