"""Which system calls of a program are handed to its supervisor, as a seccomp filter in classic BPF (seccomp(2)).

What the program does with a descriptor that it has (read, write, poll, epoll, dup, close, sendfile, send and recv without an
address) never leaves the kernel. What makes sockets, names hosts or asks about them is the supervisor's.
"""

import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from rustosd.process import syscalls as nr

NOTIFY: Final = 0x7FC0_0000
TRACE: Final = 0x7FF0_0000
ALLOW: Final = 0x7FFF_0000
_ERRNO: Final = 0x0005_0000
_ENOSYS: Final = 38
_EPERM: Final = 1
_EINVAL: Final = 22
_AF_PACKET: Final = 17
_AF_VSOCK: Final = 40
_AF_XDP: Final = 44
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16      # struct seccomp_data
INTERFACE_REQUESTS: Final = (0x8910, 0x8980)    # SIOCGIFNAME to SIOCSIFMAP: of interfaces, where the socket was made
IPPROTO_LEVELS: Final = (0, 6, 17, 41, 136)     # IP, TCP, UDP, IPv6, UDP-Lite


class Is(NamedTuple):
    """An argument's low 32 bits, which are all of an int, have this value."""

    argument: int
    value: int


class Has(NamedTuple):
    """One of these bits is set in an argument's low 32."""

    argument: int
    bits: int


class AtLeast(NamedTuple):
    """An argument, all 64 bits of it, is at least this."""

    argument: int
    value: int


class Within(NamedTuple):
    """An argument's low 32 bits are at least the one, and below the other."""

    argument: int
    first: int
    end: int


class NotNull(NamedTuple):
    """An argument is a pointer to something."""

    argument: int


class Rule(NamedTuple):
    """What happens when all conditions hold."""

    action: int
    conditions: tuple[Is | Has | AtLeast | Within | NotNull, ...] = ()


def refuse(number: int) -> int:
    """The action that lets a call fail with an errno."""
    return _ERRNO | number


# What the supervisor answers of SOL_SOCKET; the rest (timeouts, priorities, SO_TYPE, peer credentials) is the kernel's.
GET_OPTIONS: Final = (
    socket.SO_ERROR, socket.SO_DOMAIN, socket.SO_PROTOCOL, socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_KEEPALIVE,
    socket.SO_LINGER, socket.SO_BROADCAST, socket.SO_ACCEPTCONN, socket.SO_OOBINLINE)
SET_OPTIONS: Final = (socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_KEEPALIVE, socket.SO_LINGER, socket.SO_BROADCAST,
                      socket.SO_OOBINLINE, socket.SO_BINDTODEVICE, socket.SO_RCVBUF)


def _options(names: Iterable[int]) -> list[Rule]:
    return [*(Rule(NOTIFY, (Is(1, socket.SOL_SOCKET), Is(2, name))) for name in names),
            *(Rule(NOTIFY, (Is(1, level),)) for level in IPPROTO_LEVELS)]


_ALWAYS = [Rule(NOTIFY)]
RULES: Final[dict[int, list[Rule]]] = {
    nr.SOCKET: [Rule(NOTIFY, (Is(0, socket.AF_INET),)), Rule(NOTIFY, (Is(0, socket.AF_INET6),)),
                *(Rule(refuse(_EPERM), (Is(0, family),)) for family in (_AF_PACKET, _AF_VSOCK, _AF_XDP))],
    **{number: _ALWAYS for number in (
        nr.CONNECT, nr.BIND, nr.LISTEN, nr.ACCEPT, nr.ACCEPT4, nr.GETSOCKNAME, nr.GETPEERNAME, nr.SENDMSG, nr.RECVMSG,
        nr.SENDMMSG, nr.RECVMMSG)},
    nr.SENDTO: [Rule(NOTIFY, (NotNull(4),))],
    nr.RECVFROM: [Rule(NOTIFY, (NotNull(4),))],
    nr.GETSOCKOPT: _options(GET_OPTIONS),
    nr.SETSOCKOPT: _options(SET_OPTIONS),
    nr.IOCTL: [Rule(NOTIFY, (Within(1, *INTERFACE_REQUESTS),))],
    # It can make sockets and connect them without any of the calls above.
    **{number: [Rule(refuse(_ENOSYS))] for number in (nr.IO_URING_SETUP, nr.IO_URING_ENTER, nr.IO_URING_REGISTER)},
}


DISCARDING: Final = (4, 8, 9, 24, 102)          # DONTNEED, FREE, REMOVE, DONTNEED_LOCKED, GUARD_INSTALL
NOT_FOR_CHILDREN: Final = (10, 18)              # DONTFORK, WIPEONFORK
FOR_CHILDREN: Final = (11, 19)                  # DOFORK, KEEPONFORK
PROT_WRITE: Final = 2
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
_LARGE_OCTETS: Final = 128 << 10        # of a reservation, which may become writable piece by piece
_SHM_REMAP: Final = 0x4000


