"""What a service manager such as systemd gives a daemon and hears from it: readiness, the watchdog, sockets made beforehand.

Without one everything here does nothing. What the environment says is taken out of it, so that no child believes it is meant.
"""

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_FIRST_FD: Final = 3
"""sd_listen_fds(3): SD_LISTEN_FDS_START."""
_MOST_SOCKETS: Final = 16


class Supervisor:
    """The service manager that started this process, if any."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environment)
        """How long it waits for `alive` before it kills us; 0: for ever."""
        self._passed = _passed(environment)
        if self._address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @property
    def listens(self) -> bool:
        """Whether somebody wants to know how we are."""
        return self._socket is not None

    def tell(self, *assignments: str) -> None:
        """Tell it, as in sd_notify(3): `tell("READY=1", "STATUS=serving 10.77.0.2")`. Never waits, never fails."""
        if self._socket is not None:
            address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
            with suppress(OSError):     # it may be restarting, and comes back without our word
                self._socket.sendto("\n".join(assignments).encode(), address)

    def alive(self) -> None:
        """Feed the watchdog."""
        self.tell("WATCHDOG=1")

    def socket(self, name: str) -> socket.socket | None:
        """The socket it has passed us under this name, once; who asks owns it."""
        return self._passed.pop(name, None)

    def close(self) -> None:
        """Say nothing more, and close the sockets that nobody wanted. May be called twice."""
        for passed in self._passed.values():
            passed.close()
        self._passed.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog_s(environment: MutableMapping[str, str]) -> float:
    """sd_watchdog_enabled(3)."""
    microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds.isdecimal() and pid == str(os.getpid()) else 0.0


def _passed(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The sockets of sd_listen_fds(3), by name."""
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    passed = {}
    for index in range(min(int(count), _MOST_SOCKETS)):
        with suppress(OSError):     # not a socket: not for us
            one = socket.socket(fileno=_FIRST_FD + index)
            os.set_inheritable(one.fileno(), False)
            passed[names[index] if index < len(names) else f"{index}"] = one
    return passed
