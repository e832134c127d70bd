"""The fuzzer of NBD's engine: a short run finds nothing, and it would find what is wrong."""

import random
from collections import Counter

import pytest

from tests.fuzz import nbd


def test_a_short_run_finds_nothing():
    totals = Counter()
    for number in range(25):
        nbd.episode(random.Random(f"0 {number}"), totals)
    assert totals["answered"] > 1000 and totals["bad_magic"] and totals["oversize"] and totals["eof"]


def test_a_second_answer_and_one_never_given_are_found(monkeypatch):
    honest = nbd.Reader._one

    def twice(self):
        used = honest(self)
        if used and self.answered == 5 and len(self.octets) > 16:
            return honest(self)         # the same reply once more
        return used

    monkeypatch.setattr(nbd.Reader, "_one", twice)
    with pytest.raises(KeyError):
        for number in range(5):
            nbd.episode(random.Random(f"0 {number}"), Counter())
    monkeypatch.setattr(nbd.Reader, "_one", honest)
    monkeypatch.setattr(nbd.Reader, "_end", lambda self, cookie, size: size)        # as if it had not come
    with pytest.raises(AssertionError, match="never answered"):
        for number in range(5):
            nbd.episode(random.Random(f"0 {number}"), Counter())
