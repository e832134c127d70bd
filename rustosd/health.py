"""What needs the operator's attention: one table of checks, each with its code, severity, and what to do about it.

`Facts` are what the checks look at: the daemon's state now, and what was counted up to now and up to a minute ago. No I/O and
no clock here. The status page, metrics and whoever else asks show the same notes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from rustosd import disk_health

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""The worst first."""

MAX_NOTES: Final = 40
WINDOW_S: Final = 60.0
"""How far back "before" lies at most."""
NEARLY_FULL: Final = 0.9
HOT_MARGIN_CELSIUS: Final = 5.0
MIN_WINDOW_S: Final = 1.0
WAITS_SHARE: Final = 0.5
MIN_WAITS_WINDOW_S: Final = 10.0
"""The daemon's waits for a processor are worth a note when they take so much of the time, and not only for a moment."""
DROPS_PER_S: Final = 5.0
DROPS_SHARE: Final = 0.01
"""Drops of one reason are worth a note when there are so many a second, and this share of all frames."""
RESENT_SHARE: Final = 0.05
RESENT_SEGMENTS: Final = 1000
"""Too few segments in a minute say nothing about a path."""

EXPECTED_DROPS: Final = frozenset({
    "delivered", "answered", "forwarded",
    # what any host hears on a shared link, or is asked by a scan, and rightly ignores
    "ethernet_not_for_us", "ethernet_type_unknown", "arp_not_for_us", "ipv4_not_for_us", "ipv6_not_for_us", "ndp_not_for_us",
    "ndp_ignored", "icmp_type_unknown", "icmp_echo_multicast", "udp_port_closed", "tcp_port_closed", "tcp_no_connection",
    "tcp_duplicate",
})
"""How frames may end in any number without a note."""

DROP_ADVICE: Final[Mapping[str, str]] = {
    "tcp_backlog_full": "Connections come faster than they are accepted: a flood of SYNs, or a service that is too slow. "
                        "See: rustosctl conn. Raise max_half_open under [stack] if they are wanted.",
    "tcp_table_full": "Raise max_connections under [stack], or find out who holds them: rustosctl conn.",
    "tcp_memory": "TCP buffers are full: raise buffers_octets under [stack], or find the slow readers: rustosctl conn.",
    "tcp_out_of_order_full": "Much is lost on the way to here: look for a bad link, or raise receive_buffer_octets.",
    "udp_queue_full": "An application reads its datagrams more slowly than they come.",
    "no_route": "Something sends to where no route leads. See: rustosctl route; rustosctl route add.",
    "no_source_address": "Give the interface an address of the family that is missing: rustosctl addr add.",
    "neighbor_failed": "A next hop does not answer. See: rustosctl neigh; check that the gateway is up and on this link.",
    "neighbor_queue_full": "Too much waits for next hops that do not answer. See: rustosctl neigh.",
    "interface_queue_full": "More is sent than the interface carries. Find the sender: rustosctl conn.",
    "interface_down": "Frames come or go on an interface without a link. See: rustosctl nic.",
    "device_refused": "The device has no room for frames. See: rustosctl nic show; its statistics say why.",
    "no_memory": "The process cannot get memory: see what else runs on this machine, or lower the limits under [stack].",
    "too_big": "The MTU on the way is smaller than here: lower mtu of the [[interface]].",
    "arp_address_conflict": "Another host uses an IPv4 address of ours. Change one of the two: rustosctl addr.",
    "ndp_address_conflict": "Another host uses an IPv6 address of ours. Change one of the two: rustosctl addr.",
    "ipv4_fragment": "Fragments are not put together here. Lower the sender's MTU or fix path MTU discovery on the way.",
    "ethernet_oversize": "A neighbor sends larger frames than the MTU here allows: set mtu alike on both sides.",
}
_CHECKSUM_ADVICE = "Frames arrive damaged: a bad cable, port or memory; or a TAP that leaves checksums out: offload = true."
_DROP_ADVICE_ELSE = "See what it means: rustosctl drops. Capture some of the frames at the sender if it should not be."


class Nic(NamedTuple):
    """What one interface has counted; drops are those of device and driver."""

    rx_octets: int = 0
    tx_octets: int = 0
    rx_frames: int = 0
    tx_frames: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0


