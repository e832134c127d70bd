"""Makes socket calls with arguments that no program would pass: hostile_calls.py SEED HOST.

Pointers to nothing, into what cannot be written, across the end of a mapping; lengths that are negative or huge; descriptors of
other things; from two threads at once. Prints the errnos there were, and then what a good socket hears.
"""

import ctypes
import errno
import mmap
import os
import random
import socket
import sys
import threading

ROUNDS = 3000
CALLS = (16, 42, 43, 44, 45, 46, 47, 49, 50, 51, 52, 54, 55, 288, 299, 307)     # ioctl; connect to getsockopt; accept4 ...
ACCEPTS = (43, 288)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
room = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 1)     # the second page can only be read


def pointer(choice: random.Random) -> int:
    return choice.choice((0, 1, start, start + 64, start + mmap.PAGESIZE - choice.randrange(40), start + mmap.PAGESIZE + 8,
                          start + 2 * mmap.PAGESIZE - 4, choice.getrandbits(64), 0xFFFF_8000_0000_0000))


def number(choice: random.Random) -> int:
    return choice.choice((0, 1, 2, 4, 8, 16, 28, 128, 129, -1, 1 << 31, (1 << 64) - 1, choice.randrange(0x8910, 0x8980),
                          choice.randrange(70000)))


def storm(seed: int, fds: list[int], told: set[str]) -> None:
    choice = random.Random(seed)
    for _ in range(ROUNDS):
        room[:256] = choice.randbytes(256)
        room[:2] = choice.choice((b"\2\0", b"\12\0", b"\0\0", b"\1\0"))
        call = choice.choice(CALLS)
        arguments = [choice.choice((pointer, number))(choice) for _ in range(5)]
        fd = choice.choice(fds)
        result = libc.syscall(call, fd, *map(ctypes.c_void_p, arguments))
        if result < 0:
            told.add(errno.errorcode[ctypes.get_errno()])
        elif call in ACCEPTS:
            os.close(result)


def main() -> None:
    seed, host = int(sys.argv[1]), sys.argv[2]
    ours = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6)
            for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    for one in ours:
        one.setblocking(False)
    theirs = [os.open("/dev/null", os.O_RDWR), 999, -1, 1 << 30]
    told: set[str] = set()
    threads = [threading.Thread(target=storm, args=(seed + k, [one.fileno() for one in ours] + theirs, told)) for k in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    print(" ".join(sorted(told)))
    with socket.create_connection((host, 18091)) as good:
        good.sendall(b"still here")
        print(good.recv(100).decode())


main()
