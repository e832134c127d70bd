"""Metrics: what a scrape shows is what the stack counted, in the format Prometheus reads, with bounded labels."""

import re
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rustosd import metrics
from tests.rustosd.fake import COUNTER_HELP, FakeStack


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
    registry = metrics.registry(metrics.StackCollector(stack, COUNTER_HELP, "0.1.0", lambda: SAMPLES))
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
            assert family.type in ("counter", "gauge")