class Figures(NamedTuple):
    """What has been counted up to one instant, `at_s` on any clock. A name that is missing has counted 0."""

    at_s: float
    nics: Mapping[str, Nic] = {}
    ended: Mapping[str, int] = {}
    unsent: Mapping[str, int] = {}
    counters: Mapping[str, int] = {}
    pump: Mapping[str, int] = {}
    refused: Mapping[str, int] = {}
    """Connections that a service had no room for, by service."""


class Upkeep(NamedTuple):
    """What is left to do for somebody."""

    reload_failed: str = ""
    """Why the file was not taken at the last reload."""
    waiting: Sequence[str] = ()
    """Keys of the file that only a restart brings."""
    crashes: Sequence[str] = ()
    """Reports of daemons that died, the newest first."""
    programs: Sequence[tuple[str, str, str]] = ()
    """Programs in trouble: name, the check's code, and what is wrong."""
    crashing: Sequence[tuple[str, int]] = ()
    """Programs that exceptions end again and again, and how often lately."""


class Temperature(NamedTuple):
    """What one sensor of the machine shows, and from where on it switches off; 0: it does not say."""

    sensor: str
    celsius: float
    critical_celsius: float


class Facts(NamedTuple):
    """All that the checks know. `interfaces` and `addresses` are the stack's rows without loopback."""

    now: Figures
    before: Figures
    interfaces: Sequence[Mapping[str, Any]] = ()
    addresses: Sequence[Mapping[str, Any]] = ()
    gone: Sequence[tuple[str, str]] = ()
    """Devices that have left, or cannot be driven: bus address and why."""
    disks: Sequence[tuple[str, str, str]] = ()
    """Disks in trouble: name, the check's code, and what is wrong."""
    swap: Sequence[tuple[str, str, str]] = ()
    """Swap of programs in trouble: the program, the check's code, and what is wrong."""
    usage: Mapping[str, int] = {}
    resident_octets: int = 0
    memory_octets: int = 0
    """What the process may have; 0: unknown."""
    upkeep: Upkeep = Upkeep()
    temperatures: Sequence[Temperature] = ()
    drives: Sequence[disk_health.DiskState] = ()
    drive_ports: Sequence[disk_health.PortState] = ()

    def rise(self, kind: str) -> dict[str, int]:
        """What was counted in between, by name, without what did not rise."""
        before = getattr(self.before, kind)
        rises = {name: count - before.get(name, 0) for name, count in getattr(self.now, kind).items()}
        return {name: rise for name, rise in rises.items() if rise > 0}

    @property
    def seconds(self) -> float:
        """The time in between, and never so short that one frame makes a rate."""
        return max(self.now.at_s - self.before.at_s, MIN_WINDOW_S)


class Note(msgspec.Struct, frozen=True):
    """One thing to look at."""

    code: str
    severity: Severity
    subject: str
    """The interface, address, reason or service it is about; empty: the whole daemon."""
    text: str
    advice: str


class Finding(NamedTuple):
    """What a check has found; `advice` where it knows better than the table."""

    subject: str
    text: str
    advice: str = ""


class Check(NamedTuple):
    """One row of the table."""

    code: str
    severity: Severity
    find: Callable[[Facts], Iterable[Finding]]
    advice: str


def _no_interface(facts: Facts) -> Iterator[Finding]:
    if not facts.interfaces:
        yield Finding("", "There is no interface but loopback.")


def _link_down(facts: Facts) -> Iterator[Finding]:
    for row in facts.interfaces:
        if not row["up"]:
            yield Finding(row["name"], f"{row['name']} has no link.")


def _device_gone(facts: Facts) -> Iterator[Finding]:
    for bdf, reason in facts.gone:
        yield Finding(bdf, f"Device {bdf} is gone: {reason}.")


def _disk(code: str) -> Callable[[Facts], Iterator[Finding]]:
    def find(facts: Facts) -> Iterator[Finding]:
        for name, found, what in facts.disks:
            if found == code:
                yield Finding(name, f"Disk {name} {what}.")
    return find


def _swap(code: str) -> Callable[[Facts], Iterator[Finding]]:
    def find(facts: Facts) -> Iterator[Finding]:
        for program, found, what in facts.swap:
            if found == code:
                yield Finding(program, f"The swap of {program}: {what}.")
    return find


