"""Sockets of a running rustosd for any Python program; the standard library is all it needs.

    from rustosd.client import create_connection            # as socket.create_connection
    import rustosd.client as socket                         # a program written for the socket module runs as it is
    import rustosd.client.aio as asyncio                    # ... and one written for asyncio's streams

The daemon is found by its control socket, /run/rustosd/control.sock or what the environment variable RUSTOSD_SOCKET says.
Names are resolved by this machine's resolver.
"""

import socket as _stdlib
from typing import Any

from rustosd.client.session import Daemon
from rustosd.client.sock import (
    DatagramSocket,
    Socket,
    StreamSocket,
    create_connection,
    create_server,
    has_dualstack_ipv6,
)

socket = SocketType = Socket

__all__ = ["Daemon", "DatagramSocket", "Socket", "StreamSocket", "create_connection", "create_server",
           "has_dualstack_ipv6", "socket"]


def __getattr__(name: str) -> Any:
    """Constants, exceptions and helpers are those of the socket module."""
    return getattr(_stdlib, name)
