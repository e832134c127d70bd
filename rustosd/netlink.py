"""Talking to the kernel's network configuration with pyroute2, from wherever we are."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pyroute2 import IPRoute

_T = TypeVar("_T")


def ask(function: Callable[[IPRoute], _T]) -> _T:
    """`function` with a netlink socket, in a thread of its own: pyroute2 cannot run where a loop runs already.

    Blocks for some milliseconds.
    """

    def call() -> _T:
        with IPRoute() as route:
            return function(route)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()
