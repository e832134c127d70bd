"""The captures that run: each has a tape, and a socket on which its reader takes what is on the tape.

The reader ends a capture by shutting down its side of the socket: then the rest and the statistics follow, and the end of
the file. A reader that goes away ends it, too. One that is slow loses frames, which are counted; the stack never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mm.frame import RxBurst, TxBurst
from netstack.bpf import BpfProgram
from rustosd.capture import pcapng
from rustosd.capture.tape import Drained, Tape
from rustosd.pump import Pump

MOST: Final = 8
"""Captures at the same time; each costs its buffer, and time for every frame."""
FLUSH_S: Final = 0.02
"""How long few octets may wait for more before the reader is woken."""
FLUSH_OCTETS: Final = 32768
FAREWELL_S: Final = 10.0
"""How long a reader may take for the rest, once the capture has ended."""
_SOCKET_OCTETS: Final = 1 << 20
_SO_SNDBUFFORCE: Final = 32     # socket(7)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What to capture."""

    interfaces: tuple[str, ...] = ()
    """By name; none is all there are now."""
    program: bytes = b""
    """The filter, as instructions of `netstack.bpf.INSTRUCTION`; empty: every frame."""
    expression: str = ""
    """... and as it was written, for the file."""
    snap_octets: int = 262144
    incoming: bool = True
    outgoing: bool = True
    reasons: frozenset[str] | None = None
    """Verdict labels; None: frames however they ended."""
    count: int | None = None
    duration_s: float | None = None
    buffer_octets: int = 4 << 20
    """A power of two."""


@dataclass(slots=True, eq=False)
class _Capture:
    """One that runs, or whose rest is being taken."""

    tape: Tape
    end: socket.socket
    names: tuple[str, ...]
    begun_ns: int
    deadline: asyncio.TimerHandle | None = None     # of the capture, then of its farewell
    flush: asyncio.TimerHandle | None = None
    blocked: bool = False           # the flush comes when the socket takes more
    ending: bool = False
    epilogue: bytes = b""           # what is still to be put on the tape


