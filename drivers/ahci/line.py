"""One interrupt for all ports of a controller, and a file descriptor for each disk, and for the controller itself.

A disk's descriptor is an epoll of two: the controller's eventfd, and one of its own. Whoever is woken first by the
controller's takes it away from the others, so it wakes those through their own, if IS says that they have something.
"""

import os
import select

from drivers.device import Interrupt
from drivers.registers import RegisterFile


class Wake:
    """What one of them waits on."""

    def __init__(self, interrupt: Interrupt | None) -> None:
        self._own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._both = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._both.register(self._own, select.EPOLLIN)
        if interrupt is not None:
            self._both.register(interrupt.fd, select.EPOLLIN)
        self._called = False

    def listen(self, interrupt: Interrupt | None, on: bool) -> None:
        """Wait for the interrupt as well, or no more."""
        if interrupt is not None:
            (self._both.register(interrupt.fd, select.EPOLLIN) if on else self._both.unregister(interrupt.fd))

    def fileno(self) -> int:
        """The descriptor."""
        return self._both.fileno()

    def call(self) -> None:
        """Make it readable."""
        if not self._called:
            self._called = True
            os.eventfd_write(self._own, 1)

    def answer(self) -> bool:
        """Whether it was called; no more then."""
        called, self._called = self._called, False
        if called:
            os.eventfd_read(self._own)
        return called

    def close(self) -> None:
        """Close both."""
        self._both.close()
        os.close(self._own)


class Line:
    """The interrupt, and who waits for it."""

    def __init__(self, interrupt: Interrupt | None, regs: RegisterFile) -> None:
        """`interrupt` None: nobody is ever woken by it, and everybody polls."""
        self.interrupt = interrupt
        self._regs = regs
        self._wakes: dict[int, list[Wake]] = {}
        self.own = Wake(interrupt)
        """The controller's, for ports without disks. Where there are disks they call it, so that it is not woken by theirs."""

    def join(self, port: int) -> Wake:
        """A new member: a disk of this port."""
        if not self._wakes:
            self.own.listen(self.interrupt, False)
        wake = Wake(self.interrupt)
        self._wakes.setdefault(port, []).append(wake)
        return wake

    def leave(self, port: int, wake: Wake) -> None:
        """A member less."""
        there = self._wakes.get(port, [])
        if wake in there:
            there.remove(wake)
            if not there:
                del self._wakes[port]
                if not self._wakes:
                    self.own.listen(self.interrupt, True)

    def came(self, port: int, wake: Wake) -> bool:
        """Whether the interrupt has come, and for this disk of this port. If it was for others, they are woken."""
        mine = wake.answer()
        if self.interrupt is None or not self.interrupt.drain():
            return mine
        if len(self._wakes) == 1 and len(self._wakes[port]) == 1:
            return True         # as good as certain; `tell_others` is for when it was not
        pending = self._regs.IS.read()
        self._call(pending & ~(1 << port))
        if pending >> port & 1:
            for other in self._wakes.get(port, ()):     # behind a port multiplier
                if other is not wake:
                    other.call()
            return True
        self.unmask()           # else once the port's own interrupt is masked
        return mine

    def tell_others(self, port: int) -> None:
        """An interrupt that was for nobody here: is it for somebody else?"""
        if self.interrupt is not None:
            self._call(self._regs.IS.read() & ~(1 << port))

    def take(self) -> int:
        """For the controller: the ports that have something and no disk, a bit each; those with disks are told."""
        called = self.own.answer()
        came = self.interrupt is not None and not self._wakes and self.interrupt.drain()
        if not (called or came):
            return 0
        pending = int(self._regs.IS.read())
        self._call(pending)
        self.own.answer()
        if came:
            self.unmask()
        return pending & ~sum(1 << port for port in self._wakes)

    def unmask(self) -> None:
        """Let the next interrupt come; an INTx was masked by the kernel as it came."""
        if self.interrupt is not None:
            self.interrupt.unmask()

    def close(self) -> None:
        """The controller's own descriptor."""
        self.own.close()

    def _call(self, ports: int) -> None:
        left = ports
        for port, wakes in self._wakes.items():
            if ports >> port & 1:
                left &= ~(1 << port)
                for wake in wakes:
                    wake.call()
        if left:
            self.own.call()
