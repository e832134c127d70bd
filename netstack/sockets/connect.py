"""Active opens: one address after the other, or several at once (happy eyeballs, RFC 8305)."""

from __future__ import annotations

import asyncio
import contextlib
import errno as errors
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from netstack.sockets.addresses import AddressInfo, combined, fate, text
from netstack.tcp.api import EVENT_CLOSED, EVENT_CONNECTED

if TYPE_CHECKING:
    from netstack.sockets.stack import AsyncStack


class Attempt:
    """One connection on its way to ESTABLISHED; holds what the core says until a transport takes the handle over.

    Raises OSError at once when the core sees that it cannot work (no route, port in use).
    """

    __slots__ = ("bits", "errno", "established", "handle", "target")

    def __init__(self, stack: AsyncStack, host: str, port: int, source: tuple[str | None, int]):
        self.target = text(host, port)
        self.bits = 0
        self.errno = 0
        try:
            self.handle = stack.tcp.connect(stack.clock(), host, port, *source)
        except OSError as exc:
            raise fate(exc.errno or errors.EIO, f"connect to {self.target} failed") from exc
        self.established: asyncio.Future[None] = stack.loop.create_future()
        stack.connections[self.handle] = self
        stack.kick()

    def _event(self, bits: int, errno: int) -> None:
        self.bits |= bits
        self.errno = self.errno or errno
        if self.established.done():
            return
        if bits & EVENT_CONNECTED:
            self.established.set_result(None)
        elif bits & EVENT_CLOSED:
            self.established.set_exception(
                fate(errno or errors.ECONNABORTED, f"connect to {self.target} failed"))

    def abandon(self, stack: AsyncStack) -> None:
        """Reset the connection if it is one, and forget it."""
        if not self.established.cancel() and not self.established.cancelled():
            self.established.exception()        # seen, or nobody is left who wants to
        stack.reset(self.handle)

    def close(self) -> None:
        """The stack closes: whoever waits gets ConnectionAbortedError."""
        if not self.established.done():
            self.established.set_exception(fate(errors.ECONNABORTED, f"connect to {self.target} failed"))

    abort = close


def pairs(infos: Sequence[AddressInfo], sources: Sequence[AddressInfo] | None
          ) -> Iterator[tuple[str, int, tuple[str | None, int]]]:
    """Each remote address with a local one of its family: (host, port, (source host, source port))."""
    for family, _, _, _, address in infos:
        if sources is None:
            yield address[0], address[1], (None, 0)
            continue
        for source in sources:
            if source[0] == family:
                yield address[0], address[1], source[4][:2]


async def first_established(stack: AsyncStack, infos: Sequence[AddressInfo], sources: Sequence[AddressInfo] | None,
                            delay: float | None) -> tuple[Attempt | None, list[OSError]]:
    """The first address that answers, and the errors met on the way.

    Without `delay` an address is tried when the one before has failed; with it, also when that has not answered for
    `delay` seconds. Whatever else was begun is reset, also when the caller is cancelled.
    """
    candidates = list(pairs(infos, sources))
    failed: list[OSError] = []
    pending: dict[asyncio.Future[None], Attempt] = {}
    if not candidates:
        return None, [OSError(errors.EADDRNOTAVAIL, "no local address of the family of the remote address")]
    try:
        while candidates or pending:
            if candidates:
                try:
                    attempt = Attempt(stack, *candidates.pop(0))
                except OSError as exc:
                    failed.append(exc)
                    continue
                pending[attempt.established] = attempt
            for future in await finished(pending, delay if candidates else None):
                attempt = pending[future]
                error = future.exception()
                if error is None:
                    return pending.pop(future), failed
                failed.append(error)
                pending.pop(future).abandon(stack)
        return None, failed
    finally:
        for attempt in pending.values():
            attempt.abandon(stack)


async def finished(pending: dict[asyncio.Future[None], Attempt], timeout: float | None) -> Iterable[asyncio.Future[None]]:
    """Those that are done, after at most `timeout` seconds."""
    if timeout is None and len(pending) == 1:       # nearly always; asyncio.wait costs as much as the handshake
        (future,) = pending
        with contextlib.suppress(OSError):
            await future
        return (future,)
    return (await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED))[0]


async def establish(stack: AsyncStack, infos: Sequence[AddressInfo], sources: Sequence[AddressInfo] | None = None,
                    delay: float | None = None, all_errors: bool = False) -> Attempt:
    """An established connection to one of the addresses. Raises OSError as asyncio's create_connection does."""
    attempt, failed = await first_established(stack, infos, sources, delay)
    if attempt is not None:
        return attempt
    try:
        if all_errors:
            raise ExceptionGroup("create_connection failed", failed)
        raise combined(failed)
    finally:
        del failed      # breaks the cycle exception -> traceback -> frame -> list
