"""One interrupt for all ports of a controller, and a file descriptor for each disk.

A disk's descriptor is an epoll of two: the controller's eventfd, and one of its own. Whoever is woken first by the
controller's takes it away from the others, so it wakes those through their own, if IS says that they have something.
"""

import os
import select

from drivers.device import Interrupt
from drivers.registers import RegisterFile


class Wake:
    """What one disk waits on."""

    def __init__(self, interrupt: Interrupt | None) -> None:
        self._own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._both = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._both.register(self._own, select.EPOLLIN)
        if interrupt is not None:
            self._both.register(interrupt.fd, select.EPOLLIN)
        self._called = False

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

    def __init__(self, interrupt: Interrupt | None, regs: RegisterFile, below_4g: bool) -> None:
        """`interrupt` None: nobody is ever woken, and everybody polls."""
        self.interrupt, self.below_4g = interrupt, below_4g
        self._regs = regs
        self._wakes: dict[int, Wake] = {}

    def join(self, port: int) -> Wake:
        """A new member."""
        wake = self._wakes[port] = Wake(self.interrupt)
        return wake

    def leave(self, port: int) -> None:
        """A member less."""
        self._wakes.pop(port, None)

    def came(self, port: int) -> bool:
        """Whether the interrupt has come, and for this port. If it was for others, they are woken."""
        mine = self._wakes[port].answer()
        if self.interrupt is None or not self.interrupt.drain():
            return mine
        if len(self._wakes) == 1:
            return True
        pending = self._regs.IS.read()
        for other, wake in self._wakes.items():
            if other != port and pending >> other & 1:
                wake.call()
        if not pending >> port & 1:
            self.unmask()           # else once the port's own interrupt is masked
        return mine or bool(pending >> port & 1)

    def unmask(self) -> None:
        """Let the next interrupt come; an INTx was masked by the kernel as it came."""
        if self.interrupt is not None:
            self.interrupt.unmask()
