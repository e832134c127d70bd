"""Classes and priorities: the same proportions whatever the kernel is told with."""

import pytest

from rustosd.scheduling.settings import (
    DAEMON_REALTIME,
    PRIORITY_MOST,
    Settings,
    nice_of,
    realtime_priority,
    weight,
)
from rustosd.values import CpuQuota, Processors, spoken_processors


def test_what_is_not_said_stays_as_it_was():
    before = Settings(sched_class="batch", priority=3, processors=(1,), quota_percent=50.0)
    assert Settings(priority=0).over(before) == Settings(sched_class="batch", priority=0, processors=(1,), quota_percent=50.0)
    assert Settings(processors=(), quota_percent=0.0).over(before) == Settings(
        sched_class="batch", priority=3, processors=(), quota_percent=0.0)


@pytest.mark.parametrize(("class_weight", "priority", "nice"), [
    (100, 0, 0), (400, 0, -6), (25, 0, 6), (100, 9, -9), (100, -9, 9), (10_000, 9, -20), (1, -9, 19)])
def test_nice_values_have_the_proportions_of_weights(class_weight, priority, nice):
    assert nice_of(weight(class_weight, priority)) == nice


def test_the_daemon_is_before_every_realtime_program():
    assert 1 <= realtime_priority(-PRIORITY_MOST) < realtime_priority(PRIORITY_MOST) < DAEMON_REALTIME <= 99


def test_what_takes_from_others_is_told_apart():
    assert Settings(sched_class="realtime").beyond_anybody and Settings(priority=1).beyond_anybody
    assert not Settings(sched_class="interactive", priority=0, processors=(0,)).beyond_anybody


@pytest.mark.parametrize(("text", "numbers", "canonical"), [
    ("", (), ""), ("0", (0,), "0"), ("0-1,3", (0, 1, 3), "0-1,3"), (" 3, 1,2 ", (1, 2, 3), "1-3"), ("7,7", (7,), "7")])
def test_lists_of_processors(text, numbers, canonical):
    assert (Processors(text).numbers, Processors(text), spoken_processors(numbers)) == (numbers, canonical, canonical)


@pytest.mark.parametrize("text", ["a", "3-1", "0-9999", "-1", "1-", "0 1"])
def test_what_is_no_list_of_processors(text):
    with pytest.raises(ValueError, match="0-1,3"):
        Processors(text)


@pytest.mark.parametrize(("text", "percent"), [("", 0), ("none", 0), ("50%", 50), ("1.5", 150), ("2", 200), (" 12.5% ", 12.5)])
def test_quotas(text, percent):
    assert CpuQuota(text).percent == percent


@pytest.mark.parametrize("text", ["0", "0.5%", "-1", "half", "50 %", "1e3"])
def test_what_is_no_quota(text):
    with pytest.raises(ValueError, match="50% or 1"):
        CpuQuota(text)
