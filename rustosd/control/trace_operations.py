"""What an operator can find out about the way to a host."""

from typing import Any, Protocol

from rustosd.control import trace_protocol as p


class TraceCore(Protocol):
    """What these operations need of the daemon."""

    tracer: Any
    """`rustosd.tracer.Tracer` or its like."""


class TraceOperations:
    """The methods of `trace_protocol.METHODS`."""

    core: TraceCore

    async def trace_hop(self, query: p.HopQuery) -> p.Hop:
        address, timeout_s = str(query.address), query.timeout_ms / 1000
        if query.method == "udp":
            steps = await self.core.tracer.udp(address, query.hop_limit, range(query.port, query.port + query.probes),
                                               query.octets, timeout_s)
        else:
            steps = await self.core.tracer.icmp(address, query.hop_limit, query.identifier,
                                                range(query.sequence, query.sequence + query.probes), query.octets, timeout_s)
        return p.Hop(hop_limit=query.hop_limit, probes=[_probe(step) for step in steps])


def _probe(step: Any) -> p.Probe:
    if step is None:
        return p.Probe(address=None, rtt_us=None, error=None, reached=False)
    return p.Probe(address=step.source, rtt_us=round(step.round_trip_s * 1e6, 1), error=step.error, reached=step.reached)
