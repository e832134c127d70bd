"""One port: its memory, and the specification's checklists for starting, stopping, resetting and asking its drive.

All that waits is a procedure (`drivers.ahci.steps`). They raise DeviceTimeout and DeviceGone.
"""

from typing import Final

from drivers.ahci.identify import parse
from drivers.ahci.queue import COMMANDS, FIS_OFFSET, LIST_OFFSET, CommandQueue
from drivers.ahci.registers import ERRORS, Detection, PortRegisters, PxTFD, Signature, Transition
from drivers.ahci.steps import Pause, Procedure, Until
from drivers.device import DmaMemory
from drivers.errors import DeviceError
from drivers.registers import MS

ENGINE_NS: Final = 500 * MS
"""PxCMD.CR and PxCMD.FR clear within that. AHCI 10.1.2."""
COMRESET_NS: Final = 2 * MS
"""PxSCTL.DET is 1 for a millisecond at least. AHCI 10.4.2."""
PRESENCE_NS: Final = 100 * MS
"""A PHY says that somebody is there within 10 ms (SATA 8.4); some take longer after a reset of the adapter."""
LINK_NS: Final = 2_000 * MS
SPIN_UP_NS: Final = 30_000 * MS
"""A disk from standstill, or an SSD that repairs its tables after a power cut."""
IDENTIFY_NS: Final = 5_000 * MS
EVERYTHING: Final = 0xFFFF_FFFF
ERROR_LOG: Final = 0x10
"""General purpose log: NCQ command error. ACS-3 9.14."""


class Refused(DeviceError):
    """The device answered one of our own commands with an error."""


class Port:
    """Registers and memory of a port, and what is done with them."""

    def __init__(self, name: str, regs: PortRegisters, memory: DmaMemory, queue: CommandQueue) -> None:
        self.name, self.regs, self.memory, self.queue = name, regs, memory, queue

    def stop(self) -> Procedure:
        """Both engines off. AHCI 10.1.2 step 3."""
        yield from self.stop_commands()
        self.regs.CMD.modify(FRE=0)
        yield Until(self.regs.CMD.read, lambda cmd: not cmd.FR, ENGINE_NS, "PxCMD.FR clear")

    def stop_commands(self) -> Procedure:
        """The command list is processed no more; the controller has forgotten what was issued."""
        self.regs.CMD.modify(ST=0)
        yield Until(self.regs.CMD.read, lambda cmd: not cmd.CR, ENGINE_NS, "PxCMD.CR clear")

    def prepare(self) -> Procedure:
        """Memory, power, link, FISes. AHCI 10.1.2 steps 5 and 6, 10.10.1. The device begins to start up."""
        regs, lists, fises = self.regs, self.memory.iova + LIST_OFFSET, self.memory.iova + FIS_OFFSET
        regs.IE.write(0)
        regs.CLB.write(lists & EVERYTHING)
        regs.CLBU.write(lists >> 32)
        regs.FB.write(fises & EVERYTHING)
        regs.FBU.write(fises >> 32)
        regs.SCTL.write(DET=0, SPD=0, IPM=3)        # the link stays awake: no partial, no slumber
        regs.SERR.write(EVERYTHING)
        cmd = regs.CMD.read()
        regs.CMD.modify(POD=1 if cmd.CPD else cmd.POD, SUD=1, ICC=Transition.ACTIVE, ATAPI=0, ALPE=0)
        regs.CMD.modify(FRE=1)
        yield Until(regs.CMD.read, lambda cmd: cmd.FR, ENGINE_NS, "PxCMD.FR")

    def comreset(self) -> Procedure:
        """Reset the link and the device behind it. The command engine must be off. AHCI 10.4.2."""
        self.regs.SCTL.modify(DET=1)
        yield Pause(COMRESET_NS)
        self.regs.SCTL.modify(DET=0)

    def link(self) -> Procedure:
        """Wait for the device; False when there is none. AHCI 10.1.2, 10.4.2."""
        regs = self.regs
        last: list[int] = [0]

        def status() -> int:
            last[0] = regs.SSTS.read()
            return last[0]
        # What is expected to pass without a device is no error, so no Until: a look each time until presence is certain.
        waited = 0
        while not status() & 0xF and waited < PRESENCE_NS:
            yield Pause(MS)
            waited += MS
        if last[0] == EVERYTHING:
            yield Until(status, lambda value: False, 0, "PxSSTS")
        if last[0] & 0xF in (Detection.NOTHING, Detection.OFFLINE):
            return False
        yield Until(regs.SSTS.read, lambda ssts: ssts.DET is Detection.UP, LINK_NS, "PxSSTS.DET=UP")
        regs.SERR.write(EVERYTHING)     # the bits of a link that was just made, PxSERR.X holds the first FIS back
        yield Until(regs.TFD.read, lambda tfd: not tfd & (PxTFD.BSY.mask | PxTFD.DRQ.mask), SPIN_UP_NS, "PxTFD.BSY clear")
        return True

    def start_commands(self) -> None:
        """Process the command list. BSY and DRQ must be clear. AHCI 10.3.1."""
        self.regs.SERR.write(EVERYTHING)
        self.regs.IS.write(EVERYTHING)
        self.queue.forget_received()
        self.regs.CMD.modify(ST=1)

    def stuck(self) -> bool:
        """Whether only a reset helps: the command engine runs on, the device is busy or wants to move data, or the link is
        down. AHCI 10.4.1."""
        tfd = self.regs.TFD.read()
        return bool(tfd.BSY or tfd.DRQ or self.regs.CMD.read().CR or self.regs.SSTS.read().DET is not Detection.UP)

    def kind(self) -> Signature | int:
        """What is at the other end."""
        signature = int(self.regs.SIG.read())
        return Signature(signature) if signature in Signature._value2member_map_ else signature

    def identify(self) -> Procedure:
        """Ask the drive what it is: an Identity. Raises IdentifyError, Refused."""
        return parse((yield from self.internal("identify", timeout_ns=IDENTIFY_NS)))

    def read_error_log(self) -> Procedure:
        """The page of the NCQ command error log. Raises Refused."""
        return (yield from self.internal("read log", ERROR_LOG, timeout_ns=IDENTIFY_NS))

    def internal(self, command: str, lba: int = 0, *, timeout_ns: int) -> Procedure:
        """A command of our own that reads 512 octets, while nothing else runs. Raises Refused."""
        regs = self.regs
        self.queue.start_internal(COMMANDS[command], lba, 1)
        try:
            yield Until(regs.CI.read, lambda ci: not ci & 1 or regs.IS.read() & ERRORS, timeout_ns, f"the end of {command}")
        finally:
            data = self.queue.end_internal()
        tfd, cause = regs.TFD.read(), regs.IS.read()
        if tfd.ERR or regs.CI.read() & 1 or cause & ERRORS:
            raise Refused(self.name, f"it answers {command} with status {tfd} ({cause})")
        regs.IS.write(cause)
        self.queue.forget_received()
        return data
