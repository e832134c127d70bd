"""A server for iperf3 clients on port 5201.

One TCP connection controls a test: the client names it by a cookie, both sides tell their states by single octets, and
parameters and results cross as JSON behind a four-octet length. Streams are further connections that begin with the
same cookie, or UDP addresses that said hello. The cookie tells tests apart, so several may run at once; only the set-up
of UDP streams takes turns, per client host, since their hello carries no cookie.
"""

from __future__ import annotations

import asyncio
import enum
import os
import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import structlog

from rustosd.services.base import ANY_HOSTS, Connection, Network, Sample, Service
from rustosd.services.iperf3_streams import (
    BLOCK_OCTETS,
    HEADER_32,
    HEADER_64,
    SINK,
    Stream,
    TcpStream,
    UdpEndpoint,
    UdpStream,
)

log = structlog.get_logger(__name__)

MAX_PARAMETERS_OCTETS = 16 * 1024
MAX_RESULTS_OCTETS = 256 * 1024  # 256 streams of some 200 octets, four times over
MAX_STREAMS = 128
MAX_OMIT_S = 600
MAX_DATAGRAM_OCTETS = 65507
MIN_TICK_S = 0.001
LINGER_S = 0.5
# Blocks that all sources together may send before the loop runs others, unless there are more sources than that.
BLOCKS_PER_TICK = 256
COOKIE_OCTETS = 37
LENGTH = struct.Struct(">I")
# What decoding a stranger's JSON can raise; nesting without end is a RecursionError.
BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class State(enum.IntEnum):
    """The single octets that both sides send, as signed numbers."""

    TEST_START = 1
    TEST_RUNNING = 2
    TEST_END = 4
    PARAM_EXCHANGE = 9
    CREATE_STREAMS = 10
    SERVER_TERMINATE = 11
    CLIENT_TERMINATE = 12
    EXCHANGE_RESULTS = 13
    DISPLAY_RESULTS = 14
    IPERF_DONE = 16
    ACCESS_DENIED = -1
    SERVER_ERROR = -2


class Fault(enum.IntEnum):
    """iperf3's own error numbers, which its client turns into a sentence."""

    DURATION = 5
    STREAMS = 6
    BLOCK_SIZE = 7
    OMIT = 12
    NO_SCTP = 18
    CONTROL_MESSAGE = 110
    PARAMETERS = 114
    RESULTS = 117


class Phase(enum.Enum):
    """What a session waits for."""

    PARAMETERS = enum.auto()
    TURN = enum.auto()  # for another test from the same host to have its UDP streams
    STREAMS = enum.auto()
    TEST_END = enum.auto()
    RESULTS = enum.auto()
    ARRIVAL = enum.auto()  # for data that the client has sent and we have not seen yet
    DONE = enum.auto()
    OVER = enum.auto()


Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Parameters(msgspec.Struct):
    """The test as the client asks for it; names are the wire's. The rate is bits per second and stream, 0 for none."""

    tcp: bool = False
    udp: bool = False
    sctp: bool = False
    omit: Count = 0
    time: Count = 0
    num: Count = 0
    blockcount: Count = 0
    parallel: Count = 1
    reverse: bool = False
    bidirectional: bool = False
    len: Count = 128 * 1024
    bandwidth: Count = 0
    get_server_output: bool | int = 0
    udp_counters_64bit: bool | int = 0
    client_version: str = ""

    def fault(self, max_test_s: float) -> Fault | None:
        """Why this test cannot be run."""
        if self.sctp:
            return Fault.NO_SCTP
        if self.tcp == self.udp:
            return Fault.PARAMETERS
        if not 1 <= self.parallel <= MAX_STREAMS:
            return Fault.STREAMS
        header = HEADER_64 if self.udp_counters_64bit else HEADER_32
        shortest, longest = (header.size, MAX_DATAGRAM_OCTETS) if self.udp else (1, BLOCK_OCTETS)
        if not shortest <= self.len <= longest:
            return Fault.BLOCK_SIZE
        if self.time > max_test_s:
            return Fault.DURATION
        if self.omit > MAX_OMIT_S:
            return Fault.OMIT
        return None

    @property
    def timed(self) -> bool:
        return self.time > 0 and not self.num and not self.blockcount

    @property
    def directions(self) -> list[bool]:
        """For each stream, in the order the client opens them, whether we send on it."""
        if self.bidirectional:
            return [False] * self.parallel + [True] * self.parallel
        return [self.reverse] * self.parallel


