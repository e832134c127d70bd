"""Metrics: what a scrape shows is what the stack counted, in the format Prometheus reads, with bounded labels."""

import re
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rustosd import metrics
from tests.rustosd.fake import COUNTER_HELP, FakeNic, FakePump, FakeStack


class Sample(NamedTuple):
    name: str
    kind: str
    help: str
    value: float
    labels: dict


SAMPLES = [
    Sample("rustos_service_connections", "gauge", "Open connections.", 3, {"service": "echo"}),
    Sample("rustos_service_connections", "gauge", "Open connections.", 5, {"service": "http"}),
    Sample("rustos_service_events_total", "counter", "Events.", 7, {"service": "http", "event": "accepted"}),
]


@pytest.fixture
def stack():
    return FakeStack()


@pytest.fixture
def text(stack):
    registry = metrics.registry(metrics.StackCollector(stack, COUNTER_HELP, "0.1.0", lambda: SAMPLES, pump=FakePump(),
                                                       notes=lambda: {"error": 0, "warning": 2, "note": 0}))
    return metrics.exposition(registry).decode()


def values(text):
    return {(sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def test_a_scrape_shows_what_was_counted(text):
    shown = values(text)
    assert shown["rustos_build_info", "0.1.0"] == 1
    assert shown["rustos_nic_up", "rustos0"] == 1
    assert shown["rustos_nic_rx_frames_total", "rustos0"] == 1200
    assert shown["rustos_nic_tx_octets_total", "rustos0"] == 5 << 30
    assert shown["rustos_frames_ended_total", "delivered"] == 1000
    assert shown["rustos_frames_ended_total", "tcp_flags"] == 0
    assert shown["rustos_frames_unsent_total", "no_route"] == 9
    assert shown["rustos_tcp_retransmits_total",] == 5
    assert shown["rustos_tcp_connections",] == 1
    assert shown["rustos_service_connections", "echo"] == 3 and shown["rustos_service_connections", "http"] == 5
    assert shown["rustos_service_events_total", "accepted", "http"] == 7
    assert shown["rustos_pump_wakeups_total",] == 5
    assert shown["rustos_tcp_state_connections", "established"] == 1
    assert shown["rustos_health_notes", "warning"] == 2 and shown["rustos_health_notes", "error"] == 0
    assert shown["process_resident_memory_bytes",] > 1 << 20


def test_a_scrape_reads_the_stack_anew(stack):
    registry = metrics.registry(metrics.StackCollector(stack, COUNTER_HELP, "0.1.0"))
    before = values(metrics.exposition(registry).decode())
    stack.nics[1]["rx_frames"] += 1
    after = values(metrics.exposition(registry).decode())
    changed = {key for key in after if after[key] != before[key] and not key[0].startswith("process_")}
    assert changed == {("rustos_nic_rx_frames_total", "rustos0")}


def test_names_and_help_are_as_prometheus_asks(text):
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"(rustos|process)_[a-z0-9_]+", family.name)
        if family.name.startswith("rustos_"):
            assert family.type in ("counter", "gauge", "histogram")


def buckets(text, name):
    """le -> cumulative count, as float -> float, of a histogram without other labels."""
    return {float(sample.labels["le"]): sample.value for family in text_string_to_metric_families(text)
            for sample in family.samples if sample.name == f"{name}_bucket" and set(sample.labels) == {"le"}}


def test_histograms_are_cumulative_in_base_units(text):
    bounds = buckets(text, "rustos_tcp_round_trip_seconds")
    assert bounds[(1 << 19) / 1e9] == 0 and bounds[(1 << 20) / 1e9] == 2 and bounds[(1 << 21) / 1e9] == 3
    assert bounds[float("inf")] == 3 and list(bounds.values()) == sorted(bounds.values())
    shown = values(text)
    assert shown["rustos_tcp_round_trip_seconds_count",] == 3
    assert shown["rustos_tcp_round_trip_seconds_sum",] == pytest.approx((3 << 20) / 1e9)
    assert shown["rustos_pump_burst_frames_bucket", "64.0", "rx"] == 4
    assert shown["rustos_pump_burst_frames_bucket", "1.0", "tx"] == 1
    assert shown["rustos_pump_burst_frames_sum", "rx"] == 70


def test_what_lies_outside_the_bounds_shown_is_counted():
    counts = [5] + [0] * 30 + [7] + [0] * 33
    family = metrics.histogram("h", "H.", {(): (1, counts)}, range(2, 5))
    assert [(sample.labels.get("le"), sample.value) for sample in family.samples if sample.name == "h_bucket"] == [
        ("4.0", 5), ("8.0", 5), ("16.0", 5), ("+Inf", 12)]


def families_of(*nics):
    return {family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
            for family in metrics.nic_statistics(nics)}


def test_what_a_driver_counts_shows_up_by_itself():
    shown = families_of(("eth0", FakePump().nics[1]), ("eth1", FakeNic(rx_super_segments=9)))
    assert shown == {
        "rustos_nic_rx_dropped": {("eth0",): 3, ("eth1",): 0}, "rustos_nic_tx_dropped": {("eth0",): 0, ("eth1",): 0},
        "rustos_nic_rx_dropped_reasons": {("eth0", "too_short"): 2, ("eth0", "eio"): 1},
        "rustos_nic_hw_symbol_errors": {("eth0",): 4}, "rustos_nic_rx_super_segments": {("eth1",): 9}}


def test_a_driver_cannot_swell_or_break_the_exposition():
    many = FakeNic(**{f"hw_{i}": i for i in range(5000)})
    odd = FakeNic(**{"a b": 1, "x" * 65: 1, "Up": 1, "é": 1, "text": "no number", 'quote"': 2})

    class Broken:
        def statistics(self):
            raise OSError("the device is gone")

    shown = families_of(("many", many), ("odd", odd), ("broken", Broken()))
    assert sum(("many",) in samples for samples in shown.values()) == metrics.NIC_STATISTICS
    assert {name for name, samples in shown.items() if ("odd",) in samples} == {"rustos_nic_rx_dropped",
                                                                                "rustos_nic_tx_dropped"}


def test_hostile_label_values_are_escaped(stack):
    stack.nics[1]["name"] = 'x"} 1\nevil_total 2\\'
    text = metrics.exposition(metrics.registry(metrics.StackCollector(stack, COUNTER_HELP, "0"))).decode()
    assert "\nevil_total" not in text
    assert values(text)["rustos_nic_rx_frames_total", stack.nics[1]["name"]] == 1200