def _program(code: str) -> Callable[[Facts], Iterator[Finding]]:
    def find(facts: Facts) -> Iterator[Finding]:
        for name, found, what in facts.upkeep.programs:
            if found == code:
                yield Finding(name, f"Program {name} {what}.")
    return find


def _address_duplicate(facts: Facts) -> Iterator[Finding]:
    for row in facts.addresses:
        if row["state"] == "duplicate":
            yield Finding(row["address"], f"Another host on {row['name']} uses {row['address']}, so it is not used here.")


def _drops(facts: Facts, kind: str, verb: str, frames: int) -> Iterator[Finding]:
    for reason, rise in sorted(facts.rise(kind).items(), key=lambda item: -item[1]):
        rate = rise / facts.seconds
        if reason not in EXPECTED_DROPS and rate >= DROPS_PER_S and rise >= DROPS_SHARE * frames:
            advice = DROP_ADVICE.get(reason) or (_CHECKSUM_ADVICE if reason.endswith("_checksum") else _DROP_ADVICE_ELSE)
            yield Finding(reason, f"{rate:,.0f} frames a second are {verb}: {reason}.", advice)


def _drops_rising(facts: Facts) -> Iterator[Finding]:
    yield from _drops(facts, "ended", "dropped", sum(facts.rise("ended").values()))


def _unsent_rising(facts: Facts) -> Iterator[Finding]:
    sent = sum(nic.tx_frames - facts.before.nics.get(name, Nic()).tx_frames for name, nic in facts.now.nics.items())
    yield from _drops(facts, "unsent", "not sent", sent)


def _nic_drops_rising(facts: Facts) -> Iterator[Finding]:
    for name, nic in facts.now.nics.items():
        before = facts.before.nics.get(name, nic)
        rate = (nic.rx_dropped + nic.tx_dropped - before.rx_dropped - before.tx_dropped) / facts.seconds
        if rate >= 1:
            yield Finding(name, f"The device of {name} loses {rate:,.0f} frames a second.")


def _pump_errors(facts: Facts) -> Iterator[Finding]:
    if rise := facts.rise("pump").get("errors", 0):
        yield Finding("", f"{rise:,} exceptions were caught in the pump within {facts.seconds:.0f} seconds.")


def _daemon_waits(facts: Facts) -> Iterator[Finding]:
    share = facts.rise("pump").get("wait_ms", 0) / 1000 / facts.seconds
    if share >= WAITS_SHARE and facts.seconds >= MIN_WAITS_WINDOW_S:
        yield Finding("", f"{share:.0%} of the last {facts.seconds:.0f} s the daemon waited for a processor that others had.")


def _device_refuses(facts: Facts) -> Iterator[Finding]:
    if rise := facts.rise("pump").get("tx_refused", 0):
        yield Finding("", f"Devices refused {rise:,} frames within {facts.seconds:.0f} seconds.")


def _bug(facts: Facts) -> Iterator[Finding]:
    if count := facts.now.counters.get("tcp_impossible_transitions", 0):
        yield Finding("", f"TCP met {count:,} events that its state table has no row for.")


def _nearly_full(key: str, limit_key: str, what: str) -> Callable[[Facts], Iterator[Finding]]:
    def find(facts: Facts) -> Iterator[Finding]:
        used, limit = facts.usage.get(key, 0), facts.usage.get(limit_key, 0)
        if limit and used >= NEARLY_FULL * limit:
            yield Finding("", f"{used:,} of {limit:,} {what} are in use.")
    return find


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory_octets and facts.resident_octets >= NEARLY_FULL * facts.memory_octets:
        share = facts.resident_octets / facts.memory_octets
        yield Finding("", f"The process uses {share:.0%} of the memory it may have.")


def _reload_failed(facts: Facts) -> Iterator[Finding]:
    if facts.upkeep.reload_failed:
        yield Finding("", f"The configuration was not reloaded: {facts.upkeep.reload_failed}.")


def _restart_needed(facts: Facts) -> Iterator[Finding]:
    if facts.upkeep.waiting:
        yield Finding("", f"The configuration says what only a restart brings: {', '.join(facts.upkeep.waiting)}.")


def _crash_reports(facts: Facts) -> Iterator[Finding]:
    if facts.upkeep.crashes:
        count = len(facts.upkeep.crashes)
        yield Finding(facts.upkeep.crashes[0], f"{count} {'report' if count == 1 else 'reports'} of daemons that died "
                                               f"{'is' if count == 1 else 'are'} there.")


