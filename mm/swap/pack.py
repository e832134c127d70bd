"""Makes pages smaller before they go to the device, by liblz4 or libzstd, called without the GIL."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.mm.swap.device import PAGE

from mm.swap.seal import address_of, library

if not cython.compiled:
    raise ImportError("mm.swap.pack must be compiled: python setup.py build_ext --inplace")

_LEVEL = cython.declare(cython.int, 1)


@cython.cclass
class Packer:
    """Packs single pages, so that one can be had without its neighbours."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        """What one thread at a time needs; NULL: there is no memory."""
        return cython.NULL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pack(self, context: cython.p_void, page: cython.pointer[cython.const[uint8_t]], out: cython.pointer[uint8_t],
             room: uint32_t) -> uint32_t:
        """Octets written to `out`; 0: they would not be fewer than `room`."""
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def unpack(self, context: cython.p_void, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
               page: cython.pointer[uint8_t]) -> cython.bint:
        """Whether it was a page."""
        return False


@cython.final
@cython.cclass
class Lz4(Packer):
    """LZ4: fast, some."""

    def __init__(self):
        """Raises LibraryMissing."""
        self.name = "lz4"
        self.library = lib = library("liblz4.so.1", "liblz4-1", 'compression = "none"')
        self.state_octets = lib.LZ4_sizeofState()
        self.compress = cython.cast(cython.typeof(self.compress),
                                    cython.cast(uintptr_t, address_of(lib, "LZ4_compress_fast_extState")))
        self.decompress = cython.cast(cython.typeof(self.decompress),
                                      cython.cast(uintptr_t, address_of(lib, "LZ4_decompress_safe")))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        return malloc(self.state_octets)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        free(context)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pack(self, context: cython.p_void, page: cython.pointer[cython.const[uint8_t]], out: cython.pointer[uint8_t],
             room: uint32_t) -> uint32_t:
        return self.compress(context, page, out, PAGE, room, 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def unpack(self, context: cython.p_void, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
               page: cython.pointer[uint8_t]) -> cython.bint:
        return self.decompress(data, page, octets, PAGE) == PAGE


@cython.final
@cython.cclass
class Zstd(Packer):
    """Zstandard at its first level: slower than LZ4, and more."""

    def __init__(self):
        """Raises LibraryMissing."""
        self.name = "zstd"
        self.library = lib = library("libzstd.so.1", "libzstd1", 'compression = "lz4"')
        self.new_packing = cython.cast(cython.typeof(self.new_packing),
                                       cython.cast(uintptr_t, address_of(lib, "ZSTD_createCCtx")))
        self.new_unpacking = cython.cast(cython.typeof(self.new_unpacking),
                                         cython.cast(uintptr_t, address_of(lib, "ZSTD_createDCtx")))
        self.free_packing = cython.cast(cython.typeof(self.free_packing),
                                        cython.cast(uintptr_t, address_of(lib, "ZSTD_freeCCtx")))
        self.free_unpacking = cython.cast(cython.typeof(self.free_unpacking),
                                          cython.cast(uintptr_t, address_of(lib, "ZSTD_freeDCtx")))
        self.compress = cython.cast(cython.typeof(self.compress),
                                    cython.cast(uintptr_t, address_of(lib, "ZSTD_compressCCtx")))
        self.decompress = cython.cast(cython.typeof(self.decompress),
                                      cython.cast(uintptr_t, address_of(lib, "ZSTD_decompressDCtx")))
        self.is_error = cython.cast(cython.typeof(self.is_error), cython.cast(uintptr_t, address_of(lib, "ZSTD_isError")))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        both: cython.pointer[ZstdContext] = cython.cast(cython.pointer[ZstdContext], calloc(1, cython.sizeof(ZstdContext)))
        if both == cython.NULL:
            return cython.NULL
        both.packing, both.unpacking = self.new_packing(), self.new_unpacking()
        if both.packing == cython.NULL or both.unpacking == cython.NULL:
            self.free_context(both)
            return cython.NULL
        return both

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        both: cython.pointer[ZstdContext] = cython.cast(cython.pointer[ZstdContext], context)
        self.free_packing(both.packing)
        self.free_unpacking(both.unpacking)
        free(both)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pack(self, context: cython.p_void, page: cython.pointer[cython.const[uint8_t]], out: cython.pointer[uint8_t],
             room: uint32_t) -> uint32_t:
        both: cython.pointer[ZstdContext] = cython.cast(cython.pointer[ZstdContext], context)
        octets: cython.size_t = self.compress(both.packing, out, room, page, PAGE, _LEVEL)
        return 0 if self.is_error(octets) else cython.cast(uint32_t, octets)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def unpack(self, context: cython.p_void, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
               page: cython.pointer[uint8_t]) -> cython.bint:
        both: cython.pointer[ZstdContext] = cython.cast(cython.pointer[ZstdContext], context)
        return self.decompress(both.unpacking, page, PAGE, data, octets) == PAGE
