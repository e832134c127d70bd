"""Procedures: what they wait for, and for how long."""

import pytest

from drivers.ahci.steps import Pause, Steps, Until
from drivers.errors import DeviceTimeout


def test_a_pause_begins_after_what_was_done_before_it():
    """The clock that `advance` is given was read before: a register access, or a busy machine, may have taken long since."""
    done = []

    def procedure():
        done.append("set")
        yield Pause(1000)
        done.append("cleared")
        yield Pause(500)

    steps = Steps("disk", procedure())
    assert not steps.advance(0)
    for now in (5000, 5999):
        assert not steps.advance(now) and done == ["set"]
    assert not steps.advance(6000) and done == ["set", "cleared"]
    assert not steps.advance(9000)
    assert steps.advance(9500)


def test_what_does_not_come_ends_with_what_it_was():
    steps = Steps("disk", (Until(lambda: 5, lambda value: value == 6, 1000, "six") for _ in range(1)))
    assert not steps.advance(0) and not steps.advance(999)
    with pytest.raises(DeviceTimeout, match="six"):
        steps.advance(1000)
