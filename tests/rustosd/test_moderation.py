"""When what comes is kept waiting for more of it."""

import pytest

from mm.crowd import Crowd
from rustosd.moderation import PASSES_MOST, WORTH, Moderation

MOST = 100_000


@pytest.fixture
def loads(tmp_path):
    file = tmp_path / "loadavg"
    file.write_text("0 0 0 9/99 1\n")
    return file


def crowded(loads, now: int = 10**12) -> tuple[Moderation, int]:
    """One that has noticed; and the time at which it did."""
    moderation = Moderation(MOST, Crowd(str(loads), processors=2))
    while not moderation.due(now):
        now += 200_000
    return moderation, now


def test_where_nobody_waits_there_is_no_rest(loads):
    loads.write_text("0 0 0 2/99 1\n")
    moderation = Moderation(MOST, Crowd(str(loads), processors=2))
    assert not any(moderation.due(10**12 + 200_000 * look) for look in range(100))


def test_a_crowd_is_believed_in_after_some_looks_and_for_some_time(loads):
    moderation = Moderation(MOST, Crowd(str(loads), processors=2))
    dues = [moderation.due(10**12 + 200_000 * look) for look in range(10)]
    assert not dues[0] and dues[-1]
    loads.write_text("0 0 0 1/99 1\n")
    assert moderation.due(10**12 + 10 * 200_000)
    assert not moderation.due(10**12 + 10**9)


@pytest.mark.parametrize(("most", "known"), [(0, True), (MOST, False)])
def test_switched_off_or_where_the_kernel_does_not_tell_there_is_none(loads, most, known):
    moderation = Moderation(most, Crowd(str(loads), processors=2) if known else None)
    assert not any(moderation.due(10**12 + 200_000 * look) for look in range(100))


def test_it_can_be_switched_off_and_on(loads):
    moderation, now = crowded(loads)
    moderation.set_most(0)
    assert not moderation.due(now)
    moderation.set_most(MOST)
    assert moderation.due(now)


def test_each_rest_that_gathers_little_doubles_the_chances_let_pass_and_one_that_pays_forgets_them(loads):
    moderation, now = crowded(loads)
    for passes in (1, 3, 7, 15, 31, 63, PASSES_MOST):
        assert not moderation.gathered(WORTH - 1)
        assert [moderation.due(now) for _ in range(passes + 1)] == [False] * passes + [True]
    assert moderation.gathered(WORTH) and moderation.due(now)
    assert not moderation.gathered(0)
    assert [moderation.due(now) for _ in range(2)] == [False, True]
