"""The judge is judged: each way to lose data is one it sees, and what a disk may do it allows."""

import pytest

from tests.lossless.history import SECTOR, ZERO, History, content, version_of


def allowed(history: History, sector: int = 7) -> tuple[set[int], set[int]]:
    """(now, after a power cut)"""
    return history.allowed(sector), history.allowed(sector, after_cut=True)


def written(history: History, *, fua: bool = False, **kind: bool) -> int:
    change = history.begin(7, 1, **kind)
    history.done(change, fua=fua)
    return change.number


def test_a_write_that_was_answered_is_read_and_may_go_with_the_power():
    history = History()
    number = written(history)
    assert allowed(history) == ({number}, {0, number})


def test_a_flush_covers_what_was_answered_before_it_was_asked_for_and_no_more():
    history = History()
    first = written(history)
    covered = history.flushing()
    second = written(history)
    history.flushed(covered)
    assert allowed(history) == ({second}, {first, second})


def test_a_write_with_fua_makes_itself_durable_and_what_it_overwrote():
    history = History()
    written(history)
    number = written(history, fua=True)
    assert allowed(history) == ({number}, {number})


def test_a_write_without_an_answer_may_be_there_or_not_even_after_later_flushes():
    history = History()
    first = written(history, fua=True)
    lost = history.begin(7, 1)
    history.failed(lost)
    history.flushed(history.flushing())
    assert allowed(history) == ({first, lost.number}, {first, lost.number})


def test_a_trim_leaves_zeros_or_what_was_there():
    history = History()
    number = written(history, fua=True)
    written(history, trim=True)
    assert allowed(history) == ({0, number}, {0, number})
    history.flushed(history.flushing())
    zeros = written(history, zeroes=True)
    assert zeros and history.allowed(7) == {0}


def test_after_a_cut_only_what_was_found_is_there():
    history = History()
    first = written(history, fua=True)
    written(history)
    history.settle_cut(7, content(7, first))
    assert allowed(history) == ({first}, {first})
    assert history.forgotten == 1
    history.flushed(history.flushing())
    assert allowed(history) == ({first}, {first})


@pytest.mark.parametrize("octets", [
    content(8, 1),                                              # another sector's
    content(7, 1)[:256] + content(7, 2)[256:],                  # half of each of two writes
    content(7, 1)[:-1] + b"\xff",
    b"\xff" * SECTOR,
], ids=["misplaced", "torn", "damaged", "foreign"])
def test_what_no_write_ever_put_there_is_wrong(octets):
    history = History()
    written(history)
    assert version_of(7, octets) is None
    assert len(history.check(7, octets, after_cut=True)) == 1


def test_sectors_are_compared_one_by_one():
    history = History()
    change = history.begin(6, 3)
    history.done(change)
    half = content(6, change.number) + ZERO + content(8, change.number)
    assert [wrong.sector for wrong in history.check(6, half)] == [7]
    assert history.check(6, half, after_cut=True) == []


def test_a_sector_with_a_change_under_way_is_nobodys_guess():
    history = History()
    history.begin(7, 1)
    assert history.busy(0, 8) and not history.busy(8, 8)
    assert history.check(7, b"\xff" * SECTOR) == []
