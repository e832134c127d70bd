"""Keeps idle processors from sleeping deep while work comes often: PM QoS by /dev/cpu_dma_latency.

Who is served by another process or thread waits for two wake-ups. Those of an idle processor may take tens of microseconds, in
a virtual machine above all, and often more than the work. An idle processor that is kept awake spins; it gives way to whoever
wants to run, and costs power.
"""

import os

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint32_t
from cython.cimports.posix.unistd import close, write

if not cython.compiled:
    raise ImportError("mm.awake must be compiled: python setup.py build_ext --inplace")

DEVICE = "/dev/cpu_dma_latency"
_SHORT_NS = cython.declare(int64_t, 200_000)
_IN_A_ROW = cython.declare(uint32_t, 16)
_LULL_NS = cython.declare(int64_t, LULL_MS * 1_000_000)
_AT_ONCE = cython.declare(int32_t, 0)                   # microseconds that waking may take
_AT_LEISURE = cython.declare(int32_t, 2_000_000_000)    # PM_QOS_CPU_LATENCY_DEFAULT_VALUE


@cython.final
@cython.cclass
class Awake:
    """After so many short pauses in a row, until a long one. The kernel drops it with the process, however that ends."""

    def __cinit__(self) -> None:
        self.device = -1

    def __init__(self) -> None:
        """Raises OSError where it is not ours to ask for."""
        self.device = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)

    def __dealloc__(self) -> None:
        if self.device >= 0:
            close(self.device)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def paused(self, pause_ns: int64_t) -> cython.void:
        wanted: cython.bint
        microseconds: int32_t
        self.in_a_row = min(self.in_a_row + 1, _IN_A_ROW) if pause_ns < _SHORT_NS else 0
        wanted = pause_ns < _LULL_NS and (self.holds or self.in_a_row == _IN_A_ROW)
        if wanted != self.holds:
            self.holds = wanted
            microseconds = _AT_ONCE if wanted else _AT_LEISURE
            write(self.device, cython.address(microseconds), 4)


def or_none() -> Awake | None:
    """One, or None where it is not ours to ask for."""
    try:
        return Awake()
    except OSError:
        return None
