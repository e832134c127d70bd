"""The daemon of the handoff's tests, and both event loops for what is asynchronous."""

import asyncio
import functools

import pytest
import uvloop

from rustosd.client import aio
from rustosd.client.sock import _daemon
from tests.netstack.sockets.conftest import certificate, join
from tests.peers.conftest import V4, V6
from tests.rustosd.handoff.conftest import daemon, environment, peer, sides

__all__ = ["certificate", "daemon", "environment", "peer", "sides"]


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}


@pytest.fixture
def our_daemon(peer, monkeypatch):
    """The daemon of whoever names none."""
    monkeypatch.setattr(_daemon, "path", str(peer.control))
    _daemon.close()


class Kernel:
    """The loop's own methods, named as in rustosd.client.aio."""

    open_connection = staticmethod(asyncio.open_connection)
    start_server = staticmethod(asyncio.start_server)

    def __getattr__(self, name):
        return getattr(asyncio.get_running_loop(), name)


@pytest.fixture(params=["kernel", "ours"])
def net(request):
    return Kernel() if request.param == "kernel" else aio


@pytest.fixture(params=["ipv4", "ipv6"])
def host(request, net):
    return {"ipv4": V4, "ipv6": V6}[request.param] if net is aio else {"ipv4": "127.0.0.1", "ipv6": "::1"}[request.param]


@pytest.fixture
def joined(net, host):
    """`join` on this network, at this host."""
    return functools.partial(join, net, host=host)
