"""AES-256-GCM by a key from getrandom that is nowhere but in this process, and is gone with it.

A seal is 96 bits of the tag, so that who writes to the device is found out as well. OpenSSL's libcrypto does it anywhere, from
3.1 on with a processor's 512-bit instructions (VAES); Debian 12 has 3.0. Intel's ipsec-mb always uses them.
"""

import ctypes
import os
from collections.abc import Callable

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import put64
from cython.cimports.mm.swap.seal import SEAL, Sealer
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

from mm.swap.seal import LibraryMissing, address_of, library

if not cython.compiled:
    raise ImportError("mm.swap.aes_gcm must be compiled: python setup.py build_ext --inplace")

_PAGE = cython.declare(cython.int, 4096)
_KEY = cython.declare(cython.int, 32)
_NONCE = cython.declare(cython.int, 12)
_GET_TAG = cython.declare(cython.int, 0x10)         # EVP_CTRL_AEAD_GET_TAG
_SET_TAG = cython.declare(cython.int, 0x11)
_MB_CONTEXT = cython.declare(cython.int, 256)       # 88 octets in ipsec-mb 1.1 to 2.0

# For which the library itself takes these functions (IMB_CPUFLAGS_AVX512_T2), by Linux's names. Linux tells of what it has
# switched on; version 1.3 of the library asks the processor alone.
VAES_FLAGS = frozenset((
    "aes", "pclmulqdq", "avx2", "bmi2", "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avx512ifma", "vaes",
    "vpclmulqdq", "gfni", "sha_ni"))
_TRIED = (4096, 1, 15, 16, 17, 255, 256, 257, 511, 1777, 4095)      # lengths: a packed page has any


