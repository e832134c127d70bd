"""`rustosctl swap`, from the command line to the rows of a fake core."""

import json
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")
SHOWN = {"swap-list": ("swap", "list"), "swap-kernel-show": ("swap", "kernel", "show"),
         "swap-kernel-on": ("swap", "kernel", "on", "--export", "swap0", "--priority", "5", "--plain")}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    for suffix, option in ((".txt", ()), (".json", ("--json",))):
        status, out, err = rustosctl(*SHOWN[name], *option)
        assert (status, err) == (0, "")
        if os.environ.get("RUSTOSD_GOLDEN") == "write":
            (GOLDEN / (name + suffix)).write_text(out)
        assert out == (GOLDEN / (name + suffix)).read_text()


def test_the_noun_alone_lists(rustosctl):
    assert rustosctl("swap") == rustosctl("swap", "list")


def test_the_ratio_leaves_out_what_takes_nothing(rustosctl):
    row, = json.loads(rustosctl("swap", "--json")[1])["swap"]
    assert row["ratio"] == round((256 - 32) / 96, 2)
