"""Large writes without a copy of the program's own: the daemon copies straight out of the program's pages.

vmsplice(2) puts references to the pages of a bytes object into a pipe, splice(2) passes them on into the socketpair. Each
object is kept until the daemon has read it, of which SIOCOUTQ tells: it counts what the kernel has of ours. The daemon leaves
one octet in its queue all the time, and with it the whole piece which that came in: so the last one goes in a piece of its own.
"""

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import termios
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

LEAST = 128 << 10           # octets at a time for which it pays, when there are as many that the daemon has not read yet
ALONE = 512 << 10           # ... and when there are none
PIPE_OCTETS = 1 << 20       # as much as anybody may have
PIPES_KEPT = 4
PIECES = 8                  # that go into the pipe at once
SMALL = 4096                # what is smaller is joined,
JOINED = 64 << 10           # up to this: each piece takes a page's place in the pipe
LOOK_FIRST_S, LOOK_LAST_S = 0.001, 0.25     # how soon, and later how often, it is looked whether all has been read
_COUNT = struct.Struct("i")


class _Vector(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_vmsplice = ctypes.CDLL(None, use_errno=True).vmsplice
_vmsplice.argtypes = (ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.c_uint)
_vmsplice.restype = ctypes.c_ssize_t

_Kept = deque[tuple[int, memoryview]]       # pieces, and where each ends, counted from the writer's first octet
_pipes: list[tuple[int, int]] = []          # empty ones, for the next writer
_adrift: deque[tuple[int, _Kept]] = deque()     # descriptors and pieces of writers whose loop was closed
_writers: "weakref.WeakSet[ZeroCopyWriter]" = weakref.WeakSet()


def _queued(fd: int) -> int:
    """Octets of ours that the kernel has, with what it needs for them."""
    return int(_COUNT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_COUNT.size)))[0])


def _one_octet() -> int:
    """What SIOCOUTQ counts for one that was sent on its own; 0: this kernel is not used that way.

    Before Linux 6.5 splice(2) to such a socket goes page by page, by code that was replaced for its faults.
    """
    with contextlib.suppress(OSError, ValueError):
        if tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 5):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.send(b"x")
                return _queued(ours.fileno())
    return 0


ONE_OCTET = _one_octet()


def pays(transport: Any, octets: int) -> bool:
    """Whether a write of so many is to begin with it, rather than by the loop's transport."""
    return octets >= ALONE or _queued(transport.get_extra_info("socket").fileno()) >= LEAST


def _sweep() -> None:
    """Let go of what was adrift and has been read since."""
    for _ in range(len(_adrift)):
        try:
            fd, kept = _adrift.popleft()        # ours alone, whatever other threads do
        except IndexError:
            return
        if _queued(fd) > ONE_OCTET:
            _adrift.append((fd, kept))
        else:
            os.close(fd)


def _leave_to_the_parent() -> None:
    """A child of fork(2) has the same pipes and sockets: whatever it did to them would be done to the parent's."""
    for writer in tuple(_writers):
        writer.leave()
    while _adrift:
        os.close(_adrift.popleft()[0])
    while _pipes:
        _close(_pipes.pop())


os.register_at_fork(after_in_child=_leave_to_the_parent)


@atexit.register
def _keep_for_good() -> None:
    """What is under way when the interpreter ends: its memory must not be used again before the process has ended."""
    for kept in [writer._kept for writer in _writers] + [kept for _, kept in _adrift]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


