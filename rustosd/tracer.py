"""Probes with a limited number of hops, and what comes back for them: the steps of a traceroute."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from rustosd.pinger import Answer

MAX_HOPS_AT_ONCE = 64
_REACHED = "port unreachable"       # what the host itself says, whose port nobody has opened


class Pings(Protocol):
    """`rustosd.pinger.Pinger`."""

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float,
                   hop_limit: int = 64) -> Answer | None: ...


class Step(NamedTuple):
    """What came back for one probe."""

    source: str
    round_trip_s: float
    error: str | None
    """What the error says, other than that the hops were used up."""
    reached: bool
    """It came from the host we look for."""


class _Probes:
    """The UDP probes of one hop: an endpoint of their own, told apart by their destination ports."""

    def __init__(self, endpoint: int, local_port: int, address: str, ports: range) -> None:
        self.endpoint = endpoint
        self.local_port = local_port
        self.address = address
        self.sent_ns: dict[int, int] = {}
        loop = asyncio.get_running_loop()
        self.answers: dict[int, asyncio.Future[Step]] = {port: loop.create_future() for port in ports}

    def settle(self, port: int, source: str, received_ns: int, error: str | None) -> None:
        answer = self.answers.get(port)
        if answer is not None and not answer.done() and port in self.sent_ns:
            told = None if error in ("time exceeded", _REACHED) else error
            answer.set_result(Step(source, (received_ns - self.sent_ns[port]) / 1e9, told, error in (None, _REACHED)))


class Tracer:
    """Sends probes from the stack and hands what comes back to those who wait for it."""

    def __init__(self, stack: Any, kick: Callable[[], None], pinger: Pings, clock: Callable[[], int] = time.monotonic_ns):
        self._stack = stack
        self._kick = kick
        self._pinger = pinger
        self._clock = clock
        self._probes: list[_Probes] = []

    async def udp(self, address: str, hop_limit: int, ports: range, octets: int, timeout_s: float) -> list[Step | None]:
        """A datagram to each of the ports, which better are closed; None for each that nothing came back for in time.

        Raises OSError when they cannot be sent.
        """
        if len(self._probes) >= MAX_HOPS_AT_ONCE:
            raise OSError(f"{MAX_HOPS_AT_ONCE} hops are probed already; try again")
        udp = self._stack.udp
        endpoint = udp.bind("::" if ":" in address else "0.0.0.0", 0)
        probes = _Probes(endpoint, udp.local(endpoint)[1], address, ports)
        try:
            udp.probe(endpoint, hop_limit)
            self._stack.probe_answers()     # nobody waits for what is old
            self._probes.append(probes)
            for port in ports:
                probes.sent_ns[port] = self._clock()
                udp.send(endpoint, bytes(octets), address, port)
            self._kick()
            await asyncio.wait(probes.answers.values(), timeout=timeout_s)
        finally:
            if probes in self._probes:
                self._probes.remove(probes)
            udp.close(endpoint)
        return [answer.result() if answer.done() else None for answer in probes.answers.values()]

    async def icmp(self, address: str, hop_limit: int, identifier: int, sequences: range, octets: int,
                   timeout_s: float) -> list[Step | None]:
        """The same with echo requests."""
        answers = await asyncio.gather(*(self._pinger.ping(address, identifier, sequence, octets, timeout_s, hop_limit)
                                         for sequence in sequences))
        return [None if answer is None else Step(
            answer.source, answer.round_trip_s, None if answer.error == "time exceeded" else answer.error,
            answer.error is None) for answer in answers]

    def dispatch(self) -> None:
        """Called each time the stack has worked: hand out what came."""
        if not self._probes:
            return
        for local_port, port, source, received_ns, _, _, error in self._stack.probe_answers():
            for probes in self._probes:
                if probes.local_port == local_port:
                    probes.settle(port, source, received_ns, error)
        for probes in self._probes:
            for _, host, port in self._stack.udp.receive(probes.endpoint):      # somebody has opened that port
                if host == probes.address:
                    probes.settle(port, host, self._clock(), None)