def _programs_crash(facts: Facts) -> Iterator[Finding]:
    for program, count in facts.upkeep.crashing:
        yield Finding(program, f"Exceptions have ended {program} {count} times within ten minutes.")


def _hot(facts: Facts) -> Iterator[Finding]:
    for sensor, celsius, critical in facts.temperatures:
        if critical and celsius >= critical - HOT_MARGIN_CELSIUS:
            yield Finding(sensor, f"The sensor {sensor} shows {celsius:.0f} °C; the machine switches off at {critical:.0f} °C.")


def _drives(check: Callable[[Any], Iterable[tuple[str, str]]], of: str) -> Callable[[Facts], Iterator[Finding]]:
    """A check of `rustosd.disk_health` as one of this table."""
    return lambda facts: (Finding(subject, text) for subject, text in check(getattr(facts, of)))


def _services_full(facts: Facts) -> Iterator[Finding]:
    for service, rise in facts.rise("refused").items():
        yield Finding(service, f"Service {service} refused {rise:,} connections within {facts.seconds:.0f} seconds.")


def _time_wait(facts: Facts) -> Iterator[Finding]:
    if rise := facts.rise("counters").get("tcp_time_wait_recycled", 0):
        yield Finding("", f"{rise:,} connections left TIME-WAIT early to make room.")


def _evictions(facts: Facts) -> Iterator[Finding]:
    if rise := facts.rise("counters").get("neighbor_evictions", 0):
        yield Finding("", f"{rise:,} neighbors were forgotten to make room for others.")


def _retransmits(facts: Facts) -> Iterator[Finding]:
    rises = facts.rise("counters")
    resent, sent = rises.get("tcp_retransmits", 0), rises.get("tcp_segments_sent", 0)
    if sent >= RESENT_SEGMENTS and resent >= RESENT_SHARE * sent:
        yield Finding("", f"{resent / sent:.0%} of the TCP segments are sent twice.")


