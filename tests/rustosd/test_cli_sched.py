"""`rustosctl sched`: what is shown is of this machine and this moment, so its shape is what is promised."""

import json

SHOWN = {"sched-show": ("sched", "show")}
"""Its output has no golden file: processors and loads differ."""


def test_show_tells_of_ways_classes_processors_and_the_daemon(rustosctl, core):
    core.scheduler.ahead.complaint = "the daemon may not"
    status, out, err = rustosctl("sched", "show")
    assert (status, err) == (0, "")
    for words in ("none: this is a test", "the daemon may not", "as started", "CLASS", "WEIGHT", "P99", "CPU  BUSY"):
        assert words in out
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line[:1].isalpha()}
    assert rows["realtime"] == ["-", "0"] and rows["batch"] == ["25", "1"]


def test_busy_is_told_from_the_second_time_on(rustosctl):
    first, second = (json.loads(rustosctl("sched", "show", "--json")[1])["scheduling"] for _ in range(2))
    assert {row["busy_percent"] for row in first["processors"]} == {None}
    assert [row["number"] for row in first["processors"]] == [row["number"] for row in second["processors"]]
    batch = next(row for row in second["classes"] if row["name"] == "batch")
    assert (batch["run_s"], batch["wait_s"], batch["slices"]) == (3.25, 1.5, 1200)
    assert (batch["wait_p50_us"], batch["wait_p99_us"]) == (1048, 2097)


def test_a_suspended_program_is_shown_so(rustosctl):
    rustosctl("suspend", "901")
    assert "suspended" in rustosctl("sched", "list")[1] and "suspended" in rustosctl("ps")[1]
    rustosctl("resume", "901")
    assert "suspended" not in rustosctl("sched", "list")[1]
