"""The Echo Protocol on TCP and UDP port 7 (RFC 862)."""

from __future__ import annotations

import asyncio
from typing import Any

from rustosd.services.base import ANY_HOSTS, Connection, Network, Service

# Ports whose owners answer anything: an echo to them would go round for ever (CERT CA-1996-01).
ANSWERING_PORTS = frozenset({0, 7, 13, 17, 19, 37})


class EchoConnection(Connection, asyncio.Protocol):
    """Returns every octet in order; reads no further while the peer does not read what it gets back."""

    service: EchoService

    def data_received(self, data: bytes) -> None:
        self.quiet = 0
        self.service.received_octets += len(data)
        self.service.sent_octets += len(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.quiet = 0
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        return False  # the transport sends what is left, then closes

    def finish(self) -> None:
        self.transport.close()


class EchoEndpoint(asyncio.DatagramProtocol):
    """Returns every datagram to its sender, or drops it by name where that would loop or queue without bound."""

    def __init__(self, service: EchoService) -> None:
        self.service = service
        self.transport: Any = None
        self.paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple) -> None:
        service = self.service
        service.received_octets += len(data)
        if self.paused:
            service.events["datagram_dropped_busy"] += 1
        elif address[1] in ANSWERING_PORTS:
            service.events["datagram_dropped_loop"] += 1
        else:
            self.transport.sendto(data, address)
            service.sent_octets += len(data)

    def error_received(self, exc: OSError) -> None:
        self.service.events["datagram_error"] += 1

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


class EchoService(Service):
    """Echo on both transports. A connection that is silent for `idle_s` seconds is ended."""

    name = "echo"
    connection_factory = EchoConnection

    def __init__(
        self, *, port: int = 7, hosts: tuple[str, ...] = ANY_HOSTS, max_connections: int = 16384, idle_s: float = 300.0
    ) -> None:
        super().__init__(port=port, hosts=hosts, max_connections=max_connections, idle_s=idle_s)

    async def listen(self, network: Network, host: str) -> None:
        await super().listen(network, host)
        await self.listen_datagrams(network, host, lambda: EchoEndpoint(self))
