"""The filter, run by a reader of classic BPF that knows nothing but the instruction set."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustosd.process import syscalls as nr
from rustosd.process.filter import (
    ALLOW,
    NOTIFY,
    RULES,
    TRACE,
    AtLeast,
    Has,
    Is,
    NotNull,
    Rule,
    Within,
    assemble,
    joined,
    memory_rules,
    refuse,
)

ENOSYS, EPERM = refuse(38), refuse(1)


def run(program: bytes, number: int, *arguments: int, arch: int = nr.AUDIT_ARCH) -> int:
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments, *(0,) * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator, = struct.unpack_from("=I", data, constant)
        elif operation == 0x15:
            at += if_true if accumulator == constant else if_false
        elif operation == 0x35:
            at += if_true if accumulator >= constant else if_false
        elif operation == 0x45:
            at += if_true if accumulator & constant else if_false
        else:
            assert operation == 0x06
            return constant


PROGRAM = assemble(RULES)


@pytest.mark.parametrize(("call", "action"), [
    ((nr.SOCKET, socket.AF_INET, socket.SOCK_STREAM), NOTIFY),
    ((nr.SOCKET, socket.AF_INET6 | 7 << 32, socket.SOCK_DGRAM), NOTIFY),       # the kernel looks at 32 bits only
    ((nr.SOCKET, socket.AF_UNIX, socket.SOCK_STREAM), ALLOW),
    ((nr.SOCKET, socket.AF_NETLINK, socket.SOCK_RAW), ALLOW),
    ((nr.SOCKET, 17, socket.SOCK_RAW), EPERM),
    ((nr.CONNECT, 3), NOTIFY),
    ((nr.IOCTL, 3, 0x891B), NOTIFY),
    ((nr.IOCTL, 3, 0x8910 | 7 << 32), NOTIFY),
    ((nr.IOCTL, 3, 0x897F), NOTIFY),
    ((nr.IOCTL, 3, 0x890F), ALLOW),
    ((nr.IOCTL, 3, 0x8980), ALLOW),
    ((nr.IOCTL, 3, 0x541B), ALLOW),
    ((nr.SENDTO, 3, 0x1000, 5, 0, 0), ALLOW),
    ((nr.SENDTO, 3, 0x1000, 5, 0, 0x7FFF_0000), NOTIFY),
    ((nr.SENDTO, 3, 0x1000, 5, 0, 1 << 32), NOTIFY),                            # a pointer whose low half is zero
    ((nr.GETSOCKOPT, 3, socket.SOL_SOCKET, socket.SO_ERROR), NOTIFY),
    ((nr.GETSOCKOPT, 3, socket.SOL_SOCKET, socket.SO_TYPE), ALLOW),
    ((nr.GETSOCKOPT, 3, socket.IPPROTO_TCP, 11), NOTIFY),
    ((nr.SETSOCKOPT, 3, socket.SOL_SOCKET, socket.SO_RCVTIMEO), ALLOW),
    ((nr.IO_URING_SETUP, 8, 0x1000), ENOSYS),
    ((0, 3, 0x1000, 100), ALLOW),                                               # read
    ((nr.SOCKET | nr.X32_BIT, socket.AF_INET), ENOSYS),
])
def test_calls_that_matter(call, action):
    assert run(PROGRAM, *call) == action


COOKIE = 0x1234_5679
PAGED = assemble(joined(memory_rules(COOKIE), RULES))


@pytest.mark.parametrize(("call", "action"), [
    ((nr.MUNMAP, 0x1000, 0x1000), TRACE), ((nr.MREMAP, 0x1000, 0x1000, 0x2000), TRACE),
    ((nr.BRK, 0), ALLOW), ((nr.BRK, 1 << 32), TRACE),
    ((nr.MMAP, 0, 4096, 3, 0x22), TRACE), ((nr.MMAP, 0x1000, 4096, 3, 0x32), TRACE),
    ((nr.MMAP, 0, (128 << 10) - 1, 0, 0x22), ALLOW), ((nr.MMAP, 0, 128 << 10, 0, 0x22), TRACE),
    ((nr.MMAP, 0, 1 << 32, 0, 0x22), TRACE), ((nr.MMAP, 0, 1 << 32, 3, 0x02), ALLOW),      # the last one is of a file
    *(((call, 0x1000, 4096, protection), TRACE if protection & 2 else ALLOW)
      for call in (nr.MPROTECT, nr.PKEY_MPROTECT) for protection in (0, 1, 3, 5, 7)),
    ((nr.FORK,), TRACE), ((nr.CLONE, 0x0120_0011), TRACE), ((nr.CLONE, 0x003D_0F00), ALLOW), ((nr.CLONE3, 0x1000, 88), TRACE),
    ((nr.RECVMSG, 3, 0x1000), NOTIFY), ((nr.RECVMSG, 3, 0x1000, 0, 0, 0, COOKIE), ALLOW),
    *(((nr.MADVISE, 0x1000, 4096, advice), TRACE) for advice in (4, 8, 9, 10, 11, 18, 19, 24, 102)),
    *(((nr.MADVISE, 0x1000, 4096, advice), ALLOW) for advice in (0, 3, 14, 15, 23)),
    ((nr.MADVISE, 0x1000, 4096, 4, 0, 0, COOKIE), ALLOW), ((nr.MADVISE, 0x1000, 4096, 4, 0, 0, COOKIE + 1), TRACE),
    ((nr.USERFAULTFD, 0), EPERM), ((nr.USERFAULTFD, 0, COOKIE), ALLOW), ((nr.PROCESS_MADVISE, 3), ENOSYS),
    ((nr.SHMAT, 1, 0x1000, 0x4000), refuse(22)), ((nr.SHMAT, 1, 0x1000, 0), ALLOW),
    ((nr.SOCKET, socket.AF_INET, socket.SOCK_STREAM), NOTIFY),
])
def test_calls_that_matter_when_memory_is_paged(call, action):
    assert run(PAGED, *call) == action


def test_another_architectures_calls_do_not_exist():
    assert run(PROGRAM, 0, arch=0x4000_0003) == ENOSYS


conditions = st.one_of(st.builds(Is, st.integers(0, 5), st.integers(0, 3)), st.builds(NotNull, st.integers(0, 5)),
                       st.builds(Has, st.integers(0, 5), st.integers(1, 3)),
                       st.builds(AtLeast, st.integers(0, 5), st.integers(0, 3)),
                       st.builds(Within, st.integers(0, 5), st.integers(0, 2), st.integers(0, 4)))
rules = st.lists(st.builds(Rule, st.sampled_from([NOTIFY, EPERM, ENOSYS]), st.lists(conditions, max_size=3).map(tuple)),
                 max_size=4)


@given(st.dictionaries(st.integers(0, 5), rules, max_size=4), st.integers(0, 6),
       st.lists(st.integers(0, 3) | st.sampled_from([1 << 32, (1 << 32) + 1]), min_size=6, max_size=6))
def test_the_first_rule_that_holds_decides(table, number, arguments):
    def holds(condition):
        value = arguments[condition.argument]
        if isinstance(condition, Has):
            return bool(value & condition.bits)
        if isinstance(condition, AtLeast):
            return value >= condition.value
        if isinstance(condition, Within):
            return condition.first <= value & 0xFFFF_FFFF < condition.end
        return value != 0 if isinstance(condition, NotNull) else value & 0xFFFF_FFFF == condition.value

    expected = next((rule.action for rule in table.get(number, ()) if all(map(holds, rule.conditions))), ALLOW)
    assert run(assemble(table), number, *arguments) == expected
