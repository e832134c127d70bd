"""How a program reaches the daemon: sessions, each for one question at a time, kept for the next."""

import errno
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

from rustosd.client.wire import MORE_MOST, REQUEST_MOST, SPARES_MOST

DEFAULT_SOCKET = "/run/rustosd/control.sock"
PATIENCE_S = 30.0           # the daemon answers within a turn of its loop, but realtime programs may leave it little time
_ASK = '{{"jsonrpc":"2.0","id":1,"method":"{}","params":{{}}}}\n'
_LINE_MOST = 65536


class Answer(dict):
    """What the daemon says; `fd` is the descriptor that came along, -1 when there was none, the first of `fds`."""

    fd = -1
    fds: Sequence[int] = ()


class Session:
    """One session. `send` and `receive` may be used apart, by those who wait for `fileno()` in another way."""

    def __init__(self, end: socket.socket):
        self._end = end
        end.settimeout(PATIENCE_S / 2)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, request: dict[str, Any]) -> None:
        self._end.send(json.dumps(request).encode())

    def receive(self) -> Answer:
        """Raises OSError when the daemon is gone or does not answer; nothing goes over the session any more then.

        An answer that came late would be taken for the next question's.
        """
        try:
            packet, fds = _receive(self._end, REQUEST_MOST + 1)
        except TimeoutError:
            self._end.shutdown(socket.SHUT_RDWR)
            raise
        if not packet:
            raise ConnectionResetError(errno.ECONNRESET, "rustosd closed the session")
        answer = Answer(json.loads(packet))
        answer.fd, answer.fds = fds[0] if fds else -1, fds
        return answer

    def detach(self) -> socket.socket:
        """Its end, which is the caller's from here on."""
        return self._end

    def close(self) -> None:
        self._end.close()


class Door:
    """The control socket, asked for a session. Raises OSError with what to do when nobody is there."""

    def __init__(self, path: str, method: str = "socket.session", nothing: str = "no sockets"):
        """`nothing`: what one does not get when it is refused."""
        self.path, self._what = path, nothing
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Blocking, with the kernel's own limit: a queue of programs in front of ours is no error.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
        try:
            self._socket.connect(path)
            self._socket.settimeout(PATIENCE_S / 2)
            self._socket.sendall(_ASK.format(method).encode())
        except OSError as error:
            self._socket.close()
            unreachable(path, error)

    def fileno(self) -> int:
        return self._socket.fileno()

    def open(self) -> Session:
        """Take the session in. Raises PermissionError, OSError."""
        return Session(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=self.take()[1]))

    def take(self) -> tuple[dict[str, Any], int]:
        """The result, and the descriptor that came along. Raises PermissionError, OSError."""
        line = b""
        fds: list[int] = []
        try:
            with self._socket:
                while not line.endswith(b"\n") and len(line) < _LINE_MOST:
                    part, more = _receive(self._socket, 4096)
                    fds += more
                    if not part:
                        raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
                    line += part
        except OSError as error:
            unreachable(self.path, error)
        if not fds:
            failure = json.loads(line).get("error", {})
            message = f"rustosd gives {self._what}: {failure.get('message', 'it is of another version')}"
            raise OSError(errno.EACCES if failure.get("code") == -32001 else errno.ENOBUFS, message)
        return json.loads(line)["result"], fds[0]


class Daemon:
    """A daemon by the path of its control socket; may be used by several threads, and by a child after fork."""

    def __init__(self, path: str | None = None):
        self.path = path or os.environ.get("RUSTOSD_SOCKET") or DEFAULT_SOCKET
        self._pid = 0
        self._idle: list[Session] = []

    def ask(self, op: str, **fields: Any) -> Answer:
        """Carry out one operation of `rustosd.handoff.protocol`. Raises the OSError it ends with."""
        request = {"op": op, **fields}
        while True:
            session = self.idle()
            kept = session is not None
            if session is None:
                session = Door(self.path).open()
            try:
                session.send(request)
                answer = session.receive()
            except OSError as error:
                session.close()
                if not kept or isinstance(error, TimeoutError):     # what took too long may have been done
                    unreachable(self.path, error)
                continue            # the daemon was started anew since
            except BaseException:
                session.close()     # an answer may be under way
                raise
            self.keep(session)
            return checked(answer)

    def idle(self) -> Session | None:
        """A session that nobody uses, if there is one."""
        if self._pid != os.getpid():        # a child must not talk on its parent's
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def keep(self, session: Session) -> None:
        """Give a session back, with no answer outstanding."""
        if self._pid == os.getpid() and len(self._idle) < 4:
            self._idle.append(session)
        else:
            session.close()

    def close(self) -> None:
        """End the sessions that nobody uses; sockets live on."""
        while (session := self.idle()) is not None:
            session.close()


def checked(answer: Answer) -> Answer:
    """The answer. Raises the OSError it tells of."""
    if answer.get("errno"):
        raise OSError(answer["errno"], answer.get("error") or os.strerror(answer["errno"]))
    return answer


def _receive(end: socket.socket, octets: int) -> tuple[bytes, list[int]]:
    """What recv(2) gives, with the descriptors that came along (not inherited by programs we start).

    The end has half of our patience, twice: a machine that stood still, such as a virtual one, lets it run out all at once.
    """
    try:
        return _received(end, octets)
    except TimeoutError:
        return _received(end, octets)


def _received(end: socket.socket, octets: int) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = end.recvmsg(octets, socket.CMSG_SPACE(4 * max(MORE_MOST + 1, SPARES_MOST)), socket.MSG_CMSG_CLOEXEC)
    return data, descriptors(ancillary)


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in the ancillary data of recvmsg."""
    return [fd for level, kind, octets in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (fd,) in struct.iter_unpack("i", octets[:len(octets) // 4 * 4])]


def unreachable(path: str, error: OSError) -> NoReturn:
    """Raise what a person can do something with, for an error of the way to the daemon."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        raise OSError(errno.ENETDOWN, f"no rustosd answers on {path}; start one with `rustosd run`, or name its control "
                                      "socket in the environment variable RUSTOSD_SOCKET") from None
    if isinstance(error, PermissionError):
        raise PermissionError(errno.EACCES, f"no permission to open {path}; be root, or a member of the group that "
                                            "group = ... under [sockets] names") from None
    raise OSError(errno.ENETDOWN, f"rustosd on {path} does not answer: {error.strerror or str(error) or 'timed out'}") from None