class ZeroCopyWriter:
    """What writes to a connection from a large write on until the daemon has read all, in the place of the loop's transport."""

    _fd = -1

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Any, done: Callable[[bool], None]):
        """`transport` is the loop's. `done` is called at the end: whether another is worth while.

        Raises OSError (EMFILE).
        """
        _sweep()
        self._kept: _Kept = deque()
        self._loop = loop
        self._transport = transport
        self._done = done
        self._pipe: tuple[int, int] | None = None
        self._fd = os.dup(transport.get_extra_info("socket").fileno())      # to be told of room by the loop
        try:
            self._pipe = _pipe()
        except OSError:
            self.leave()
            raise
        self._vectors = (_Vector * PIECES)()
        self._waiting: deque[bytes] = deque()
        self._offset = 0                    # of what has not gone into the pipe, in the first that waits
        self._piped = self._sent = 0        # octets that went into the pipe, and into the socket
        self._size = 0                      # octets that the socket does not have yet
        self._is_behind = True              # the transport may have something to write before us
        self._goes = self._paused = self._is_told = self._is_used = self._is_shut = False
        self._is_plain = False              # splice was refused
        self._ending: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = LOOK_FIRST_S
        _writers.add(self)

    def size(self) -> int:
        """Octets that the socket does not have yet."""
        return self._size

    def write(self, data: bytes) -> None:
        """Send it after all that was written before."""
        if not data:
            return
        self._waiting.append(data)
        self._size += len(data)
        self._is_used = True
        if not self._goes and not self._is_told:
            self._go()
        if not self._paused and self._size > self._transport.get_write_buffer_limits()[1]:
            self._paused = True
            self._tell("pause_writing")

    def then(self, ending: Callable[[], None]) -> None:
        """When all is written, call that. Whatever was to be called before is not."""
        self._ending = ending
        self._finish_if_sent()

    def abort(self) -> None:
        """Write no more, and abort the transport."""
        self._drop()
        self.then(self._transport.abort)

    async def flush(self) -> None:
        """Wait until all is written."""
        written = self._loop.create_future()
        self.then(lambda: written.done() or written.set_result(None))
        await written

    # moving octets

    def _go(self) -> None:
        """Write what can be written."""
        self._goes = True
        try:
            if self._is_behind and self._transport.get_write_buffer_size():
                raise BlockingIOError       # where there is room, the transport writes first
            self._is_behind = False
            while self._size:
                self._move()
            self._watch(False)
        except BlockingIOError:
            self._watch(True)
            self._release()
        except OSError as error:
            self._recover(error)
        finally:
            self._goes = False
        self._finish_if_sent()

    def _move(self) -> None:
        """All that waits; the last octet on its own, if the protocol has no more.

        Raises BlockingIOError when the socket is full, OSError when it is broken, or when the kernel does not want it that way.
        """
        while self._size > 1:
            moved = self._copy() if self._is_plain else self._splice()
            self._sent += moved
            self._size -= moved
        self._resume()
        if self._size == 1:
            os.write(self._fd, memoryview(self._waiting[0])[self._offset:])
            self._waiting.clear()
            self._offset = self._size = 0
            self._piped += 1
            self._sent += 1

    def _splice(self) -> int:
        """Give the socket what is in the pipe; how much it took."""
        if self._piped == self._sent:
            self._fill()
        return os.splice(self._pipe[0], self._fd, self._piped - self._sent)

    def _fill(self) -> None:
        """Put into the empty pipe what there is and fits, but for the last octet of all."""
        self._join()
        count, offset = 0, self._offset
        for vector, data in zip(self._vectors, self._waiting, strict=False):
            vector.base = ctypes.cast(data, ctypes.c_void_p).value + offset
            vector.length = len(data) - offset
            offset = 0
            count += 1
        if count == len(self._waiting):
            self._vectors[count - 1].length -= 1
        moved = _vmsplice(self._pipe[1], self._vectors, count, 0)
        if moved < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        while moved:
            moved -= len(self._take(moved))

    def _take(self, most: int) -> memoryview:
        """The next piece of what waits, which goes off now and is kept."""
        data = self._waiting[0]
        piece = memoryview(data)[self._offset:self._offset + most]
        self._piped += len(piece)
        self._kept.append((self._piped, piece))
        self._offset += len(piece)
        if self._offset == len(data):
            self._waiting.popleft()
            self._offset = 0
        return piece

    def _copy(self) -> int:
        """As `_splice`, in the way of every other program."""
        data = memoryview(self._waiting[0])[self._offset:]
        moved = os.write(self._fd, data[:-1] if len(self._waiting) == 1 else data)
        self._take(moved)
        return moved

    def _recover(self, error: OSError) -> None:
        """From an error in writing."""
        if isinstance(error, ConnectionError):
            self._drop()
            if not self._transport.is_closing():
                self._transport.write(b"\0")        # meets it as well, and knows what to do
        elif self._is_plain:
            self._drop()
            self._transport.abort()
        else:
            self._is_plain = True       # splice is refused, as by a filter of system calls
            self._unpipe()
            self._watch(True)

    def _unpipe(self) -> None:
        """What is in the pipe waits again."""
        pieces = []
        while self._piped > self._sent:
            end, piece = self._kept.pop()
            begin = max(end - len(piece), self._sent)
            if begin > end - len(piece):
                self._kept.append((begin, piece[:begin - end]))
            pieces.append(bytes(piece[begin - end:]))
            self._piped = begin
        if pieces and self._offset:
            self._waiting[0] = self._waiting[0][self._offset:]
            self._offset = 0
        self._waiting.extendleft(pieces)
        self._close_pipe()

    def _join(self) -> None:
        """Make one of the small ones in front."""
        if self._offset or len(self._waiting) <= PIECES:
            return
        small: list[bytes] = []
        size = 0
        while self._waiting and len(self._waiting[0]) < SMALL and size < JOINED:
            small.append(self._waiting.popleft())
            size += len(small[-1])
        if small:
            self._waiting.appendleft(b"".join(small))

    def _drop(self) -> None:
        """Write no more."""
        self._watch(False)
        self._waiting.clear()
        self._offset = self._size = 0
        if self._piped > self._sent:
            self._close_pipe()
            self._piped = self._sent

    def _watch(self, wanted: bool) -> None:
        """Be told of room, or not."""
        if wanted != self._is_told:
            self._is_told = wanted
            if wanted:
                self._loop.add_writer(self._fd, self._go)
            else:
                self._loop.remove_writer(self._fd)

    # the protocol

    def _resume(self) -> None:
        if self._paused and self._size <= self._transport.get_write_buffer_limits()[0]:
            self._paused = False
            self._tell("resume_writing")

    def _tell(self, what: str) -> None:
        """As asyncio does it: what the protocol raises goes to the loop's handler."""
        protocol = self._transport.get_protocol()
        if protocol is None:        # it knows that the connection is lost
            return
        try:
            getattr(protocol, what)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._loop.call_exception_handler({"message": f"protocol.{what}() failed", "exception": error,
                                               "transport": self._transport, "protocol": protocol})

    # the end

    def _finish_if_sent(self) -> None:
        if self._size == 0 and self._fd >= 0:
            ending, self._ending = self._ending, None
            if ending is not None:
                ending()
                self._look()
            elif self._timer is None:
                self._timer = self._loop.call_later(self._look_s, self._look)

    def _release(self) -> None:
        """Let go of what has been read."""
        queued = _queued(self._fd)
        read = self._sent - queued if queued > ONE_OCTET else self._sent
        while self._kept and self._kept[0][0] <= read:
            self._kept.popleft()
        if queued <= ONE_OCTET and self._piped == self._sent:
            self._kept.clear()      # what was dropped from the pipe

    def _look(self) -> None:
        """Whether all has been read, and nothing written for a while: that was it, then. Else it is looked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._size:
            return
        self._release()
        is_closing = self._transport.is_closing()
        if not self._kept and (is_closing or not self._is_used):
            self._end()
            return
        self._look_s = LOOK_FIRST_S if self._is_used else min(2 * self._look_s, LOOK_LAST_S)
        self._is_used = False
        if is_closing and not self._is_shut:
            self._is_shut = True        # our descriptor is not to keep the daemon from seeing that
            _shut(self._fd)
        self._timer = self._loop.call_later(self._look_s, self._look)

    def _end(self) -> None:
        if len(_pipes) < PIPES_KEPT and self._pipe is not None:
            _pipes.append(self._pipe)
            self._pipe = None
        self.leave()
        self._done(not self._is_plain)

    def leave(self) -> None:
        """Close what we have, and nothing else."""
        _writers.discard(self)
        self._close_pipe()
        os.close(self._fd)
        self._fd = -1

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            _close(self._pipe)
            self._pipe = None

    def __del__(self) -> None:
        if self._fd >= 0:       # the loop was closed before
            _shut(self._fd)
            _adrift.append((self._fd, self._kept))
            self._close_pipe()


def _pipe() -> tuple[int, int]:
    """An empty one. Raises OSError (EMFILE)."""
    with contextlib.suppress(IndexError):
        return _pipes.pop()
    pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.suppress(OSError):      # this user has as many pages in pipes as may be
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
    return pipe


def _close(pipe: tuple[int, int]) -> None:
    for end in pipe:
        os.close(end)


def _shut(fd: int) -> None:
    """Have the daemon see that the program has closed it."""
    sock = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.detach()
