"""A supervisor's way to the daemon: one session, on which questions are asked and orders given that need no answer."""

import errno
import os
from typing import Any, Final

from rustosd.client.session import DEFAULT_SOCKET, Answer, Door, checked

_OWED_MOST: Final = 32
"""Answers that may be outstanding; each waits in the session's queue."""


class Link:
    """Operations of `rustosd.handoff.protocol`, in the order in which they are asked for."""

    def __init__(self, path: str | None = None) -> None:
        """Raises OSError with what to do when no daemon answers."""
        self.path = path or os.environ.get("RUSTOSD_SOCKET") or DEFAULT_SOCKET
        self._session = Door(self.path).open()
        self._owed = 0

    def ask(self, op: str, **fields: Any) -> Answer:
        """Carry one out. Raises the OSError it ends with; ENETDOWN when the daemon has stopped."""
        try:
            self._session.send({"op": op, **fields})
            self._catch_up(0)
            return checked(self._session.receive())
        except (ConnectionError, TimeoutError) as error:
            raise OSError(errno.ENETDOWN, f"rustosd on {self.path} has stopped: {error.strerror or error}") from None

    def tell(self, op: str, **fields: Any) -> None:
        """Have one carried out before the next question is; how it ends nobody hears. Raises OSError (ENETDOWN)."""
        try:
            self._catch_up(_OWED_MOST)
            self._session.send({"op": op, **fields})
            self._owed += 1
        except (ConnectionError, TimeoutError) as error:
            raise OSError(errno.ENETDOWN, f"rustosd on {self.path} has stopped: {error.strerror or error}") from None

    def close(self) -> None:
        """The sockets live on."""
        self._session.close()

    def _catch_up(self, most: int) -> None:
        """Read answers to what was told until at most so many are outstanding."""
        while self._owed > most:
            answer = self._session.receive()
            self._owed -= 1
            if answer.fd >= 0:
                os.close(answer.fd)
