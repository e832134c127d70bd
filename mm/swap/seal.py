"""What makes sure that a page is the one that was written: a seal in memory, and with AES-GCM a device that learns nothing.

The ciphers and hashes are libcrypto's and libxxhash's, called without the GIL.
"""

import ctypes

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.mm.hw import put64
from cython.cimports.mm.swap.sys import (
    MADV_DONTDUMP,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    explicit_bzero,
    getrandom,
    madvise,
    mlock,
    mmap,
    munmap,
)

if not cython.compiled:
    raise ImportError("mm.swap.seal must be compiled: python setup.py build_ext --inplace")

_KEY = cython.declare(cython.int, 32)
_NONCE = cython.declare(cython.int, 12)
_GET_TAG = cython.declare(cython.int, 0x10)         # EVP_CTRL_AEAD_GET_TAG
_SET_TAG = cython.declare(cython.int, 0x11)


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
        """In place what was sealed. Not 0: it is something else."""
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


@cython.final
@cython.cclass
class AesGcm(Sealer):
    """AES-256-GCM by a key from getrandom that is nowhere but in this process, and is gone with it.

    A seal is 96 bits of the tag, so that who writes to the device is found out as well.
    """

    def __init__(self):
        """Raises LibraryMissing, OSError."""
        self.name, self.encrypts = "aes-256-gcm", True
        self.library = lib = library("libcrypto.so.3", "libssl3", "encryption = false")
        lib.EVP_aes_256_gcm.restype = ctypes.c_void_p
        self.cipher = cython.cast(cython.p_void, cython.cast(uintptr_t, lib.EVP_aes_256_gcm()))
        self.new_ = cython.cast(cython.typeof(self.new_), cython.cast(uintptr_t, address_of(lib, "EVP_CIPHER_CTX_new")))
        self.free_ = cython.cast(cython.typeof(self.free_), cython.cast(uintptr_t, address_of(lib, "EVP_CIPHER_CTX_free")))
        self.control_ = cython.cast(cython.typeof(self.control_),
                                    cython.cast(uintptr_t, address_of(lib, "EVP_CIPHER_CTX_ctrl")))
        self.encrypt_start = cython.cast(cython.typeof(self.encrypt_start),
                                         cython.cast(uintptr_t, address_of(lib, "EVP_EncryptInit_ex")))
        self.decrypt_start = cython.cast(cython.typeof(self.decrypt_start),
                                         cython.cast(uintptr_t, address_of(lib, "EVP_DecryptInit_ex")))
        self.encrypt_step = cython.cast(cython.typeof(self.encrypt_step),
                                        cython.cast(uintptr_t, address_of(lib, "EVP_EncryptUpdate")))
        self.decrypt_step = cython.cast(cython.typeof(self.decrypt_step),
                                        cython.cast(uintptr_t, address_of(lib, "EVP_DecryptUpdate")))
        self.encrypt_finish = cython.cast(cython.typeof(self.encrypt_finish),
                                          cython.cast(uintptr_t, address_of(lib, "EVP_EncryptFinal_ex")))
        self.decrypt_finish = cython.cast(cython.typeof(self.decrypt_finish),
                                          cython.cast(uintptr_t, address_of(lib, "EVP_DecryptFinal_ex")))
        self._make_key()

    @cython.cfunc
    def _make_key(self):
        page: cython.p_void = mmap(cython.NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError
        self.key = cython.cast(cython.pointer[uint8_t], page)
        madvise(page, 4096, MADV_DONTDUMP)
        madvise(page, 4096, MADV_WIPEONFORK)
        if mlock(page, 4096):
            raise OSError(12, "the key of swap cannot be locked in memory: raise `ulimit -l`, or LimitMEMLOCK= in the unit")
        if getrandom(self.key, _KEY, 0) != _KEY:
            raise OSError(5, "the kernel has no random octets for the key of swap")

    def __dealloc__(self):
        if self.key != cython.NULL:
            explicit_bzero(self.key, _KEY)
            munmap(self.key, 4096)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        """It knows the key, which libcrypto wipes in `free_context`. NULL: there is no memory."""
        context: cython.p_void = self.new_()
        if context != cython.NULL and self.encrypt_start(context, self.cipher, cython.NULL, self.key, cython.NULL) != 1:
            self.free_(context)
            return cython.NULL
        return context

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        self.free_(context)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def seal(self, context: cython.p_void, number: uint64_t, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
             out: cython.pointer[uint8_t], seal: cython.pointer[uint8_t]) -> cython.int:
        length: cython.int = 0
        if self._start(self.encrypt_start, context, number) or (
                self.encrypt_step(context, out, cython.address(length), data, octets) != 1
                or self.encrypt_finish(context, out + length, cython.address(length)) != 1
                or self.control_(context, _GET_TAG, SEAL, seal) != 1):
            return -1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def open(self, context: cython.p_void, number: uint64_t, data: cython.pointer[uint8_t], octets: uint32_t,
             seal: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        length: cython.int = 0
        if self._start(self.decrypt_start, context, number) or (
                self.decrypt_step(context, data, cython.address(length), data, octets) != 1
                or self.control_(context, _SET_TAG, SEAL, cython.cast(cython.p_void, seal)) != 1
                or self.decrypt_finish(context, data + length, cython.address(length)) != 1):
            return -1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _start(self, begin: start, context: cython.p_void, number: uint64_t) -> cython.int:
        """With the key that the context has. The nonce is a number that is used once; the key is no older than the count."""
        nonce: uint8_t[12]
        memset(nonce, 0, _NONCE - 8)
        put64(cython.address(nonce[4]), number)
        return begin(context, cython.NULL, cython.NULL, cython.NULL, nonce) != 1
