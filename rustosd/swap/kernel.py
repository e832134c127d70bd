"""Linux's own swap on a disk of ours, for the whole machine: switched on, watched, and given back in every way out.

A process of its own serves it (`kernel_process`); the disk is this daemon's, so this daemon is locked in memory as well as long
as it lasts.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog

from rustosd.journal import Journal, KernelSwapMade
from rustosd.swap import kernel_nbd
from rustosd.swap.locked import Locked

PATIENCE_S: Final = 120.0
"""How long switching on may take, on a slow disk."""
OFF_S: Final = 60.0
"""How long the daemon's end waits for what is in swap to come back to memory."""
RARELY: Final = -900
"""The OOM killer takes the daemon after everybody else."""

log = structlog.get_logger(__name__)


class KernelSwapRefused(ValueError):
    """It is on already, or off."""


class State(NamedTuple):
    """What is on."""

    device: str
    export: str
    octets: int
    used_octets: int
    priority: int
    encryption: bool
    server: int                 # its process


class KernelSwap:
    """At most one at a time."""

    def __init__(self, export: Callable[[str], tuple[str, int]], journal: Callable[[], Journal]) -> None:
        """`export(name)`: the socket where it is served and its octets; raises OSError."""
        self._export, self._journal = export, journal
        self._locked = Locked()
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._entry = 0
        self._device = self._name = ""
        self._encryption = True

    def state(self) -> State | None:
        """None: it is off."""
        if self._process is None:
            return None
        octets, used, priority = next((rest for device, *rest in kernel_nbd.swaps() if device == self._device), (0, 0, 0))
        return State(self._device, self._name, octets, used, priority, self._encryption, self._process.pid)

    async def on(self, export: str, priority: int, encryption: bool) -> State:
        """Raises OSError, KernelSwapRefused."""
        async with self._turn:
            return await self._on(export, priority, encryption)

    async def _on(self, export: str, priority: int, encryption: bool) -> State:
        if self._process is not None:
            raise KernelSwapRefused(f"swap is on already, on export {self._name}; first: rustosctl swap kernel off")
        path, _ = self._export(export)
        self._device, self._name, self._encryption = await asyncio.to_thread(kernel_nbd.free_device), export, encryption
        self._entry = self._journal().take(KernelSwapMade(self._device))
        wanted = {"device": self._device, "socket": path, "export": export, "priority": priority, "encryption": encryption}
        try:
            self._locked.begin(RARELY, whole=False)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "rustosd.swap.kernel_process", json.dumps(wanted), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE)
            async with asyncio.timeout(PATIENCE_S):
                said = await self._said()
            if "ready" not in said:
                raise OSError(5, f"no swap on export {export}: {said.get('failed', 'its process has ended')}")
        except BaseException:
            await self._abandon()
            raise
        log.info("kernel_swap_on", device=self._device, export=export, octets=said["octets"])
        state = self.state()
        assert state is not None
        return state

    async def off(self) -> None:
        """Bring everything back to memory. Raises OSError when there is no room for it, KernelSwapRefused when it is off."""
        async with self._turn:
            await self._off()

    async def _off(self) -> None:
        if self._process is None or self._process.stdin is None:
            raise KernelSwapRefused("swap of Linux's is not on a disk of ours")
        with contextlib.suppress(ConnectionError, RuntimeError):    # it has ended: uvloop says so by the latter
            self._process.stdin.write(b"off\n")
            await self._process.stdin.drain()
        said = await self._said()
        if "error" in said:
            raise OSError(12, said["error"])
        if "off" not in said:
            log.error("kernel_swap_lost", device=self._device, export=self._name)
        await self._abandon()
        log.info("kernel_swap_off", device=self._device, **{key: said[key] for key in ("reads", "writes") if key in said})

    async def close(self) -> None:
        """Off, as the daemon ends; what does not fit into memory is tried for again until OFF_S have passed."""
        limit = asyncio.get_running_loop().time() + OFF_S
        while self._process is not None:
            try:
                await self.off()
            except KernelSwapRefused:
                return      # somebody else has just switched it off
            except OSError as error:
                log.error("kernel_swap_stays", error=error.strerror)
                if asyncio.get_running_loop().time() > limit:
                    return      # the journal has it: `rustosd recover`, or the next start
                await asyncio.sleep(1)

    async def _said(self) -> dict[str, Any]:
        """The next thing that the process says; nothing when it has ended."""
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line else {}

    async def _abandon(self) -> None:
        """The process ends if it has not, the device is nobody's, this daemon is as it was."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        try:
            await asyncio.to_thread(kernel_nbd.give_back, self._device)
            self._journal().given_back(self._entry)
        finally:
            self._locked.end()
