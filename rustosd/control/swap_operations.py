"""What an operator can ask about swap, and what supervisors get; the methods of `swap_protocol`."""

from typing import Any

import msgspec

from rustosd.control import swap_protocol as p
from rustosd.control.base import Done, Nothing
from rustosd.control.server import Handed, Peer
from rustosd.swap.watch import Swapped


class SwapOperations:
    """The methods of `swap_protocol.METHODS`."""

    core: Any
    """Its `swap_places` and `swap_watch` are those of `rustosd.swap`, its `kernel_swap` a `rustosd.swap.kernel.KernelSwap`."""

    async def swap_list(self, _: Nothing) -> list[p.ProgramSwap]:
        return [_row(each) for each in await self.core.swap_watch.look()]

    def kernelswap_show(self, _: Nothing) -> p.KernelSwap | None:
        state = self.core.kernel_swap.state()
        return None if state is None else p.KernelSwap(**state._asdict())

    async def kernelswap_on(self, wanted: p.KernelSwapOn) -> p.KernelSwap:
        state = await self.core.kernel_swap.on(str(wanted.export), wanted.priority, wanted.encryption)
        return p.KernelSwap(**state._asdict())

    async def kernelswap_off(self, _: Nothing) -> Done:
        await self.core.kernel_swap.off()
        return Done()

    def swap_take(self, _: Nothing, peer: Peer) -> Handed:
        return Handed(*self.core.swap_places.take(peer.pid))


def _row(each: Swapped) -> p.ProgramSwap:
    figures = msgspec.to_builtins(each.report)
    known = {name: figures[name] for name in p.ProgramSwap.__struct_fields__ if name in figures}
    rates = {name: round(getattr(each, name), 1) for name in ("in_octets_per_s", "out_octets_per_s")}
    return p.ProgramSwap(group=each.group, program=each.program, ratio=round(each.report.ratio, 2), **rates, **known)
