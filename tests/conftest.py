"""Fixtures every test may use, and Hypothesis without deadlines: how busy a machine is proves nothing."""

from hypothesis import settings

from tests.support.netns import netns

__all__ = ["netns"]

settings.register_profile("rustosd", deadline=None)
settings.load_profile("rustosd")
