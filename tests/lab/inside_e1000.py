"""What the tests of the e1000 driver run in the guest: a host on the card, with the services of the daemon."""

import asyncio
import hashlib
import os
import signal
import subprocess
import time
from typing import Any

import uvloop

from drivers import binding
from drivers.e1000.nic import E1000
from drivers.vfio import Container
from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.pump import Pump
from rustosd.services.echo import EchoService
from rustosd.services.http import HttpService
from rustosd.services.iperf3 import Iperf3Service
from tests.lab.agent import tell

LINK_S = 10.0


def serve(bdf: str, kinds: list[str], addresses: list[str], **options: Any) -> dict[str, Any]:
    """Drive the card and serve on it until SIGTERM; SIGUSR1 resets it. Tells (pid, MAC, kind); answers with counters."""
    before = binding.bind(bdf, "vfio-pci")
    try:
        container = Container()
        try:
            nic = E1000(container.open(bdf), interrupts=tuple(kinds), **options)
            try:
                return uvloop.run(_serve(nic, addresses))
            finally:
                nic.close()
        finally:
            container.close()
    finally:
        binding.give_back(bdf, before)


def command(argv: list[str]) -> int:
    """Run a program to its end; its exit status."""
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL).returncode


async def _serve(nic: E1000, addresses: list[str]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    stack = Stack(hashlib.sha256(nic.mac).digest(), now=time.monotonic_ns())
    pump = Pump(loop, stack, lambda: network.dispatch())
    network = AsyncStack(stack, loop, pump.kick)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, nic.reset)
    index = stack.add_interface("e0", nic.mac, nic.mtu, nic.features)
    for address in addresses:
        stack.add_address(index, address)
    limit = time.monotonic() + LINK_S
    while not nic.link_up and time.monotonic() < limit:
        await asyncio.sleep(0.02)
    pump.attach(nic, index)
    services = [EchoService(port=7), Iperf3Service(port=5201),
                HttpService(port=80, metrics=lambda: b"", about=lambda: {})]
    for service in services:
        await service.start(network)
    tell({"pid": os.getpid(), "mac": nic.mac.hex(":"), "kind": nic.interrupt_kind, "link": nic.link_up,
          "negotiation": nic.controller.negotiation()})
    await stopped.wait()
    for service in services:
        await service.stop(0.1)
    await asyncio.sleep(0.05)
    answer = {"nic": nic.statistics(), "pump": pump.statistics(), "dump": len(list(nic.controller.regs.dump()))}
    pump.close()
    return answer
