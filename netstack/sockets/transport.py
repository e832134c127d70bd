"""One TCP connection as an asyncio transport.

The transport keeps no received data: what the protocol does not want stays in the connection's ring, where it closes
the window. It keeps unsent data only when the send ring is full. An idle connection is this object's slots and one dict
entry.
"""

from __future__ import annotations

import errno as errors
from asyncio import BaseProtocol, BufferedProtocol, constants
from asyncio.log import logger
from asyncio.transports import _FlowControlMixin
from collections import deque
from typing import TYPE_CHECKING, Any

from netstack.sockets.addresses import fate, socket_address, text
from netstack.sockets.view import SocketView
from netstack.tcp.api import EVENT_CLOSED, EVENT_EOF, EVENT_WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netstack.sockets.server import Server
    from netstack.sockets.stack import AsyncStack

# Octets one connection hands to its protocol before others get their turn.
READ_MOST = 256 * 1024
END = EVENT_EOF | EVENT_CLOSED


def octets(data: Any) -> bytes | memoryview:
    """Any contiguous buffer as flat octets. Raises TypeError for what is none."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class StreamTransport(_FlowControlMixin):
    """An `asyncio.Transport` over one connection of the stack.

    Differs from the kernel's in one point: `abort`, and a protocol callback that raises, send RST (RFC 9293 3.10.5),
    so that the peer never takes a torn stream for a complete one.
    """

    __slots__ = ("__weakref__", "_buffered", "_chunks", "_closing", "_errno", "_handle", "_heard_eof", "_lost", "_news",
                 "_paused", "_protocol", "_server", "_shut", "_stack", "_unsent")

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(self, stack: AsyncStack, handle: int, protocol: BaseProtocol, server: Server | None = None):
        # Not super().__init__: it would make a dict and cost more than all of this.
        self._loop = stack.loop
        self._protocol_paused = False
        self._high_water = 64 * 1024
        self._low_water = 16 * 1024
        self._extra: dict[str, Any] | None = None      # the names, once the connection is gone
        self._stack = stack
        self._handle = handle
        self._server = server
        self._chunks: deque[bytes | memoryview] | None = None
        self._unsent = 0            # octets in _chunks
        self._paused = False        # pause_reading() holds
        self._closing = False       # close() or abort() was called
        self._lost = 0              # connection_lost is scheduled; then counts the writes that came too late
        self._shut = False          # write_eof() was called
        self._heard_eof = False     # the protocol knows of the peer's FIN
        self._news = 0              # EVENT_EOF and EVENT_CLOSED the core has told
        self._errno = 0             # that came with EVENT_CLOSED
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "closed" if self._protocol is None else "closing" if self._closing else "open"
        peer = self.get_extra_info("peername")
        return f"<{type(self).__name__} {state} peer={peer and text(*peer[:2])} unsent={self._unsent}>"

    # what the stack calls

    def _begin(self) -> None:
        """Tell the protocol that it is connected."""
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.connection_made() call failed.")

    def _note(self, bits: int, errno: int) -> None:
        self._news |= bits & END
        self._errno = self._errno or errno

    def _event(self, bits: int, errno: int) -> None:
        if bits & END:
            self._note(bits, errno)
        if bits & EVENT_WRITABLE and self._chunks is not None and not self._news & EVENT_CLOSED:
            self._flush()
        if not (self._paused or self._closing or self._heard_eof):
            self._deliver()
        elif self._news & EVENT_CLOSED and self._chunks is not None:
            self._lose(self._fate())    # nobody reads, but somebody waits to write

    def _deliver(self) -> None:
        """Hand over data, then the peer's FIN, then the connection's fate, as far as the protocol listens."""
        if self._paused or self._closing or self._heard_eof:
            return
        if self._buffered:
            more = self._fill()
        else:
            data = self._stack.tcp.read(self._handle, READ_MOST)
            if data:
                try:
                    self._protocol.data_received(data)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
            more = len(data) == READ_MOST
        if self._paused or self._closing:
            return
        if more:
            self._stack.again(self)
        elif self._news:
            self._end()

    def _fill(self) -> bool:
        """Read into the protocol's own buffers; true when more may wait."""
        total = 0
        while total < READ_MOST and self._buffered and not (self._paused or self._closing):
            try:
                buffer = self._protocol.get_buffer(-1)
                if not len(buffer):
                    raise RuntimeError("get_buffer() returned an empty buffer")
                count = self._stack.tcp.read_into(self._handle, buffer)
                if count:
                    self._protocol.buffer_updated(count)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(exc, "Fatal error: reading into the buffer of the protocol failed.")
                return False
            total += count
            if count < len(buffer):
                return False
        return True

    def _end(self) -> None:
        """All data is read: tell of the peer's FIN, or of the error that ended the connection."""
        if self._news & EVENT_CLOSED and self._errno and not self._news & EVENT_EOF:
            self._lose(self._fate())
            return
        self._heard_eof = True
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    def _flush(self) -> None:
        """Move what was held back into the send ring, as much as fits."""
        chunks = self._chunks
        write = self._stack.tcp.write
        while chunks:
            try:
                taken = write(self._handle, chunks[0])
            except OSError:         # it is over; CLOSED tells how
                break
            self._unsent -= taken
            if taken < len(chunks[0]):
                chunks[0] = memoryview(chunks[0])[taken:]
                break
            chunks.popleft()
        else:
            self._chunks = None
        self._stack.kick()
        self._maybe_resume_protocol()       # which may write again
        if self._chunks is None and not self._lost:
            if self._closing:
                self._lose(None)
            elif self._shut:
                self._shutdown()

    # reading

    def is_reading(self) -> bool:
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        """Leave further data in the connection's ring; the window closes when it is full."""
        if not self._closing:
            self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            if not self._heard_eof:
                self._stack.again(self)

    # writing

    def write(self, data: Any) -> None:
        """Send any contiguous buffer; what the send ring has no room for is kept (and copied if it can change).

        Raises TypeError for what is no buffer, RuntimeError after write_eof().
        """
        if type(data) is not bytes:
            data = octets(data)
        self._put(data)
        self._stack.kick()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """As write() of all of them in order, in one go."""
        for data in list_of_data:
            self._put(octets(data))
        self._stack.kick()

    def _put(self, data: bytes | memoryview) -> None:
        if self._shut:
            raise RuntimeError("Cannot call write() after write_eof()")
        size = len(data)
        if not size:
            return
        if self._chunks is None:
            if self._lost or self._news & EVENT_CLOSED:
                self._too_late()
                return
            try:
                taken = self._stack.tcp.write(self._handle, data)
            except OSError:             # it is over; CLOSED, which is on its way, tells how
                taken = 0
            if taken == size:
                return
            self._chunks = deque()
            if taken:
                data = memoryview(data)[taken:]
        self._chunks.append(data if isinstance(data, bytes) or isinstance(data.obj, bytes) else bytes(data))
        self._unsent += len(data)
        self._maybe_pause_protocol()

    def _too_late(self) -> None:
        if not self._lost:
            self._lose(self._fate())
            return
        if self._lost > constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("%r: written to after the connection was lost", self)
        self._lost += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send FIN after what was written; reading goes on."""
        if self._closing or self._shut:
            return
        self._shut = True
        if self._chunks is None:
            self._shutdown()

    def _shutdown(self) -> None:
        if not self._news & EVENT_CLOSED:
            self._stack.tcp.shutdown(self._handle)
            self._stack.kick()

    def get_write_buffer_size(self) -> int:
        """Octets that wait outside the send ring."""
        return self._unsent

    # the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Read no more, send what was written, then FIN."""
        if self._closing:
            return
        self._closing = True
        if self._chunks is None:
            self._lose(None)

    def abort(self) -> None:
        """Drop what was not sent and send RST."""
        self._force_close(None)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if not isinstance(exc, OSError):
            self._loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": self, "protocol": self._protocol})
        elif self._loop.get_debug():
            logger.debug("%r: %s", self, message, exc_info=True)
        self._force_close(exc)

    def _force_close(self, exc: BaseException | None) -> None:
        if not self._lost:
            self._lose(exc, self._stack.reset)

    def _fate(self) -> OSError:
        """The exception that tells how the connection ended, as Linux puts it."""
        code = self._errno
        if code == 0 or (code == errors.ECONNRESET and self._news & EVENT_EOF):
            code = errors.EPIPE     # both sides were through with it
        return fate(code, f"connection with {text(*self._stack.tcp.remote(self._handle))}")

    def _lose(self, exc: BaseException | None, let_go: Callable[[int], None] | None = None) -> None:
        """Nothing is left to do: connection_lost comes in the next round of the loop."""
        self._chunks = None
        self._unsent = 0
        self._closing = True
        self._lost = 1
        self._loop.call_soon(self._finish, exc, let_go or self._stack.release)

    def _finish(self, exc: BaseException | None, let_go: Callable[[int], None]) -> None:
        """Tell the protocol and give the connection back to the core, which completes the closing handshake."""
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._extra = {"peername": self.get_extra_info("peername"), "sockname": self.get_extra_info("sockname")}
            self._protocol = None
            let_go(self._handle)
            server, self._server = self._server, None
            if server is not None:
                server._detach()

    # what it is

    def set_protocol(self, protocol: BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, BufferedProtocol)

    def get_protocol(self) -> BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """"peername", "sockname", "socket" (a read-only view), "stack" (the AsyncStack), "handle" (in the core)."""
        if name == "socket":
            return SocketView(self)
        if name == "stack":
            return self._stack
        if name == "handle":
            return self._handle
        if self._extra is not None:
            return self._extra.get(name, default)
        if name == "peername":
            return socket_address(*self._stack.tcp.remote(self._handle))
        if name == "sockname":
            return socket_address(*self._stack.tcp.local(self._handle))
        return default

    def _set_option(self, set_option: str, value: int) -> None:
        if self._extra is None:
            getattr(self._stack.tcp, set_option)(self._handle, value)
