"""The measurements measure what they say, and leave nothing behind; no test here asks how fast anything is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from benchmarks import hot_paths, lab_nic, measures, packets, paging, swap, swap_traces
from benchmarks.lab import PREFIX, ROOT
from benchmarks.report import Cost, Report, Row, paired
from tests.support.netns import unavailable

NAMESPACES = Path("/run/netns")


def bench(*options, **more):
    argv = [sys.executable, "-m", "benchmarks", "--no-pytcp", *options]
    return subprocess.Popen(argv, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **more)


@pytest.mark.parametrize(("frame", "layer"), [
    (packets.tcp(1, 2, 3, 4, packets.SYN), TCP), (packets.tcp(1, 2, 2**32 - 1, 4, packets.ACK, b"odd"), TCP),
    (packets.udp(5, 6, b"odd"), UDP), (packets.echo_request(7, b"odd"), ICMP)])
def test_frames_have_the_checksums_scapy_computes(frame, layer):
    read = Ether(frame)
    told = read[IP].chksum, read[layer].chksum
    del read[IP].chksum, read[layer].chksum
    again = Ether(bytes(read))
    assert (again[IP].chksum, again[layer].chksum) == told


def test_an_arp_request_asks_for_the_server():
    assert Ether(packets.arp_request())[ARP].summary() == "ARP who has 10.77.0.2 says 10.77.0.1"


@pytest.mark.parametrize("path", hot_paths.PATHS, ids=lambda path: path.name)
def test_a_hot_path_meters_each_burst(path):
    meter = hot_paths.Meter()
    path.run(3, meter)      # raises when the stack does not do what is measured
    assert len(meter.ns_per_packet) == 3 and meter.packets >= 3


def test_swap_is_measured_by_pages_that_come_back():
    rows = swap.speeds(1)       # raises when they do not
    assert {(row.sealed, row.packed) for row in rows} >= {("aes-256-gcm", "-"), ("xxh3", "lz4")}
    assert all(row.ratio > 1 for row in rows if row.packed != "-" and row.pages == "program")


def test_programs_under_a_limit_are_measured_in_turn(monkeypatch):
    if os.geteuid():
        pytest.skip("memory limits are for root")
    monkeypatch.setattr(paging, "LIMIT_MIB", 8)
    monkeypatch.setattr(paging, "TOUCHES", 200)
    report = Report()
    paging.measure(1, report, lambda _text: None)
    rows = {row.measure: row for row in report.rows}
    assert {"swap-in in order, xxh3", "eviction, while memory is filled", "the same, write (direct)"} <= rows.keys()
    assert all(row.ours > 0 for row in report.rows)
    assert report.notes or all(row.ratio for row in report.rows if "swap-in" not in row.measure)
    assert "bench-swap" not in Path("/proc/swaps").read_text()


def test_no_policy_beats_the_one_that_sees_the_future():
    for name, rates in swap_traces.hit_rates(20_000):
        assert 0 <= max(rates.values()) == rates["OPT"] <= 1, name


def test_the_ratio_pairs_the_rounds():
    assert paired([10, 1, 10], [5, 1, 1]) == 2      # the ratio of the medians would be 10


@pytest.mark.parametrize(("ours", "linux", "met"), [(25.9, 3.0, True), (26.0, 3.0, False)])
def test_the_ping_goal_is_twice_linux_and_20_us(ours, linux, met):
    ping = next(measure for measure in measures.MEASURES if measure.name == "ping")
    (row,) = measures._rows(ping, {measures.OURS: [ours], measures.LINUX: [linux]})
    assert row.met is met


def test_the_report_is_json_and_a_table(capsys):
    report = Report([Row("a stream", "Mb/s", 10.0, "Linux", 30.0, 1 / 3, ">= 0.5", False)], [Cost("arp", 80.0, None, [80.0])])
    report.show()
    table = capsys.readouterr().out
    assert "a stream, Mb/s" in table and " NO" in table and "arp" in table
    assert json.loads(report.json())["rows"][0]["met"] is False


def test_in_the_lab_rounds_are_paired_and_interrupts_may_cost_a_third():
    figures = {("rustosd", "in"): [10.0, 4.0, 30.0], ("Linux", "in"): [5.0, 4.0, 10.0]}
    row = lab_nic._versus("a stream", figures, "in")
    assert (row.ratio, row.met, row.ours, row.peer) == (2, True, 10, 5)
    told = lab_nic._noise("a stream", figures, "in")
    assert told == "a stream: the ratio of each round 2.00, 1.00, 3.00; of the best rounds 3.00"
    for polled, met in (13.0, True), (13.1, False):
        assert lab_nic._interrupts("a stream", figures, {("polling", "in"): [polled]}, "in").met is met


def test_what_is_no_measure_is_a_usage_error():
    process = bench("--only", "luck")
    assert "invalid choice: 'luck'" in process.communicate(timeout=30)[1] and process.returncode == 2
    process = bench("--lab", "--only", "ping")
    assert "without --only" in process.communicate(timeout=30)[1] and process.returncode == 2


@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")
def test_a_run_compares_with_linux_and_leaves_no_namespace():
    process = bench("--only", "udp-echo", "--only", "connects", "--seconds", "0.1", "--rounds", "1", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    rows = json.loads(out)["rows"]
    assert {(row["measure"], row["peer_name"]) for row in rows} >= {
        ("UDP echo of 64 octets", "Linux"), ("connections made and closed", "Linux")}
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
    assert not left_by(process.pid)


@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_namespace(number):
    process = bench("--only", "udp-echo", "--seconds", "30")
    deadline = time.monotonic() + 60
    while not left_by(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not left_by(process.pid)


def left_by(pid):
    return list(NAMESPACES.glob(f"{PREFIX}{pid}-*"))