CHECKS: Final[tuple[Check, ...]] = (
    Check("no-interface", "error", _no_interface, "Name one under [[interface]], or take a device."),
    Check("link-down", "error", _link_down,
          "Check cable and switch port; for a TAP: ip link set NAME up, where NAME is the kernel's interface."),
    Check("device-gone", "error", _device_gone,
          "Plug it in again, or let go of it: rustosctl device give. The kernel's log may say more: dmesg."),
    Check("disk-stalled", "error", _disk("disk-stalled"),
          "Requests that wait end with ETIMEDOUT until it answers. See: rustosctl disk show; and dmesg for what is below it."),
    Check("disk-flush-lost", "error", _disk("disk-flush-lost"),
          "What was written since the last flush that succeeded may be lost. Look at what is below the file (dmesg, df), then "
          "restart the daemon and have its users check their data."),
    Check("swap-corrupt", "error", _swap("swap-corrupt"),
          "Whoever needed such a page has ended. Do not trust what swap is on: look at it and its cable, or choose another "
          "place under [swap]."),
    Check("swap-failing", "error", _swap("swap-failing"),
          "Look at what swap is on (rustosctl swap; dmesg, df, rustosctl disk). Who needs a page that is lost ends."),
    Check("program-failed", "error", _program("program-failed"),
          "See what it said: rustosctl logs NAME. When it is mended: rustosctl program start NAME."),
    Check("program-waits", "warning", _program("program-waits"),
          "See: rustosctl program. Change after = ... of the [[program]] if it need not wait for that."),
    Check("address-duplicate", "error", _address_duplicate, "Give one of the two hosts another address: rustosctl addr."),
    Check("pump-errors", "error", _pump_errors,
          "The daemon goes on, but something in it is broken. The log has the trace (pump_callback_failed): please report it."),
    Check("machine-hot", "error", _hot, "See to fans and air, or have the machine do less: busy_poll_us = 0 under [pump]."),
    Check("reload-failed", "error", _reload_failed,
          "Mend the file, then: rustosctl reload. Until then what was in force stays."),
    Check("tcp-bug", "error", _bug, "This is a bug. Please report it with the output of: rustosctl counters --all."),
    Check("former-run-died", "warning", _crash_reports,
          "See why: rustosctl crash show NAME. Report it with: rustosctl report. Then remove it: rustosctl crash clear."),
    Check("program-crashing", "warning", _programs_crash,
          "See where: rustosctl faults, and faults show ID. Its maker wants the report."),
    Check("restart-needed", "warning", _restart_needed, "When it suits: systemctl restart rustosd. See: rustosctl config."),
    Check("disk-failing", "error", _drives(disk_health.failing, "drives"),
          "Copy what is on it now, and replace it. Its values: rustosctl disk smart."),
    Check("disk-port-failed", "error", _drives(disk_health.given_up, "drive_ports"),
          "Check cable, power and drive, then: rustosctl disk retry."),
    Check("disk-hot", "warning", _drives(disk_health.hot, "drives"), "See to its fans and to the air around it."),
    Check("disk-sectors-unreadable", "warning", _drives(disk_health.pending, "drives"),
          "Restore them from a copy: what is written is readable again. More of them mean that the disk is wearing out."),
    Check("disk-port-slowed", "warning", _drives(disk_health.slowed, "drive_ports"),
          "Check or replace the SATA cable; what it was is counted: rustosctl disk ports."),
    Check("connections-nearly-full", "warning", _nearly_full("connections", "connections_limit", "TCP connections"),
          "Raise max_connections under [stack], or find out who holds them: rustosctl conn."),
    Check("sockets-nearly-full", "warning", _nearly_full("sockets", "sockets_limit", "sockets for other processes"),
          "Find out who holds them: rustosctl ps. Raise max_sockets under [sockets], and LimitNOFILE= of the service where the "
          "log says that it leaves room for fewer."),
    Check("buffers-nearly-full", "warning", _nearly_full("buffer_octets", "buffer_octets_limit", "octets of TCP buffers"),
          "Raise buffers_octets under [stack], or find the slow readers: rustosctl conn."),
    Check("memory-nearly-full", "warning", _memory,
          "Give the service more memory (MemoryMax= in its unit, or a larger machine), or lower buffers_octets under [stack]."),
    Check("swap-nearly-full", "warning", _swap("swap-nearly-full"),
          "Raise size under [swap] and start the program anew, or give it more memory. When swap is full, it waits for memory "
          "at its limit, and ends above it."),
    Check("drops-rising", "warning", _drops_rising, _DROP_ADVICE_ELSE),
    Check("unsent-rising", "warning", _unsent_rising, _DROP_ADVICE_ELSE),
    Check("nic-drops-rising", "warning", _nic_drops_rising,
          "Frames come faster than they are taken, or damaged. rustosctl nic show says what the device counts."),
    Check("daemon-waits", "warning", _daemon_waits,
          "Frames wait with it. See who runs: rustosctl sched show; top. Under [scheduler] give it reserved_processors, or "
          "raise daemon_weight against programs; against the rest of the machine: CPUWeight= in the unit."),
    Check("device-refuses", "warning", _device_refuses,
          "The link is slower than what is sent, or down. See: rustosctl nic."),
    Check("service-full", "warning", _services_full,
          "It has as many connections as it takes. See who holds them: rustosctl conn."),
    Check("retransmits-high", "warning", _retransmits,
          "The path loses or delays much. rustosctl conn shows which connections send again; look at that path."),
    Check("neighbors-full", "warning", _evictions,
          "Raise max_neighbors under [stack], unless it is a scan of the subnet: rustosctl neigh."),
    Check("time-wait-full", "note", _time_wait,
          "Harmless as a rule. Raise max_time_wait under [stack] if peers see connections reset."),
)
"""Every check, in the order its notes are shown within a severity."""


def check(facts: Facts) -> list[Note]:
    """What needs attention, the worst first; at most MAX_NOTES."""
    notes = [Note(row.code, row.severity, found.subject, found.text, found.advice or row.advice)
             for row in CHECKS for found in row.find(facts)]
    return sorted(notes, key=lambda note: SEVERITIES.index(note.severity))[:MAX_NOTES]


def by_severity(notes: Iterable[Note]) -> dict[str, int]:
    """How many notes there are of each severity, zeros included."""
    counts: dict[str, int] = dict.fromkeys(SEVERITIES, 0)
    for note in notes:
        counts[note.severity] += 1
    return counts
