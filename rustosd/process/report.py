"""The report of a program that an exception ended: what a core file would be opened for, as text.

It is taken while the thread still stands. Only printable characters are in it: what programs call themselves is shown on
terminals.
"""

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rustosd.process import inventory
from rustosd.process import syscalls as nr
from rustosd.process.backtrace import Unwinder
from rustosd.process.exceptions import SWAP_FAULT, Fault
from rustosd.process.notify import read_memory
from rustosd.process.signals import signal_name

TEXT_MOST: Final = 60_000
_MAPS_MOST: Final = 24_000
_STACK_WORDS: Final = 64
_CODE_BEFORE, _CODE_BEHIND = 16, 32
_UNPRINTABLE: Final = re.compile(r"[^ -~]")
_KERNELS: Final = {0x80: "SI_KERNEL"}
_CODES: Final = {
    (8, 1): "FPE_INTDIV", (8, 3): "FPE_FLTDIV", (8, 4): "FPE_FLTOVF", (8, 5): "FPE_FLTUND", (8, 6): "FPE_FLTRES",
    (8, 7): "FPE_FLTINV", (4, 1): "ILL_ILLOPC", (4, 2): "ILL_ILLOPN", (11, 1): "SEGV_MAPERR", (11, 2): "SEGV_ACCERR",
    (11, 4): "SEGV_PKUERR", (7, 1): "BUS_ADRALN", (7, 2): "BUS_ADRERR", (5, 1): "TRAP_BRKPT", (5, 2): "TRAP_TRACE",
}


def printable(text: str) -> str:
    """A program's own words in a line, without what a terminal would obey."""
    return _UNPRINTABLE.sub("?", text)


def summary(fault: Fault) -> str:
    """In a line: `page fault (#PF): write to 0x123456, where nothing is mapped`."""
    return printable(f"{fault.title}: {fault.words}")


def compose(fault: Fault, calls: Iterable[tuple[int, int, int]] = ()) -> str:
    """All of it, at most TEXT_MOST characters. `calls`: (thread, system call, its first argument), the oldest first."""
    row = inventory.describe(fault.process) or {}
    head = [f"reason: {summary(fault)}", f"at: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
            f"process: {fault.process} ({row.get('name', 'unknown')})", f"thread: {fault.tid}",
            f"parent: {row.get('parent', 'unknown')}", f"user: {row.get('user', 'unknown')}",
            f"command: {row.get('command', 'unknown')}", f"age: {row.get('age_s', 0)} s"]
    # Who reads memory that cannot be brought in waits for it as the program does: not us.
    memory = () if fault.kind == SWAP_FAULT else (
        ("back-trace", _trace(fault)), ("code", _code(fault)), ("stack", _stack(fault)))
    sections = (("exception", _exception(fault)), ("registers", _registers(fault)), *memory,
                ("last socket calls of its group", _calls(calls)),
                ("limits", _file(fault, "limits")), ("mappings", fault.maps[:_MAPS_MOST]))
    text = "\n".join(head) + "\n" + "".join(f"\n=== {title} ===\n{content.rstrip() or 'none'}\n" for title, content in sections)
    return "\n".join(map(printable, text.split("\n")))[:TEXT_MOST]


def _exception(fault: Fault) -> str:
    number, code = fault.info.number, fault.info.code
    lines = [f"{fault.title}: {fault.words}",
             f"signal {number} {signal_name(number)}, code {code} {_CODES.get((number, code), _KERNELS.get(code, ''))}"]
    if fault.frame is not None:
        lines.append(f"trap {fault.frame.trap}, error code {fault.frame.error_code:#x}, CR2 {fault.frame.cr2:#x}")
    else:
        lines.append("trap number unknown: the kernel's frame could not be read, the signal tells this much")
    if fault.address is not None:
        lines.append(f"address {fault.address:#x}")
    return "\n".join(lines)


def _registers(fault: Fault) -> str:
    items = [f"{name:>8} {value:016x}" for name, value in fault.registers.items()]
    return "\n".join("  ".join(items[at:at + 3]) for at in range(0, len(items), 3))


def _trace(fault: Fault) -> str:
    try:
        return "\n".join(f"#{index:<2} {frame}" for index, frame in
                         enumerate(Unwinder(fault.tid, fault.registers, fault.maps).frames()))
    except Exception as error:      # the program's files may say anything, and its supervisor must live
        return f"none: {error!r}"


def _code(fault: Fault) -> str:
    rip = fault.registers.rip
    try:
        octets = read_memory(fault.tid, rip - _CODE_BEFORE, _CODE_BEFORE + _CODE_BEHIND)
    except (OSError, OverflowError):
        return f"not readable at {rip:#x}"
    return f"{rip - _CODE_BEFORE:#x}: {octets[:_CODE_BEFORE].hex(' ')} <{octets[_CODE_BEFORE:].hex(' ')}>"


def _stack(fault: Fault) -> str:
    rsp = fault.registers.rsp & ~7
    for words in (_STACK_WORDS, 8, 1):
        with contextlib.suppress(OSError, OverflowError):
            values = struct.unpack(f"<{words}Q", read_memory(fault.tid, rsp, 8 * words))
            return "\n".join(f"{rsp + 8 * at:#018x}: " + " ".join(f"{value:016x}" for value in values[at:at + 4])
                             for at in range(0, words, 4))
    return f"not readable at {rsp:#x}"


def _calls(calls: Iterable[tuple[int, int, int]]) -> str:
    return "\n".join(f"thread {thread}: {nr.NAMES.get(number, number)}({first}, ...)" for thread, number, first in calls)


def _file(fault: Fault, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{fault.process}/{name}").read_text(errors="replace")
    return ""


def program_of(fault: Fault) -> str:
    """What its executable is called; what it has made of its name where that cannot be read."""
    with contextlib.suppress(OSError):
        return printable(os.path.basename(os.readlink(f"/proc/{fault.process}/exe")))[:64]
    return printable((inventory.describe(fault.process) or {}).get("name", "unknown"))
