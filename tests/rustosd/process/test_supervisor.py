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
