"""Configuration, log, health and crash reports of a running daemon, as `upkeep_protocol` has them."""

import asyncio
import difflib
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from rustosd import config as configuration
from rustosd.config import Config
from rustosd.config_changes import Change, spoken
from rustosd.control import upkeep_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import OperationFailed
from rustosd.crash import CrashBox
from rustosd.health import Note
from rustosd.log import Logs
from rustosd.log_ring import Line
from rustosd.reconfigure import Outcome, Reconfigurer, ReloadFailed

LOOK_S: Final = 0.1


class UpkeepCore(Protocol):
    """What is asked of the daemon."""

    config: Config
    logs: Logs
    crashes: CrashBox
    reconfigurer: Reconfigurer

    def notes(self) -> Sequence[Note]:
        """What needs attention now, the worst first."""

    def about(self) -> p.About:
        """What this daemon is and what it runs on."""


class UpkeepOperations:
    """The methods of `upkeep_protocol.METHODS`."""

    core: Any       # UpkeepCore

    def daemon_about(self, _: Nothing) -> p.About:
        return self.core.about()

    def health_list(self, _: Nothing) -> list[p.HealthNote]:
        return [p.HealthNote(code=note.code, severity=note.severity, subject=note.subject or None, text=note.text,
                             advice=note.advice) for note in self.core.notes()]

    def config_show(self, _: Nothing) -> p.ConfigText:
        reconfigurer = self.core.reconfigurer
        return p.ConfigText(file=None if reconfigurer.path is None else str(reconfigurer.path),
                            toml=configuration.to_toml(self.core.config, secrets=False),
                            waiting=[_change(change) for change in reconfigurer.waiting])

    async def config_check(self, _: Nothing) -> p.Reload:
        return await self._reload(check=True)

    async def config_reload(self, _: Nothing) -> p.Reload:
        return await self._reload(check=False)

    async def _reload(self, check: bool) -> p.Reload:
        try:
            outcome: Outcome = await self.core.reconfigurer.reload(check)
        except ReloadFailed as failure:
            raise OperationFailed(str(failure)) from None
        return p.Reload(file=str(self.core.reconfigurer.path), done=outcome.done,
                        changes=[_change(change) for change in outcome.changes])

    def log_levels(self, _: Nothing) -> list[p.LoggerLevel]:
        logs = self.core.logs
        return [p.LoggerLevel(logger=None, level=logs.level),
                *(p.LoggerLevel(logger=name, level=level) for name, level in sorted(logs.levels.items()))]

    def log_set(self, change: p.LevelChange) -> Done:
        if change.logger is not None and change.logger not in self.core.logs.levels:
            _known_logger(change.logger)
        self.core.logs.set_level(change.logger, change.level)
        self.core.kick()
        return Done()

    async def log_tail(self, query: p.TailQuery) -> p.LogLines:
        ring = self.core.logs.ring
        after = max(ring.last - query.limit, 0) if query.after is None else min(query.after, ring.last)
        deadline = time.monotonic() + query.wait_ms / 1000
        while ring.last <= after and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
        lines = ring.after(after, query.limit)
        missed = 0 if query.after is None or not lines else lines[0].number - after - 1
        return p.LogLines(lines=[_line(line) for line in lines], last=lines[-1].number if lines else after, missed=missed)

    def crash_list(self, _: Nothing) -> list[p.CrashReport]:
        return [p.CrashReport(name=report.name, at=report.at, reason=report.reason, octets=report.octets)
                for report in self.core.crashes.reports()]

    def crash_show(self, query: p.ReportName) -> p.CrashText:
        return p.CrashText(name=query.name, text=self.core.crashes.text(query.name))

    def crash_clear(self, query: p.ReportChoice) -> p.Removed:
        removed = self.core.crashes.remove(query.name)
        self.core.kick()
        return p.Removed(removed=removed)


def _change(change: Change) -> p.ConfigChange:
    return p.ConfigChange(key=change.key, old=spoken(change.path, change.old), new=spoken(change.path, change.new),
                          taken=change.rule.how, when=change.rule.when or None)


def _line(line: Line) -> p.LogLine:
    return p.LogLine(number=line.number, at=line.at, level=line.level, logger=line.logger, event=line.event,
                     fields=line.fields)


def _known_logger(name: str) -> None:
    """Raises OperationFailed for a name that no module has, nor a package of modules."""
    known = {module[:end] for module in sys.modules for end in (*_dots(module), len(module))}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(each for each in known if each.startswith("rustosd")), 1)
        hint = f"did you mean {near[0]}?" if near else "a logger is called as its module: rustosd, rustosd.devices, asyncio"
        raise OperationFailed(f"there is no logger {name}; {hint}")


def _dots(module: str) -> list[int]:
    return [i for i, character in enumerate(module) if character == "."]
