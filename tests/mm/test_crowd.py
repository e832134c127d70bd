"""Whether others want the processor that somebody waits on: against a file, and against this machine."""

import os
import subprocess
import sys
import time

import pytest

from mm.crowd import Crowd

PERIOD, SHORTEST, LONGEST = 200_000, 10_000_000, 160_000_000


@pytest.fixture
def loads(tmp_path):
    file = tmp_path / "loadavg"

    def say(running):
        file.write_text(f"0.52 10.58 7.59 {running}/467 11972\n")
    say(1)
    return file, say


class Clock:
    def __init__(self, crowd):
        self.crowd, self.now = crowd, 10**12

    def ask(self, times=1):
        """The last answer, and how many answers said to give way."""
        answers = []
        for _ in range(times):
            self.now += PERIOD
            answers.append(self.crowd.ask(self.now))
        return answers[-1], sum(answer > 0 for answer in answers)

    def pauses(self, count):
        """The next ones."""
        answers = [self.ask()[0] for _ in range(10 * count)]
        return [answer for answer in answers if answer][:count]


@pytest.mark.parametrize(("running", "crowded"), [(1, False), (4, False), (5, True), (19, True), (1234, True)])
def test_more_than_there_are_processors_is_a_crowd(loads, running, crowded):
    file, say = loads
    say(running)
    assert bool(Clock(Crowd(str(file), processors=4)).ask(10)[1]) == crowded


def test_once_is_no_crowd_and_often_is(loads):
    file, say = loads
    clock = Clock(Crowd(str(file), processors=2))
    say(3)
    assert clock.ask(2) == (0, 0)
    say(2)
    assert clock.ask(200) == (0, 0)
    say(3)
    assert clock.ask(4)[1] == 1


def test_it_asks_the_kernel_only_from_time_to_time(loads):
    file, say = loads
    crowd = Crowd(str(file), processors=2)
    say(3)
    assert not any(crowd.ask(10**12 + k) for k in range(PERIOD))


def test_each_pause_is_twice_as_long_until_there_is_room_for_a_while(loads):
    file, say = loads
    clock = Clock(Crowd(str(file), processors=2))
    say(3)
    assert clock.pauses(6) == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST, LONGEST, LONGEST]
    say(1)
    clock.ask(100)
    say(3)
    assert clock.pauses(1) == [SHORTEST]


@pytest.mark.parametrize("text", ["", "1.0", "nothing to see here at all", "0.0 0.0 0.0 /", "0.0 0.0 0.0 9" + "9" * 100])
def test_what_is_no_load_is_no_reason_to_give_way_nor_to_fail(loads, text):
    file, _ = loads
    file.write_text(text)
    Clock(Crowd(str(file), processors=2)).ask(100)


def test_this_machine_tells():
    """With more busy programs than processors it is crowded, whatever else runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() + 1)]
    try:
        crowd, limit = Crowd(), time.monotonic() + 30
        while not crowd.ask(time.monotonic_ns()):
            assert time.monotonic() < limit
    finally:
        for one in busy:
            one.kill()
            one.wait()
