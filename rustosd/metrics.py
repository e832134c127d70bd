"""Prometheus metrics, read from the C counters and histograms at scrape; between scrapes they cost nothing.

Labels have few values by construction: interfaces (at most 32), verdicts (the enum), services and their fixed events,
and what a NIC's driver counts (at most NIC_STATISTICS names of each NIC).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

NIC_STATISTICS: Final = 200
"""Names of one NIC's statistics that are shown; those that come after are left out."""

_NIC_COUNTERS = {
    "rx_frames": "Frames received; a super-segment is one.",
    "rx_octets": "Octets received, Ethernet headers included.",
    "tx_frames": "Frames sent; a super-segment is one.",
    "tx_octets": "Octets sent, Ethernet headers included.",
}
_NIC_STATISTICS_HELP = {
    "rx_dropped": "Frames the device or its driver lost on the way in.",
    "tx_dropped": "Frames the device or its driver did not send.",
    "rx_super_segments": "TCP super-segments received.",
    "tx_super_segments": "TCP super-segments sent.",
}
_BY_REASON = ("rx_dropped", "tx_dropped", "rx_failed", "tx_failed")
"""`rx_dropped_too_short` is reason too_short of rx_dropped."""
_STATISTIC_NAME = re.compile(r"[a-z][a-zA-Z0-9_]{0,63}")
_USAGE = {
    "connections": "TCP connections in any state but LISTEN.",
    "connections_limit": "How many TCP connections there can be.",
    "time_wait": "TCP connections in TIME-WAIT.",
    "time_wait_limit": "How many TCP connections can be in TIME-WAIT.",
    "buffer_octets": "Octets of memory in TCP buffers.",
    "buffer_octets_limit": "How many octets TCP buffers can take.",
}
_PUMP = {
    "wakeups": "Turns begun because a NIC had frames or a program had used its sockets.",
    "kicks": "Turns asked for by applications.",
    "timers": "Turns begun because time had passed.",
    "yields": "Turns that used up their budget and gave way to other work.",
    "busy_polls": "Looks for frames that found none, before sleep.",
    "rests": "Times that what came was kept for a moment, since others waited for a processor.",
    "rx_bursts": "Bursts of frames received.",
    "rx_frames": "Frames received in bursts.",
    "tx_bursts": "Bursts of frames sent.",
    "tx_frames": "Frames sent in bursts.",
    "tx_refused": "Frames that devices refused, which are lost.",
    "errors": "Exceptions caught in the pump; the log has the first of each second.",
}
_INCOMING = ("delivered", "answered", "forwarded", "ethernet_", "arp_", "ip", "icmp_", "ndp_", "udp_", "tcp_")
"""Verdicts on what came in; that frames of ours end so is seldom enough to be left out while it is 0."""
_NS: Final = 1e-9
_Row = tuple[int, Sequence[int]]

log = structlog.get_logger(__name__)


class PumpFigures(Protocol):
    """What is asked of `rustosd.pump.Pump`."""

    def statistics(self) -> Mapping[str, int]: ...

    def histograms(self) -> Mapping[str, _Row]: ...

    @property
    def nics(self) -> Mapping[int, Any]: ...


class StackCollector:
    """Everything the daemon counts, as metric families.

    `samples` adds what the services count, `notes` how many health notes there are of each severity, `disks` and
    `scheduling` their families.
    """

    def __init__(self, stack: Any, counter_help: Mapping[str, str], version: str,
                 samples: Callable[[], Iterable[Any]] = lambda: (), *, pump: PumpFigures | None = None,
                 notes: Callable[[], Mapping[str, int]] = dict, disks: Callable[[], Iterable[Metric]] = tuple,
                 scheduling: Callable[[], Iterable[Metric]] = tuple):
        self.stack = stack
        self.counter_help = counter_help
        self.version = version
        self.samples = samples
        self.pump = pump
        self.notes = notes
        self.disks = disks
        self.scheduling = scheduling

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("rustos_build_info", "1; the version is in the label.", labels=["version"])
        info.add_metric([self.version], 1)
        yield info
        yield labelled(GaugeMetricFamily, "rustos_health_notes", "What needs attention now, by severity.", "severity",
                       self.notes())
        yield from self._nics()
        yield from self._frames()
        yield from self._tcp()
        if self.pump is not None:
            yield from _pump(self.pump)
        yield from self.disks()
        yield from self.scheduling()
        for name, count in self.stack.counters().items():
            yield CounterMetricFamily(f"rustos_{name}", _sentence(self.counter_help.get(name, name)), value=count)
        yield from families(self.samples())

    def _nics(self) -> Iterator[Metric]:
        rows = self.stack.interfaces()
        up = GaugeMetricFamily("rustos_nic_up", "1 while the interface can carry frames.", labels=["nic"])
        for row in rows:
            up.add_metric([row["name"]], row["up"])
        yield up
        for key, text in _NIC_COUNTERS.items():
            family = CounterMetricFamily(f"rustos_nic_{key}", text, labels=["nic"])
            for row in rows:
                family.add_metric([row["name"]], row[key])
            yield family
        if self.pump is not None:
            names = {row["index"]: row["name"] for row in rows}
            yield from nic_statistics((names[index], nic) for index, nic in self.pump.nics.items() if index in names)

    def _frames(self) -> Iterator[Metric]:
        for name, text, counts in (
            ("rustos_frames_ended", "Received frames by how they ended, each once.", self.stack.verdicts()),
            ("rustos_frames_unsent", "Frames that could not be sent, by reason.", self.stack.unsent()),
        ):
            family = CounterMetricFamily(name, text, labels=["verdict"])
            for verdict, count in counts.items():
                if count or name != "rustos_frames_unsent" or not verdict.startswith(_INCOMING):
                    family.add_metric([verdict], count)
            yield family

    def _tcp(self) -> Iterator[Metric]:
        tcp = self.stack.tcp
        for name, value in tcp.usage().items():
            if name in _USAGE:
                yield GaugeMetricFamily(f"rustos_tcp_{name}", _USAGE[name], value=value)
        yield labelled(GaugeMetricFamily, "rustos_tcp_state_connections", "TCP connections by state.", "state",
                       {state.lower(): count for state, count in tcp.states().items()})
        rows = tcp.histograms()
        yield histogram("rustos_tcp_round_trip_seconds", "Round-trip times, each sample that RFC 6298 takes.",
                        {(): rows["round_trip"]}, range(14, 35), _NS)
        yield histogram("rustos_tcp_handshake_seconds", "Time from SYN to ESTABLISHED, opened from here or accepted.",
                        {("active",): rows["handshake_active"], ("passive",): rows["handshake_passive"]},
                        range(14, 35), _NS, labels=["opened"])


