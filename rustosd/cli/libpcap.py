"""libpcap through ctypes: what turns `tcp port 80` into a program. Only whoever gives a filter needs it."""

import ctypes
import ctypes.util
from typing import Any, Final

from netstack.bpf import INSTRUCTION

LINK_ETHERNET: Final = 1                # DLT_EN10MB
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF    # PCAP_NETMASK_UNKNOWN
_NAMES: Final = ("libpcap.so.0.8", "libpcap.so.1")


class FilterError(ValueError):
    """The expression cannot be compiled; the text says why, in libpcap's words."""


class NoLibrary(FilterError):
    """There is no libpcap here; the text says what to install."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jump_true", ctypes.c_ubyte), ("jump_false", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def load() -> ctypes.CDLL:
    """The library. Raises NoLibrary where there is none."""
    found = ctypes.util.find_library("pcap")
    for name in (*_NAMES, *([found] if found else [])):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        return library
    raise NoLibrary("a filter needs libpcap, which is not installed: apt-get install libpcap0.8")


def compiled(expression: str, snap_octets: int) -> bytes:
    """The program for an expression as tcpdump takes it, over Ethernet; empty for an empty one. Raises FilterError."""
    if not expression.strip():
        return b""
    library = load()
    handle = ctypes.c_void_p(library.pcap_open_dead(LINK_ETHERNET, snap_octets))
    if not handle:
        raise FilterError("libpcap has no memory")
    try:
        return _compiled(library, handle, expression)
    finally:
        library.pcap_close(handle)


def _compiled(library: Any, handle: ctypes.c_void_p, expression: str) -> bytes:
    program = _Program()
    if library.pcap_compile(handle, ctypes.byref(program), expression.encode(), 1, ctypes.c_uint(_NETMASK_UNKNOWN)):
        raise FilterError(f"no filter: {library.pcap_geterr(handle).decode(errors='replace')}")
    try:
        return b"".join(INSTRUCTION.pack(each.code, each.jump_true, each.jump_false, each.k)
                        for each in program.instructions[:program.length])
    finally:
        library.pcap_freecode(ctypes.byref(program))
