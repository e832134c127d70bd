"""The daemon of the handoff's tests, and both event loops for what is asynchronous."""

import asyncio

import uvloop

from tests.rustosd.handoff.conftest import daemon, environment, peer, sides

__all__ = ["daemon", "environment", "peer", "sides"]


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
