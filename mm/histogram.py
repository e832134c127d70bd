"""How often values of each size were seen, in buckets that are powers of two; for times in ns, sizes, depths of queues."""

import cython
from cython.cimports.libc.stdint import uint64_t


@cython.final
@cython.cclass
class Histogram:
    """A histogram for Python code. C code keeps a `Log2Histogram` in its own struct and calls `histogram_add`."""

    @cython.ccall
    @cython.exceptval(check=False)
    def observe(self, value: uint64_t) -> cython.void:
        """One more value, 0 to 2**64 - 1."""
        histogram_add(cython.address(self.values), value)

    def row(self) -> tuple:
        """(sum of all values, counts): counts[k] values were at most 2**k and above 2**(k-1), for k from 0 to 64."""
        return histogram_row(cython.address(self.values))


@cython.cfunc
def histogram_row(h: cython.pointer[cython.const[Log2Histogram]]) -> tuple:
    k: cython.int
    return h.sum, [h.counts[k] for k in range(LOG2_BUCKETS)]
