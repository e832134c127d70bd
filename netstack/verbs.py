"""What a pump asks of a stack. Times are nanoseconds on any clock that never goes back."""

import cython
from cython.cimports.libc.stdint import int64_t
from cython.cimports.mm.frame import RxBurst, TxBurst

if not cython.compiled:
    raise ImportError("netstack.verbs must be compiled: python setup.py build_ext --inplace")


@cython.cclass
class PacketStack:
    """A host without I/O, by interfaces with an index each: `netstack.stack.Stack`, or a double of it."""

    def __cinit__(self) -> None:
        self.looped = RxBurst()

    @cython.ccall
    def receive(self, index: cython.int, now: int64_t, burst: RxBurst):
        """Take in frames that came by interface `index`."""
        raise NotImplementedError

    @cython.ccall
    def advance(self, now: int64_t):
        """Do everything that is due."""
        raise NotImplementedError

    @cython.ccall
    def wake_at(self):
        """When `advance` has something to do next; None: nothing waits for time to pass."""
        raise NotImplementedError

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def transmit(self, index: cython.int, now: int64_t, burst: TxBurst) -> cython.int:
        """Fill the burst with frames for interface `index`; how many."""
        raise NotImplementedError

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def loop(self, now: int64_t) -> cython.int:
        """Carry a burst over the loopback interface, where `looped` has it; how many frames."""
        raise NotImplementedError

    @cython.ccall
    @cython.exceptval(-1, check=True)
    def tell(self) -> cython.int:
        """Tell news to those who hear them at once; NEWS if others wait for who asks, MOVED if there may be more to send."""
        return NEWS

    def set_link(self, index: int, up: bool) -> None:
        """Whether frames can pass on interface `index`."""
        raise NotImplementedError
