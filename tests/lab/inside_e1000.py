"""What the tests of the e1000 driver run in the guest: a host on the card, with the services of the daemon; bare frames."""

import asyncio
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop

from drivers import binding
from drivers.e1000.nic import E1000
from mm.frame import RxBurst, TxBurst
from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.pump import BUSY_POLL_US, COALESCE_US, Pump
from rustosd.services.echo import EchoService
from rustosd.services.http import HttpService
from rustosd.services.iperf3 import Iperf3Service
from tests.lab.agent import tell
from tests.lab.inside_vfio import opened

LINK_S = 60.0
FOR_GOOD_US = 10 ** 12
"""From the first frame on, which the stack sends by itself when the link comes up."""
ETHERTYPE = b"\x88\xb5"
"""For local experiments (IEEE 802): what bare frames are known by."""


@contextmanager
def driven(bdf: str, kinds: Sequence[str], backend: str, beside: Sequence[str], **options: Any) -> Iterator[E1000]:
    """The card with our driver. `beside`: who is in its IOMMU group and has to leave the kernel, too."""
    befores = [(other, binding.bind(other, "vfio-pci")) for other in beside]
    try:
        with opened(bdf, backend) as device:
            nic = E1000(device, interrupts=tuple(kinds), **options)
            try:
                yield nic
            finally:
                nic.close()
    finally:
        for other, before in befores:
            binding.give_back(other, before)


def serve(bdf: str, kinds: Sequence[str], addresses: Sequence[str], backend: str = "vfio", beside: Sequence[str] = (),
          polling: bool = False, **options: Any) -> dict[str, Any]:
    """Drive the card and serve on it until SIGTERM; tells what it is, answers with counters.

    SIGUSR1 resets it, SIGHUP changes its rings' sizes, SIGUSR2 stops its transmitter behind the driver's back. "reset",
    "resized", "recovered" tell that this is over; "link up" and "link down" come by the card's interrupt.
    """
    with driven(bdf, kinds, backend, beside, **options) as nic:
        nic.polling = polling
        return uvloop.run(_serve(nic, addresses))


def bare(bdf: str, kinds: Sequence[str], settings: Sequence[dict[str, Any]], sending: Sequence[tuple[bytes, dict]],
         **options: Any) -> dict[str, Any]:
    """No stack: which frames come through with each of the filter settings, then send some; and the counters.

    Tells when a setting is made, and goes on once a whole batch (see `batches`) has come.
    """
    with driven(bdf, kinds, "vfio", (), **options) as nic:
        wait_for_link(nic)
        seen = []
        for setting in settings:
            nic.set_filters(**setting)
            forget_what_waits(nic)
            tell("listening")
            seen.append(whole_batch(nic))
        tell("sending")
        burst = TxBurst()
        for octets, offload in sending:
            burst.append(octets[:64], octets[64:], **offload)
        nic.transmit(burst)
        limit = time.monotonic() + LINK_S
        while nic.room() < 60 and time.monotonic() < limit:
            time.sleep(0.01)
        return {"seen": seen, "nic": nic.statistics(), "mtu": nic.mtu}


def wait_for_link(nic: E1000) -> None:
    """Polls, as nobody listens to its interrupts yet."""
    limit = time.monotonic() + LINK_S
    while not nic.link_up and time.monotonic() < limit:
        time.sleep(0.02)


def forget_what_waits(nic: E1000) -> None:
    """What came before now came by other filters."""
    burst = RxBurst()
    while nic.receive(burst):
        continue


def whole_batch(nic: E1000) -> list[tuple[str, int]]:
    """The first batch whose begin and end both come: names and lengths of the frames between, in order.

    A name is what a bare frame holds behind its EtherType; "begin" and "end" are followed by the batch's number.
    """
    burst = RxBurst()
    begun, inside = -1, []
    limit = time.monotonic() + LINK_S
    while time.monotonic() < limit:
        nic.receive(burst)
        for octets in burst.frames_bytes():
            head, found, rest = octets.partition(ETHERTYPE)
            name, _, number = rest.partition(b"\0")[0].decode().partition(" ")
            if not found or len(head) not in (12, 16):
                continue
            if name == "begin":
                begun, inside = int(number), []
            elif name == "end" and int(number) == begun:
                return inside
            else:
                inside.append((name, len(octets)))
        time.sleep(0.001)
    raise TimeoutError(f"no whole batch came within {LINK_S} s; the last has {inside}")


async def hang(nic: E1000) -> None:
    """Stop the transmitter, and wait until somebody has noticed."""
    nic.registers.TCTL.modify(EN=0)
    while not nic.registers.TCTL.read().EN:
        await asyncio.sleep(0.2)
    tell("recovered")


def command(argv: list[str]) -> int:
    """Run a program to its end; its exit status."""
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL).returncode


async def _serve(nic: E1000, addresses: Sequence[str]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    stack = Stack(hashlib.sha256(nic.mac).digest(), now=time.monotonic_ns())
    pump = Pump(loop, stack, lambda: network.dispatch(), busy_poll_us=FOR_GOOD_US if nic.polling else BUSY_POLL_US,
                coalesce_us=0 if nic.polling else COALESCE_US)
    network = AsyncStack(stack, loop, pump.kick)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: (nic.reset(), tell("reset")))
    loop.add_signal_handler(signal.SIGHUP, lambda: (nic.resize(*(size // 2 for size in nic.rings)), tell("resized")))
    loop.add_signal_handler(signal.SIGUSR2, lambda: tasks.append(loop.create_task(hang(nic))))
    tasks: list[asyncio.Task] = []
    index = stack.add_interface("e0", nic.mac, nic.mtu, nic.features)
    for address in addresses:
        stack.add_address(index, address)
    wait_for_link(nic)
    pump.attach(nic, index)
    services = [EchoService(port=7), Iperf3Service(port=5201),
                HttpService(port=80, pages={})]
    for service in services:
        await service.start(network)
    tell({"pid": os.getpid(), "mac": nic.mac.hex(":"), "kind": nic.interrupt_kind, "link": nic.link_up, "mtu": nic.mtu,
          "negotiation": nic.controller.negotiation()})
    check_links = nic.on_link_change
    nic.on_link_change = lambda: (check_links(), tell(f"link {'up' if nic.controller.link_up() else 'down'}"))
    await stopped.wait()
    for service in services:
        await service.stop(0.1)
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.05)
    answer = {"nic": nic.statistics(), "pump": pump.statistics(), "dump": len(list(nic.registers.dump())), "rings": nic.rings}
    pump.close()
    return answer
