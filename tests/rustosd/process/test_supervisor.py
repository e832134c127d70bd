"""A supervisor whose daemon does not take its program."""

from types import SimpleNamespace

import pytest

from rustosd.process import supervisor as module
from rustosd.process.launch import Program
from rustosd.process.supervisor import Supervisor


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