@cython.final
@cython.cclass
class Key:
    """32 octets, from getrandom unless they are given, and what a library has made of them."""

    def __init__(self, octets: bytes | None = None):
        """Raises OSError; ValueError when there are not 32 octets."""
        page: cython.p_void = mmap(cython.NULL, _PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError
        self.page = cython.cast(cython.typeof(self.page), page)
        madvise(page, _PAGE, MADV_DONTDUMP)
        madvise(page, _PAGE, MADV_WIPEONFORK)
        if mlock(page, _PAGE):
            raise OSError(12, "the key of swap cannot be locked in memory: raise `ulimit -l`, or LimitMEMLOCK= in the unit")
        if octets is not None:
            if len(octets) != _KEY:
                raise ValueError(f"a key of {len(octets)} octets instead of {_KEY}")
            memcpy(self.page.octets, cython.cast(cython.pointer[cython.const[uint8_t]], octets), _KEY)
        elif getrandom(self.page.octets, _KEY, 0) != _KEY:
            raise OSError(5, "the kernel has no random octets for the key of swap")
        self.page.here = 1

    def __dealloc__(self):
        if self.page != cython.NULL:
            explicit_bzero(self.page, _PAGE)
            munmap(self.page, _PAGE)


@cython.cclass
class AesGcm(Sealer):
    """With a key, and refused where that is not: in a child of the process."""

    def sealed(self, number: int, data: bytes) -> tuple[bytes, bytes]:
        """What goes to the device, and its seal. Raises OSError, MemoryError."""
        out, seal = bytearray(data), bytearray(SEAL)
        context: cython.p_void = self.context()
        error: cython.int
        if context == cython.NULL:
            raise MemoryError
        error = self.seal(context, number, data, len(data), out, seal)
        self.free_context(context)
        if error:
            raise OSError(5, f"{self.by} does not seal: the key is not in this process, or the library failed")
        return bytes(out), bytes(seal)

    def opened(self, number: int, data: bytes, seal: bytes) -> bytes | None:
        """What was sealed; None: this is something else. Raises ValueError, MemoryError."""
        out = bytearray(data)
        context: cython.p_void
        error: cython.int
        if len(seal) != SEAL:
            raise ValueError(f"a seal of {len(seal)} octets instead of {SEAL}")
        context = self.context()
        if context == cython.NULL:
            raise MemoryError
        error = self.open(context, number, out, len(data), seal)
        self.free_context(context)
        return None if error else bytes(out)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _nonce(out: cython.pointer[uint8_t], number: uint64_t) -> cython.void:
    """A number that is used once; the key is no older than the count."""
    memset(out, 0, _NONCE - 8)
    put64(out + _NONCE - 8, number)


@cython.final
@cython.cclass
class Libcrypto(AesGcm):
    """By OpenSSL's libcrypto."""

    def __init__(self, key: Key | None = None):
        """Raises LibraryMissing, OSError."""
        self.name, self.encrypts, self.by = "aes-256-gcm", True, "libcrypto.so.3"
        self.library = lib = library(self.by, "libssl3", "encryption = false")
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
        self.key = key if key is not None else Key()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        """It knows the key, which libcrypto wipes in `free_context`. NULL: there is no memory."""
        context: cython.p_void = self.new_()
        if context != cython.NULL and self.encrypt_start(context, self.cipher, cython.NULL, self.key.page.octets,
                                                         cython.NULL) != 1:
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
        """With the key that the context has."""
        nonce: uint8_t[12]
        _nonce(nonce, number)
        return self.key.page.here == 0 or begin(context, cython.NULL, cython.NULL, cython.NULL, nonce) != 1


@cython.final
@cython.cclass
class IpsecMb(AesGcm):
    """By the functions of Intel's ipsec-mb for VAES and AVX-512.

    They are called by name: its versions from 1.1 to 2.0 export them, with the same arguments, and a name that is gone is
    noticed. The documented way is through members of its manager: one that has moved would be another function.
    """

    def __init__(self, key: Key | None = None):
        """Raises LibraryMissing, also where the processor is another; OSError."""
        expand_key: expand
        lacks = VAES_FLAGS - processor_flags()
        if lacks:
            raise LibraryMissing(f"ipsec-mb needs a processor with {', '.join(sorted(lacks))}")
        self.name, self.encrypts = "aes-256-gcm", True
        self.by, self.library = _ipsec_mb()
        lib = self.library
        try:
            expand_key = cython.cast(expand, cython.cast(uintptr_t, address_of(lib, "aes_gcm_pre_256_vaes_avx512")))
            self.encrypt = cython.cast(whole, cython.cast(uintptr_t, address_of(lib, "aes_gcm_enc_256_vaes_avx512")))
            self.decrypt = cython.cast(whole, cython.cast(uintptr_t, address_of(lib, "aes_gcm_dec_256_vaes_avx512")))
        except AttributeError as error:
            raise LibraryMissing(f"{self.by} is of a version that is not known here: {error}") from None
        self.key = key if key is not None else Key()
        expand_key(self.key.page.octets, self.key.page.expanded)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def context(self) -> cython.p_void:
        return calloc(1, _MB_CONTEXT)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_context(self, context: cython.p_void) -> cython.void:
        explicit_bzero(context, _MB_CONTEXT)
        free(context)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def seal(self, context: cython.p_void, number: uint64_t, data: cython.pointer[cython.const[uint8_t]], octets: uint32_t,
             out: cython.pointer[uint8_t], seal: cython.pointer[uint8_t]) -> cython.int:
        nonce: uint8_t[12]
        if self.key.page.here == 0:
            return -1
        _nonce(nonce, number)
        self.encrypt(self.key.page.expanded, context, out, data, octets, nonce, cython.NULL, 0, seal, SEAL)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def open(self, context: cython.p_void, number: uint64_t, data: cython.pointer[uint8_t], octets: uint32_t,
             seal: cython.pointer[cython.const[uint8_t]]) -> cython.int:
        nonce: uint8_t[12]
        tag: uint8_t[16]
        differs: uint8_t = 0
        i: cython.int
        if self.key.page.here == 0:
            return -1
        _nonce(nonce, number)
        self.decrypt(self.key.page.expanded, context, data, data, octets, nonce, cython.NULL, 0, tag, SEAL)
        for i in range(SEAL):       # all of them: how long it takes tells nothing
            differs |= tag[i] ^ seal[i]
        if differs:
            memset(data, 0, octets)
            return -1
        return 0


def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do; nothing where it says nothing, as on ARM."""
    try:
        with open("/proc/cpuinfo") as lines:
            return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return frozenset()


def _ipsec_mb() -> tuple[str, ctypes.CDLL]:
    missing = None
    for name in ("libIPSec_MB.so.2", "libIPSec_MB.so.1"):
        try:
            return name, library(name, "libipsec-mb1", "encryption = false")
        except LibraryMissing as error:
            missing = error
    raise missing


def agree(one: AesGcm, other: AesGcm) -> bool:
    """Whether two with the same key do the same with random octets."""
    for number, octets in enumerate(_TRIED):
        page = os.urandom(octets)
        sealed = one.sealed(number, page)
        if not (sealed == other.sealed(number, page) and one.opened(number, *sealed) == other.opened(number, *sealed) == page):
            return False
    return True


def aes_gcm(refused: Callable[[str], None] = lambda why: None) -> AesGcm:
    """The fastest that there is. `refused` is told of a library that is there but does something else than libcrypto.

    Raises LibraryMissing, OSError.
    """
    tried = Key()       # for that alone: its numbers are used
    try:
        fast = IpsecMb(tried)
    except LibraryMissing:
        return Libcrypto()
    if not agree(fast, Libcrypto(tried)):
        refused(f"{fast.by} does not encrypt as libcrypto does, which is used instead")
        return Libcrypto()
    return IpsecMb()
