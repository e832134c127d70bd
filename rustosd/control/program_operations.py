"""What an operator can ask about the programs of the configuration, and do with them; the methods of `program_protocol`."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

import msgspec

from rustosd.control import program_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import OperationFailed

PATIENCE_S: Final = 60.0
"""Who asks is answered by then; what was asked for goes on."""


class ProgramOperations:
    """The methods of `program_protocol.METHODS`."""

    core: Any
    """Its `programs` is a `rustosd.programs.Programs`."""

    def program_list(self, _: Nothing) -> list[p.Program]:
        return [msgspec.convert(row, p.Program) for row in self.core.programs.rows()]

    async def program_start(self, which: p.ProgramName) -> Done:
        await _done(asyncio.ensure_future(self.core.programs.begin(which.name)), which.name)
        return Done()

    async def program_stop(self, which: p.ProgramName) -> Done:
        await _done(self.core.programs.find(which.name).stop(), which.name)
        return Done()

    async def program_restart(self, which: p.ProgramName) -> Done:
        await _done(asyncio.ensure_future(self.core.programs.restart(which.name)), which.name)
        return Done()


async def _done(task: Awaitable[None], name: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(task)
    except TimeoutError:
        raise OperationFailed(f"{name} has not ended yet; see: rustosctl program") from None
