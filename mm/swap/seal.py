"""What makes sure that a page is the one that was written: a seal in memory. With `mm.swap.aes_gcm` a device learns nothing."""

import ctypes

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcmp, memcpy

if not cython.compiled:
    raise ImportError("mm.swap.seal must be compiled: python setup.py build_ext --inplace")


class LibraryMissing(Exception):
    """A library that the configuration asks for is not installed; the message says what to do."""


def library(name: str, package: str, otherwise: str) -> ctypes.CDLL:
    """Raises LibraryMissing."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise LibraryMissing(f"{error}: install it (apt-get install {package}), or say {otherwise} under [swap]") from None


def address_of(lib: ctypes.CDLL, function: str) -> int:
    """Where a function of a library begins."""
    return ctypes.cast(getattr(lib, function), ctypes.c_void_p).value or 0


@cython.cclass
class Sealer:
    """Makes seals and looks at them."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        """What one thread at a time needs; NULL: there is no memory, or nothing is needed."""
        return cython.NULL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def seal(self, context: cython.p_void, number: uint64_t, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
             out: cython.pointer[uint8_t], seal: cython.pointer[uint8_t]) -> cython.int:
        """What goes to the device, in `out`, which may be `data`, and its seal. Not 0: it cannot be done."""
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def open(self, context: cython.p_void, number: uint64_t, data: cython.pointer[uint8_t], octets: uint32_t,
             seal: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        """In place what was sealed. Not 0: it is something else, and what is in `data` then is not to be used."""
        return -1


@cython.final
@cython.cclass
class Checksum(Sealer):
    """XXH3, 64 bits: against accidents, not against somebody who writes to the device. The page is not hidden."""

    def __init__(self):
        """Raises LibraryMissing."""
        self.name, self.encrypts = "xxh3", False
        self.library = library("libxxhash.so.0", "libxxhash0", "encryption = true")
        self.hash = cython.cast(cython.typeof(self.hash), cython.cast(uintptr_t, address_of(self.library, "XXH3_64bits")))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def seal(self, context: cython.p_void, number: uint64_t, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
             out: cython.pointer[uint8_t], seal: cython.pointer[uint8_t]) -> cython.int:
        value: uint64_t = self.hash(data, octets)
        memcpy(seal, cython.address(value), 8)
        if out != data:
            memcpy(out, data, octets)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def open(self, context: cython.p_void, number: uint64_t, data: cython.pointer[uint8_t], octets: uint32_t,
             seal: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        value: uint64_t = self.hash(data, octets)
        return memcmp(seal, cython.address(value), 8)
