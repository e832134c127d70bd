"""The other end of the control socket, for `rustosctl`: blocking, one call at a time, few imports."""

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from rustosd.control.protocol import METHODS, Parameters, Reply, decode_value

DEFAULT_SOCKET = "/run/rustosd/control.sock"
TIMEOUT_S = 70.0            # the longest operation is a ping that waits a minute


class Unreachable(Exception):
    """No daemon answers on the socket; the text says what to do."""


class CallFailed(Exception):
    """The daemon refused or failed; the text is its message."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Client:
    """A connection to the daemon. Raises Unreachable when there is none."""

    def __init__(self, path: str = DEFAULT_SOCKET):
        self.path = path
        self._count = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise Unreachable(f"no daemon answers on {path}; start one with `rustosd run`, "
                              "or name its socket with --socket") from None
        except PermissionError:
            self._socket.close()
            raise Unreachable(f"no permission to open {path}; be root, or a member of a group that "
                              "read_group or change_group under [control] names") from None
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"cannot reach a daemon on {path}: {error.strerror or error}") from None
        self._lines = self._socket.makefile("rb")

    def call(self, method: str, params: Parameters | None = None) -> Any:
        """Carry out a method of `protocol.METHODS` and return its typed result.

        Raises CallFailed when the daemon says no, Unreachable when it goes away.
        """
        return self._asked(method, params, self._lines.readline)

    def take(self, method: str, params: Parameters | None = None) -> tuple[Any, socket.socket]:
        """As `call`, for a method whose answer comes with a descriptor, which is a stream socket."""
        ends: list[socket.socket] = []

        def read() -> bytes:
            line = b""
            while not line.endswith(b"\n"):
                part, fds, _, _ = socket.recv_fds(self._socket, 65536, 1, socket.MSG_CMSG_CLOEXEC)
                ends.extend(socket.socket(fileno=fd) for fd in fds)
                if not part:
                    break
                line += part
            return line

        result = self._asked(method, params, read)
        if not ends:
            raise Unreachable(f"the daemon on {self.path} gives no descriptor; it is of another version")
        return result, ends[0]

    def _asked(self, method: str, params: Parameters | None, read: Callable[[], bytes]) -> Any:
        self._count += 1
        body = msgspec.to_builtins(params, enc_hook=str) if params is not None else {}
        request = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": body}
        try:
            with contextlib.suppress(BrokenPipeError):      # it may have said why before it closed
                self._socket.sendall(msgspec.json.encode(request) + b"\n")
            line = read()
        except TimeoutError:
            raise Unreachable(f"the daemon on {self.path} did not answer in {TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise Unreachable(f"the daemon on {self.path} went away: {error.strerror or error}") from None
        if not line.endswith(b"\n"):
            raise Unreachable(f"the daemon on {self.path} closed the connection")
        reply = msgspec.json.decode(line, type=Reply)
        if reply.error is not msgspec.UNSET:
            raise CallFailed(reply.error.code, reply.error.message)
        return msgspec.json.decode(reply.result, type=METHODS[method].gives, dec_hook=decode_value)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
