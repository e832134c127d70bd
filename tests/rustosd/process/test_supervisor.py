"""A supervisor whose daemon does not take its program."""

import errno
import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from mm import awake
from rustosd.process import supervisor as module
from rustosd.process.launch import Program
from rustosd.process.supervisor import Supervisor

CALLS = """
import os, socket, sys, time
from contextlib import suppress
asked, until = sys.argv[1], time.monotonic() + 20
def said():
    for _ in range(1000):
        with suppress(OSError):
            socket.socket()
    return os.stat(asked).st_size
while not said() and sys.argv[2] and time.monotonic() < until:      # a busy machine may make pauses
    pass
while os.stat(asked).st_size % 8 and time.monotonic() < until:      # asked for, and not taken back yet
    time.sleep(0.01)
sys.exit(os.stat(asked).st_size % 8)
"""


def test_why_the_daemon_takes_no_program_is_what_is_raised(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(24, "1024 programs run on the stack already")

    monkeypatch.setattr(module.Channel, "open", refuse)
    one = Supervisor(SimpleNamespace(path="", ask=lambda *_words, **_more: {}, close=lambda: None), grace_s=0.1)
    with pytest.raises(OSError, match="1024 programs run"):
        one.run(Program(["touch", str(tmp_path / "mark")], own_network=False))
    assert not (tmp_path / "mark").exists()


def test_without_the_daemon_calls_are_answered_one_look_at_a_time_with_a_rest_before_each(monkeypatch):
    """A server whose listening socket is readable for ever asks again at once, whatever it is told."""
    one = Supervisor(SimpleNamespace(path="", ask=lambda *_words, **_more: {}, close=lambda: None))
    seen = []

    class Calls:
        def hurry(self):
            seen.append("hurry")

        def wait(self, _until):
            seen.append("wait")
            if seen.count("wait") == 1:
                one.daemon_ended()
            elif seen.count("wait") == 3:
                one._status = 0
            return []

    one._calls = Calls()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: seen.append(seconds))
    assert one._loop() == 0
    assert seen == ["wait", "hurry", module._ALONE_S, "wait", "hurry", module._ALONE_S, "wait"]


@pytest.mark.parametrize("wrong", [ValueError("not foreseen"), KeyError("nor this"), OSError(errno.ENOBUFS, "is")], ids=repr)
def test_what_a_handler_raises_is_an_answer_and_ends_nobody(monkeypatch, wrong):
    def handler(*_):
        raise wrong

    monkeypatch.setattr(module.Channel, "open", lambda *_: MagicMock())
    monkeypatch.setattr(module.Opening, "socket", handler)
    one = Supervisor(SimpleNamespace(path="", ask=lambda *_words, **_more: {}, close=lambda: None), grace_s=0.1)
    code = "import socket, sys\ntry: socket.socket()\nexcept OSError as told: sys.exit(told.errno)"
    assert one.run(Program([sys.executable, "-c", code], own_network=False)) == getattr(wrong, "errno", errno.EIO)


POLICIES = """
import os, sys, time
until = time.monotonic() + 20
while os.sched_getscheduler(os.getppid()) != os.SCHED_BATCH and time.monotonic() < until:
    time.sleep(0.01)
sys.exit(10 * os.sched_getscheduler(0) + os.sched_getscheduler(os.getppid()))
"""


def test_a_program_is_not_preempted_by_its_supervisor_which_is_batch_until_it_has_ended(monkeypatch):
    monkeypatch.setattr(module.Channel, "open", lambda *_: MagicMock())
    one = Supervisor(SimpleNamespace(path="", ask=lambda *_words, **_more: {}, close=lambda: None), grace_s=0.1)
    before = os.sched_getscheduler(0)
    assert one.run(Program([sys.executable, "-c", POLICIES], own_network=False)) == 10 * before + os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("wanted", [True, False])
def test_processors_are_kept_awake_while_calls_come_often_if_the_daemon_says_so(monkeypatch, tmp_path, wanted):
    def handler(*_):
        raise OSError(errno.ENOBUFS, "none left")

    asked = tmp_path / "cpu_dma_latency"
    asked.touch()
    monkeypatch.setattr(awake, "DEVICE", str(asked))
    monkeypatch.setattr(module.Channel, "open", lambda *_: MagicMock())
    monkeypatch.setattr(module.Opening, "socket", handler)
    one = Supervisor(SimpleNamespace(path="", ask=lambda *_words, **_more: {}, close=lambda: None), grace_s=0.1)
    one.before_exec = lambda _pid: wanted
    assert one.run(Program([sys.executable, "-c", CALLS, str(asked), "x" * wanted], own_network=False)) == 0
    assert bool(asked.read_bytes()) is wanted
