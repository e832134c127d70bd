"""Health: each check finds what it is for, says what to do, and keeps quiet when all is well."""

import re

import pytest

from netstack import counters, verdict
from rustosd import config, health
from rustosd.disk_health import DiskState, PortState
from rustosd.health import CHECKS, Facts, Figures, Nic, Temperature, Upkeep
from rustosd.status import recorder

QUIET = {"delivered": 10_000, "answered": 100, "ipv4_not_for_us": 5000, "tcp_port_closed": 5000}
USAGE = {"connections": 10, "connections_limit": 100, "buffer_octets": 5, "buffer_octets_limit": 100}


def facts(*, seconds=60.0, before=None, interfaces=({"name": "rustos0", "up": True},), **now):
    """Facts of a healthy daemon, but for what is said; `before` was a minute ago."""
    usage = now.pop("usage", USAGE)
    memory = now.pop("memory", (1, 100))
    addresses, gone, disks = now.pop("addresses", ()), now.pop("gone", ()), now.pop("disks", ())
    swap = now.pop("swap", ())
    drives, ports = now.pop("drives", ()), now.pop("drive_ports", ())
    upkeep, temperatures = now.pop("upkeep", Upkeep()), now.pop("temperatures", ())
    figures = Figures(at_s=1000.0, **{"nics": {"rustos0": Nic(tx_frames=1000)}, "ended": QUIET} | now)
    earlier = Figures(at_s=1000.0 - seconds, **before or {})
    return Facts(figures, earlier, interfaces=interfaces, addresses=addresses, gone=gone, disks=disks, usage=usage,
                 swap=swap, drives=drives, drive_ports=ports,
                 resident_octets=memory[0], memory_octets=memory[1], upkeep=upkeep, temperatures=temperatures)


def codes(these):
    return [(note.code, note.subject) for note in health.check(these)]


def test_temperatures_are_read_where_they_can_be(tmp_path):
    for name, files in (("thermal_zone0", {"temp": "48000", "type": "acpitz", "trip_point_0_type": "critical",
                                           "trip_point_0_temp": "105000", "trip_point_1_type": "passive",
                                           "trip_point_1_temp": "90000"}), ("thermal_zone1", {"type": "asleep"})):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(f"{text}\n")
    assert recorder.temperatures(tmp_path) == [Temperature("acpitz", 48.0, 105.0)]


def test_a_healthy_daemon_has_nothing_to_say():
    assert health.check(facts()) == []
    assert health.by_severity([]) == {"error": 0, "warning": 0, "note": 0}


SICK = [
    ("no-interface", "", {"interfaces": ()}),
    ("link-down", "eth0", {"interfaces": ({"name": "eth0", "up": False},)}),
    ("device-gone", "0000:00:03.0", {"gone": [("0000:00:03.0", "it was unplugged")]}),
    ("disk-stalled", "disk0", {"disks": [("disk0", "disk-stalled", "answers nothing")]}),
    ("disk-flush-lost", "disk0", {"disks": [("disk0", "disk-flush-lost", "failed to flush")]}),
    ("swap-corrupt", "redis", {"swap": [("redis", "swap-corrupt", "a page is not what it was")]}),
    ("swap-failing", "redis", {"swap": [("redis", "swap-failing", "did not do 3 requests")]}),
    ("swap-nearly-full", "redis", {"swap": [("redis", "swap-nearly-full", "is 95% full")]}),
    ("address-duplicate", "10.0.0.1/24", {"addresses": ({"name": "a", "address": "10.0.0.1/24", "state": "duplicate"},)}),
    ("pump-errors", "", {"pump": {"errors": 1}}),
    ("tcp-bug", "", {"counters": {"tcp_impossible_transitions": 1}}),
    ("disk-failing", "p/0", {"drives": [DiskState("p/0", "M", True, 30, ["a value"]), DiskState("p/1", "M", True)]}),
    ("disk-port-failed", "p/2", {"drive_ports": [PortState("p/2", "check cable"), PortState("p/1")]}),
    ("disk-hot", "p/0", {"drives": [DiskState("p/0", "M", True, 60), DiskState("p/1", "M", True, 59)]}),
    ("disk-sectors-unreadable", "p/0", {"drives": [DiskState("p/0", "M", None, None, (), 8)]}),
    ("disk-port-slowed", "p/1", {"drive_ports": [PortState("p/1", speed_limit=1)]}),
    ("connections-nearly-full", "", {"usage": USAGE | {"connections": 90}}),
    ("sockets-nearly-full", "", {"usage": USAGE | {"sockets": 90, "sockets_limit": 100}}),
    ("buffers-nearly-full", "", {"usage": USAGE | {"buffer_octets": 95}}),
    ("memory-nearly-full", "", {"memory": (90, 100)}),
    ("drops-rising", "tcp_checksum", {"ended": QUIET | {"tcp_checksum": 400}}),
    ("unsent-rising", "no_route", {"unsent": {"no_route": 400}}),
    ("nic-drops-rising", "eth0", {"nics": {"eth0": Nic(rx_dropped=61)}, "before": {"nics": {"eth0": Nic(rx_dropped=1)}}}),
    ("daemon-waits", "", {"pump": {"wait_ms": 31_000}}),
    ("device-refuses", "", {"pump": {"tx_refused": 1}}),
    ("service-full", "http", {"refused": {"http": 1}}),
    ("retransmits-high", "", {"counters": {"tcp_segments_sent": 1000, "tcp_retransmits": 50}}),
    ("neighbors-full", "", {"counters": {"neighbor_evictions": 1}}),
    ("time-wait-full", "", {"counters": {"tcp_time_wait_recycled": 1}}),
    ("machine-hot", "cpu", {"temperatures": [Temperature("cpu", 95.0, 100.0)]}),
    ("reload-failed", "", {"upkeep": Upkeep(reload_failed="x.toml:3: no")}),
    ("restart-needed", "", {"upkeep": Upkeep(waiting=["stack.max_routes"])}),
    ("program-crashing", "cc1", {"upkeep": Upkeep(crashing=[("cc1", 3)])}),
    ("program-failed", "web", {"upkeep": Upkeep(programs=[("web", "program-failed", "failed: it ended with status 1")])}),
    ("program-waits", "web", {"upkeep": Upkeep(programs=[("web", "program-waits", "waits: interface x is not up")])}),
    ("former-run-died", "crash-1.txt", {"upkeep": Upkeep(crashes=["crash-1.txt", "crash-0.txt"])}),
]


