"""`rustosctl swap`, from the command line to the rows of a fake core."""

import json

import pytest

from tests.rustosd.goldens import reads_as_promised

SHOWN = {"swap-list": ("swap", "list"), "swap-kernel-show": ("swap", "kernel", "show"),
         "swap-kernel-on": ("swap", "kernel", "on", "--export", "swap0", "--priority", "5", "--plain")}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    reads_as_promised(rustosctl, name, SHOWN[name])


def test_the_noun_alone_lists(rustosctl):
    assert rustosctl("swap") == rustosctl("swap", "list")


def test_the_ratio_leaves_out_what_takes_nothing(rustosctl):
    row, = json.loads(rustosctl("swap", "--json")[1])["swap"]
    assert row["ratio"] == round((256 - 32) / 96, 2)
