"""What the tests of taking and giving back run in the guest: the daemon as it is, in a process that can be killed."""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from drivers import binding
from drivers.errors import DeviceError
from netstack.bpf import INSTRUCTION
from netstack.stack import Stack
from rustosd import config, log
from rustosd.capture.pcapng import Reader
from rustosd.control.capture_protocol import CaptureRequest
from rustosd.control.client import Client
from rustosd.control.network_protocol import NicQuery
from rustosd.daemon import Daemon
from rustosd.devices.kernel import undo
from rustosd.devices.manager import DeviceManager
from rustosd.journal import Journal
from rustosd.pump import Pump
from tests.lab.agent import tell

JOURNAL = Path("/run/rustosd/journal.jsonl")
# IPv4 and its protocol 1, as libpcap compiles "icmp": the guest has no libpcap.
ECHO = b"".join(INSTRUCTION.pack(*row) for row in (
    (0x28, 0, 0, 12), (0x15, 0, 3, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 1, 1), (0x06, 0, 0, 262144), (0x06, 0, 0, 0)))


class Told(Daemon):
    """Tells the test when it is up, in place of the person at the terminal."""

    def announcement(self) -> str:
        """Called once everything runs."""
        tell({"pid": os.getpid(), "announcement": super().announcement(), "addresses": self.stack.addresses(),
              "routes": self.stack.routes(), "nics": self.stack.interfaces(),
              "facts": {row["name"]: dict(self.nic_facts(row["name"])) for row in self.stack.interfaces()},
              "held": {held.bdf: held.before for held in self.devices.held.values()},
              "disks": [disk.info for held in self.devices.held.values() for disk in held.disks.values()]})
        return ""


def daemon(text: str, path: Path | None = None) -> None:
    """Run a daemon with this configuration until a signal ends it; its log goes to stderr. A reload reads `path`."""
    settings = config.parse(text, "test.toml")
    log.configure("info", "json")

    async def main() -> None:
        await Told(settings, path=path).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def capture(interface: str, frames: int) -> dict[str, Any]:
    """So many echo frames of an interface, by `capture.start` as `rustosctl capture` has it, and what `nic.show` says of it."""
    with Client() as client:
        shown = client.call("nic.show", NicQuery(name=interface))
        _, end = client.take("capture.start", CaptureRequest(interfaces=(interface,), program=ECHO, expression="icmp",
                                                             count=frames))
        tell("capturing")
        reader, packets = Reader(), []
        while octets := end.recv(1 << 16):
            packets += reader.feed(octets)[1]
        end.close()
    return {"frames": [(packet.direction, packet.length, packet.dropped, packet.time_ns) for packet in packets],
            "complete": reader.complete, "lost": sum(tally.lost for tally in reader.tallies.values()),
            "nic": msgspec.to_builtins(shown)}


def refused(text: str) -> str:
    """What keeps the daemon from starting."""
    try:
        daemon(text)
    except (DeviceError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "started"


def recover() -> tuple[int, list[str], float]:
    """As `rustosd recover` does: how much was pending, what failed, and how long it took."""
    start = time.monotonic()
    with Journal(JOURNAL) as journal:
        pending = len(journal.pending)
        failed = journal.give_back_all(undo)
    return pending, [f"{entry.bdf}: {error}" for entry, error in failed], time.monotonic() - start


def take_and_give(bdfs: list[str], give: str) -> dict[str, Any]:
    """Take several at once by hand, look, give one; who drives them meanwhile and afterwards."""

    async def main() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        stack = Stack(bytes(16), now=time.monotonic_ns())
        pump = Pump(loop, stack, lambda: None)
        with tempfile.TemporaryDirectory() as directory, Journal(Path(directory) / "journal.jsonl") as journal:
            manager = DeviceManager(stack, pump, journal)
            try:
                held = await manager.take(bdfs)
                seen: dict[str, Any] = {"kinds": {one.bdf: one.kind for one in held}, "during": drivers(bdfs),
                                        "journalled": [entry.bdf for entry in journal.pending.values()]}
                await manager.give(give)
                seen |= {"after": drivers(bdfs), "held": list(manager.held), "pending": len(journal.pending)}
                return seen
            finally:
                await manager.close()
                pump.close()

    return uvloop.run(main())


def drivers(bdfs: list[str]) -> dict[str, str | None]:
    """Who drives each."""
    return {bdf: binding.driver_of(bdf) for bdf in bdfs}
