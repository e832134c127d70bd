"""The pump: moves frames between NICs and the stack on the event loop, in the style of Linux's NAPI.

One breath: read the clock, take a burst from every NIC, let the stack work, tell the applications, send what the stack
has to say. While there is work breath follows breath, up to a budget; then the loop's other callbacks get their share.
When work ends, the pump keeps looking for some microseconds, since the answer to what was just sent is often that near,
and then sleeps in epoll until a NIC, an application or a timer wakes it. Where others wait for a processor it does not look
on; it rests, and takes what has come by then in one turn.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import cython
import structlog
from cython.cimports.drivers.nic import Nic
from cython.cimports.libc.stdint import int64_t, uint64_t
from cython.cimports.mm.frame import BURST
from cython.cimports.mm.hw import now_ns
from cython.cimports.netstack.verbs import MOVED, NEWS, PacketStack

from drivers.nic import LinkTeller
from mm import crowd
from mm.frame import RxBurst, TxBurst
from mm.histogram import Histogram
from rustosd.busy_poll import BusyPoll
from rustosd.moderation import Moderation

if not cython.compiled:
    raise ImportError("rustosd.pump must be compiled: python setup.py build_ext --inplace")

BUSY_POLL_US = 50
COALESCE_US = 100
LINK_CHECK_S = 1.0

log = structlog.get_logger(__name__)


class FrameWatcher(Protocol):
    """Who is shown every frame; it looks at the bursts at once and keeps nothing of them."""

    def received(self, index: int, now: int, burst: RxBurst) -> None:
        """What came by interface `index`, and how each frame ended in the stack: `burst.ends_kept()`."""

    def sent(self, index: int, burst: TxBurst, count: int) -> None:
        """The first `count` frames of the burst were given to interface `index`, which did not take those in `refused`."""

    def attached(self) -> None:
        """Interfaces have changed."""


@cython.cclass
class Source:
    """What frames come from or go to besides NICs, and the pump looks at in every breath: sockets of other processes."""

    @cython.cfunc
    @cython.exceptval(check=False)
    def look(self) -> cython.int:
        """Do what there is to do; how much that was."""


@cython.final
@cython.cclass
class Port:
    """A NIC and its place in the stack."""

    def __init__(self, index: int, nic: Nic, on_gone: Callable[[], None] | None) -> None:
        self.index, self.nic, self.on_gone = index, nic, on_gone
        self.fd, self.link_up = nic.fileno(), nic.link_up


@cython.final
@cython.cclass
class Pump:
    """Runs a stack and its NICs on a loop, in the loop's thread; what callbacks raise is logged and stops nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: PacketStack, on_events: Callable[[], None], *,
                 busy_poll_us: int = BUSY_POLL_US, coalesce_us: int = COALESCE_US) -> None:
        """`stack` is on the clock of `time.monotonic_ns`. `on_events` hands to applications what it reports: each time it has
        worked and `tell` says that there is something.
        """
        self.loop = loop
        self.stack = stack
        self.on_events = on_events
        self.poll = BusyPoll(busy_poll_us * 1000, crowd.or_none())
        self.moderation = Moderation(coalesce_us * 1000, crowd.or_none())
        self.ports, self.sources = (), ()
        self.rx, self.tx = RxBurst(), TxBurst()
        self.rx_bursts, self.tx_bursts, self.turns = Histogram(), Histogram(), Histogram()
        self.source_fds, self.silent_until = {}, {}

    def attach(self, nic: Nic, index: int, on_gone: Callable[[], None] | None = None) -> None:
        """Serve `nic` as interface `index` of the stack. The NIC stays the caller's to close, after `detach`.

        `on_gone` is called soon after the NIC has left for good, when it is detached already.
        """
        if any(port.index == index for port in self.ports):
            raise ValueError(f"interface {index} has a NIC already")
        port = Port(index, nic, on_gone)
        self.stack.set_link(index, port.link_up)
        self.loop.add_reader(port.fd, self._on_readable)
        self.ports += (port,)
        if isinstance(nic, LinkTeller):
            nic.on_link_change = self._on_link_change
        if self.link_timer is None:
            self.link_timer = self.loop.call_later(LINK_CHECK_S, self._on_link_timer)
        if self.watcher is not None:
            self.watcher.attached()
        self.kick()

    def look_at(self, source: Source, fd: int) -> None:
        """Look at a source in every breath, too, from now on, and take one when its descriptor becomes readable."""
        self.sources += (source,)
        self.source_fds[source] = fd
        self.loop.add_reader(fd, self._on_readable)

    def look_away(self, source: Source) -> None:
        """No more."""
        self.sources = tuple(other for other in self.sources if other is not source)
        self.loop.remove_reader(self.source_fds.pop(source))

    def show_frames(self, watcher: FrameWatcher | None) -> None:
        """Show every frame to `watcher` from now on, or to nobody."""
        self.watcher = watcher
        self.tx.forget_refused()
        for burst in (self.rx, self.stack.looped):
            burst.keep_ends(watcher is not None)

    def detach(self, index: int) -> None:
        """Stop serving interface `index`, whose link goes down. Does nothing when it has no NIC."""
        port: Port
        for port in self.ports:
            if port.index == index:
                self.loop.remove_reader(port.fd)
                if isinstance(port.nic, LinkTeller):
                    port.nic.on_link_change = None
                self.ports = tuple(other for other in self.ports if other is not port)
                self.stack.set_link(index, False)

    def close(self) -> None:
        """Send what the stack has ready, detach every NIC and let go of the loop. May be called twice."""
        if self.closed:
            return
        port: Port
        self.flush()
        self.closed = True
        for port in self.ports:
            self.detach(port.index)
        for timer in (self.timer, self.link_timer, self.watch_timer):
            if timer is not None:
                timer.cancel()
        self.timer = self.link_timer = self.watch_timer = None

    def flush(self) -> None:
        """Send now what the stack has ready, within bounds."""
        for _ in range(BUDGET):
            if not self.send(now_ns()):
                break

    def kick(self) -> None:
        """An application has written something or changed the stack: see to it soon, once however often this is called.

        An event handler that calls this at every event, whether or not it did something, keeps the pump awake for good.
        """
        self.dirty = True
        if not (self.scheduled or self.running or self.closed):
            self.counts.kicks += 1
            self.schedule()

    def set_busy_poll(self, microseconds: int) -> None:
        """How long to look again before sleeping, from now on."""
        self.poll.set_while(microseconds * 1000)

    def set_coalesce(self, microseconds: int) -> None:
        """How long what comes may wait for more of it where others wait for a processor, from now on."""
        self.moderation.set_most(microseconds * 1000)

    def watch(self, period_s: float, alive: Callable[[], None]) -> None:
        """From now on take a turn at least every `period_s`, and call `alive` when it ended without an error."""
        self.watch_timer = self.loop.call_later(period_s, self._on_watch, period_s, alive)

    def statistics(self) -> dict:
        """Counters since the pump was made."""
        counts: dict = self.counts
        return counts | {"busy_polls": self.poll.vain_looks, "rests": self.moderation.rests}

    def histograms(self) -> dict:
        """Rows of `mm.histogram.Histogram`: frames of bursts, rx_burst and tx_burst, and turns that found work, in ns."""
        return {"rx_burst": self.rx_bursts.row(), "tx_burst": self.tx_bursts.row(), "turn": self.turns.row()}

    @property
    def nics(self) -> Mapping[int, Nic]:
        """The NICs served now, by their index in the stack."""
        return {port.index: port.nic for port in self.ports}

    # Called by the loop.

    def _on_readable(self) -> None:
        if not self.scheduled:          # else a turn comes anyway, and two in one loop iteration would be unfair
            self.counts.wakeups += 1
            self.turn()

    def _on_scheduled(self) -> None:
        self.scheduled = False
        self.turn()

    def _on_timer(self) -> None:
        self.timer = None
        self.counts.timers += 1
        self.turn()

    def _on_link_timer(self) -> None:
        """Links change seldom and asking may cost a system call, so once a second is right; some NICs tell us earlier."""
        self.link_timer = self.loop.call_later(LINK_CHECK_S, self._on_link_timer)
        self._check_links()

    def _on_link_change(self) -> None:
        """Out of a breath: look when it is over."""
        self.loop.call_soon(self._check_links)

    def _check_links(self) -> None:
        port: Port
        for port in self.ports:
            up = port.nic.link_up
            if up != port.link_up:
                port.link_up = up
                self.stack.set_link(port.index, up)
                log.info("link_up" if up else "link_down", nic=port.nic.name)
                self.kick()
            elif not up:
                self.kick()     # one that is gone says so by `receive` alone, and nothing else may ask it

    def _on_watch(self, period_s: float, alive: Callable[[], None]) -> None:
        self.watch(period_s, alive)
        errors = self.counts.errors
        self.dirty = True
        self.turn()
        if self.counts.errors == errors:
            alive()

    @cython.cfunc
    def schedule(self):
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._on_scheduled)

    # One turn.

    @cython.cfunc
    def turn(self):
        """Breathe while there is work, within the budget; then give way, or keep looking for a moment, or rest, or sleep.

        Looking in vain goes on here for a spell: to come back by way of the loop takes longer than a look.
        """
        before: uint64_t = self.counts.rx_frames
        breaths: cython.int
        rested: cython.bint = self.resting
        now: int64_t = self.moderation.rest(now_ns()) if rested else now_ns()
        began: int64_t = now
        until: int64_t = now + SPELL_NS
        taken: uint64_t = before + self.source_events
        self.resting = False
        while not (self.running or self.closed):
            breaths = self.breathe_on(now)
            if self.closed:
                break
            now = now_ns()
            self.note_wake(now)
            if breaths:
                self.turns.observe(now - began)
            if rested:
                self.moderation.gathered(self.counts.rx_frames + self.source_events - taken)
                rested = False
            if breaths == BUDGET:
                self.counts.yields += 1
                self.schedule()
                break
            if breaths and self.moderation.due(now):
                self.resting = True
                self.schedule()
                break
            if not ((breaths or self.poll.until) and self.poll.go_on(now, breaths > 0, self.counts.rx_frames != before)):
                break
            if breaths or now >= until:     # what work has put into the loop's queue comes before the next look
                self.schedule()
                break
            began = now
        if not (self.scheduled or self.running or self.closed):
            self.arm(now)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def breathe_on(self, now: int64_t) -> cython.int:
        """Breathe while there is work, within the budget; how many times."""
        breaths: cython.int = 0
        self.running = True
        try:
            while breaths < BUDGET and self.breathe(now):
                breaths += 1
                now = now_ns()
        finally:
            self.running = False
        return breaths

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def breathe(self, now: int64_t) -> cython.bint:
        """One burst in from every NIC, one out to each; whether there was anything to do or is more."""
        dirty: cython.bint = self.dirty
        worked: cython.bint = False
        again: cython.bint = False
        port: Port
        self.dirty = self.looked = False
        for port in self.ports:
            worked |= self.receive(port, now)
            dirty |= port.full
        if not self.looked:
            worked |= self.look()
        if 0 < self.wake <= now:        # whoever woke us
            worked |= self.advance(now)
        if worked or dirty:
            if self.loop_back(now):     # what it carried may be answered the same way: look again
                worked = again = True
            self.deliver()
            if self.dirty:              # applications have written: this breath sends it, and carries what is for this host
                again |= self.loop_back(now)
            self.dirty = again
            worked |= self.send(now)
        return worked or self.dirty

    @cython.cfunc
    @cython.exceptval(check=False)
    def look(self) -> cython.bint:
        """Let all sources do what they have to do; whether there was anything."""
        source: Source
        count: cython.int = 0
        self.looked = True
        for source in self.sources:
            count += source.look()
        self.source_events += count
        return count > 0

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def advance(self, now: int64_t) -> cython.bint:
        """The armed deadline has come: let the stack act on time."""
        self.wake = 0
        try:
            self.stack.advance(now)
        except Exception:
            self.complain("advance")
        return True

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def receive(self, port: Port, now: int64_t) -> cython.bint:
        count: cython.int
        try:
            count = port.nic.receive(self.rx)
            if count > 0:
                self.counts.rx_bursts += 1
                self.counts.rx_frames += count
                self.rx_bursts.observe(count)
                self.look()             # what programs did before the frames came, such as closing, comes first
                self.stack.receive(port.index, now, self.rx)
                if self.watcher is not None:
                    self.watcher.received(port.index, now, self.rx)
                return True
            if count < 0:
                log.error("nic_gone", nic=port.nic.name)
                self.detach(port.index)
                if port.on_gone is not None:
                    self.loop.call_soon(port.on_gone)
                return True
        except Exception:
            self.complain("receive")
        return False

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def loop_back(self, now: int64_t) -> cython.bint:
        """What the host sends to itself needs no NIC."""
        carried: cython.int
        try:
            carried = self.stack.loop(now)
            if carried and self.watcher is not None:
                self.watcher.received(LOOPBACK, now, self.stack.looped)
            return carried > 0
        except Exception:
            self.complain("loop")
        return False

    @cython.cfunc
    def deliver(self):
        try:
            told: cython.int = self.stack.tell()
            if told & MOVED:
                self.dirty = True
            if told & NEWS:
                self.on_events()
        except Exception:
            self.complain("on_events")

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def send(self, now: int64_t) -> cython.bint:
        """Up to a burst on every interface; whether any frame left. Full bursts leave the pump dirty."""
        port: Port
        sent: cython.bint = False
        for port in self.ports:
            try:
                sent |= self.send_by(port, now)
            except Exception:
                self.tx.clear()
                self.complain("transmit")
        return sent

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def send_by(self, port: Port, now: int64_t) -> cython.bint:
        count: cython.int
        room: cython.int = port.nic.room()
        port.full = room == 0
        if port.full:
            return False
        self.tx.limit(room)
        count = self.stack.transmit(port.index, now, self.tx)
        if count == 0:
            return False
        self.counts.tx_bursts += 1
        self.counts.tx_frames += count
        self.tx_bursts.observe(count)
        self.dirty |= count >= min(room, BURST)
        self.counts.tx_refused += port.nic.transmit(self.tx)
        if self.watcher is not None:
            self.watcher.sent(port.index, self.tx, count)
            self.tx.forget_refused()
        return True

    # Time.

    @cython.cfunc
    def note_wake(self, now: int64_t):
        """When the stack wants to be woken. A deadline already past is put off once, lest we spin on it."""
        wake: int64_t
        try:
            due = self.stack.wake_at()
        except Exception:
            self.complain("wake_at")
            due = now + COMPLAINT_NS
        if due is None:
            return
        wake = due
        if wake > now:
            self.wake = wake
        elif not 0 < self.wake < now + MS:      # else it is put off already, or the next breath sees to it
            self.wake = now + MS

    @cython.cfunc
    def arm(self, now: int64_t):
        """Before sleep: see that the loop wakes us then. An earlier timer serves too: it is cheaper than another.

        At least 1 ms ahead, the loop's resolution.
        """
        if self.wake == 0:
            return
        if self.timer is not None:
            if self.timer_at <= self.wake:
                return
            self.timer.cancel()
        self.timer_at = self.wake
        self.timer = self.loop.call_later(max(1, (self.wake - now + MS - 1) // MS) / 1000.0, self._on_timer)

    @cython.cfunc
    def complain(self, what: str):
        """Log the exception being handled, at most once a second for each `what`; count it always."""
        now: int64_t = now_ns()
        self.counts.errors += 1
        if now >= self.silent_until.get(what, 0):
            self.silent_until[what] = now + COMPLAINT_NS
            log.exception("pump_callback_failed", callback=what, errors=self.counts.errors)
