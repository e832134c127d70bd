"""What every network interface card is to the rest of rustosd."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import cython
from cython.cimports.mm.frame import RxBurst, TxBurst

if not cython.compiled:
    raise ImportError("drivers.nic must be compiled: python setup.py build_ext --inplace")

GONE = -1
"""`Nic.receive` returns this when the device has left for good: unplugged, deleted, closed."""


@cython.cclass
class Nic:
    """A device that moves Ethernet frames in bursts, without ever blocking or raising on the way.

    A TAP, a PCI card and a test double differ only behind these members, so the pump and the stack know no other word
    for a device. Everything here is called from one thread, the loop's. Besides what is below each has

    - `name`: as the operator calls it: the kernel's interface name, or a PCI address;
    - `mac`: the six octets of the address frames for us carry;
    - `mtu`: largest IP packet in octets; super-segments are larger;
    - `features`: `mm.frame.Feature` bits: what the device does for the stack;
    - `link_up`: whether frames can pass. May cost a system call: ask once a second, not once a frame.

    A PCI card fits like this. Its `fileno` is the eventfd of its receive interrupt. `receive` harvests the ring up to
    a burst and refills it. It reads the eventfd and masks the interrupt when it is called for the first time after one
    came; when it finds the ring empty it unmasks and looks once more before it says 0, so that no frame can slip in
    between. The caller needs no verbs for that: it polls until 0 and then sleeps on the eventfd. `transmit` also reaps
    finished descriptors, and `room` counts the free ones. `reset` belongs to the driver: a hung ring is reset inside
    `receive` or `transmit`, shows as `link_up` False until the link is back, and counts in `statistics`.
    """

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def receive(self, burst: RxBurst) -> cython.int:
        """Empty the burst and fill it with frames that wait; how many, 0 when none waits, or `GONE`.

        The frames' octets are the device's memory and stay valid until the next `receive`.
        """
        raise NotImplementedError

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def transmit(self, burst: TxBurst) -> cython.int:
        """Take all frames of the burst and empty it; how many the device refused, which are lost and counted."""
        raise NotImplementedError

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def room(self) -> cython.int:
        """How many frames `transmit` can take now, 0 to `BURST`."""
        raise NotImplementedError

    def fileno(self) -> int:
        """What to wait on for reading; it stays readable while frames wait."""
        raise NotImplementedError

    def statistics(self) -> dict:
        """Counters since the device was opened: at least rx_frames, rx_octets, tx_frames, tx_octets, rx_dropped and
        tx_dropped, then what this kind of device has to tell, such as why it dropped."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the device back. May be called twice."""
        raise NotImplementedError


@runtime_checkable
class LinkTeller(Protocol):
    """A NIC that notices itself when its link changes. Whoever serves it need not wait until it asks again."""

    on_link_change: Callable[[], None] | None
    """Called from within `receive`, so it takes note and returns."""
