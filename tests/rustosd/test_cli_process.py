"""`rustosctl ps` and its like: what is shown, and what is refused with what to do."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")
SHOWN = {"ps": ("ps",), "process-show": ("process", "show", "901"), "process-fds": ("process", "fds", "901"),
         "policy": ("policy",)}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    for suffix, option in ((".txt", ()), (".json", ("--json",))):
        status, out, err = rustosctl(*SHOWN[name], *option)
        assert (status, err) == (0, "")
        if os.environ.get("RUSTOSD_GOLDEN") == "write":
            (GOLDEN / (name + suffix)).write_text(out)
        assert out == (GOLDEN / (name + suffix)).read_text()


@pytest.mark.parametrize("words", [("kill", "901"), ("kill", "901", "-s", "sighup"), ("suspend", "901"), ("resume", "901"),
                                   ("nice", "901", "5")])
def test_done_is_said_by_silence(rustosctl, words):
    assert rustosctl(*words) == (0, "", "")


@pytest.mark.parametrize(("words", "status", "said"), [
    (("kill", "902"), 1, "rustosctl ps"), (("process", "show", "0"), 1, "rustosctl status"),
    (("kill", "0"), 1, "service manager"), (("nice", "0", "5"), 1, "Nice="),
    (("kill", "901", "-s", "BOGUS"), 2, "HUP, INT"), (("nice", "901", "99"), 2, "19"), (("kill",), 2, "pid"),
])
def test_what_cannot_be_done_says_what_to_do(rustosctl, words, status, said):
    ended, out, err = rustosctl(*words)
    assert (ended, out) == (status, "") and said in err
