"""Metrics of scheduling: by class, of which there are five, and of the daemon's own thread."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rustosd.metrics import histogram, labelled
from rustosd.scheduling import waits
from rustosd.scheduling.scheduler import Scheduler
from rustosd.scheduling.settings import CLASSES

_NS: Final = 1e-9


def collect(scheduler: Scheduler) -> Iterator[Metric]:
    """As far as the programs were asked; `Scheduler.gather` does that every few seconds."""
    classes = [program.settings.sched_class for program in scheduler.programs.values()]
    yield labelled(GaugeMetricFamily, "rustos_sched_programs", "Programs on the stack by scheduling class.", "class",
                   {name: classes.count(name) for name in CLASSES})
    spent = scheduler.spent
    yield labelled(CounterMetricFamily, "rustos_sched_run_seconds", "Time that programs ran.", "class",
                   {name: spent[name].run_ns * _NS for name in CLASSES})
    yield histogram("rustos_sched_wait_seconds", "How long programs waited, ready to run, for a turn on a processor.",
                    {(name,): (spent[name].wait_ns, scheduler.waits[name]) for name in CLASSES}, range(10, 34), _NS,
                    labels=["class"])
    own = waits.own()
    yield CounterMetricFamily("rustos_daemon_run_seconds", "Time that the daemon's own thread ran.", value=own.run_ns * _NS)
    yield CounterMetricFamily("rustos_daemon_wait_seconds", "Time that it waited, ready to run, for a processor.",
                              value=own.wait_ns * _NS)
