"""Fixtures every test may use, and Hypothesis without deadlines: how busy a machine is proves nothing."""

import gc
import os

import pytest
from hypothesis import settings

from tests.support.netns import netns

__all__ = ["netns"]

settings.register_profile("rustosd", deadline=None)
settings.load_profile("rustosd")


def pytest_collection_finish():
    """Thousands of collected tests stay to the end: no garbage collection needs to look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def environment_stays():
    """What a module leaves in the environment would reach the programs that others start."""
    before = dict(os.environ)
    yield
    changed = {name for name, _ in before.items() ^ os.environ.items()} - {"PYTEST_CURRENT_TEST"}
    assert not changed, f"the environment has changed: {changed}"
