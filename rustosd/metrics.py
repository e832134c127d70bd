"""Prometheus metrics, read from the C counters at scrape; between scrapes they cost nothing.

Labels have few values by construction: interfaces (at most 32), verdicts (the enum), services and their fixed events.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NIC_COUNTERS = {
    "rx_frames": "Frames received; a super-segment is one.",
    "rx_octets": "Octets received, Ethernet headers included.",
    "tx_frames": "Frames sent; a super-segment is one.",
    "tx_octets": "Octets sent, Ethernet headers included.",
}
_USAGE = {
    "connections": "TCP connections in any state but LISTEN.",
    "connections_limit": "How many TCP connections there can be.",
    "time_wait": "TCP connections in TIME-WAIT.",
    "buffer_octets": "Octets of memory in TCP buffers.",
    "buffer_octets_limit": "How many octets TCP buffers can take.",
}


class StackCollector:
    """Everything the stack counts, as metric families. `samples` adds what the services count."""

    def __init__(self, stack: Any, counter_help: Mapping[str, str], version: str,
                 samples: Callable[[], Iterable[Any]] = lambda: ()):
        self.stack = stack
        self.counter_help = counter_help
        self.version = version
        self.samples = samples

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("rustos_build_info", "1; the version is in the label.", labels=["version"])
        info.add_metric([self.version], 1)
        yield info
        yield from self._nics()
        yield from self._frames()
        yield from self._usage()
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

    def _frames(self) -> Iterator[Metric]:
        for name, text, counts in (
            ("rustos_frames_ended", "Received frames by how they ended, each once.", self.stack.verdicts()),
            ("rustos_frames_unsent", "Frames that could not be sent, by reason.", self.stack.unsent()),
        ):
            family = CounterMetricFamily(name, text, labels=["verdict"])
            for verdict, count in counts.items():
                if name != "rustos_frames_unsent" or count:
                    family.add_metric([verdict], count)
            yield family

    def _usage(self) -> Iterator[Metric]:
        for name, value in self.stack.tcp.usage().items():
            if name in _USAGE:
                yield GaugeMetricFamily(f"rustos_tcp_{name}", _USAGE[name], value=value)


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
