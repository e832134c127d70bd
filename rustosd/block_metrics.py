"""Disks as Prometheus metrics: what their clients asked for and how long it took. Labels: a disk's name, an operation."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rustosd.metrics import histogram
from rustosd.storage import SharedDisk

MAX_DISKS: Final = 256
"""More are left out."""
_NS: Final = 1e-9
_OPERATIONS: Final = ("read", "write", "flush", "trim", "write_zeroes")
_COUNTERS: Final = {
    "failed_commands": "Commands that the disk ended with an error, whether or not another try helped.",
    "stalls": "Times that the disk answered nothing for so long that waiting clients were told.",
}


def collect(disks: Iterable[SharedDisk]) -> Iterator[Metric]:
    """The families of all disks."""
    those = [disk for disk, _ in zip(disks, range(MAX_DISKS), strict=False)]
    size = GaugeMetricFamily("rustos_block_size_octets", "How much the disk holds.", labels=["disk"])
    waiting = GaugeMetricFamily("rustos_block_waiting_requests", "Requests that wait for their turn.", labels=["disk"])
    users = GaugeMetricFamily("rustos_block_clients", "Who uses the disk: exports, and the operator.", labels=["disk"])
    stalled = GaugeMetricFamily("rustos_block_stalled", "1 while the disk answers nothing.", labels=["disk"])
    by_operation = ["disk", "operation"]
    requests = CounterMetricFamily("rustos_block_requests", "Requests that ended well.", labels=by_operation)
    octets = CounterMetricFamily("rustos_block_octets", "Octets that these read or changed.", labels=by_operation)
    failed = CounterMetricFamily("rustos_block_failed_requests", "Requests that ended with an error.", labels=["disk"])
    commands = CounterMetricFamily("rustos_block_commands", "What the disk was asked, once requests were split and merged.",
                                   labels=by_operation)
    others = {name: CounterMetricFamily(f"rustos_block_{name}", text, labels=["disk"]) for name, text in _COUNTERS.items()}
    durations = {}
    for disk in those:
        name, counts, ended = disk.info.name, disk.queue.statistics(), disk.queue.requests_ended()
        size.add_metric([name], disk.info.octets)
        waiting.add_metric([name], disk.queue.waiting())
        users.add_metric([name], len(disk.all_clients()))
        stalled.add_metric([name], disk.queue.stalled)
        failed.add_metric([name], ended["failed"])
        for operation in _OPERATIONS:
            count, amount, row = ended["operations"][operation]
            requests.add_metric([name, operation], count)
            octets.add_metric([name, operation], amount)
            commands.add_metric([name, operation], counts[f"{operation}_commands"])
            durations[name, operation] = row
        for key, family in others.items():
            family.add_metric([name], counts[key])
    yield from (size, waiting, users, stalled, requests, octets, failed, commands, *others.values())
    yield histogram("rustos_block_request_duration_seconds", "From a request to its end.", durations, range(10, 36), _NS,
                    labels=by_operation)
