"""One interface or connection in full, for people: names and values, a line each."""

from collections.abc import Iterator

from rustosd.cli import tables
from rustosd.cli.tables import MISSING, milliseconds, octets, plain
from rustosd.control import network_protocol as p

Fact = tuple[str, str]


def show_nic(nic: p.NicDetails) -> None:
    """Print all about an interface; a section without content is left out."""
    tables.show_facts(_nic_facts(nic))


def _nic_facts(nic: p.NicDetails) -> Iterator[Fact]:
    yield "nic", nic.name
    yield "kind", nic.kind
    if nic.device is not None:
        yield "device", f"{nic.device} by {nic.backend}"
        yield "model", plain(nic.model)
    speed = "" if nic.speed_mbps is None else f", {nic.speed_mbps} Mb/s {nic.duplex} duplex"
    yield "link", nic.link + speed
    yield "mac", plain(nic.mac)
    yield "mtu", str(nic.mtu)
    yield "offload", plain(nic.features)
    for address in nic.addresses:
        yield "address", address
    for ring in nic.rings:
        yield f"{ring.name} ring", f"{ring.descriptors} descriptors"
    if nic.interrupts is not None:
        yield "interrupts", nic.interrupts + (f", at most one in {nic.moderation_us} us" if nic.moderation_us else "")
    yield "received", f"{nic.rx_frames} frames, {octets(nic.rx_octets)}"
    yield "sent", f"{nic.tx_frames} frames, {octets(nic.tx_octets)}"
    yield "waiting to be sent", f"{nic.output_queued} frames"
    for name, count in {**nic.interrupt_statistics, **nic.statistics}.items():
        if count:
            yield name.replace("_", " "), str(count)


def show_connection(connection: p.ConnectionDetails) -> None:
    """Print all about a connection."""
    tables.show_facts(_connection_facts(connection))


def _connection_facts(c: p.ConnectionDetails) -> Iterator[Fact]:
    yield "id", c.id
    yield "state", c.state
    yield "local", c.local
    yield "remote", c.remote
    yield "interface", c.nic
    yield "owner", c.owner
    yield "age", tables.duration(c.age_s)
    yield "received", f"{octets(c.rx_octets)}, {octets(c.unread)} of them unread"
    yield "sent", f"{octets(c.tx_octets)}, {octets(c.unsent)} not acknowledged, {octets(c.in_flight)} in flight"
    yield "sent again", f"{c.retransmits} segments" + (f", recovery ({c.recovery}) is under way" if c.recovery else "")
    yield "round trip", MISSING if c.rtt_us is None else f"{milliseconds(c.rtt_us)} +- {milliseconds(c.rtt_variance_us)}"
    yield "retransmission timeout", f"{c.rto_ms:.1f} ms" + (f", {c.backoff} in a row" if c.backoff else "")
    threshold = MISSING if c.ssthresh is None else octets(c.ssthresh)
    yield "congestion window", f"{octets(c.cwnd)}, threshold {threshold}, {octets(c.pipe)} in the pipe"
    yield "peer's window", octets(c.send_window)
    yield "our window", octets(c.receive_window)
    yield "segment size", f"{c.mss}, the peer said {c.peer_mss}"
    yield "options", _options(c)
    yield "send buffer", f"{octets(c.send_memory)} of {octets(c.send_limit)}"
    yield "receive buffer", f"{octets(c.receive_memory)} of {octets(c.receive_limit)}"
    yield "out of order", f"{c.out_of_order_ranges} ranges here, {c.sacked_ranges} at the peer"
    for timer in c.timers:
        yield "timer", f"{timer.name.replace('_', ' ')} in {timer.in_ms:.1f} ms"
    if c.error is not None:
        yield "error", c.error


def _options(c: p.ConnectionDetails) -> str:
    words = [name for name, on in (("sack", c.sack), ("timestamps", c.timestamps), ("nodelay", c.nodelay),
                                   ("keepalive", c.keepalive)) if on]
    if c.window_scale is not None:
        words.insert(0, f"window scale {c.window_scale[0]} and {c.window_scale[1]}")
    return ", ".join(words) or MISSING
