"""How long to look on instead of sleeping."""

import pytest

from mm.crowd import Crowd
from rustosd.busy_poll import MAX_PASSES, STRETCH, BusyPoll


def test_after_work_it_looks_on_for_its_while_and_no_longer():
    poll = BusyPoll(100)
    assert not poll.looking
    assert poll.go_on(0, worked=True, found=False) and poll.looking
    assert poll.go_on(99, worked=False, found=False)
    assert not poll.go_on(100, worked=False, found=False) and not poll.looking
    assert poll.vain_looks == 2


def test_each_vain_while_doubles_the_chances_let_pass_and_a_find_forgets_them():
    poll, now = BusyPoll(100), 0
    for passes in (1, 3, 7, 15, 31, 63, MAX_PASSES):
        assert poll.go_on(now := now + 1000, worked=True, found=True)
        assert not poll.go_on(now + STRETCH * 100, worked=False, found=False)
        for _ in range(passes):
            assert not poll.go_on(now := now + 1000, worked=True, found=True)
    assert poll.go_on(now := now + 1000, worked=True, found=True)
    assert poll.go_on(now + 50, worked=True, found=True) and poll.go_on(now + 60, worked=True, found=True)


@pytest.mark.parametrize(("gap", "found"), [(30, True), (150, True), (340, True), (395, False), (5000, False)])
def test_the_while_follows_the_usual_gap_as_far_as_it_stretches(gap, found):
    poll = BusyPoll(100)
    now, outcomes = 1, []
    for _ in range(140):
        poll.go_on(now, worked=True, found=True)
        at = now
        while poll.looking and at < now + gap:
            at += 5
            poll.go_on(at, worked=False, found=False)
        outcomes.append(poll.looking)
        now += gap
    assert outcomes[40:].count(found) >= 95


def test_a_pause_does_not_hide_what_comes_soon_after():
    poll, now = BusyPoll(100), 1
    for _ in range(20):
        poll.go_on(now := now + 20, worked=True, found=True)
    poll.go_on(now + 100, worked=False, found=False)
    poll.go_on(now := now + 1_000_000, worked=True, found=True)
    found = 0
    for _ in range(10):
        found += poll.looking
        poll.go_on(now := now + 20, worked=True, found=True)
    assert found >= 8


def test_without_a_while_it_never_looks_on():
    assert not BusyPoll(0).go_on(0, worked=True, found=True)


def test_where_others_wait_for_a_processor_it_does_not_look_for_a_while(tmp_path):
    loads = tmp_path / "loadavg"
    loads.write_text("0 0 0 9/99 1\n")
    poll = BusyPoll(10**9, Crowd(str(loads), processors=2))
    now = 10**12
    assert poll.go_on(now, True, True)
    looks = 0
    while poll.go_on(now, False, False):
        now += 200_000
        looks += 1
    assert 2 <= looks < 10 and not poll.looking
    assert not poll.go_on(now + 9_000_000, True, True)
    loads.write_text("0 0 0 1/99 1\n")
    assert poll.go_on(now + 11_000_000, True, True) and poll.go_on(now + 12_000_000, False, False)
