"""The journal: what it remembers across kills, and what it refuses."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustosd import journal as journal_module
from rustosd.devices.linkstate import Hop, KernelAddress, KernelRoute, LinkState
from rustosd.journal import DeviceTaken, Journal, JournalError, TapMade


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def test_taken_is_pending_until_given_back(path):
    with Journal(path) as journal:
        first, second = journal.take(TapMade("a")), journal.take(TapMade("b"))
        journal.given_back(first)
        assert journal.pending == {second: TapMade("b")}
    with Journal(path) as journal:
        assert journal.pending == {second: TapMade("b")}
        assert journal.take(TapMade("c")) > second


def test_line_is_on_disk_before_the_act_and_survives_a_kill(path):
    program = ("import os, signal, sys; from pathlib import Path; from rustosd.journal import *\n"
               "journal = Journal(Path(sys.argv[1])); journal.take(TapMade('t0'))\n"
               "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    undone = []
    with Journal(path) as journal:
        assert journal.give_back_all(undone.append) == []
        assert undone == [TapMade("t0")] and journal.pending == {}
        assert path.read_bytes() == b""
    assert list(path.parent.iterdir()) == []        # nothing pending, nothing left


def test_one_that_comes_while_the_last_leaves_gets_a_lock_that_counts(path, monkeypatch):
    """The lock file is removed between open and flock: a lock on it would exclude nobody."""
    first = Journal(path)
    opened = []

    def leave_before(fd, how, really=fcntl.flock):
        if not opened:
            opened.append(fd)
            first.close()
        return really(fd, how)

    monkeypatch.setattr(fcntl, "flock", leave_before)
    with Journal(path), pytest.raises(JournalError, match="holds the journal"):
        Journal(path)


def test_give_back_goes_backwards_and_keeps_what_fails(path):
    undone = []

    def undo(entry):
        undone.append(entry.name)
        if entry.name == "b":
            raise OSError("stuck")

    with Journal(path) as journal:
        for name in "abc":
            journal.take(TapMade(name))
        ((entry, error),) = journal.give_back_all(undo)
        assert (entry, str(error)) == (TapMade("b"), "stuck")
        assert undone == ["c", "b", "a"]
    with Journal(path) as journal:
        assert list(journal.pending.values()) == [TapMade("b")]


def test_file_does_not_grow(path):
    with Journal(path) as journal:
        for _ in range(100):
            journal.given_back(journal.take(TapMade("t0")))
        assert path.stat().st_size == 0
        with pytest.raises(KeyError):
            journal.given_back(1)


def test_file_does_not_grow_while_something_stays_pending(path):
    with Journal(path) as journal:
        stays = journal.take(TapMade("t0"))
        for _ in range(2000):
            journal.given_back(journal.take(TapMade("t" * 60)))
            assert path.stat().st_size < 2 * journal_module.LONG_OCTETS
        last = journal.take(TapMade("t1"))
        assert journal.pending == {stays: TapMade("t0"), last: TapMade("t1")}
    with Journal(path) as journal:
        assert list(journal.pending) == [stays, last]


def test_what_is_given_back_is_known_though_no_file_can_be_opened(path, monkeypatch):
    """The daemon may be at its limit of descriptors when it gives back."""
    def full(*_args, **_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(journal_module, "LONG_OCTETS", 64)
    with Journal(path) as journal:
        first, second = journal.take(TapMade("a")), journal.take(TapMade("b"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", full)
            journal.given_back(first)
        third = journal.take(TapMade("c"))
        assert set(journal.pending) == {second, third}
        text = path.read_bytes()
    with Journal(path) as journal:
        assert set(journal.pending) == {second, third}
    assert text.count(b"\n") == 4                       # the long one is still it


def test_last_one_is_given_back_on_a_full_disk(path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path) as journal:
        only = journal.take(TapMade("a"))
        monkeypatch.setattr(journal_module, "_write_all", full)
        with pytest.raises(OSError, match="No space"):
            journal.take(TapMade("b"))
        journal.given_back(only)
        assert path.read_bytes() == b""


@given(cut=st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_torn_tail_loses_only_the_last_line(path, cut):
    path.parent.mkdir(exist_ok=True)
    lines = b"".join(b'{"id":%d,"taken":{"kind":"tap","name":"t%d"}}\n' % (i, i) for i in range(1, 5))
    path.write_bytes(lines[:cut])
    with Journal(path) as journal:
        assert list(journal.pending) == list(range(1, lines[:cut].count(b"\n") + 1))


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b'{"id":1,"taken":{"kind":"spaceship"}}', b'{"taken":{}}', b"\xff"])
def test_unreadable_line_is_refused_and_kept(path, line):
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    with pytest.raises(JournalError, match=r"line 1: .*by hand"):
        Journal(path)
    assert path.read_bytes() == line + b"\n"


def test_only_one_holder(path):
    with Journal(path), pytest.raises(JournalError, match=rf"process {os.getpid()}\) holds"):
        Journal(path)
    Journal(path).close()


def test_one_that_was_killed_and_is_not_gone_yet_is_waited_for(path, monkeypatch):
    """A daemon's devices close after the signal; `rustosd recover` may be called at once."""
    holder = Journal(path)
    waits = []

    def one_look(seconds):
        waits.append(seconds)
        if len(waits) == 20:
            holder.close()

    monkeypatch.setattr(journal_module, "_ends", lambda pid: True)
    monkeypatch.setattr(journal_module.time, "sleep", one_look)
    Journal(path).close()
    assert len(waits) == 20
    monkeypatch.setattr(journal_module, "DYING_S", 0.0)
    with Journal(path), pytest.raises(JournalError, match="holds the journal"):
        Journal(path)


def test_a_process_on_its_way_out_is_told_from_one_that_lives():
    child = subprocess.Popen(["sleep", "60"])
    assert not journal_module._ends(str(child.pid))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)     # a zombie
    assert journal_module._ends(str(child.pid))
    child.wait()
    assert journal_module._ends(str(child.pid)) and not journal_module._ends("")


def test_a_device_is_remembered_with_all_that_is_to_be_restored(path):
    link = LinkState(name="eth0", mac="52:54:00:12:34:56", mtu=9000, up=True, read_at_s=1.5, alias="x",
                     settings={"ipv4/a": "1"}, addresses=(KernelAddress(address="10.0.0.2/24", valid_s=10),),
                     routes=(KernelRoute(to="0.0.0.0/0", hops=(Hop(gateway="10.0.0.1"),), metrics={"mtu": 1400}),))
    taken = DeviceTaken("0000:03:00.0", "e1000e", "vfio", "vfio-pci", link)
    with Journal(path) as journal:
        journal.take(taken)
        journal.take(DeviceTaken("0000:04:00.0", None, "uio"))
    with Journal(path) as journal:
        assert list(journal.pending.values()) == [taken, DeviceTaken("0000:04:00.0", None, "uio")]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot open the journal"):
        Journal(tmp_path / "file" / "journal.jsonl")
