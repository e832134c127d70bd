"""Fixtures every test may use, and Hypothesis without deadlines: how busy a machine is proves nothing."""

import gc

from hypothesis import settings

from tests.support.netns import netns

__all__ = ["netns"]

settings.register_profile("rustosd", deadline=None)
settings.load_profile("rustosd")


def pytest_collection_finish():
    """Thousands of collected tests stay to the end: no garbage collection needs to look at them again."""
    gc.collect()
    gc.freeze()
