"""The pump: moves frames between NICs and the stack on the event loop, in the style of Linux's NAPI.

One breath: read the clock, take a burst from every NIC, let the stack work, tell the applications, send what the stack
has to say. While there is work breath follows breath, up to a budget; then the loop's other callbacks get their share.
When work ends, the pump keeps looking for some microseconds, since the answer to what was just sent is often that near,
and then sleeps in epoll until a NIC, an application or a timer wakes it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import structlog

from drivers.nic import GONE, LinkTeller, Nic
from mm.frame import BURST, RxBurst, TxBurst
from mm.histogram import Histogram
from rustosd.busy_poll import BusyPoll

BUSY_POLL_US = 50
BUDGET = 8
"""Breaths in one turn: full bursts both ways keep the loop's other callbacks waiting for about a millisecond."""
LINK_CHECK_S = 1.0
COMPLAINT_NS = 1_000_000_000
LOOPBACK = 0                # the index of the interface that needs no NIC
_MS = 1_000_000

log = structlog.get_logger(__name__)


class PacketStack(Protocol):
    """What the pump asks of a stack; `now` is `time.monotonic_ns`."""

    def receive(self, index: int, now: int, burst: RxBurst) -> None:
        """Take in frames that came by interface `index`."""

    def advance(self, now: int) -> None:
        """Do everything that is due."""

    def wake_at(self) -> int | None:
        """When `advance` has something to do next; None: nothing waits for time to pass."""

    def transmit(self, index: int, now: int, burst: TxBurst) -> int:
        """Fill the burst with frames for interface `index`; how many."""

    def loop(self, now: int) -> int:
        """Carry a burst over the loopback interface; how many frames."""

    @property
    def looped(self) -> RxBurst:
        """What `loop` has carried last."""

    def set_link(self, index: int, up: bool) -> None:
        """Whether frames can pass on interface `index`."""


class FrameWatcher(Protocol):
    """Who is shown every frame; it looks at the bursts at once and keeps nothing of them."""

    def received(self, index: int, now: int, burst: RxBurst) -> None:
        """What came by interface `index`, and how each frame ended in the stack: `burst.ends_kept()`."""

    def sent(self, index: int, burst: TxBurst, count: int) -> None:
        """The first `count` frames of the burst were given to interface `index`, which did not take those in `refused`."""

    def attached(self) -> None:
        """Interfaces have changed."""


@dataclass(slots=True)
class _Port:
    index: int
    nic: Nic
    fd: int
    link_up: bool
    on_gone: Callable[[], None] | None = None
    full: bool = False          # the device had no room: flush again when it wakes us


@dataclass(slots=True)
class _Counts:
    wakeups: int = 0            # callbacks by readable NICs
    kicks: int = 0              # turns asked for by applications
    timers: int = 0             # turns because time has passed
    yields: int = 0             # budgets used up
    rx_bursts: int = 0
    rx_frames: int = 0
    tx_bursts: int = 0
    tx_frames: int = 0
    tx_refused: int = 0
    errors: int = 0             # exceptions out of callbacks


