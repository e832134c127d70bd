"""The journal: what it remembers across kills, and what it refuses."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustosd.journal import Journal, JournalError, TapMade


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


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot open the journal"):
        Journal(tmp_path / "file" / "journal.jsonl")
