"""Whether pages come writable, by what their readers did with those before."""

import random

from mm.paging.writers import Writers

SAMPLES = 16        # pages that come protected, until one counts as not written
ENOUGH = 100        # more than enough to learn from


def read(writers: Writers, pages: range, written: float) -> list[bool]:
    """Who reads them writes so many of them before he reads the next one. Which of them came writable."""
    chosen, writable = random.Random(1), []
    for page in pages:
        writable.append(writers.expected())
        if not writable[-1]:
            writers.came(page)
            if chosen.random() < written:
                writers.written(page)
    return writable


def test_nobody_is_expected_to_write_before_somebody_has() -> None:
    assert not any(read(Writers(), range(1, ENOUGH), 0))


def test_who_writes_what_he_reads_has_most_pages_writable_soon() -> None:
    writers = Writers()
    assert sum(read(writers, range(1, ENOUGH), 1)) > ENOUGH // 2
    later = read(writers, range(ENOUGH, ENOUGH + 5 * SAMPLES), 1)
    assert later.count(False) == 5      # to see whether that still holds


def test_half_of_them_are_not_enough() -> None:
    assert sum(read(Writers(), range(1, 20 * ENOUGH), 0.5)) < 20 * ENOUGH // 10


def test_who_writes_no_more_has_them_protected_again() -> None:
    writers = Writers()
    read(writers, range(1, ENOUGH), 1)
    assert any(read(writers, range(ENOUGH, 6 * ENOUGH), 0))
    assert not any(read(writers, range(6 * ENOUGH, 7 * ENOUGH), 0))


def test_a_write_long_after_the_reading_does_not_count() -> None:
    writers = Writers()
    for page in range(1, 10 * ENOUGH):
        assert not writers.expected()
        writers.came(page)
        if page > SAMPLES:
            writers.written(page - SAMPLES)


def test_a_write_among_those_of_other_threads_counts() -> None:
    writers = Writers()
    for page in range(SAMPLES, ENOUGH):
        if not writers.expected():
            writers.came(page)
        writers.written(page - SAMPLES // 2)
    assert writers.expected() or writers.expected()
