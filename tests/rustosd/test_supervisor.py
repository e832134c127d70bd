"""The service manager's side is played by a datagram socket and an environment, as systemd does it."""

import os
import socket

import pytest

from rustosd.supervisor import Supervisor


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def environment(manager, **more):
    return {"NOTIFY_SOCKET": manager.getsockname(), "HOME": "/root", **more}


def test_what_is_told_arrives_as_lines(manager):
    supervisor = Supervisor(environment(manager))
    assert supervisor.listens
    supervisor.tell("READY=1", "STATUS=serving")
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving"
    supervisor.alive()
    assert manager.recv(1000) == b"WATCHDOG=1"


def test_an_abstract_socket_is_told_too():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0rustosd-test-{os.getpid()}")
        listening.settimeout(5)
        Supervisor({"NOTIFY_SOCKET": f"@rustosd-test-{os.getpid()}"}).tell("STOPPING=1")
        assert listening.recv(1000) == b"STOPPING=1"


def test_without_a_manager_nothing_happens():
    supervisor = Supervisor({})
    assert not supervisor.listens and supervisor.watchdog_s == 0 and supervisor.socket("control") is None
    supervisor.tell("READY=1")
    supervisor.close()


@pytest.mark.parametrize("address", ["", "relative", "/nonexistent/notify"])
def test_an_address_where_nobody_listens_does_no_harm(address):
    Supervisor({"NOTIFY_SOCKET": address}).tell("READY=1")


def test_a_manager_that_does_not_read_does_not_hold_us_up(manager):
    supervisor = Supervisor(environment(manager))
    for _ in range(10_000):
        supervisor.alive()


@pytest.mark.parametrize(("variables", "seconds"), [
    ({"WATCHDOG_USEC": "20000000"}, 20.0),
    ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
    ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0.0),
    ({"WATCHDOG_USEC": "soon"}, 0.0),
    ({}, 0.0),
])
def test_the_watchdog_is_ours_only_when_it_names_us(variables, seconds):
    assert Supervisor(variables).watchdog_s == seconds


def test_a_passed_socket_is_had_by_its_name_once(monkeypatch):
    monkeypatch.setattr("rustosd.supervisor._FIRST_FD", 200)
    with socket.socket(socket.AF_UNIX) as made:
        os.dup2(made.fileno(), 200)
    supervisor = Supervisor({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "control"})
    assert supervisor.socket("other") is None
    with supervisor.socket("control") as passed:
        assert passed.fileno() == 200 and passed.family == socket.AF_UNIX and not os.get_inheritable(200)
    assert supervisor.socket("control") is None


@pytest.mark.parametrize("variables", [
    {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}, {"LISTEN_FDS": "1"},
    {"LISTEN_FDS": "1000000000", "LISTEN_PID": str(os.getpid())},
])
def test_sockets_that_are_not_for_us_are_not_touched(variables, monkeypatch):
    monkeypatch.setattr("rustosd.supervisor._FIRST_FD", 1 << 20)       # nothing is open there
    assert Supervisor(variables).socket("0") is None


def test_children_inherit_nothing_of_it(manager):
    variables = environment(manager, WATCHDOG_USEC="1", LISTEN_FDS="0", LISTEN_PID="1", LISTEN_FDNAMES="a")
    Supervisor(variables)
    assert variables == {"HOME": "/root"}
