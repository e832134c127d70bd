"""A word to whoever sits at the terminal of `rustosctl run`."""

import contextlib
import os
import select
from typing import Final

_STDERR: Final = 2


def say(text: str) -> None:
    """A line on stderr, unless nobody reads there: all programs would wait with us."""
    ready = select.poll()
    ready.register(_STDERR, select.POLLOUT)
    if any(events & select.POLLOUT for _, events in ready.poll(0)):
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"rustosctl: {text}\n".encode(errors="replace"))
