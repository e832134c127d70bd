"""The server that is measured: the same asyncio protocols on our stack or on the kernel's sockets.

`python -m benchmarks.server kernel`, `... tap NAME MAC offload|plain ADDRESS KERNEL_ADDRESS [CONTROL_SOCKET]`, or
`... handoff`, of the daemon that RUSTOSD_SOCKET says.
Prints "ready", and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from typing import Any

import uvloop

from benchmarks.ports import DOOR, ECHO, SINK, SOURCE

BLOCK = bytes(i % 251 for i in range(1 << 18))


class Door(asyncio.Protocol):
    """A connection that does nothing, as one that is accepted and then idle; answers what it is asked."""

    __slots__ = ("transport",)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Sink(asyncio.Protocol):
    """Counts octets; tells the count when the peer has sent all."""

    def __init__(self) -> None:
        self.count = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += len(data)

    def eof_received(self) -> None:
        self.transport.write(self.count.to_bytes(8))


class Source(asyncio.Protocol):
    """Sends for as long as the peer reads."""

    def __init__(self) -> None:
        self.paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while not self.paused and not self.transport.is_closing():
            self.transport.write(BLOCK)


class Echo(asyncio.DatagramProtocol):
    """Sends every datagram back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


async def serve(network: Any) -> None:
    """Serve on `network`, an event loop, an AsyncStack or rustosd.client.aio, until standard input ends."""
    host = "0.0.0.0"
    for factory, port in ((Door, DOOR), (Sink, SINK), (Source, SOURCE)):
        await network.create_server(factory, host, port, backlog=4096)
    await network.create_datagram_endpoint(Echo, local_addr=(host, ECHO))
    await until_told()


async def until_told() -> None:
    """Say that we are ready, and wait for the end of standard input."""
    print("ready", flush=True)
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, done.set)
    await done.wait()


async def on_kernel() -> None:
    await serve(asyncio.get_running_loop())


async def on_tap(name: str, mac: str, mode: str, address: str, kernel_address: str, control: str | None = None) -> None:
    """What the daemon does at its core: a TAP, a stack, a pump and asyncio's face of the stack."""
    from drivers.tap import Tap
    from netstack.sockets import AsyncStack
    from netstack.stack import Stack
    from rustosd.pump import Pump

    loop = asyncio.get_running_loop()
    stack = Stack(os.urandom(32), now=time.monotonic_ns())
    with contextlib.closing(Tap.open(name, bytes.fromhex(mac.replace(":", "")), 1500, mode == "offload")) as tap:
        for command in (f"address add {kernel_address} dev {name}", f"link set {name} up"):
            subprocess.run(["ip", *command.split()], check=True)
        index = stack.add_interface(name, tap.mac, tap.mtu, tap.features)
        stack.add_address(index, address)
        pump = Pump(loop, stack, lambda: network.dispatch())
        network = AsyncStack(stack, loop, pump.kick)
        pump.attach(tap, index)
        if control:
            await hand_out(network, pump, control)
        else:
            await serve(network)
        network.abort()
        pump.close()
        if os.environ.get("RUSTOSD_BENCH_FACTS"):
            facts = {"pump": pump.statistics(), "tap": tap.statistics(),
                     "verdicts": {k: v for k, v in stack.verdicts().items() if v},
                     "counters": {k: v for k, v in stack.counters().items() if v}}
            print(facts, file=sys.stderr, flush=True)


class Doorkeeper:
    """As much of the daemon's operations as programs need that want sockets."""

    def __init__(self, handoff: Any):
        self.handoff = handoff

    def socket_session(self, _: Any, peer: Any) -> Any:
        from rustosd.control.protocol import Done
        from rustosd.control.server import Handed
        return Handed(Done(), self.handoff.open_session(peer.pid))


async def hand_out(network: Any, pump: Any, path: str) -> None:
    """Sockets for other processes, which ask for them at `path`, until standard input ends."""
    from rustosd.control.server import ControlServer
    from rustosd.handoff import Handoff

    handoff = Handoff(network, pump=pump)
    control = ControlServer(path, Doorkeeper(handoff))
    await control.start()
    await until_told()
    await control.stop()
    handoff.close()


async def on_handoff() -> None:
    """The same server in a process of its own, on sockets that a server `on_tap` hands out."""
    from rustosd.client import aio
    await serve(aio)


def main(argv: list[str]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    modes = {"kernel": on_kernel, "tap": on_tap, "handoff": on_handoff}
    uvloop.run(modes[argv[0]](*argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
