"""Measures against errors that come again: in their order, each in its time, and forgotten again."""

from drivers.ahci.ladder import LINK_ERRORS, LINK_NS, QUEUE_ERRORS, QUEUE_NS, RESETS, Ladder, Measure, Trouble


def many(ladder, trouble, count, now=0, every_ns=1, queued=True, speed=3):
    return [ladder.note(trouble, now + every_ns * n, queued=queued, speed=speed) for n in range(count)]


def test_errors_of_the_link_slow_it_down_a_generation_at_a_time_to_the_first():
    ladder = Ladder()
    assert many(ladder, Trouble.LINK, LINK_ERRORS) == [None] * (LINK_ERRORS - 1) + [Measure.SLOWER]
    assert ladder.speed_limit == 2
    assert many(ladder, Trouble.LINK, LINK_ERRORS)[-1] is Measure.SLOWER and ladder.speed_limit == 1
    assert many(ladder, Trouble.LINK, 3 * LINK_ERRORS) == [None] * 3 * LINK_ERRORS and ladder.speed_limit == 1


def test_errors_of_a_link_of_unknown_speed_or_far_apart_change_nothing():
    assert set(many(Ladder(), Trouble.LINK, 20, speed=0)) == {None}
    assert set(many(Ladder(), Trouble.LINK, 20, every_ns=LINK_NS)) == {None}


def test_queued_commands_that_hang_or_fail_unexplained_end_queuing():
    for trouble in (Trouble.TIMEOUT, Trouble.UNEXPLAINED):
        ladder = Ladder()
        assert many(ladder, trouble, QUEUE_ERRORS) == [None] * (QUEUE_ERRORS - 1) + [Measure.NO_QUEUE]
        assert not ladder.queuing and set(many(ladder, trouble, 9)) == {None}
        assert set(many(Ladder(), trouble, 9, queued=False)) == set(many(Ladder(), trouble, 9, every_ns=QUEUE_NS)) == {None}


def test_errors_that_the_drive_explains_and_those_of_the_bus_climb_nothing():
    ladder = Ladder()
    assert set(many(ladder, Trouble.DEVICE, 99)) == set(many(ladder, Trouble.BUS, 99)) == {None}
    assert (ladder.speed_limit, ladder.queuing) == (0, True)


def test_resets_in_a_row_are_limited_and_progress_begins_anew():
    ladder = Ladder()
    assert [ladder.may_reset(False) for _ in range(RESETS + 2)] == [True] * RESETS + [False] * 2
    assert ladder.may_reset(True)


def test_forgetting_leads_to_the_bottom():
    ladder = Ladder()
    many(ladder, Trouble.LINK, LINK_ERRORS)
    many(ladder, Trouble.TIMEOUT, QUEUE_ERRORS)
    many(ladder, Trouble.LINK, LINK_ERRORS - 1)
    ladder.may_reset(False)
    ladder.forget()
    assert ladder == Ladder()
