"""`rustosctl memory`, from the command line to the rows of a fake core."""

import os
from pathlib import Path

import pytest

from tests.rustosd.fake import FakeProcesses

GOLDEN = Path(__file__).with_name("golden")
SHOWN = {"memory-list": ("memory", "list"), "memory-dma": ("memory", "dma")}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    for suffix, option in ((".txt", ()), (".json", ("--json",))):
        status, out, err = rustosctl(*SHOWN[name], *option)
        assert (status, err) == (0, "")
        if os.environ.get("RUSTOSD_GOLDEN") == "write":
            (GOLDEN / (name + suffix)).write_text(out)
        assert out == (GOLDEN / (name + suffix)).read_text()


def test_the_noun_alone_lists(rustosctl):
    assert rustosctl("memory") == rustosctl("memory", "list")


def test_without_limits_it_says_how_to_set_one(rustosctl, monkeypatch):
    monkeypatch.setattr(FakeProcesses, "groups", lambda self: [])
    assert rustosctl("memory") == (0, "no program has a limit; see: rustosctl run --memory\n", "")
