"""Descriptors of other processes' threads: the right one, or an errno."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from rustosd.process.threads import Threads, inode_of
from tests.support.descriptors import open_descriptors

HOLDER = """
import os, socket, sys, threading
open("/proc/self/comm", "wb").write(b"caf\\xc3")        # cut off in the middle of a character
one = socket.socket(socket.AF_UNIX)
def tell():
    print(threading.get_native_id(), one.fileno(), os.fstat(one.fileno()).st_ino, flush=True)
tell()
for _ in range(2):
    thread = threading.Thread(target=lambda: (tell(), sys.stdin.readline()))
    thread.start()
    thread.join()
sys.stdin.readline()
"""


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(params=[False, True], ids=["by thread", "by process"])
def threads(request):
    made = Threads(request.param)
    yield made
    made.close()


def heard(holder):
    return map(int, holder.stdout.readline().split())


def test_a_duplicate_is_of_the_threads_own_descriptor(holder, threads):
    for _ in range(2):      # its first thread, and another
        thread, number, inode = heard(holder)
        for _ in range(3):
            fd = threads.duplicate(thread, number)
            assert inode_of(fd) == inode == os.fstat(fd).st_ino
            os.close(fd)
        with pytest.raises(OSError) as refused:
            threads.duplicate(thread, 900)
        assert refused.value.errno == errno.EBADF


def test_a_thread_that_has_ended_has_none_and_is_forgotten(holder, threads):
    before = len(open_descriptors())
    _, number, _ = heard(holder)
    thread, _, _ = heard(holder)
    os.close(threads.duplicate(thread, number))
    assert len(open_descriptors()) == before + 1
    holder.stdin.write("\n")
    holder.stdin.flush()
    another, _, _ = heard(holder)       # the first one has ended
    with pytest.raises(OSError) as refused:
        threads.duplicate(thread, number)
    assert refused.value.errno == errno.ESRCH
    os.close(threads.duplicate(another, number))
    threads.tidy()
    holder.kill()
    holder.wait()
    threads.tidy()
    assert len(open_descriptors()) == before


def test_the_inode_of_a_closed_descriptor_is_an_error():
    fd = socket.socket().detach()
    os.close(fd)
    with pytest.raises(OSError) as refused:
        inode_of(fd)
    assert refused.value.errno == errno.EBADF
