"""The judge on stores nobody here wrote: it finds nothing where nothing is wrong, and finds a server that ignores flushes."""

import random
import time
from pathlib import Path

import pytest

from tests.lossless.loads import Load, Nbdkit, load

SECTORS = 8192


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest):
    nbdkit = Nbdkit(tmp_path, SECTORS * 512, getattr(request, "param", "writeback"))
    yield nbdkit
    nbdkit.cut()


def cut_under_load(store: Nbdkit, worker: Load, pause: random.Random, number: int):
    """Start, load, cut the power, start again, compare; the next round goes on from there."""
    store.start()
    worker.connect(store.uri)
    worker.begin_before_cut(number)
    time.sleep(pause.uniform(0.05, 0.2))
    store.cut()
    ran = worker.ended()
    store.start()
    verified = worker.verify(store.uri, cut=True)
    store.cut()
    return ran, verified


def test_a_good_store_loses_nothing_but_what_was_not_flushed(store):
    pause = random.Random(1)
    forgotten = done = 0
    with load(SECTORS) as worker:
        for number in range(5):
            ran, verified = cut_under_load(store, worker, pause, number)
            assert ran.wrong == [] and verified.wrong == []
            forgotten += verified.forgotten
            done += ran.done
    assert done > 50 and forgotten > 0, "nothing was at stake"


@pytest.mark.parametrize("store", ["unsafe"], indirect=True)
def test_a_store_that_ignores_flushes_is_found_out(store):
    pause = random.Random(1)
    with load(SECTORS) as worker:
        assert any(cut_under_load(store, worker, pause, 1)[1].wrong for _ in range(5))
