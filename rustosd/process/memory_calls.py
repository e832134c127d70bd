"""What system calls that change a program's mappings do to them: what is gone, what has moved, how much more there may be."""

import errno
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rustosd.process import syscalls as nr
from rustosd.process.filter import DISCARDING, FOR_CHILDREN, MAP_ANONYMOUS, MAP_FIXED, NOT_FOR_CHILDREN, PROT_WRITE
from rustosd.process.notify import read_memory

if TYPE_CHECKING:
    from rustosd.process.memory import Space

_PAGE: Final = 4096
_ZEROED: Final = (4, 24)                    # advice behind which pages must read zero: DONTNEED, DONTNEED_LOCKED
_MREMAP_DONTUNMAP: Final = 4
_MAP_PRIVATE: Final = 2
MAP_POPULATE: Final = 0x8000
_PROTECTING: Final = (nr.MPROTECT, nr.PKEY_MPROTECT)
FORKING: Final = (nr.FORK, nr.CLONE, nr.CLONE3)
"""Without CLONE_VM: `shares_memory` tells it of clone3, its filter of clone."""


class Call(NamedTuple):
    """One that its filter tells of; EXECVE: a new address space, whose program has not run yet."""

    process: int
    space: "Space"
    number: int
    arguments: tuple[int, ...]
    since_ns: int


def shares_memory(tid: int, call: Call) -> bool:
    """Whether a thread's clone3 makes a thread, or a process in the same memory, or nothing at all."""
    try:
        return bool(struct.unpack("=Q", read_memory(tid, call.arguments[0], 8))[0] & nr.CLONE_VM)
    except OSError:
        return True


def populates(call: Call) -> bool:
    """Whether the kernel would fill the new memory before anybody was told of it."""
    return call.number == nr.MMAP and call.arguments[3] & (MAP_ANONYMOUS | MAP_POPULATE) == MAP_ANONYMOUS | MAP_POPULATE


def only_grows(call: Call) -> bool:
    """Whether all that it can do is to let the program have more memory."""
    return (call.number in _PROTECTING
            or (call.number == nr.MMAP and not call.arguments[3] & MAP_FIXED and not populates(call)))


def growth(call: Call) -> int:
    """How many octets more the program may then have in memory, at most. Before it is made, for those that only grow."""
    if call.number in _PROTECTING:
        return _up(call.arguments[1])
    writable = call.arguments[2] & PROT_WRITE and call.arguments[3] & _MAP_PRIVATE
    return _up(call.arguments[1]) if writable else 0


def grown(call: Call, result: int) -> int:
    """The same of any call, once it has been made. Before `effect`."""
    if call.number == nr.BRK:                   # the first one: who knows how much
        return max(0, result - call.space.top)
    if -4096 < result < 0:
        return 0
    if call.number in _PROTECTING or (call.number == nr.MMAP and call.arguments[3] & MAP_ANONYMOUS):
        return growth(call)
    if call.number == nr.MREMAP:
        return max(0, _up(call.arguments[2]) - _up(call.arguments[1]))
    return 0


def effect(call: Call, result: int) -> dict[str, Any] | None:
    """What a call has done to pages that may be in swap, for the pager; None: nothing. Ranges are forgotten, then moved."""
    a, b, c = call.arguments[:3]
    space = call.space
    if call.number in (*_PROTECTING, *FORKING):
        return None
    if call.number == nr.BRK:
        former, space.top = space.top, result
        return {"forget": [(_up(result), _up(former))]} if result < former else None
    if call.number == nr.MADVISE:
        if -result == errno.ENOMEM or result == 0:
            span = a, a + _up(b)
            if c in NOT_FOR_CHILDREN:
                space.not_inherited.append(span)
            elif c in FOR_CHILDREN:
                space.not_inherited = [part for whole in space.not_inherited for part in _without(whole, span)]
            elif c in DISCARDING:
                return {"forget": [span]}
        return None
    if -4096 < result < 0:
        return {"forget": [], "unmapped": True}         # some of it may have been done before it failed
    if call.number == nr.MUNMAP:
        return {"forget": [(a, a + _up(b))]}
    if call.number == nr.MMAP:
        return {"forget": [(result, result + _up(b))]}
    old, new = _up(b), _up(c)                           # mremap
    if result == a:
        return {"forget": [(a + min(old, new), a + max(old, new))]} if old != new else None
    return {"forget": [(result, result + new), *([(a + new, a + old)] if new < old else [])],
            "move": (a, a + min(old, new), result)}


def emptied(call: Call) -> tuple[int, int] | None:
    """(start, octets) of what is still mapped afterwards, and must read zero, if there is such."""
    if ((call.number == nr.MADVISE and call.arguments[2] in _ZEROED)
            or (call.number == nr.MREMAP and call.arguments[3] & _MREMAP_DONTUNMAP)):
        return call.arguments[0], _up(call.arguments[1])
    return None


def _without(whole: tuple[int, int], part: tuple[int, int]) -> list[tuple[int, int]]:
    """What is left of a range."""
    pieces = [(whole[0], min(whole[1], part[0])), (max(whole[0], part[1]), whole[1])]
    return [(start, end) for start, end in pieces if start < end]


def _up(octets: int) -> int:
    return (octets + _PAGE - 1) & -_PAGE
