"""What Linux's nbd driver is answered, by a store: the kernel's end is a socket of the test's."""

import errno
import os
import socket
import struct
import threading

import pytest

from mm.swap.device import RamDevice
from mm.swap.seal import Checksum
from mm.swap.store import SwapStore
from rustosd.swap.kernel_serve import KernelServer

PAGE, PAGES = 4096, 64
READ, WRITE, DISC, FLUSH, TRIM = 0, 1, 2, 3, 4
EIO, EINVAL = 5, 22


class Kernel:
    """The driver's end."""

    def __init__(self):
        self.device = RamDevice(PAGES * PAGE)
        self.store = SwapStore(self.device, sealer=Checksum())
        self.store.allocate(PAGES)
        ours, self.end = socket.socketpair()
        self.ours, self.cookie = ours, 0
        self.server = KernelServer(ours.fileno(), self.store)
        self.ended = []
        self.thread = threading.Thread(target=lambda: self.ended.append(self.server.serve()))
        self.thread.start()

    def ask(self, command, at=0, octets=0, payload=b""):
        self.cookie += 1
        self.end.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, self.cookie, at, octets) + payload)
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert (magic, cookie) == (0x67446698, self.cookie)
        return (error, self.receive(octets)) if command == READ and not error else error

    def receive(self, octets):
        data = b""
        while len(data) < octets:
            part = self.end.recv(octets - len(data))
            assert part
            data += part
        return data

    def close(self):
        self.end.close()
        self.thread.join(10)
        self.ours.close()


@pytest.fixture
def kernel():
    one = Kernel()
    yield one
    one.close()
    assert not one.thread.is_alive()


def test_what_was_never_written_or_was_trimmed_reads_as_zeros(kernel):
    some = os.urandom(3 * PAGE)
    assert kernel.ask(READ, 0, PAGES * PAGE) == (0, bytes(PAGES * PAGE))
    assert kernel.ask(WRITE, 2 * PAGE, 3 * PAGE, some) == 0
    assert kernel.ask(READ, 0, 8 * PAGE) == (0, bytes(2 * PAGE) + some + bytes(3 * PAGE))
    assert kernel.ask(TRIM, 3 * PAGE, PAGE) == 0
    assert kernel.ask(READ, 2 * PAGE, 3 * PAGE) == (0, some[:PAGE] + bytes(PAGE) + some[2 * PAGE:])
    assert kernel.ask(FLUSH) == 0


def test_what_the_device_cannot_do_is_an_error_of_that_request_alone(kernel):
    some = os.urandom(2 * PAGE)
    assert kernel.ask(WRITE, 0, 2 * PAGE, some) == 0
    kernel.device.fail(errno.EIO, writes=False, at=PAGE, octets=PAGE)
    assert kernel.ask(READ, PAGE, PAGE) == EIO and kernel.ask(READ, 0, PAGE) == (0, some[:PAGE])
    kernel.device.fail(errno.EIO, reads=False)
    assert kernel.ask(WRITE, 0, PAGE, some[:PAGE]) == EIO
    assert kernel.ask(READ, 0, PAGE) == EIO         # and never zeros, or what was there before
    kernel.device.fail(0)
    assert kernel.ask(WRITE, 0, PAGE, some[PAGE:]) == 0 and kernel.ask(READ, 0, PAGE) == (0, some[PAGE:])
    kernel.device.flip(PAGE + 5, 1)
    assert kernel.ask(READ, PAGE, PAGE) == EIO and kernel.server.errors == 4


@pytest.mark.parametrize(("command", "at", "octets"), [
    (READ, 1, PAGE), (READ, 0, 100), (READ, PAGES * PAGE, PAGE), (READ, 0, 0), (TRIM, 0, (PAGES + 1) * PAGE), (7, 0, PAGE),
    (READ, 1 << 63, PAGE)])
def test_what_makes_no_sense_is_refused(kernel, command, at, octets):
    assert kernel.ask(command, at, octets) == EINVAL


def test_a_write_that_is_too_long_is_taken_in_and_refused(kernel):
    assert kernel.ask(WRITE, 0, 5 << 20, bytes(5 << 20)) == EINVAL
    assert kernel.ask(READ, 0, PAGE) == (0, bytes(PAGE))


def test_it_ends_when_the_kernel_lets_go(kernel):
    kernel.end.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISC, 1, 0, 0))
    kernel.thread.join(10)
    assert kernel.ended == [0]
