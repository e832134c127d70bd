"""Echo requests of our own: who waits for which answer."""

import asyncio
import errno
import time
from collections.abc import Callable
from typing import Any

MAX_WAITING = 1024


class Pinger:
    """Sends echo requests from the stack and hands each answer to the one who waits for it."""

    def __init__(self, stack: Any, kick: Callable[[], None], clock: Callable[[], int] = time.monotonic_ns):
        self._stack = stack
        self._kick = kick
        self._clock = clock
        self._waiting: dict[tuple[str, int, int], asyncio.Future[int]] = {}

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float) -> float | None:
        """The round trip in seconds, None when no answer came in time. Raises OSError when it cannot be sent."""
        key = (address, identifier, sequence)
        if key in self._waiting:
            raise OSError(errno.EBUSY, f"an echo request to {address} with this identifier is under way")
        if len(self._waiting) >= MAX_WAITING:
            raise OSError(errno.EBUSY, f"{MAX_WAITING} echo requests are under way")
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            sent_ns = self._clock()
            self._stack.ping_send(address, identifier, sequence, octets)
            self._kick()
            async with asyncio.timeout(timeout_s):
                return (await answer - sent_ns) / 1e9
        except TimeoutError:
            return None
        finally:
            del self._waiting[key]

    def dispatch(self) -> None:
        """Called each time the stack has worked: hand out the answers that came."""
        if not self._waiting:
            return
        now = self._clock()
        for reply in self._stack.ping_replies():
            answer = self._waiting.get((reply["host"], reply["identifier"], reply["sequence"]))
            if answer is not None and not answer.done():
                answer.set_result(now)
