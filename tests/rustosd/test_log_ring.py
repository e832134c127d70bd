"""The last lines in memory: bounded in number and octets, in order, readable."""

from hypothesis import given
from hypothesis import strategies as st

from rustosd.log_ring import MAX_LINE_OCTETS, MAX_LINES, MAX_OCTETS, Ring, spoken


def fill(ring, count, **fields):
    for _ in range(count):
        ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.x", "happened", fields)


def test_it_keeps_the_last_lines():
    ring = Ring()
    fill(ring, MAX_LINES + 10)
    assert len(ring.after(0, 10**6)) == MAX_LINES and ring.after(0, 1)[0].number == 11
    assert [line.number for line in ring.tail(3)] == [MAX_LINES + 8, MAX_LINES + 9, MAX_LINES + 10]
    assert ring.after(ring.last, 5) == [] and ring.after(ring.last + 9, 5) == []


def test_long_lines_are_cut_and_few_are_kept():
    ring = Ring()
    fill(ring, 1000, text="x" * 10**6)
    assert all(len(line.fields["text"]) <= MAX_LINE_OCTETS + 3 for line in ring.after(0, 10**6))
    assert sum(len(line.fields["text"]) for line in ring.after(0, 10**6)) < MAX_OCTETS


@given(st.dictionaries(st.text(max_size=9), st.none() | st.text() | st.binary() | st.integers() | st.lists(st.text()),
                       max_size=5))
def test_any_fields_can_be_kept_and_read(fields):
    ring = Ring()
    ring.append("2026-11-28T18:00:00.000000", "info", "rustosd", "x", fields)
    assert spoken(ring.tail(1)[0]).startswith("2026-11-28T18:00:00.000Z info    rustosd x")


def test_a_line_reads_like_a_line():
    ring = Ring()
    ring.append("2026-11-28T18:00:00.123456", "warning", "rustosd.pump", "link_down",
                {"nic": "rustos0", "why": 'no "carrier"', "names": ["a", "b"]})
    assert spoken(ring.tail(1)[0]) == (
        '2026-11-28T18:00:00.123Z warning rustosd.pump link_down nic=rustos0 why="no \\"carrier\\"" names="a, b"')
