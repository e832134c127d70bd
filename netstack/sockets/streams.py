"""asyncio's own StreamReader and StreamWriter on connections of the stack."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netstack.sockets.server import Server
    from netstack.sockets.stack import AsyncStack

LIMIT = 64 * 1024       # octets a StreamReader buffers before it pauses (twice that), and the longest line


class StreamLoop:
    """The running loop for streams, except that StreamWriter.start_tls finds the stack's start_tls.

    uvloop's own accepts no transports but its own.
    """

    __slots__ = ("_stack",)

    def __init__(self, stack: AsyncStack):
        self._stack = stack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack.loop, name)

    def start_tls(self, *args: Any, **kwargs: Any) -> Awaitable[asyncio.Transport]:
        return self._stack.start_tls(*args, **kwargs)


async def open_connection(stack: AsyncStack, host: str | None = None, port: int | str | None = None, *,
                          limit: int = LIMIT, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and return (reader, writer); options and errors as create_connection."""
    reader = asyncio.StreamReader(limit=limit, loop=stack.loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=StreamLoop(stack))
    transport, _ = await stack.create_connection(lambda: protocol, host, port, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, StreamLoop(stack))


async def start_server(stack: AsyncStack,
                       client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter],
                                                     Awaitable[None] | None],
                       host: str | Iterable[str] | None = None, port: int | str | None = 0, *,
                       limit: int = LIMIT, **options: Any) -> Server:
    """Serve with client_connected_cb(reader, writer), a function or coroutine; options and errors as create_server."""
    loop = StreamLoop(stack)

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=stack.loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await stack.create_server(factory, host, port, **options)
