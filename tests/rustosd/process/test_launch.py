"""A program begins once its supervisor has it in hand, or not at all; whatever it is called."""

import os

import pytest

from rustosd.process import launch as module
from rustosd.process.filter import assemble
from rustosd.process.launch import LaunchFailed, Program, launch
from tests.support.descriptors import open_descriptors

NOTHING = assemble({})      # no call is told


def began(*argv, **more):
    started = launch(Program(list(argv), own_network=False, **more), NOTHING)
    os.close(started.listener)
    return started


def test_it_begins_when_it_is_let_go_and_not_before(tmp_path):
    started = began("touch", str(tmp_path / "mark"))
    assert not (tmp_path / "mark").exists()
    started.go()
    assert os.waitpid(started.pid, 0)[1] == 0 and (tmp_path / "mark").exists()


def test_without_a_listener_for_its_calls_it_never_begins(tmp_path, monkeypatch):
    """As where a security module forbids pidfd_getfd(2)."""
    monkeypatch.setattr(module, "_take_descriptor", _forbidden)
    descriptors, children = open_descriptors(), _children()
    with pytest.raises(PermissionError):
        launch(Program(["touch", str(tmp_path / "mark")], own_network=False), NOTHING)
    assert not (tmp_path / "mark").exists() and _children() == children
    assert open_descriptors() == descriptors


def test_a_supervisor_that_dies_before_takes_it_along(tmp_path):
    started = began("touch", str(tmp_path / "mark"))
    os.close(started._gate)
    os.close(started._report)
    assert os.waitpid(started.pid, 0)[1] != 0 and not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("program", "more", "status", "words"), [
    ("/no/such/program", {}, 127, "/no/such/program: No such file or directory"),
    ("", {}, 127, "'': No such file or directory"),
    ("/no/such/\udcff", {}, 127, "/no/such/\ufffd: No such file or directory"),
    ("/", {}, 126, "/: Permission denied"),
    ("true", {"directory": "/no/such"}, 126, "/no/such: No such file or directory"),
])
def test_what_cannot_begin_says_why(program, more, status, words):
    with pytest.raises(LaunchFailed, match=f"^{words}$") as failed:
        began(program, **more).go()
    assert failed.value.status == status


def _children():
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return children.read().split()


def _forbidden(*_):
    raise PermissionError(1, "Operation not permitted")
