"""A session of questions and answers: what is answered too late is no other question's answer."""

import asyncio
import socket
import threading

import pytest

from rustosd.client import aio
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


def test_patience_that_runs_out_at_once_is_half_of_it(ends):
    """As when a virtual machine goes on that stood still: the answer is there a moment later."""
    end, stood = ends[0], []

    class Still:
        """Its first wait is over at once."""

        def recvmsg(self, *how):
            if not stood:
                stood.append(True)
                ends[1].send(b'{"id": "here"}')
                raise TimeoutError("timed out")
            return end.recvmsg(*how)

        def __getattr__(self, name):
            return getattr(end, name)

    assert Session(Still()).receive() == {"id": "here"}


@pytest.mark.parametrize("ask", [lambda daemon: daemon.ask("connect"), lambda daemon: asyncio.run(aio._ask(daemon, "connect"))],
                         ids=["blocking", "asyncio"])
def test_what_took_too_long_is_not_asked_for_again(ends, ask, monkeypatch):
    monkeypatch.setattr(aio, "PATIENCE_S", 0.05)
    daemon = Daemon("/nowhere")
    daemon.idle()
    daemon.keep(Session(ends[0]))
    with pytest.raises(OSError, match="does not answer"):
        ask(daemon)
    assert b"connect" in ends[1].recv(100) and ends[1].recv(100) == b""


def test_a_session_that_ended_while_it_was_kept_is_replaced(ends):
    daemon = Daemon("/nowhere")
    daemon.idle()
    daemon.keep(Session(ends[0]))
    threading.Thread(target=ends[1].close).start()
    with pytest.raises(OSError, match="no rustosd answers"):
        daemon.ask("connect")
