"""The data streams of an iperf3 test: TCP and UDP, as sink or source.

A sink costs a count: TCP is read into one buffer that all streams share and nobody looks at. A source writes slices of
one immutable block for as long as its transport takes them, or what a target rate has made due.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import struct
import time
from typing import TYPE_CHECKING, Any

from rustosd.services.base import Pump

if TYPE_CHECKING:
    from rustosd.services.iperf3 import Iperf3Service, Session

SINK = bytearray(256 * 1024)
BLOCK_OCTETS = 1024 * 1024  # also the longest TCP block a client may ask for
BLOCK = memoryview(os.urandom(BLOCK_OCTETS))
WRITE_OCTETS = 256 * 1024  # short blocks are written several at once, up to this
# A source that could not keep its rate catches up on this much, no more: a longer burst would only overrun the peer.
CATCH_UP_S = 0.02
# A source with a rate writes at least this much of a second at a time, so that short blocks do not cost a call each.
PACE_S = 0.001
# A paused transport is looked at again after this long.
RETRY_S = 0.001

# The first datagram of a UDP stream and its answer; iperf3 sends them in the byte order of its machine, so both occur.
_HELLOS = ((0x36373839, 0x39383736), (123456789, 987654321))
UDP_HELLO_ANSWERS = {
    struct.pack(order, hello): struct.pack(order, answer) for hello, answer in _HELLOS for order in ("<I", ">I")
}
# Seconds, microseconds and sequence number lead every datagram.
HEADER_32 = struct.Struct(">III")
HEADER_64 = struct.Struct(">IIQ")


class Stream:
    """What a test knows of one stream, whichever protocol it runs over.

    Octets and packets count from the first; `reset` marks where the omitted start ends.
    """

    session: Session | None = None
    id = 0
    serial = 0
    sends = False
    running = False
    block_octets = 1  # what one send_block sends
    octets = 0
    octets_omitted = 0
    # Octets that the rate made due and that are forgiven because they could not be sent in time.
    octets_forgiven = 0
    packets = 0
    packets_omitted = 0
    lost = 0
    lost_omitted = 0
    jitter_s = 0.0

    def reset(self) -> None:
        """The omitted start is over: what was counted so far does not count."""
        self.octets_omitted = self.octets
        self.packets_omitted = self.packets
        self.lost_omitted = self.lost
        self.jitter_s = 0.0

    def begin(self) -> None:
        """The test runs: count, and send if this is a TCP source without a target rate."""
        self.running = True

    def end(self) -> None:
        """The test is over: what comes now no longer counts."""
        self.running = False

    def release(self) -> None:
        """The results are out: let go of the transport."""

    def send_due(self, elapsed_s: float, octets_per_s: float, budget: int) -> float:
        """Sends what is due after `elapsed_s`, at most `budget` blocks; the seconds until it wants to send again.

        Without a rate (0) everything is due at once.
        """
        due = math.inf
        if octets_per_s:
            due = octets_per_s * elapsed_s - self.octets - self.octets_forgiven
            excess = int(due - max(CATCH_UP_S * octets_per_s, self.block_octets))
            if excess > 0:
                self.octets_forgiven += excess
                due -= excess
        for _ in range(budget):
            if due < 0:
                return -due / octets_per_s
            if not self.send_block():
                return RETRY_S
            due -= self.block_octets
        return 0.0

    def send_block(self) -> bool:
        """Sends one block; False if the transport takes none now."""
        raise NotImplementedError


class TcpStream(Pump, Stream, asyncio.BufferedProtocol):
    """A TCP connection whose cookie named a test; its session answers for its life, so it is not swept."""

    service: Iperf3Service
    block: memoryview
    paced = False

    def sweep(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing: the session tells the client first, and the service ends what is left after that."""

    def get_buffer(self, sizehint: int) -> bytearray:
        return SINK

    def buffer_updated(self, octets: int) -> None:
        if self.running:
            self.octets += octets

    def eof_received(self) -> bool:
        return False

    def begin(self) -> None:
        super().begin()
        if not self.sends:
            return
        parameters = self.session.parameters
        self.paced = parameters.bandwidth > 0
        wanted = int(parameters.bandwidth / 8 * PACE_S) if self.paced else WRITE_OCTETS
        self.block_octets = max(min(wanted, WRITE_OCTETS) // parameters.len, 1) * parameters.len
        self.block = BLOCK[: self.block_octets]
        if not self.paced:
            self.pump()

    def produce(self) -> bool:
        return not self.paced and self.send_block()

    def send_block(self) -> bool:
        if self.paused or not self.running:
            return False
        self.octets += self.block_octets
        self.transport.write(self.block)
        return True

    def reset(self) -> None:
        super().reset()
        if self.sends:      # as at the end: what is still queued has not been sent yet, and counts when it is
            self.octets_omitted -= self.transport.get_write_buffer_size()

    def end(self) -> None:
        if self.running and self.sends:
            # The peer reads on until it sees the end; what is still queued here was not sent in the test's time.
            self.octets -= self.transport.get_write_buffer_size()
            self.transport.close()
        super().end()

    def release(self) -> None:
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.running:
            self.running = False
            self.service.events["stream_lost"] += 1


class UdpStream(Stream):
    """The datagrams between one client address and the service's UDP endpoint."""

    def __init__(self, session: Session, endpoint: UdpEndpoint, address: tuple, answer: bytes) -> None:
        self.session = session
        self.endpoint = endpoint
        self.address = address
        self.answer = answer
        self.header = HEADER_64 if session.parameters.udp_counters_64bit else HEADER_32
        self.last_number = 0xFFFF_FFFF if self.header is HEADER_32 else 0xFFFF_FFFF_FFFF_FFFF
        self.block_octets = session.parameters.len
        self.payload = bytes(BLOCK[: self.block_octets - self.header.size])
        self.transit_s: float | None = None

    def received(self, datagram: bytes) -> None:
        """Counts a datagram: loss by gaps in the sequence, jitter as RFC 1889 A.8 has it."""
        if not self.running:
            if datagram in UDP_HELLO_ANSWERS:  # our answer was lost
                self.endpoint.transport.sendto(self.answer, self.address)
            return
        if self.sends:
            return
        if len(datagram) < self.header.size:
            self.session.service.events["datagram_malformed"] += 1
            return
        seconds, microseconds, sequence = self.header.unpack_from(datagram)
        self.octets += len(datagram)
        if sequence > self.packets:
            self.lost += sequence - self.packets - 1
            self.packets = sequence
        elif self.lost > 0:
            self.lost -= 1  # late, not lost
        transit_s = time.monotonic() - seconds - microseconds * 1e-6
        if self.transit_s is not None:
            self.jitter_s += (abs(transit_s - self.transit_s) - self.jitter_s) / 16
        self.transit_s = transit_s

    def send_block(self) -> bool:
        if self.endpoint.paused or not self.running:
            return False
        microseconds = time.monotonic_ns() // 1000
        number = (self.packets + 1) & self.last_number
        header = self.header.pack(microseconds // 1_000_000, microseconds % 1_000_000, number)
        self.endpoint.full = False
        self.endpoint.transport.sendto(header + self.payload, self.address)
        if self.endpoint.full:
            return False
        self.packets += 1
        self.octets += self.block_octets
        return True

    def release(self) -> None:
        self.endpoint.streams.pop(self.address, None)


class UdpEndpoint(asyncio.DatagramProtocol):
    """The service's UDP port on one host; tells the streams apart by the client's address."""

    def __init__(self, service: Iperf3Service) -> None:
        self.service = service
        self.streams: dict[tuple, UdpStream] = {}
        self.transport: Any = None
        self.paused = False
        self.full = False  # the network had no room for the last datagram; a transport without a buffer says so at once

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        stream = self.streams.get(address)
        if stream is not None:
            stream.received(data)
            return
        answer = UDP_HELLO_ANSWERS.get(data)
        session = self.service.session_awaiting_datagrams(address[0]) if answer else None
        if session is None:
            self.service.events["datagram_unexpected"] += 1
            return
        stream = UdpStream(session, self, address, answer)
        self.streams[address] = stream
        self.transport.sendto(answer, address)
        session.add_stream(stream)

    def error_received(self, exc: OSError) -> None:
        if exc.errno in (errno.ENOBUFS, errno.EAGAIN):
            self.full = True
        else:
            self.service.events["datagram_error"] += 1

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
