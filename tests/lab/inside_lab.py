"""What tests of the lab itself run in the guest."""

import os
import sys
import time

from tests.lab.agent import tell


def where() -> tuple[str, str, str]:
    """The kernel, the host name and the interpreter."""
    return os.uname().release, os.uname().nodename, sys.executable


def refuse(reason: str) -> None:
    """Raise."""
    raise LookupError(reason)


def count(end: int) -> int:
    """Tell every number below `end`, then answer with the sum."""
    for number in range(end):
        tell(number)
    return sum(range(end))


def sleep(seconds: float) -> None:
    """Take too long."""
    time.sleep(seconds)


def descriptors() -> list[str]:
    """What a call finds open."""
    return sorted(os.listdir("/proc/self/fd"))
