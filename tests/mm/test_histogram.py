"""Histograms: every value lands in exactly one bucket, the one whose bounds hold it."""

from hypothesis import given
from hypothesis import strategies as st

from mm.histogram import LOG2_BUCKETS, Histogram


@given(st.integers(0, 2**64 - 1))
def test_a_value_lies_within_the_bounds_of_its_bucket(value):
    histogram = Histogram()
    histogram.observe(value)
    total, counts = histogram.row()
    assert total == value and len(counts) == LOG2_BUCKETS == 65
    (bucket,) = [k for k, count in enumerate(counts) if count]
    assert value <= 1 << bucket and (bucket == 0 or value > 1 << bucket - 1)


def test_values_add_up():
    histogram = Histogram()
    for value in (0, 1, 2, 3, 4, 64, 65, 1 << 40):
        histogram.observe(value)
    total, counts = histogram.row()
    assert total == 139 + (1 << 40)
    assert {k: count for k, count in enumerate(counts) if count} == {0: 2, 1: 1, 2: 2, 6: 1, 7: 1, 40: 1}
