"""Echo requests of our own: who waits for which answer."""

import asyncio
import errno
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_WAITING = 1024


class Answer(NamedTuple):
    """What came back for an echo request: the reply, or an error message about it."""

    source: str
    round_trip_s: float
    hop_limit: int
    error: str | None       # what the error message says


class Pinger:
    """Sends echo requests from the stack and hands each answer to the one who waits for it."""

    def __init__(self, stack: Any, kick: Callable[[], None], clock: Callable[[], int] = time.monotonic_ns):
        self._stack = stack
        self._kick = kick
        self._clock = clock
        self._waiting: dict[tuple[int, int], tuple[int, asyncio.Future[Answer]]] = {}

    async def ping(self, address: str, identifier: int, sequence: int, octets: int, timeout_s: float,
                   hop_limit: int = 64) -> Answer | None:
        """Send an echo request and wait; None when nothing came in time. Raises OSError when it cannot be sent."""
        key = identifier, sequence
        if key in self._waiting:
            raise OSError(errno.EBUSY, f"an echo request with identifier {identifier} and this sequence is under way")
        if len(self._waiting) >= MAX_WAITING:
            raise OSError(errno.EBUSY, f"{MAX_WAITING} echo requests are under way")
        sent_ns = self._clock()
        self._stack.ping_send(sent_ns, address, identifier, sequence, octets, hop_limit)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[key] = sent_ns, answer
        self._kick()
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._waiting[key]

    def dispatch(self) -> None:
        """Called each time the stack has worked: hand out the answers that came."""
        if not self._waiting:
            return
        for identifier, sequence, source, received_ns, hop_limit, _, error in self._stack.ping_replies():
            sent_ns, answer = self._waiting.get((identifier, sequence), (0, None))
            if answer is not None and not answer.done():
                answer.set_result(Answer(source, (received_ns - sent_ns) / 1e9, hop_limit, error))
