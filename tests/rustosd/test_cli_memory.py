"""`rustosctl memory`, from the command line to the rows of a fake core."""


import pytest

from tests.rustosd.fake import FakeProcesses
from tests.rustosd.goldens import reads_as_promised

SHOWN = {"memory-list": ("memory", "list"), "memory-dma": ("memory", "dma")}


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    reads_as_promised(rustosctl, name, SHOWN[name])


def test_the_noun_alone_lists(rustosctl):
    assert rustosctl("memory") == rustosctl("memory", "list")


def test_without_limits_it_says_how_to_set_one(rustosctl, monkeypatch):
    monkeypatch.setattr(FakeProcesses, "groups", lambda self: [])
    assert rustosctl("memory") == (0, "no program has a limit; see: rustosctl run --memory\n", "")
