"""What an operator can ask about memory; the methods of `memory_protocol`."""

import asyncio
from typing import Any

import msgspec

from rustosd.control import memory_protocol as p
from rustosd.control.base import Nothing
from rustosd.processes import Group


class MemoryOperations:
    """The methods of `memory_protocol.METHODS`."""

    core: Any
    """Its `processes` is a `rustosd.processes.Processes`, its `devices` a `rustosd.devices.DeviceManager` or None."""

    async def memory_list(self, _: Nothing) -> list[p.ProgramMemory]:
        rows = await asyncio.gather(*(_ask(group) for group in self.core.processes.groups()))
        return [row for row in rows if row is not None]

    async def memory_dma(self, _: Nothing) -> list[p.DmaHolding]:
        held = self.core.devices.held if self.core.devices is not None else {}
        return [p.DmaHolding(device=name, owner=one.owner, blocks=one.blocks, octets=one.octets)
                for name, device in sorted(held.items()) for one in device.device.dma_owned()]


async def _ask(group: Group) -> p.ProgramMemory | None:
    """None: its memory has no limit, or its supervisor does not answer."""
    try:
        answer = await group.ask("memory")
        return msgspec.convert({**answer["memory"], "group": group.pid, "program": group.name}, p.ProgramMemory)
    except (OSError, KeyError, TypeError, msgspec.ValidationError):
        return None