class Captures:
    """All captures of a daemon; what the pump shows them they show their tapes."""

    def __init__(self, stack: Any, pump: Pump, application: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._stack, self._pump = stack, pump
        self._application = application
        self._running: list[_Capture] = []      # what the pump's frames are shown to
        self._all: set[_Capture] = set()

    def start(self, wish: Wish) -> tuple[list[str], socket.socket]:
        """Begin; the interfaces, and the reader's end of the socket. Raises ValueError, OSError (EBUSY)."""
        if len(self._all) >= MOST:
            raise OSError(errno.EBUSY, f"{MOST} captures run already; end one first")
        rows = {row["name"]: row for row in self._stack.interfaces()}
        names = tuple(dict.fromkeys(wish.interfaces)) or tuple(rows)
        for name in names:
            if name not in rows:
                raise ValueError(f"there is no interface {name}; there is {', '.join(rows)}")
        tape = Tape(wish.buffer_octets, BpfProgram(wish.program) if wish.program else None, wish.snap_octets, wish.incoming,
                    wish.outgoing, wish.reasons, *(() if wish.count is None else (wish.count,)))
        tape.put(pcapng.section(self._application))
        for name in names:
            mac = None if rows[name]["index"] == 0 else bytes.fromhex(rows[name]["mac"].replace(":", ""))
            if not tape.put(pcapng.interface(name, f"{name} of rustosd", mac, wish.snap_octets, wish.expression)):
                raise ValueError(f"a buffer of {wish.buffer_octets} octets is too small for {len(names)} interfaces")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.suppress(PermissionError):
            ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_OCTETS)
        capture = _Capture(tape, ours, names, time.time_ns())
        self._all.add(capture)
        self._running.append(capture)
        self._follow(capture)
        self._loop.add_reader(ours.fileno(), self._on_reader, capture)
        if wish.duration_s is not None:
            capture.deadline = self._loop.call_later(wish.duration_s, self._finish, capture)
        self._pump.show_frames(self)
        self._flush(capture)
        log.info("capture_started", interfaces=list(names), filter=wish.expression)
        return list(names), theirs

    def close(self) -> None:
        """End all; their readers get what fits in the socket. May be called twice."""
        for capture in tuple(self._all):
            self._finish(capture)
            self._forget(capture)

    def __len__(self) -> int:
        return len(self._all)

    # rustosd.pump.FrameWatcher

    def received(self, index: int, now: int, burst: RxBurst) -> None:
        at_ns = now + time.time_ns() - time.monotonic_ns()
        for capture in self._running:
            capture.tape.received(index, at_ns, burst)
            self._written(capture)

    def sent(self, index: int, burst: TxBurst, count: int) -> None:
        at_ns = time.time_ns()
        for capture in self._running:
            capture.tape.sent(index, at_ns, burst, count)
            self._written(capture)

    def attached(self) -> None:
        for capture in self._running:
            self._follow(capture)

    def _follow(self, capture: _Capture) -> None:
        """An interface keeps its number in the capture when its device comes back, as another of the stack's perhaps."""
        indices = {row["name"]: row["index"] for row in self._stack.interfaces()}
        capture.tape.follow({indices[name]: number for number, name in enumerate(capture.names) if name in indices})

    # to the reader

    def _written(self, capture: _Capture) -> None:
        """There may be more on the tape: see that it leaves, soon or at once."""
        used = capture.tape.used
        if not capture.tape.left and not capture.ending:
            self._loop.call_soon(self._finish, capture)
        if used >= FLUSH_OCTETS and not capture.blocked:
            self._flush(capture)
        elif used and capture.flush is None and not capture.blocked:
            capture.flush = self._loop.call_later(FLUSH_S, self._flush_now, capture)

    def _flush_now(self, capture: _Capture) -> None:
        capture.flush = None
        if not capture.blocked:
            self._flush(capture)

    def _flush(self, capture: _Capture) -> None:
        """Send what the socket takes; when it takes no more, go on when it does."""
        while True:
            state = capture.tape.drain(capture.end.fileno())
            if state != Drained.EMPTY or not capture.epilogue or not capture.tape.put(capture.epilogue):
                break
            capture.epilogue = b""
        if state == Drained.GONE or (state == Drained.EMPTY and capture.ending):
            self._loop.call_soon(self._forget, capture)     # not while the running ones are gone through
        elif (state == Drained.BLOCKED) != capture.blocked:
            capture.blocked = state == Drained.BLOCKED
            if capture.blocked:
                self._loop.add_writer(capture.end.fileno(), self._flush, capture)
            else:
                self._loop.remove_writer(capture.end.fileno())

    def _on_reader(self, capture: _Capture) -> None:
        """The reader wants no more, or is gone; what it says has no meaning."""
        try:
            said = capture.end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            self._forget(capture)
            return
        if not said:
            self._loop.remove_reader(capture.end.fileno())
            self._finish(capture)

    def _finish(self, capture: _Capture) -> None:
        """No more frames; the statistics follow what waits."""
        if capture.ending or capture not in self._all:
            return
        capture.ending = True
        self._stop_showing(capture)
        now_ns = time.time_ns()
        tallies = [capture.tape.tally(number) for number in range(len(capture.names))]
        capture.epilogue = b"".join(pcapng.statistics(number, capture.begun_ns, now_ns, tally)
                                    for number, tally in enumerate(tallies))
        _cancel(capture.deadline)
        capture.deadline = self._loop.call_later(FAREWELL_S, self._forget, capture)
        self._flush(capture)

    def _stop_showing(self, capture: _Capture) -> None:
        if capture in self._running:
            lost = sum(capture.tape.tally(number).lost for number in range(len(capture.names)))
            log.info("capture_ended", interfaces=list(capture.names), lost=lost)
            self._running = [other for other in self._running if other is not capture]
            if not self._running:
                self._pump.show_frames(None)

    def _forget(self, capture: _Capture) -> None:
        if capture not in self._all:
            return
        self._all.discard(capture)
        self._stop_showing(capture)
        _cancel(capture.deadline)
        _cancel(capture.flush)
        self._loop.remove_reader(capture.end.fileno())
        self._loop.remove_writer(capture.end.fileno())
        capture.end.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
