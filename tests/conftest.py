"""Fixtures every test may use."""

from tests.support.netns import netns

__all__ = ["netns"]
