"""What is told of processes, compared with what the kernel's own calls say of them."""

import os
import subprocess
import sys
import time

import pytest

from rustosd.process import inventory

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'])"


@pytest.fixture
def family():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE) as child:
        limit = time.monotonic() + 20
        while len(inventory.below(child.pid)) < 1 and time.monotonic() < limit:
            time.sleep(0.01)
        yield child.pid
        child.stdin.close()


def test_the_tree_below_a_process(family):
    assert family in inventory.below(os.getpid())
    (grandchild,) = inventory.below(family)
    assert inventory.describe(grandchild)["parent"] == family
    assert inventory.below(grandchild) == []


def test_a_process_in_a_row():
    row = inventory.describe(os.getpid())
    assert (row["pid"], row["parent"], row["nice"]) == (os.getpid(), os.getppid(), os.getpriority(os.PRIO_PROCESS, 0))
    assert row["state"] == "running" and row["rss_octets"] > 1 << 20 and row["cpu_s"] > 0


@pytest.mark.parametrize(("name", "read"), [(b") R 1 (", ") R 1 ("), (b"caf\xc3", "caf\ufffd"), (b"a\nPPid: 1\x1b[2J", None)])
def test_a_name_with_anything_in_it_is_read_to_its_end(name, read):
    with subprocess.Popen([sys.executable, "-c", f"import sys; open('/proc/self/comm', 'wb').write({name});"
                                                 "print(flush=True); sys.stdin.read()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        odd.stdout.readline()
        row = inventory.describe(odd.pid)
        assert (row["name"], row["parent"]) == (read or name.decode(), os.getpid())
        assert inventory.parent_of(odd.pid) == os.getpid() and inventory.process_of(odd.pid) == odd.pid
        assert inventory.may_bind_ports_of_root(odd.pid) == (os.geteuid() == 0)
        assert inventory.more_about(odd.pid)["peak_rss_octets"] > 1 << 20
        odd.stdin.close()


def test_who_has_ended_is_none_or_an_error():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert inventory.describe(gone.pid) is None
    assert inventory.socket_inodes(gone.pid) == set()
    with pytest.raises(OSError):
        inventory.more_about(gone.pid)
