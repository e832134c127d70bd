"""`rustosctl top`: what the daemon does just now, on the whole terminal, until q."""

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol

import typer

from rustosd.cli import calls, shell, tables
from rustosd.cli.calls import Json
from rustosd.cli.top_view import Line, View
from rustosd.control import network_protocol as p
from rustosd.control.client import Client

ONCE_SIZE = (80, 40)        # of a sample that goes to no terminal
_SEQUENCE = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")      # an arrow or the like, of which we have none


def top(
    interval_s: Annotated[float, typer.Option("-d", "--interval", min=0.1, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one interval and end.")] = False,
    json: Json = False,
) -> int:
    """Rates of interfaces, connections and drops, live. q ends it, p pauses, s sorts otherwise.

    --once prints one interval, --json the same for programs.
    """
    return show(View(), _sample, "top", interval_s, once, json)


def _sample(daemon: Client) -> p.Sample:
    return daemon.call("top.sample", p.SampleQuery(most=p.MOST_BUSIEST))


class Shown(Protocol):
    """What can be shown live: `rustosd.cli.top_view.View` and its like. It has rates from the second sample on."""

    paused: bool
    now: Any

    def take(self, sample: Any) -> None:
        """One more sample."""

    def sort_next(self) -> None:
        """Sort by something else."""

    def lines(self, width: int, height: int, keys: bool = True) -> list[Line]:
        """A screen of that size."""


def show(view: Shown, sample: Callable[[Client], Any], key: str, interval_s: float, once: bool, json: bool) -> int:
    """One interval on standard output, `key` its name in the JSON, or all that follow on the terminal, until q."""
    if once or json:
        with calls.daemon() as daemon:
            view.take(sample(daemon))
            time.sleep(interval_s)
            view.take(sample(daemon))
        _print(view, key, json)
        return shell.OK
    if not sys.stdout.isatty():
        raise typer.BadParameter("standard output is no terminal; --once and --json print one interval")
    with calls.daemon() as daemon, _Terminal() as terminal:
        _run(daemon, sample, terminal, view, interval_s)
    return shell.OK


def _print(view: Shown, key: str, json: bool) -> None:
    assert view.now is not None
    if json:
        tables.print_json(key, view.now)
        return
    width = os.get_terminal_size().columns if sys.stdout.isatty() else ONCE_SIZE[0]
    for line in view.lines(width, ONCE_SIZE[1], keys=False):
        print(line.text)


def _run(daemon: Client, sample: Callable[[Client], Any], terminal: "_Terminal", view: Shown, interval_s: float) -> None:
    due = 0.0
    while True:
        now = time.monotonic()
        if now >= due:
            if not view.paused:
                view.take(sample(daemon))
            # the second sample soon, for there is nothing to see before
            due = now + (interval_s if view.now is not None else min(interval_s, 0.2))
        terminal.draw(view)
        for key in terminal.wait(due - time.monotonic()):
            if key in "qQ\x1b":
                return
            if key in "pP ":
                view.paused = not view.paused
            elif key in "sS":
                view.sort_next()


class _Terminal:
    """The terminal while it is ours: another screen, no cursor, keys at once. It is as it was on every way out."""

    def __enter__(self) -> "_Terminal":
        from rich.console import Console
        self._console = Console(highlight=False)
        self._input = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._ended: int | None = None
        self._before = {number: signal.signal(number, self._on_signal)
                        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP, signal.SIGWINCH)}
        signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give()
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for fd in (self._told, self._tell):
            os.close(fd)

    def _take(self) -> None:
        if self._input >= 0:
            self._mode = termios.tcgetattr(self._input)
            raw = termios.tcgetattr(self._input)
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(self._input, termios.TCSADRAIN, raw)
        with contextlib.suppress(OSError):
            self._console.set_alt_screen(True)
            self._console.show_cursor(False)

    def _give(self) -> None:
        with contextlib.suppress(OSError):      # a terminal that hung up
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        if self._input >= 0:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._mode)

    def _on_signal(self, number: int, _frame: Any) -> None:
        """Noted here, acted upon in `wait`: not in the middle of drawing."""
        if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            self._ended = number

    def wait(self, seconds: float) -> Iterator[str]:
        """The keys pressed within that time, or until the window changes. Raises KeyboardInterrupt when told to end."""
        sources = [self._told, self._input] if self._input >= 0 else [self._told]
        readable, _, _ = select.select(sources, [], [], max(0.0, seconds))
        if self._told in readable and signal.SIGTSTP in os.read(self._told, 64):
            self._stop()
        if self._ended is not None:
            raise KeyboardInterrupt
        if self._input in readable:
            pressed = os.read(self._input, 64)
            if not pressed:
                raise KeyboardInterrupt         # hung up
            yield from _SEQUENCE.sub("", pressed.decode(errors="ignore"))

    def _stop(self) -> None:
        """As the shell expects of Ctrl-Z; we go on where it says so."""
        self._give()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._on_signal)
        self._take()

    def draw(self, view: Shown) -> None:
        """Show the view, at the size that the window has now."""
        from rich.text import Text
        try:
            width, height = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            raise KeyboardInterrupt from None
        lines = view.lines(width, height)
        page = Text("\n").join(Text(line.text.ljust(width), line.style or "") for line in lines)
        rest = Text("\n" + "\n".join(" " * width for _ in range(height - len(lines)))) if len(lines) < height else Text("")
        self._console.size = (width, height)
        self._console.file.write("\x1b[H")
        self._console.print(page + rest, end="", soft_wrap=True)
        self._console.file.flush()