class Pump:
    """Runs a stack and its NICs on a loop, in the loop's thread; what callbacks raise is logged and stops nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: PacketStack, on_events: Callable[[], None], *,
                 busy_poll_us: int = BUSY_POLL_US) -> None:
        """`on_events` hands to applications what the stack reports. It is called each time the stack has worked."""
        self._loop = loop
        self._stack = stack
        self._on_events = on_events
        self._poll = BusyPoll(busy_poll_us * 1000)
        self._ports: tuple[_Port, ...] = ()
        self._rx = RxBurst()
        self._tx = TxBurst()
        self._counts = _Counts()
        self._rx_bursts = Histogram()
        self._tx_bursts = Histogram()
        self._turns = Histogram()
        self._closed = False
        self._running = False               # what applications write now is flushed before the turn ends
        self._scheduled = False             # a turn waits in the loop's queue
        self._dirty = False                 # the stack may have events or frames for us
        self._wake = 0                      # when `_timer` fires
        self._timer: asyncio.TimerHandle | None = None
        self._link_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._silent_until: dict[str, int] = {}
        self._watcher: FrameWatcher | None = None

    def attach(self, nic: Nic, index: int, on_gone: Callable[[], None] | None = None) -> None:
        """Serve `nic` as interface `index` of the stack. The NIC stays the caller's to close, after `detach`.

        `on_gone` is called soon after the NIC has left for good, when it is detached already.
        """
        if any(port.index == index for port in self._ports):
            raise ValueError(f"interface {index} has a NIC already")
        port = _Port(index, nic, nic.fileno(), nic.link_up, on_gone)
        self._stack.set_link(index, port.link_up)
        self._loop.add_reader(port.fd, self._on_readable)
        self._ports += (port,)
        if isinstance(nic, LinkTeller):
            nic.on_link_change = self._on_link_change
        if self._link_timer is None:
            self._link_timer = self._loop.call_later(LINK_CHECK_S, self._on_link_timer)
        if self._watcher is not None:
            self._watcher.attached()
        self.kick()

    def show_frames(self, watcher: FrameWatcher | None) -> None:
        """Show every frame to `watcher` from now on, or to nobody."""
        self._watcher = watcher
        self._tx.forget_refused()
        for burst in (self._rx, self._stack.looped):
            burst.keep_ends(watcher is not None)

    def detach(self, index: int) -> None:
        """Stop serving interface `index`, whose link goes down. Does nothing when it has no NIC."""
        for port in self._ports:
            if port.index == index:
                self._loop.remove_reader(port.fd)
                if isinstance(port.nic, LinkTeller):
                    port.nic.on_link_change = None
                self._ports = tuple(other for other in self._ports if other is not port)
                self._stack.set_link(index, False)

    def close(self) -> None:
        """Send what the stack has ready, detach every NIC and let go of the loop. May be called twice."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        for port in self._ports:
            self.detach(port.index)
        for timer in (self._timer, self._link_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._link_timer = self._watch_timer = None

    def flush(self) -> None:
        """Send now what the stack has ready, within bounds."""
        for _ in range(BUDGET):
            if not self._flush(time.monotonic_ns()):
                break

    def kick(self) -> None:
        """An application has written something or changed the stack: see to it soon, once however often this is called.

        An event handler that calls this at every event, whether or not it did something, keeps the pump awake for good.
        """
        self._dirty = True
        if not (self._scheduled or self._running or self._closed):
            self._counts.kicks += 1
            self._schedule()

    def set_busy_poll(self, microseconds: int) -> None:
        """How long to look again before sleeping, from now on."""
        self._poll.set_while(microseconds * 1000)

    def watch(self, period_s: float, alive: Callable[[], None]) -> None:
        """From now on take a turn at least every `period_s`, and call `alive` when it ended without an error."""
        self._watch_timer = self._loop.call_later(period_s, self._on_watch, period_s, alive)

    def statistics(self) -> dict[str, int]:
        """Counters since the pump was made."""
        return asdict(self._counts) | {"busy_polls": self._poll.vain_looks}

    def histograms(self) -> dict[str, tuple[int, list[int]]]:
        """Rows of `mm.histogram.Histogram`: frames of bursts, rx_burst and tx_burst, and turns that found work, in ns."""
        return {"rx_burst": self._rx_bursts.row(), "tx_burst": self._tx_bursts.row(), "turn": self._turns.row()}

    @property
    def nics(self) -> Mapping[int, Nic]:
        """The NICs served now, by their index in the stack."""
        return {port.index: port.nic for port in self._ports}

    # Called by the loop.

    def _on_readable(self) -> None:
        if not self._scheduled:         # else a turn comes anyway, and two in one loop iteration would be unfair
            self._counts.wakeups += 1
            self._turn()

    def _on_scheduled(self) -> None:
        self._scheduled = False
        self._turn()

    def _on_timer(self) -> None:
        self._timer = None
        self._counts.timers += 1
        self._turn()

    def _on_link_timer(self) -> None:
        """Links change seldom and asking may cost a system call, so once a second is right; some NICs tell us earlier."""
        self._link_timer = self._loop.call_later(LINK_CHECK_S, self._on_link_timer)
        self._check_links()

    def _on_link_change(self) -> None:
        """Out of a breath: look when it is over."""
        self._loop.call_soon(self._check_links)

    def _check_links(self) -> None:
        for port in self._ports:
            up = port.nic.link_up
            if up != port.link_up:
                port.link_up = up
                self._stack.set_link(port.index, up)
                log.info("link_up" if up else "link_down", nic=port.nic.name)
                self.kick()
            elif not up:
                self.kick()     # one that is gone says so by `receive` alone, and nothing else may ask it

    def _on_watch(self, period_s: float, alive: Callable[[], None]) -> None:
        self.watch(period_s, alive)
        errors = self._counts.errors
        self._dirty = True
        self._turn()
        if self._counts.errors == errors:
            alive()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._on_scheduled)

    # One turn.

    def _turn(self) -> None:
        """Breathe while there is work, within the budget; then give way, or keep looking for a moment, or sleep."""
        if self._running or self._closed:
            return
        self._running = True
        rx_before = self._counts.rx_frames
        breaths = 0
        began = now = time.monotonic_ns()
        try:
            while breaths < BUDGET and self._breathe(now):
                breaths += 1
                now = time.monotonic_ns()
        finally:
            self._running = False
        if self._closed:
            return
        now = time.monotonic_ns()
        self._arm(now)
        if breaths:
            self._turns.observe(now - began)
        if breaths == BUDGET:
            self._counts.yields += 1
            self._schedule()
        elif ((breaths or self._poll.looking)
              and self._poll.go_on(now, breaths > 0, self._counts.rx_frames != rx_before)):
            self._schedule()

    def _breathe(self, now: int) -> bool:
        """One burst in from every NIC, one out to each; whether there was anything to do or is more."""
        dirty, self._dirty = self._dirty, False
        worked = False
        for port in self._ports:
            worked |= self._receive(port, now)
            dirty |= port.full
        if 0 < self._wake <= now:       # whoever woke us
            worked |= self._advance(now)
        if worked or dirty:
            again = False
            if self._loop_back(now):    # what it carried may be answered the same way: look again
                worked = again = True
            self._deliver()
            if self._dirty:             # applications have written: this breath sends it, and carries what is for this host
                again |= self._loop_back(now)
            self._dirty = again
            worked |= self._flush(now)
        return worked or self._dirty

    def _advance(self, now: int) -> bool:
        """The armed deadline has come: let the stack act on time."""
        self._wake = 0
        try:
            self._stack.advance(now)
        except Exception:
            self._complain("advance")
        return True

    def _receive(self, port: _Port, now: int) -> bool:
        try:
            count = port.nic.receive(self._rx)
            if count > 0:
                self._counts.rx_bursts += 1
                self._counts.rx_frames += count
                self._rx_bursts.observe(count)
                self._stack.receive(port.index, now, self._rx)
                if self._watcher is not None:
                    self._watcher.received(port.index, now, self._rx)
                return True
            if count == GONE:
                log.error("nic_gone", nic=port.nic.name)
                self.detach(port.index)
                if port.on_gone is not None:
                    self._loop.call_soon(port.on_gone)
                return True
        except Exception:
            self._complain("receive")
        return False

    def _loop_back(self, now: int) -> bool:
        """What the host sends to itself needs no NIC."""
        try:
            carried = self._stack.loop(now)
            if carried and self._watcher is not None:
                self._watcher.received(LOOPBACK, now, self._stack.looped)
            return carried > 0
        except Exception:
            self._complain("loop")
        return False

    def _deliver(self) -> None:
        try:
            self._on_events()
        except Exception:
            self._complain("on_events")

    def _flush(self, now: int) -> bool:
        """Send up to a burst on every interface; whether any frame left. Full bursts leave the pump dirty."""
        sent = False
        for port in self._ports:
            try:
                room = port.nic.room()
                port.full = room == 0
                if port.full:
                    continue
                self._tx.limit(room)
                count = self._stack.transmit(port.index, now, self._tx)
                if count:
                    sent = True
                    self._counts.tx_bursts += 1
                    self._counts.tx_frames += count
                    self._tx_bursts.observe(count)
                    self._dirty |= count >= min(room, BURST)
                    self._counts.tx_refused += port.nic.transmit(self._tx)
                    if self._watcher is not None:
                        self._watcher.sent(port.index, self._tx, count)
                        self._tx.forget_refused()
            except Exception:
                self._tx.clear()
                self._complain("transmit")
        return sent

    # Time.

    def _arm(self, now: int) -> None:
        """See that the loop wakes us when the stack wants it. An earlier timer serves too: it is cheaper than another.

        At least 1 ms ahead, the loop's resolution; a deadline already past is put off so far, lest we spin on it.
        """
        try:
            wake = self._stack.wake_at()
        except Exception:
            self._complain("wake_at")
            wake = now + COMPLAINT_NS
        if wake is None or (self._timer is not None and 0 < self._wake <= wake):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake = wake if wake > now else now + _MS
        self._timer = self._loop.call_later(max(1, -(-(wake - now) // _MS)) / 1000, self._on_timer)

    def _complain(self, what: str) -> None:
        """Log the exception being handled, at most once a second for each `what`; count it always."""
        self._counts.errors += 1
        now = time.monotonic_ns()
        if now >= self._silent_until.get(what, 0):
            self._silent_until[what] = now + COMPLAINT_NS
            log.exception("pump_callback_failed", callback=what, errors=self._counts.errors)
