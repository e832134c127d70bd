"""What threads ran and waited is added up once, whatever comes and goes."""

from rustosd.scheduling import tasks, waits
from rustosd.scheduling.waits import Meter, Spent


def meter_of(monkeypatch, *samples):
    """A meter after samples, each {pid: {tid: Spent}}."""
    meter = Meter()
    for sample in samples:
        flat = {tid: row for threads in sample.values() for tid, row in threads.items()}
        monkeypatch.setattr(tasks, "threads", lambda pid, sample=sample: list(sample[pid]))
        monkeypatch.setattr(waits, "spent", lambda tid, pid, flat=flat: flat[tid])
        meter.sample(sample)
    return meter


def test_only_what_is_new_counts(monkeypatch):
    meter = meter_of(monkeypatch, {7: {7: Spent(100, 10, 1)}}, {7: {7: Spent(300, 40, 4), 8: Spent(50, 0, 1)}})
    assert (meter.total, meter.of(7)) == (Spent(350, 40, 5), Spent(350, 40, 5))
    assert sum(meter.waits) == 5 and meter.waits[4] == 4 and meter.waits[0] == 1      # 10 ns: below 16; none


def test_what_ended_threads_spent_stays_theirs(monkeypatch):
    meter = meter_of(monkeypatch, {7: {7: Spent(1, 1, 1), 8: Spent(5, 5, 5)}, 9: {9: Spent(2, 2, 2)}}, {7: {7: Spent(1, 1, 1)}})
    assert (meter.total, meter.of(7), meter.of(9)) == (Spent(8, 8, 8), Spent(6, 6, 6), Spent())


def test_a_number_that_another_thread_has_now(monkeypatch):
    meter = meter_of(monkeypatch, {7: {8: Spent(500, 500, 5)}}, {7: {8: Spent(10, 0, 1)}})
    assert meter.total == Spent(510, 500, 6)


def test_more_threads_than_one_sample_looks_at(monkeypatch):
    many = {tid: Spent(1, 0, 1) for tid in range(waits.THREADS_MOST + 10)}
    assert meter_of(monkeypatch, {7: many}).total.slices == waits.THREADS_MOST


def test_a_real_thread():
    before = waits.own()
    sum(range(300_000))
    assert waits.own().run_ns > before.run_ns


def test_processors_busy_and_idle():
    text = "cpu  9 9 9 9\ncpu0 10 0 5 80 5 0 0 0 7 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
    assert tasks.busy_ticks(text) == {0: (15, 100), 1: (6, 8)}