@pytest.mark.parametrize(("code", "subject", "state"), SICK, ids=[code for code, _, _ in SICK])
def test_a_check_finds_what_it_is_for(code, subject, state):
    (note,) = health.check(facts(**state))
    assert (note.code, note.subject) == (code, subject)
    assert note.text.endswith(".") and note.advice
    assert note.severity == next(row.severity for row in CHECKS if row.code == code)
    assert health.by_severity([note])[note.severity] == 1


def test_each_check_has_a_case_above_and_a_code_of_its_own():
    assert sorted(code for code, _, _ in SICK) == sorted(row.code for row in CHECKS)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", row.code) and row.severity in health.SEVERITIES for row in CHECKS)


@pytest.mark.parametrize("state", [
    {"ended": QUIET | {"tcp_checksum": 299}},                                                       # below 5 a second
    {"ended": {"delivered": 1_000_000, "tcp_checksum": 400}},                                       # below 1 %
    {"ended": QUIET | {"tcp_checksum": 9000}, "before": {"ended": {"tcp_checksum": 8900}}},         # long ago
    {"pump": {"wait_ms": 29_000}},
    {"pump": {"wait_ms": 4_000}, "seconds": 5},
    {"pump": {"errors": 9}, "before": {"pump": {"errors": 9}}},
    {"counters": {"tcp_segments_sent": 900, "tcp_retransmits": 900}},
    {"usage": USAGE | {"connections": 89}},
    {"usage": {}},
    {"memory": (90, 0)},
    {"nics": {"new": Nic(rx_dropped=1000)}},        # plugged in since: what it counted before is unknown
    {"before": {"ended": QUIET | {"tcp_checksum": 10**9}}},         # never negative
    {"temperatures": [Temperature("cpu", 94.0, 100.0), Temperature("who-knows", 200.0, 0.0)]},
])
def test_what_is_little_old_or_unknown_is_no_note(state):
    assert health.check(facts(**state)) == []


def test_one_frame_in_a_moment_is_no_rate():
    assert health.check(facts(seconds=1e-9, ended={"delivered": 1, "no_memory": 4})) == []


def test_the_worst_comes_first_and_there_are_never_too_many():
    down = [{"name": f"eth{i}", "up": False} for i in range(32)]
    reasons = {label: 10_000 for label in verdict.LABELS}
    notes = health.check(facts(interfaces=down, ended=reasons, unsent=reasons, pump={"errors": 1}))
    assert len(notes) == health.MAX_NOTES
    severities = [health.SEVERITIES.index(note.severity) for note in notes]
    assert severities == sorted(severities) and notes[32].code == "pump-errors"


def test_reasons_have_their_own_advice_and_all_names_exist():
    assert set(health.DROP_ADVICE) | health.EXPECTED_DROPS <= set(verdict.LABELS)
    assert not set(health.DROP_ADVICE) & health.EXPECTED_DROPS
    for name in ("tcp_impossible_transitions", "neighbor_evictions", "tcp_time_wait_recycled", "tcp_retransmits"):
        assert name in counters.LABELS
    (note,) = health.check(facts(ended=QUIET | {"tcp_table_full": 9000}))
    assert note.advice == health.DROP_ADVICE["tcp_table_full"]
    settings = config.default_text()
    for advice in (*health.DROP_ADVICE.values(), *(row.advice for row in CHECKS)):
        for name in re.findall(r"\b[a-z]+_[a-z_]+\b(?= under| in)", advice):
            assert name in settings, advice
