"""A connection that a program has accepted and has asked nothing about since, which is how most of them end."""

import socket
from typing import Any

import cython
from cython.cimports.libc.stdint import uint64_t

if not cython.compiled:
    raise ImportError("rustosd.process.accepted must be compiled: python setup.py build_ext --inplace")


@cython.final
@cython.cclass
class Accepted:
    """What the socket it stands for is made of, once somebody wants that one."""

    kind = socket.SOCK_STREAM

    def __init__(self, listener: Any, ends: bytes, inode: uint64_t) -> None:
        """`ends`: an `ACCEPTED` of rustosd.client.wire. The socket begins with the options that its listener has now."""
        self.listener, self.options, self.ends, self.inode = listener, listener.options, ends, inode

    @cython.ccall
    def whole(self) -> object:
        """The socket, which takes its place in the table."""
        return self.listener.made_of(self)

    def close(self) -> None:
        """There is nothing to let go of."""