def nic_statistics(nics: Iterable[tuple[str, Any]]) -> Iterator[Metric]:
    """What the drivers of (name, `drivers.nic.Nic`) pairs count, as rustos_nic_<statistic>_total.

    Reasons of one statistic are a label: rustos_nic_rx_dropped_reasons_total{nic,reason}. What the stack counts too is
    left to it. A driver that fails costs its own figures only.
    """
    gathered: dict[str, Metric] = {}
    for name, nic in nics:
        try:
            statistics = nic.statistics()
        except Exception as error:
            log.warning("nic_statistics_failed", nic=name, error=repr(error))
            continue
        wanted = (key for key, value in statistics.items()
                  if key not in _NIC_COUNTERS and isinstance(value, int) and _STATISTIC_NAME.fullmatch(key))
        for key, _ in zip(wanted, range(NIC_STATISTICS), strict=False):
            total = next((each for each in _BY_REASON if key.startswith(f"{each}_")), None)
            metric = f"rustos_nic_{key.lower()}" if total is None else f"rustos_nic_{total}_reasons"
            text = _NIC_STATISTICS_HELP.get(key, f"Statistic {key} of the device.") if total is None else (
                f"The reasons within {total} that the device's driver can tell.")
            labels = ["nic"] if total is None else ["nic", "reason"]
            family = gathered.setdefault(metric, CounterMetricFamily(metric, text, labels=labels))
            family.add_metric([name] if total is None else [name, key.removeprefix(f"{total}_").lower()], statistics[key])
    yield from gathered.values()


def _pump(pump: PumpFigures) -> Iterator[Metric]:
    for name, value in pump.statistics().items():
        if name in _PUMP:
            yield CounterMetricFamily(f"rustos_pump_{name}", _PUMP[name], value=value)
    rows = pump.histograms()
    yield histogram("rustos_pump_burst_frames", "Frames in a burst.", {("rx",): rows["rx_burst"], ("tx",): rows["tx_burst"]},
                    range(7), labels=["direction"])
    yield histogram("rustos_pump_turn_seconds", "How long a turn of the pump that found work kept others waiting.",
                    {(): rows["turn"]}, range(11, 30), _NS)


def labelled(kind: Callable[..., Metric], name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A family with one label."""
    family = kind(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def histogram(name: str, text: str, rows: Mapping[tuple[str, ...], _Row], exponents: range, unit: float = 1, *,
              labels: Sequence[str] = ()) -> Metric:
    """Rows of `mm.histogram.Histogram`, by label values, with the bounds 2**k * unit for the exponents given.

    What lies below the first bound is in its bucket, what lies above the last one in +Inf.
    """
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, (total, counts) in rows.items():
        buckets = [(floatToGoString((1 << k) * unit), sum(counts[:k + 1])) for k in exponents]
        family.add_metric(values, [*buckets, ("+Inf", sum(counts))], total * unit)
    return family


def families(samples: Iterable[Any]) -> Iterator[Metric]:
    """The services' samples (name, kind, help, value, labels) gathered into one family per name."""
    gathered: dict[str, Metric] = {}
    for sample in samples:
        kind = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
        name = sample.name.removesuffix("_total")
        family = gathered.setdefault(name, kind(name, sample.help, labels=list(sample.labels)))
        family.add_metric(list(sample.labels.values()), sample.value)
    yield from gathered.values()


def registry(collector: StackCollector) -> CollectorRegistry:
    """A registry with the stack and this process (CPU seconds, memory, descriptors), and no global state."""
    made = CollectorRegistry(auto_describe=False)
    made.register(collector)
    ProcessCollector(registry=made)
    return made


def exposition(of: CollectorRegistry) -> bytes:
    """The text format that Prometheus scrapes; its type is CONTENT_TYPE."""
    return generate_latest(of)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
