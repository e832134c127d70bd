"""The audit log: appended, bounded, and told how much was left out."""

import json
import stat

import pytest

from rustosd.audit import BURST, LINE_MOST, AuditLog


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def audit(tmp_path, clock):
    log = AuditLog(tmp_path / "there" / "audit.jsonl", 2000, 2, clock)
    yield log
    log.close()


def test_a_line_is_json_that_only_its_owner_reads(audit):
    assert audit.write("policy", policy="web", port=22, who=["a", "b"])
    line = json.loads(audit.path.read_text())
    assert (line["reason"], line["policy"], line["port"], line["who"]) == ("policy", "web", 22, ["a", "b"])
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


def test_what_is_there_stays_and_a_torn_line_costs_itself_only(audit):
    audit.path.parent.mkdir()
    audit.path.write_bytes(b'{"reason":"kept"}\n{"reason":"to')
    audit.write("new")
    audit.write("newer")
    assert [line["reason"] for line in audit.lines()] == ["kept", "new", "newer"]


def test_full_files_are_kept_up_to_their_number(audit, clock):
    for number in range(100):
        clock.now += 1
        audit.write("fault", number=number, text="x" * 100)
    names = sorted(path.name for path in audit.path.parent.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(path.stat().st_size <= audit.octets for path in audit.path.parent.iterdir())
    numbers = [line["number"] for line in audit.lines("fault")]
    assert numbers == list(range(numbers[0], 100)) and len(numbers) > 20


def test_a_reason_that_comes_too_often_is_counted_and_holds_up_no_other(audit, clock):
    assert sum(audit.write("flood") for _ in range(50)) == BURST == audit.written
    assert audit.held_back == 50 - BURST
    assert audit.write("other")
    clock.now += 1
    assert audit.write("flood")
    assert [line.get("left_out") for line in audit.lines("flood")][-1] == 50 - BURST


def test_a_user_who_floods_hides_nobody_else(audit):
    assert sum(audit.write("fault", uid=1000) for _ in range(50)) == BURST
    assert audit.write("fault", uid=1001) and not audit.write("fault", uid=1000)


def test_reasons_without_number_are_bounded_too(audit, clock):
    for number in range(1000):
        for _ in range(BURST + 1):
            audit.write(f"reason {number}")
    assert len(audit._allowances) <= 256 and len(audit._left_out) <= 256


def test_texts_are_cut_and_a_line_that_is_too_long_says_so(audit):
    audit.write("long", text="x" * 10_000)
    audit.write("longer", texts=["y" * 400] * 20)
    first, second = audit.lines()
    assert len(first["text"]) == 512 and "octets are too many" in second["error"]
    assert max(map(len, audit.path.read_bytes().splitlines())) < LINE_MOST


def test_a_file_that_cannot_be_written_is_counted(tmp_path):
    (tmp_path / "file").write_text("")
    audit = AuditLog(tmp_path / "file" / "audit.jsonl", 2000, 2)
    assert not audit.write("fault") and audit.lost == 1
    assert list(audit.lines()) == []


def test_a_link_in_its_place_is_not_followed(audit, tmp_path):
    audit.path.parent.mkdir()
    (tmp_path / "precious").write_text("precious")
    audit.path.symlink_to(tmp_path / "precious")
    assert not audit.write("fault")
    assert (tmp_path / "precious").read_text() == "precious"
