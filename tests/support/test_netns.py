"""The namespace helper itself: what it isolates, what it returns, and that nothing stays behind."""

import os
import socket
import subprocess
import time

import pytest

from tests.support.netns import ChildDied, Netns


def _interfaces() -> list[str]:
    return [name for _index, name in socket.if_nameindex()]


def _raise(error: BaseException) -> None:
    raise error


def test_call_runs_inside_and_returns_the_value(netns):
    netns.run("ip", "link", "add", "here0", "type", "veth", "peer", "name", "here1")
    assert sorted(netns.call(_interfaces)) == ["here0", "here1", "lo"]
    assert "here0" not in _interfaces()
    assert netns.links() == ["here0", "here1"]
    assert netns.call(os.listdir, "/sys/class/net/here0/statistics")


def test_call_raises_what_the_body_raises(netns):
    with pytest.raises(KeyError, match="lost") as caught:
        netns.call(_raise, KeyError("lost"))
    assert "_raise" in caught.value.__notes__[0]


def test_call_ends_a_body_that_hangs(netns):
    with pytest.raises(ChildDied):
        netns.call(time.sleep, 100, timeout=0.3)


def test_result_that_cannot_travel_is_an_error(netns):
    with pytest.raises(ChildDied, match="pickled"):
        netns.call(lambda: lambda: 0)


def test_run_failure_shows_the_output(netns):
    with pytest.raises(AssertionError, match="here0"):
        netns.run("ip", "link", "show", "here0")


def test_delete_kills_what_still_runs():
    with Netns() as namespace:
        sleeper = namespace.popen("sleep", "100")
        pids = ["ip", "netns", "pids", namespace.name]
        while str(sleeper.pid) not in subprocess.check_output(pids, text=True).split():
            time.sleep(0.01)
    assert sleeper.wait(5) == -9
    assert not namespace.path.exists()
    namespace.delete()