def memory_rules(cookie: int) -> dict[int, list[Rule]]:
    """When its memory is paged, what a program does to its mappings stops it for its tracer. Our own calls have the cookie.

    So does all that lets it have more of it than before, however little that is, and what copies it: a fork.
    """
    return {
        nr.MUNMAP: [Rule(TRACE)], nr.MREMAP: [Rule(TRACE)], nr.BRK: [Rule(TRACE, (NotNull(0),))],
        nr.MMAP: [Rule(TRACE, (Has(3, MAP_FIXED),)), Rule(TRACE, (Has(2, PROT_WRITE), Has(3, MAP_ANONYMOUS))),
                  Rule(TRACE, (Has(3, MAP_ANONYMOUS), AtLeast(1, _LARGE_OCTETS)))],
        nr.MPROTECT: [Rule(TRACE, (Has(2, PROT_WRITE),))], nr.PKEY_MPROTECT: [Rule(TRACE, (Has(2, PROT_WRITE),))],
        nr.FORK: [Rule(TRACE)], nr.CLONE: [Rule(ALLOW, (Has(0, nr.CLONE_VM),)), Rule(TRACE)],
        nr.CLONE3: [Rule(TRACE)],               # what it shares is in memory, where no filter looks
        nr.MADVISE: [Rule(ALLOW, (Is(5, cookie),)),
                     *(Rule(TRACE, (Is(2, advice),)) for advice in (*DISCARDING, *NOT_FOR_CHILDREN, *FOR_CHILDREN))],
        nr.USERFAULTFD: [Rule(ALLOW, (Is(1, cookie),)), Rule(refuse(_EPERM))],
        nr.RECVMSG: [Rule(ALLOW, (Is(5, cookie),))],
        # Rarely used ways to do the same, which their callers can do without.
        nr.SHMAT: [Rule(refuse(_EINVAL), (Has(2, _SHM_REMAP),))],
        nr.REMAP_FILE_PAGES: [Rule(refuse(_ENOSYS))], nr.PROCESS_MADVISE: [Rule(refuse(_ENOSYS))],
    }


def joined(first: dict[int, list[Rule]], then: dict[int, list[Rule]]) -> dict[int, list[Rule]]:
    """Both; for a call that both are about the first ones are asked first."""
    return {number: first.get(number, []) + then.get(number, []) for number in first | then}


def assemble(rules: dict[int, list[Rule]]) -> bytes:
    """The filter as an array of struct sock_filter. The first rule that holds decides; without one the call is allowed.

    Calls by another convention (32-bit, x32) fail with ENOSYS, for they have other numbers.
    """
    program = [_instruction(_LOAD, _ARCH_AT), _instruction(_JUMP_EQUAL, nr.AUDIT_ARCH, 1, 0),
               _instruction(_RETURN, refuse(_ENOSYS)),
               _instruction(_LOAD, _NR_AT), _instruction(_JUMP_ABOVE, nr.X32_BIT, 0, 1),
               _instruction(_RETURN, refuse(_ENOSYS))]
    for number, choices in rules.items():
        body = [instruction for rule in choices for instruction in _rule(rule)]
        body.append(_instruction(_RETURN, ALLOW))
        program += [_instruction(_LOAD, _NR_AT), _instruction(_JUMP_EQUAL, number, 0, len(body)), *body]
    program.append(_instruction(_RETURN, ALLOW))
    return b"".join(program)


def _rule(rule: Rule) -> list[bytes]:
    """Instructions that return the action, or fall through behind themselves."""
    code = [_instruction(_RETURN, rule.action)]
    for condition in reversed(rule.conditions):
        code = [*_condition(condition, len(code)), *code]
    return code


def _condition(condition: Is | Has | AtLeast | Within | NotNull, rest: int) -> list[bytes]:
    """Instructions that skip the `rest` behind them unless the condition holds."""
    at = _ARGUMENTS_AT + 8 * condition.argument
    if isinstance(condition, Is):
        return [_instruction(_LOAD, at), _instruction(_JUMP_EQUAL, condition.value, 0, rest)]
    if isinstance(condition, Has):
        return [_instruction(_LOAD, at), _instruction(_JUMP_SET, condition.bits, 0, rest)]
    if isinstance(condition, Within):
        return [_instruction(_LOAD, at), _instruction(_JUMP_ABOVE, condition.first, 0, rest + 1),
                _instruction(_JUMP_ABOVE, condition.end, rest, 0)]
    if isinstance(condition, AtLeast):                  # of less than 4 GiB
        return [_instruction(_LOAD, at + 4), _instruction(_JUMP_EQUAL, 0, 0, 2),
                _instruction(_LOAD, at), _instruction(_JUMP_ABOVE, condition.value, 0, rest)]
    return [_instruction(_LOAD, at), _instruction(_JUMP_EQUAL, 0, 0, 2),
            _instruction(_LOAD, at + 4), _instruction(_JUMP_EQUAL, 0, rest, 0)]


def _instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, constant)
