"""`rustosctl ps` and its like: what is shown, and what is refused with what to do."""

import pytest

from rustosd.cli import tables
from tests.rustosd.goldens import reads_as_promised

SHOWN = {"faults-list": ("faults", "list"), "faults-show": ("faults", "show", "1"),
         "ps": ("ps",), "ps-wide": ("ps", "--wide"), "sched-list": ("sched", "list"), "policy": ("policy",),
         "process-show": ("process", "show", "901"), "process-fds": ("process", "fds", "901"),
         "program-list": ("program", "list")}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    reads_as_promised(rustosctl, name, SHOWN[name])


def test_what_programs_are_called_is_nothing_a_terminal_obeys(capsys):
    tables.show_facts([("command", "a\x1b]0;title\x07\nb\x9b2J")])
    assert capsys.readouterr().out == "command  a?]0;title??b?2J\n"


@pytest.mark.parametrize("words", [("kill", "901"), ("kill", "901", "-s", "sighup"), ("suspend", "901"), ("resume", "901"),
                                   ("nice", "901", "5"), ("sched", "set", "901", "--class", "idle", "--cpu-quota", "none"),
                                   ("program", "start", "web"), ("program", "stop", "web"), ("program", "restart", "web")])
def test_done_is_said_by_silence(rustosctl, words):
    assert rustosctl(*words) == (0, "", "")


@pytest.mark.parametrize(("words", "status", "said"), [
    (("kill", "902"), 1, "rustosctl ps"), (("process", "show", "0"), 1, "rustosctl status"),
    (("sched", "set", "901"), 2, "--class, --priority"), (("sched", "set", "901", "--class", "best"), 2, "realtime, "),
    (("sched", "set", "901", "--cpus", "a"), 2, "0-1,3"), (("sched", "set", "901", "--cpu-quota", "lots"), 2, "50% or 1.5"),
    (("sched", "set", "902", "--priority", "1"), 1, "rustosctl ps"), (("suspend", "0"), 1, "service manager"),
    (("sched", "set", "0", "--priority", "1"), 2, "1"), (("run", "--cpus", "x", "--", "true"), 2, "0-1,3"),
    (("kill", "0"), 1, "service manager"), (("nice", "0", "5"), 1, "Nice="),
    (("kill", "901", "-s", "BOGUS"), 2, "HUP, INT"), (("nice", "901", "99"), 2, "19"), (("kill",), 2, "pid"),
    (("kill", "99999999999"), 2, "less than or equal to 4194304"),
    (("program", "stop", "x"), 1, "there is web, cron"), (("program", "restart", "x"), 1, "there is web, cron"),
])
def test_what_cannot_be_done_says_what_to_do(rustosctl, words, status, said):
    ended, out, err = rustosctl(*words)
    assert (ended, out) == (status, "") and said in err
