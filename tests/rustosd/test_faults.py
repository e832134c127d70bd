"""What supervisors tell of exceptions: checked, bounded, written down, and known again after a restart."""

import json

import msgspec
import pytest

from rustosd.audit import BURST, AuditLog
from rustosd.faults import KEPT, REPEATED, TEXT_MOST, WITHIN_S, FaultNotice, Faults, HandledNotice, samples
from rustosd.processes import Processes
from tests.rustosd.test_audit import Clock

NOTICE = {"notice": "fault", "pid": 4711, "thread": 4712, "program": "cc1", "kind": "page-fault", "signal": 11, "trap": 14,
          "error_code": "0x6", "address": "0x123456", "words": "page fault (#PF): write to 0x123456", "text": "registers\n"}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def faults(tmp_path, clock):
    return Faults(AuditLog(tmp_path / "audit.jsonl", 1 << 20, 2, clock), tmp_path, 5, clock)


def notice(**changes):
    return msgspec.json.decode(json.dumps(NOTICE | changes), type=FaultNotice)


def test_a_record_has_who_told_it_and_a_report(faults, tmp_path):
    record = faults.ended(notice(), 900, 1000)
    assert (record.id, record.uid, record.supervisor, record.pid, record.address) == (1, 1000, 900, 4711, "0x123456")
    assert faults.text(1) == (record, "supervisor: 900, of user 1000\nregisters\n")
    (line,) = faults.audit.lines("fault")
    assert line["outcome"] == "terminated" and line["report"] == record.report and "text" not in line
    assert (tmp_path / record.report).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("changes", [
    {"pid": 0}, {"pid": "1"}, {"kind": "page-falt"}, {"signal": 65}, {"trap": 256}, {"address": "123"},
    {"address": "0x" + "f" * 17}, {"program": "a\x1b[2J"}, {"program": "x" * 65}, {"words": "two\nlines"}, {"text": "\x00"},
    {"text": "x" * (TEXT_MOST + 1)}, {"uid": 0}, {"report": "../../etc/passwd"}, {"id": 7},
])
def test_what_is_no_notice_is_refused(changes):
    with pytest.raises(msgspec.ValidationError):
        notice(**changes)


async def test_a_supervisor_that_tells_nonsense_is_left(faults):
    processes = Processes(faults)
    for packet in (json.dumps(NOTICE | {"uid": 0}).encode(), json.dumps(NOTICE | {"program": "cc1\n"}).encode(),
                   b'{"notice":"fault"}', b'{"notice":7}', b'{"notice":"started","pid":7,"name":"\\u001b[2J"}'):
        theirs = processes.attach(900, 1000)
        theirs.send(json.dumps(NOTICE).encode())
        group = processes._groups[900]
        group._on_readable()
        theirs.send(packet)
        group._on_readable()
        assert 900 not in processes._groups
        theirs.close()
    assert [(record.supervisor, record.uid) for record in faults.records()] == [(900, 1000)] * 5


def test_a_flood_leaves_few_lines_and_few_reports(faults, tmp_path):
    for number in range(KEPT + 100):
        faults.ended(notice(pid=number + 1), 900, 0)
    assert len(list(faults.audit.lines())) == BURST and len(list(tmp_path.glob("program-*.txt"))) == 5
    assert len(faults.records()) == KEPT and faults.counts["page-fault", "terminated"] == KEPT + 100
    assert faults.records()[0].report is None and faults.text(KEPT + 100)[1] == ""


def test_a_report_that_was_removed_for_newer_ones_is_empty(faults):
    for _ in range(6):
        faults.ended(notice(), 900, 0)
    assert faults.text(1)[1] == "" and faults.text(2)[1] != ""
    with pytest.raises(LookupError, match="rustosctl faults"):
        faults.text(99)


def test_what_a_former_daemon_wrote_is_known_again(faults, tmp_path, clock):
    faults.ended(notice(), 900, 0)
    faults.handled(HandledNotice("divide-error", 3), 900, 0)
    faults.audit.write("fault", id="nonsense")
    again = Faults(AuditLog(tmp_path / "audit.jsonl", 1 << 20, 2, clock), tmp_path, 5, clock)
    again.load()
    assert [(record.id, record.program) for record in again.records()] == [(1, "cc1")]
    assert again.text(1)[1].endswith("registers\n")
    assert again.ended(notice(), 900, 0).id == 2


def test_records_are_found_by_kind_and_process(faults):
    faults.ended(notice(), 900, 0)
    faults.ended(notice(pid=5, kind="breakpoint"), 900, 0)
    assert [record.id for record in faults.records()] == [2, 1]
    assert [record.id for record in faults.records(kind="breakpoint")] == [record.id for record in faults.records(pid=5)] == [2]
    assert faults.records(kind="overflow") == [] and len(faults.records(limit=1)) == 1


def test_who_is_ended_again_and_again_is_named_for_a_while(faults, clock):
    for _ in range(REPEATED - 1):
        faults.ended(notice(), 900, 0)
    assert faults.repeated() == []
    faults.ended(notice(), 900, 0)
    assert faults.repeated() == [("cc1", REPEATED)]
    clock.now += WITHIN_S + 1
    assert faults.repeated() == []


def test_metrics_are_by_kind_and_outcome(faults):
    faults.ended(notice(), 900, 0)
    faults.handled(HandledNotice("divide-error", 3), 900, 0)
    assert [(value, labels) for *_, value, labels in samples(faults, lambda *sample: sample)] == [
        (3, {"kind": "divide-error", "outcome": "handled"}), (1, {"kind": "page-fault", "outcome": "terminated"})]
