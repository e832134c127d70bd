"""A session of questions and answers: what is answered too late is no other question's answer."""

import socket
import threading

import pytest

from rustosd.client import session as session_module
from rustosd.client.session import Daemon, Session


@pytest.fixture
def ends(monkeypatch):
    monkeypatch.setattr(session_module, "PATIENCE_S", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_after_a_late_answer_nothing_goes_over_the_session(ends):
    session = Session(ends[0])
    session.send({"op": "open"})
    with pytest.raises(TimeoutError):
        session.receive()
    assert ends[1].recv(100)
    with pytest.raises(ConnectionError):
        ends[1].send(b'{"id": "late"}')
    with pytest.raises(ConnectionError):
        session.send({"op": "close"})
    with pytest.raises(ConnectionError):
        session.receive()


def test_what_took_too_long_is_not_asked_for_again(ends):
    daemon = Daemon("/nowhere")
    daemon.idle()
    daemon.keep(Session(ends[0]))
    with pytest.raises(OSError, match="does not answer"):
        daemon.ask("connect")
    assert b"connect" in ends[1].recv(100) and ends[1].recv(100) == b""


def test_a_session_that_ended_while_it_was_kept_is_replaced(ends):
    daemon = Daemon("/nowhere")
    daemon.idle()
    daemon.keep(Session(ends[0]))
    threading.Thread(target=ends[1].close).start()
    with pytest.raises(OSError, match="no rustosd answers"):
        daemon.ask("connect")
