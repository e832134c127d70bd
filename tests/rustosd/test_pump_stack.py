"""Pump, TAP and the real stack together: what Linux sees of the host behind the TAP."""

import asyncio
import subprocess
import time
from ipaddress import ip_interface
from pathlib import Path

import pytest
import uvloop

from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.hostnet import HostTap
from rustosd.journal import Journal
from rustosd.pump import Pump

KERNEL = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
OURS = ["10.77.0.2/24", "fd77::2/64"]
DATA = bytes(range(251)) * 8000


class Host:
    """A stack behind the TAP "t0", on the running loop."""

    def __init__(self, directory: Path, offload: bool) -> None:
        loop = asyncio.get_running_loop()
        self.journal = Journal(directory / "journal.jsonl")
        self.tap = HostTap(self.journal, "t0", mtu=1500, addresses=KERNEL, offload=offload)
        self.stack = Stack(bytes(range(32)), now=time.monotonic_ns())
        self.pump = Pump(loop, self.stack, lambda: self.network.dispatch())
        self.network = AsyncStack(self.stack, loop, self.pump.kick)
        index = self.stack.add_interface("t0", self.tap.nic.mac, 1500, self.tap.nic.features)
        for address in OURS:
            self.stack.add_address(index, address)
        self.pump.attach(self.tap.nic, index)

    def close(self) -> None:
        self.pump.close()
        self.tap.close()
        self.journal.close()


async def echo(reader, writer) -> None:
    while octets := await reader.read(1 << 16):
        writer.write(octets)
        await writer.drain()
    writer.close()


async def round_trip(reader, writer) -> None:
    """DATA there and back, both directions at once."""
    writer.write(DATA)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 20) == DATA
    writer.close()


def answers(directory: Path, offload: bool) -> None:
    async def main() -> None:
        host = Host(directory, offload)
        for address in "10.77.0.2", "fd77::2":
            deadline = time.monotonic() + 10
            while True:     # an IPv6 address is tentative for a second (RFC 4862)
                ping = await asyncio.create_subprocess_exec("ping", "-q", "-c", "1", "-W", "1", address,
                                                            stdout=subprocess.DEVNULL)
                if await ping.wait() == 0:
                    break
                assert time.monotonic() < deadline, f"{address} does not answer"
            ping = await asyncio.create_subprocess_exec("ping", "-q", "-f", "-c", "1000", address,
                                                        stdout=subprocess.PIPE)
            assert b" 0% packet loss" in (await ping.communicate())[0]
            server = await host.network.start_server(echo, address, 7)
            await round_trip(*await asyncio.open_connection(address, 7))
            server.close()
        statistics = host.tap.nic.statistics()
        assert bool(statistics["rx_super_segments"]) == bool(statistics["tx_super_segments"]) == offload
        assert statistics["rx_dropped"] == 0
        assert host.pump.statistics()["errors"] == 0
        host.close()

    uvloop.run(main())


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_linux_pings_and_streams_in_both_families(netns, tmp_path, offload):
    netns.call(answers, tmp_path, offload)
    assert netns.links() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_needs_no_nic(address):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        stack = Stack(bytes(range(32)), now=time.monotonic_ns())
        pump = Pump(loop, stack, lambda: network.dispatch())
        network = AsyncStack(stack, loop, pump.kick)
        await network.start_server(echo, address, 7)
        await round_trip(*await network.open_connection(address, 7))
        assert pump.statistics()["errors"] == 0
        pump.close()

    uvloop.run(asyncio.wait_for(main(), 30))


def goes_to_sleep(directory: Path) -> None:
    async def main() -> None:
        host = Host(directory, True)
        await asyncio.sleep(3)          # addresses are announced and tried
        before = host.pump.statistics()
        await asyncio.sleep(1)
        after = host.pump.statistics()
        turns = sum(after[key] - before[key] for key in ("wakeups", "kicks", "timers", "busy_polls", "yields"))
        assert turns < 50, (before, after)
        host.close()

    uvloop.run(main())


def test_idle_host_sleeps(netns, tmp_path):
    netns.call(goes_to_sleep, tmp_path)
