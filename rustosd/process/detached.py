"""A supervisor that goes on by itself: in a session of its own, without the terminal of who started it."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from rustosd.process.launch import LaunchFailed
from rustosd.process.output import NameTaken, Output, check_name

_REPORT = struct.Struct("=ii")      # the program's number or 0, and what to end with when there is none
_REPORT_OCTETS: Final = 4096
_NAMES_TRIED: Final = 100


def output_for(program: str, name: str | None) -> tuple[str, Output]:
    """A name, which is made of the program's when none is given, and the file for what it writes.

    Raises NameTaken, ValueError, OSError.
    """
    if name is not None:
        return name, Output(name)
    made = "".join(c if c.isascii() and (c.isalnum() or c in "._@+-") else "-" for c in Path(program).name).lstrip("._@+-")
    made = check_name(f"{made[:50] or 'program'}{'-1' if made.isdecimal() else ''}")
    for number in range(1, _NAMES_TRIED):
        try:
            tried = made if number == 1 else f"{made}-{number}"
            return tried, Output(tried)
        except NameTaken:
            continue
    raise NameTaken(f"{_NAMES_TRIED - 1} programs called {made} run already; choose a name with --name")


def detach(run: Callable[[Callable[[int], None]], int]) -> int:
    """Carry out `run(executed)` in a process of its own, until `executed(pid)` is called there; that number.

    Raises LaunchFailed with what went wrong before that.
    """
    report, ours = os.pipe()
    if os.fork() == 0:
        os.close(report)
        _be_alone(run, ours)
    os.close(ours)
    with os.fdopen(report, "rb") as pipe:
        told = pipe.read(_REPORT_OCTETS)
    if len(told) < _REPORT.size:
        raise LaunchFailed("the program's supervisor died before it began")
    pid, status = _REPORT.unpack_from(told)
    if not pid:
        raise LaunchFailed(told[_REPORT.size:].decode(errors="replace"), status)
    return pid


def _be_alone(run: Callable[[Callable[[int], None]], int], report: int) -> NoReturn:
    """The other process. Its streams lead nowhere; the program's are its output's."""
    status = 1
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)

        def executed(pid: int) -> None:
            nonlocal report
            os.write(report, _REPORT.pack(pid, 0))
            os.close(report)
            report = -1
        status = run(executed)
    except BaseException as error:
        status = getattr(error, "status", 1)
        text = str(error) or repr(error)
        with contextlib.suppress(OSError):      # it had begun: nobody listens any more
            os.write(report, _REPORT.pack(0, status) + os.fsencode(text)[:2000])
    finally:
        os._exit(status)
