"""A loop over route lookups without Python in it; compiled by compiled.py."""

import cython
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.netstack.net import NetState
from cython.cimports.netstack.route import route_lookup
from cython.cimports.netstack.wire.address import Addr, address_from


@cython.final
@cython.cclass
class Destinations:
    """Addresses to be looked up, all of them at each call."""

    addresses: cython.pointer[Addr]
    count: cython.Py_ssize_t

    def __init__(self, texts: list):
        i: cython.Py_ssize_t
        self.count = len(texts)
        self.addresses = cython.cast(cython.pointer[Addr], malloc(self.count * cython.sizeof(Addr)))
        for i in range(self.count):
            address_from(texts[i], cython.address(self.addresses[i]))

    def __dealloc__(self):
        free(self.addresses)

    def look_up(self, state: NetState) -> int:
        """Look all of them up; how many. Raises LookupError when one has no route."""
        i: cython.Py_ssize_t
        found: cython.Py_ssize_t = 0
        with cython.nogil:
            for i in range(self.count):
                found += route_lookup(state.net, cython.address(self.addresses[i])) != cython.NULL
        if found != self.count:
            raise LookupError(f"{self.count - found} of {self.count} destinations have no route")
        return self.count
