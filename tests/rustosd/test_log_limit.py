"""Rate limits of log lines: bursts become a line and a count, what somebody did never does."""

from rustosd.log_limit import ALIKE, MAX_KEYS, WINDOW_S, Burst, Limiter, Source

SOURCE = Source("rustosd.pump", "error", "callback_failed")


def test_the_same_line_again_and_again_passes_once_and_is_counted():
    limiter = Limiter()
    assert [limiter.admit(SOURCE, "x", 0.0) for _ in range(1000)] == [True] + [False] * 999
    assert limiter.ended(WINDOW_S - 1) == []
    assert limiter.ended(WINDOW_S) == [Burst(SOURCE, 999)]
    assert limiter.ended(WINDOW_S * 2) == []
    assert limiter.admit(SOURCE, "x", WINDOW_S * 2)


def test_a_line_that_comes_back_after_another_is_news():
    limiter = Limiter()
    assert all(limiter.admit(SOURCE._replace(event=event), "x", 0.0) for event in ("taken", "gone") * (ALIKE // 2))
    assert limiter.ended(WINDOW_S) == []


def test_one_event_with_many_fields_passes_some_times():
    limiter = Limiter()
    assert sum(limiter.admit(SOURCE, f"peer={i}", 0.0) for i in range(100)) == ALIKE
    assert limiter.ended(WINDOW_S) == [Burst(SOURCE, 100 - ALIKE)]


def test_what_somebody_changed_is_always_on_record():
    limiter = Limiter()
    changed = Source("rustosd.control.server", "info", "configuration_changed")
    assert all(limiter.admit(changed, "x", 0.0) for _ in range(1000))


def test_the_table_is_bounded_and_what_falls_out_is_told():
    limiter = Limiter()
    for i in range(3 * MAX_KEYS):
        for _ in range(2):
            limiter.admit(Source(f"logger{i}", "info", "x"), "", 0.0)
    assert len(limiter._runs) == len(limiter._alike) == MAX_KEYS
    assert sum(burst.count for burst in limiter.ended(WINDOW_S)) == 2 * MAX_KEYS        # MAX_KEYS that fell out are told, too