class StreamResult(msgspec.Struct):
    """One stream as the client saw it."""

    id: int = 0
    bytes: int = 0


class ClientResults(msgspec.Struct):
    """What we read of the client's results."""

    streams: list[StreamResult] = []


class Greeting(Connection, asyncio.BufferedProtocol):
    """A new connection until its cookie is complete: 36 characters and a NUL say which test it belongs to."""

    service: Iperf3Service

    def __init__(self, service: Iperf3Service) -> None:
        super().__init__(service)
        self.serial = service.next_serial()
        self.cookie = bytearray()

    def get_buffer(self, sizehint: int) -> bytearray:
        return SINK

    def buffer_updated(self, octets: int) -> None:
        missing = COOKIE_OCTETS - len(self.cookie)
        self.cookie += SINK[: min(missing, octets)]
        if octets >= missing:
            self.service.greeted(self, bytes(SINK[missing:octets]))

    def eof_received(self) -> bool:
        return False

    def finish(self) -> None:
        self.transport.abort()


class Session(Connection, asyncio.BufferedProtocol):
    """The control connection of one test, from its parameters to its end.

    Every step is bounded in time by its own deadline; the service's sweep leaves it alone.
    """

    service: Iperf3Service

    def __init__(self, service: Iperf3Service, cookie: bytes, transport: Any) -> None:
        super().__init__(service)
        self.cookie = cookie
        self.peer_host = host_of(transport.get_extra_info("peername") or ("",))
        self.phase = Phase.PARAMETERS
        self.parameters = Parameters()
        self.streams: list[Stream] = []
        self.inbox = bytearray()
        self.started_at = 0.0
        self.measured_from = 0.0
        self.ended_at = 0.0
        self.cpu_before = os.times()
        self.cpu_used = [0.0, 0.0]
        self.octets_at_check = 0
        self.client_octets: dict[int, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def sweep(self) -> bool:
        return False

    def open(self, early: bytes) -> None:
        """The cookie is in: ask for the parameters."""
        self._expect(Phase.PARAMETERS, State.PARAM_EXCHANGE)
        self.take(early)

    # What the client sends

    def get_buffer(self, sizehint: int) -> bytearray:
        return SINK

    def buffer_updated(self, octets: int) -> None:
        self.take(bytes(SINK[:octets]))

    def eof_received(self) -> bool:
        return False

    def take(self, octets: bytes) -> None:
        """Consumes control octets as the phase understands them."""
        self.inbox += octets
        while self.inbox and self.phase is not Phase.OVER and self._take_one():
            pass

    def _take_one(self) -> bool:
        if self.phase is Phase.PARAMETERS:
            return self._take_message(MAX_PARAMETERS_OCTETS, self._parameters_received, Fault.PARAMETERS)
        if self.phase is Phase.RESULTS:
            return self._take_message(MAX_RESULTS_OCTETS, self._results_received, Fault.RESULTS)
        state = self.inbox.pop(0)
        if state == State.CLIENT_TERMINATE:
            self._close("client_terminated")
        elif state == State.TEST_END and self.phase is Phase.TEST_END:
            self._end_test()
        elif state == State.IPERF_DONE and self.phase is Phase.DONE:
            self._close("finished")
        else:
            self._fail(Fault.CONTROL_MESSAGE)
        return True

    def _take_message(self, longest: int, received: Callable[[bytes], None], fault: Fault) -> bool:
        if len(self.inbox) < LENGTH.size:
            return False
        (length,) = LENGTH.unpack_from(self.inbox)
        if length > longest:
            self._fail(fault)
            return False
        end = LENGTH.size + length
        if len(self.inbox) < end:
            return False
        message = bytes(self.inbox[LENGTH.size : end])
        del self.inbox[:end]
        try:
            received(message)
        except BAD_JSON:
            self._fail(fault)
        return True

    # The steps of a test

    def _parameters_received(self, message: bytes) -> None:
        self.parameters = msgspec.json.decode(message, type=Parameters)
        fault = self.parameters.fault(self.service.max_test_s)
        if fault is not None:
            self._fail(fault)
        elif self.parameters.udp and self.service.session_awaiting_datagrams(self.peer_host):
            self._expect(Phase.TURN)
        else:
            self.create_streams()

    def create_streams(self) -> None:
        self._expect(Phase.STREAMS, State.CREATE_STREAMS)

    def add_stream(self, stream: Stream) -> None:
        """Books a stream; the last one starts the test."""
        self.streams.append(stream)
        if len(self.streams) == len(self.parameters.directions):
            self._start_test()

    def _start_test(self) -> None:
        # Connections are numbered as they were accepted, which is the order the client opened them in; their cookies
        # may have come in any order.
        if self.parameters.tcp:
            self.streams.sort(key=lambda stream: stream.serial)
        for index, (stream, sends) in enumerate(zip(self.streams, self.parameters.directions, strict=True)):
            stream.id = index + 1 if index == 0 else index + 2  # iperf3 numbers streams 1, 3, 4 ...
            stream.sends = sends
        self.started_at = self.measured_from = self.service.loop.time()
        self.cpu_before = os.times()
        parameters = self.parameters
        longest_s = parameters.omit + (parameters.time if parameters.timed else self.service.max_test_s)
        within_s = longest_s + self.service.step_s
        self._expect(Phase.TEST_END, State.TEST_START, State.TEST_RUNNING, within_s=within_s)
        if parameters.omit:
            self._timer("omit", parameters.omit, self._end_omit)
        if not parameters.timed:
            self._timer("progress", self.service.idle_s, self._check_progress)
        for stream in self.streams:
            stream.begin()
        sources = [stream for stream in self.streams if stream.sends]
        if sources and (parameters.bandwidth or parameters.udp):
            self._tick(sources)
        self.service.next_turn(self.peer_host)

    def _tick(self, sources: list[Stream]) -> None:
        """Sends what is due on every source, then sleeps until the next is."""
        if self.phase is not Phase.TEST_END:
            return
        elapsed_s = self.service.loop.time() - self.started_at
        octets_per_s = self.parameters.bandwidth / 8
        budget = max(BLOCKS_PER_TICK // len(sources), 1)
        wait_s = min([source.send_due(elapsed_s, octets_per_s, budget) for source in sources])
        self._timer("tick", max(wait_s, MIN_TICK_S) if wait_s else 0, self._tick, sources)

    def _end_omit(self) -> None:
        self.measured_from = self.service.loop.time()
        for stream in self.streams:
            stream.reset()

    def _check_progress(self) -> None:
        if self._moved():
            self._timer("progress", self.service.idle_s, self._check_progress)
        else:
            self.terminate("stalled")

    def _moved(self) -> bool:
        """Whether any stream moved anything since the last look."""
        octets = sum(stream.octets for stream in self.streams)
        moved = octets != self.octets_at_check
        self.octets_at_check = octets
        return moved

    def _end_test(self) -> None:
        self._cancel_timers()
        self.ended_at = self.service.loop.time()
        cpu_after = os.times()
        self.cpu_used = [after - before for after, before in zip(cpu_after[:2], self.cpu_before[:2], strict=True)]
        for stream in self.streams:
            if stream.sends or self.parameters.timed:
                stream.end()
        self._moved()
        self._expect(Phase.RESULTS, State.EXCHANGE_RESULTS)

    def _results_received(self, message: bytes) -> None:
        client = msgspec.json.decode(message, type=ClientResults)
        self.client_octets = {stream.id: stream.bytes for stream in client.streams}
        self._expect(Phase.ARRIVAL)
        self._await_arrival(self.service.loop.time() + self.service.step_s / 2)

    def _await_arrival(self, give_up_at: float) -> None:
        """Reports once everything is here. A timed test has ended; one of a set length ends with its last octet."""
        now = self.service.loop.time()
        if not self._arrived() and now < give_up_at:
            self._timer("arrival", MIN_TICK_S, self._await_arrival, give_up_at)
            return
        if self._moved():
            self.ended_at = now
        for stream in self.streams:
            stream.end()
        self._report()

    def _arrived(self) -> bool:
        """Whether every TCP sink has what the client sent; datagrams may be lost, and an omitted start is not told."""
        if self.parameters.timed or self.parameters.udp or self.parameters.omit:
            return True
        sinks = [stream for stream in self.streams if stream.running and not stream.sends]
        return all(sink.octets >= self.client_octets.get(sink.id, 0) for sink in sinks)

    def _report(self) -> None:
        results = msgspec.json.encode(self.results())
        self.transport.write(LENGTH.pack(len(results)) + results)
        self._expect(Phase.DONE, State.DISPLAY_RESULTS)
        log.info(
            "iperf3_test_done",
            peer=self.peer_host,
            protocol="udp" if self.parameters.udp else "tcp",
            streams=len(self.streams),
            seconds=round(self.ended_at - self.measured_from, 3),
            received_octets=sum(s.octets - s.octets_omitted for s in self.streams if not s.sends),
            sent_octets=sum(s.octets - s.octets_omitted for s in self.streams if s.sends),
            client_octets=sum(self.client_octets.values()),
        )

    def results(self) -> dict[str, Any]:
        """The results in the wire's names. Shares of CPU are percent of one core over the whole test."""
        user, system = (100 * used / max(self.ended_at - self.started_at, 1e-3) for used in self.cpu_used)
        seconds = self.ended_at - self.measured_from
        results = {
            "cpu_util_total": user + system,
            "cpu_util_user": user,
            "cpu_util_system": system,
            "sender_has_retransmits": int(any(_retransmits(stream) >= 0 for stream in self.streams)),
            "streams": [
                {
                    "id": stream.id,
                    "bytes": stream.octets - stream.octets_omitted,
                    "retransmits": _retransmits(stream),
                    "jitter": stream.jitter_s,
                    "errors": stream.lost,
                    "omitted_errors": stream.lost_omitted,
                    "packets": stream.packets,
                    "omitted_packets": stream.packets_omitted,
                    "start_time": 0,
                    "end_time": seconds,
                }
                for stream in self.streams
            ],
        }
        if self.parameters.get_server_output:
            results["server_output_text"] = self._summary(seconds)
        return results

    def _summary(self, seconds: float) -> str:
        lines = [f"rustosd iperf3 server, {seconds:.2f} s"]
        for stream in self.streams:
            octets = stream.octets - stream.octets_omitted
            verb = "sent" if stream.sends else "received"
            lines.append(f"[{stream.id:3}] {verb} {octets} octets, {octets * 8e-6 / max(seconds, 1e-3):.1f} Mbit/s")
        return "\n".join(lines) + "\n"

    # Ends

    def finish(self) -> None:
        if self.phase not in (Phase.TEST_END, Phase.RESULTS, Phase.ARRIVAL, Phase.DONE):
            self.terminate("stopped")

    def abort(self) -> None:
        self.terminate("stopped")

    def terminate(self, outcome: str) -> None:
        """Ends the test from our side, and tells the client."""
        if self.phase is not Phase.OVER:
            self._send(State.SERVER_TERMINATE)
            self._close(outcome, linger_s=LINGER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close("connection_lost")
        super().connection_lost(exc)

    def _fail(self, fault: Fault) -> None:
        self._send(State.SERVER_ERROR)
        self.transport.write(LENGTH.pack(fault) + LENGTH.pack(0))
        self._close("failed", linger_s=LINGER_S)

    def _close(self, outcome: str, linger_s: float = 0.0) -> None:
        """Leaves the books, with everything that belongs to this test. Once; later calls do nothing.

        With `linger_s` the streams stay open a little: a client that still sends would otherwise find its stream reset
        before it reads on the control connection why.
        """
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        self._cancel_timers()
        for stream in self.streams:
            stream.end()
            if linger_s:
                self.service.loop.call_later(linger_s, stream.release)
            else:
                stream.release()
        self.transport.close()
        self.service.session_over(self, outcome)

    def _send(self, *states: State) -> None:
        self.transport.write(b"".join(state.to_bytes(1, "big", signed=True) for state in states))

    def _expect(self, phase: Phase, *states: State, within_s: float | None = None) -> None:
        """Tells the client the states and waits for its part of the phase, within a bound."""
        self.phase = phase
        self._send(*states)
        self._timer("deadline", within_s or self.service.step_s, self.terminate, "timed_out")

    def _timer(self, name: str, delay_s: float, callback: Callable[..., None], *arguments: Any) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self.service.loop.call_later(delay_s, callback, *arguments)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


class Iperf3Service(Service):
    """An iperf3 server that runs up to `max_tests` tests at once, each for at most `max_test_s` seconds.

    The client has `step_s` seconds for each of its steps before and after the test itself.
    A connection without a full cookie, and a test without a set length that moves nothing, end after `idle_s` seconds.
    """

    name = "iperf3"
    connection_factory = Greeting

    def __init__(
        self,
        *,
        port: int = 5201,
        hosts: tuple[str, ...] = ANY_HOSTS,
        max_connections: int = 2048,
        max_tests: int = 8,
        max_test_s: float = 86400.0,
        step_s: float = 30.0,
        idle_s: float = 30.0,
    ) -> None:
        super().__init__(port=port, hosts=hosts, max_connections=max_connections, idle_s=idle_s)
        self.max_tests = max_tests
        self.max_test_s = max_test_s
        self.step_s = step_s
        self.outcomes: dict[str, int] = {}
        self._sessions: dict[bytes, Session] = {}
        self._serial = 0

    async def listen(self, network: Network, host: str) -> None:
        await super().listen(network, host)
        await self.listen_datagrams(network, host, lambda: UdpEndpoint(self))

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def greeted(self, greeting: Greeting, early: bytes) -> None:
        """Gives a connection with a cookie its role: a stream of a test that waits for it, or a new test."""
        cookie = bytes(greeting.cookie)
        session = self._sessions.get(cookie)
        if session is None and not self.stopping and len(self._sessions) < self.max_tests:
            session = Session(self, cookie, greeting.transport)
            self._sessions[cookie] = session
            self.replace(greeting, session)
            session.open(early)
        elif session is not None and session.phase is Phase.STREAMS and session.parameters.tcp:
            stream = TcpStream(self)
            stream.serial = greeting.serial
            stream.session = session
            self.replace(greeting, stream)
            session.add_stream(stream)
        else:
            self.events["denied"] += 1
            greeting.transport.write(State.ACCESS_DENIED.to_bytes(1, "big", signed=True))
            greeting.transport.close()

    def session_awaiting_datagrams(self, host: str) -> Session | None:
        """The one test of this client host that waits for its UDP streams."""
        host = host_of((host,))
        for session in self._sessions.values():
            if session.phase is Phase.STREAMS and session.parameters.udp and session.peer_host == host:
                return session
        return None

    def next_turn(self, host: str) -> None:
        """Lets the next test of this host have its UDP streams."""
        if self.session_awaiting_datagrams(host) is None:
            for session in self._sessions.values():
                if session.phase is Phase.TURN and session.peer_host == host:
                    session.create_streams()
                    return

    def session_over(self, session: Session, outcome: str) -> None:
        del self._sessions[session.cookie]
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        for stream in session.streams:
            if stream.sends:
                self.sent_octets += stream.octets
            else:
                self.received_octets += stream.octets
        self.next_turn(session.peer_host)

    def statistics(self) -> Iterator[Sample]:
        yield from super().statistics()
        yield Sample("rustos_iperf3_active_tests", "gauge", "Tests in progress.", len(self._sessions), {})
        for outcome, count in self.outcomes.items():
            yield Sample(
                "rustos_iperf3_tests_total", "counter", "Tests by how they ended.", count, {"outcome": outcome}
            )


def host_of(address: tuple) -> str:
    """The host of a socket address, without an IPv6 zone."""
    return address[0].partition("%")[0]


def _retransmits(stream: Stream) -> int:
    """Segments sent again on a TCP source, where its transport knows; -1 elsewhere, as iperf3 has it."""
    if not stream.sends or isinstance(stream, UdpStream):
        return -1
    retransmits = stream.transport.get_extra_info("retransmits")
    return -1 if retransmits is None else retransmits
