"""Unix sockets at a path: bound with their mode, never taken from a process that lives, replaced after one that died."""

import contextlib
import os
import socket
import stat
from pathlib import Path

PROBE_S = 1.0


def bind(path: Path, mode: int, remedy: str) -> socket.socket:
    """A stream socket bound to `path`, whose directory is there; nobody gets in before it has its mode.

    Raises OSError that says what is in the way and ends with `remedy`.
    """
    remove_stale(path, remedy)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o777 & ~mode)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot make the socket {path}: {error.strerror}; {remedy}") from None
    finally:
        os.umask(before)
    return bound


def remove_stale(path: Path, remedy: str) -> None:
    """Remove the socket that a dead process left at `path`. Raises OSError when something else is there, or life."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, f"{path} is there and no socket; move it away, or {remedy}")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass
    raise OSError(98, f"another daemon serves {path}; stop it, or {remedy}")


def remove(path: Path) -> None:
    """Remove a socket of ours, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
