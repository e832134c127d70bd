"""/status.json: what it says is what is, its shape is schema 1 as docs/status.md has it, and nobody can make it large."""

import json
import re
from pathlib import Path

import msgspec

from rustosd import health
from rustosd.status import document
from rustosd.status.document import MAX_CONNECTIONS, Reporter, Service, Status
from tests.rustosd.fake import FakeCore

DOCS = Path(__file__).resolve().parents[3] / "docs" / "status.md"
SERVICES = [Service("http", "port 80", 1, "curl http://10.77.0.2/"), Service("echo", "port 7", 0, "nc 10.77.0.2 7")]


def reporter(core=None, clock=lambda: 100.0, **options):
    return Reporter(core or FakeCore(), "0.1.0", clock, addresses=lambda: ["10.77.0.2"], services=lambda: SERVICES, **options)


def test_it_says_what_is():
    said = json.loads(reporter().json())
    assert (said["schema"], said["version"], said["addresses"], said["health"]) == (1, "0.1.0", ["10.77.0.2"], [])
    lo, nic = said["interfaces"]
    assert (lo["kind"], lo["mac"], nic["kind"], nic["link"], nic["rx_dropped"]) == ("loopback", None, "tap", "up", 3)
    assert said["connections"] == {
        "total": 1, "limit": 65536, "listeners": 1, "states": {"established": 1}, "listed": True,
        "busiest": [{"local": "[fd77::2]:80", "remote": "[fd77::1]:40000", "state": "established", "rx_octets": 100,
                     "tx_octets": 2048, "rtt_us": 250.0, "retransmits": 1}]}
    assert [(row["reason"], row["direction"], row["frames"]) for row in said["drops"]] == [
        ("no_route", "out", 9), ("ipv4_checksum", "in", 4)]
    assert said["memory"]["buffer_octets"] == 4096 and said["memory"]["resident_octets"] > 1 << 20
    assert [row["name"] for row in said["services"]] == ["http", "echo"]


def test_it_is_made_at_most_twice_a_second_however_many_ask():
    core, now = FakeCore(), [100.0]
    made = reporter(core, lambda: now[0])
    first = made.json()
    core.stack.nics[1]["rx_frames"] += 1
    now[0] += document.MIN_AGE_S / 2
    assert made.json() is first and made.status() is made.status()
    now[0] += document.MIN_AGE_S / 2
    assert made.json() != first and made.status().interfaces[1].rx_frames == 1201


def test_connections_are_bounded_and_can_be_kept_private():
    core = FakeCore()
    core.stack.connection_rows *= 1000
    assert len(reporter(core).status().connections.busiest) == MAX_CONNECTIONS
    private = reporter(core, list_connections=False)
    assert private.status().connections.busiest == [] and private.status().connections.total == 1000
    assert b"40000" not in private.json()


def test_a_full_house_stays_small():
    """32 interfaces with 32 addresses each, every verdict, two minutes of history: the most there can be."""
    from netstack import verdict
    now = [0.0]
    core = FakeCore()
    lo, nic = core.stack.nics
    core.stack.nics = [lo, *({**nic, "index": i, "name": f"interface-{i:05}"} for i in range(1, 32))]
    core.stack.address_rows = [{"interface": i, "name": f"interface-{i:05}", "state": "preferred",
                                "address": f"2001:db8:ffff:ffff:ffff:ffff:{i:04x}:{k:04x}/128"}
                               for i in range(32) for k in range(32)]
    core.stack.verdicts = core.stack.unsent = lambda: {label: 1 << 60 for label in verdict.LABELS}
    core.verdict_help = dict(zip(verdict.LABELS, verdict.HELP, strict=True))
    core.stack.connection_rows *= 1000
    full = reporter(core, lambda: now[0])
    for _ in range(500):
        full.recorder.taken.append(full.recorder.facts().now)
        now[0] += 2.0
        for row in core.stack.nics:
            row["rx_octets"] += 1 << 40
            row["tx_octets"] += 1 << 40
    assert len(full.json()) < 256 * 1024


def test_notes_are_those_of_health():
    core = FakeCore()
    core.stack.nics[1]["up"] = False
    assert [note.code for note in reporter(core).notes()] == ["link-down"]
    assert document.severities(reporter(core).notes()) == "1 error"
    note = reporter(core).notes()[0]
    warning = health.Note("c-d", "warning", "", "t", "a")
    assert document.severities([note, warning, warning]) == "1 error, 2 warnings"
    assert document.severities([]) == "All is well"


def documented():
    """{struct: {fields}} of the tables in docs/status.md."""
    tables, current = {}, None
    for line in DOCS.read_text().splitlines():
        if heading := re.match(r"### (\w+)", line):
            current = tables.setdefault(heading[1], set())
        elif (row := re.match(r"\| `(\w+)` \|", line)) and current is not None:
            current.add(row[1])
    return tables


def test_each_field_is_documented_and_nothing_else():
    structs = {kind.__name__: {field.name for field in msgspec.structs.fields(kind)} for kind in (
        Status, document.Interface, document.Connections, document.Connection, document.Drop, document.Memory, Service,
        health.Note)}
    assert {name: fields for name, fields in documented().items() if name in structs} == structs


def test_each_check_is_documented():
    text = DOCS.read_text()
    for row in health.CHECKS:
        assert re.search(rf"^\| `{row.code}` \| {row.severity} \|", text, re.MULTILINE), row.code


def test_a_reader_can_be_typed_by_it():
    made = reporter()
    assert msgspec.json.decode(made.json(), type=Status, strict=True) == made.status()
