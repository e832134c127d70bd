"""One port: its memory, and the specification's checklists for starting, stopping, resetting and asking its device.

All that waits is a procedure (`drivers.ahci.steps`). They raise DeviceTimeout and DeviceGone.
"""

from typing import Final

from drivers.ahci import commands
from drivers.ahci.commands import Answer, Own
from drivers.ahci.internal import InternalCommand
from drivers.ahci.options import LinkPower
from drivers.ahci.queue import FIS_OFFSET, LIST_OFFSET
from drivers.ahci.registers import ERRORS, Detection, PortRegisters, PxIS, PxSERR, PxTFD, Signature, Transition
from drivers.ahci.steps import Pause, Procedure, Until
from drivers.device import DmaMemory
from drivers.errors import DeviceError, DeviceGone, DeviceTimeout
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
SETTLE_NS: Final = 100 * MS
"""The PHY must say the same for that long before it is believed after a change."""
LOOK_AT_PHY_NS: Final = 10 * MS
RESTLESS_NS: Final = 2_000 * MS
"""A PHY that has not settled by then is taken at its last word."""
SRST_NS: Final = 1 * MS
"""SRST stands for 5 us at least. SATA 11.4."""
SRST_ANSWER_NS: Final = 3_000 * MS
EVERYTHING: Final = 0xFFFF_FFFF
PLUG: Final = PxIS.PCS.mask | PxIS.PRCS.mask | PxIS.CPDS.mask
"""What of PxIS says that a device came or went."""

_WOKE: Final = PxSERR.N.mask | PxSERR.W.mask
_FIS_D2H: Final = 0x34
_NO_SLEEP: Final = 3
_NO_SLUMBER: Final = 2
_SLEEP: Final = 0
"""PxSCTL.IPM: transitions that are forbidden to both sides. AHCI 3.3.11."""
_FORBIDDEN: Final = {LinkPower.ACTIVE: _NO_SLEEP, LinkPower.PARTIAL: _NO_SLUMBER, LinkPower.SLUMBER: _SLEEP}


class Refused(DeviceError):
    """The device answered one of our own commands with an error. `status` and `error` are its registers."""

    def __init__(self, device: str, message: str, status: int = 0, error: int = 0) -> None:
        super().__init__(device, message)
        self.status, self.error = status, error


class Port:
    """Registers and memory of a port, and what is done with them."""

    def __init__(self, name: str, regs: PortRegisters, memory: DmaMemory, internal: InternalCommand) -> None:
        self.name, self.regs, self.memory = name, regs, memory
        self._internal = internal
        self.speed_limit = 0
        """Generation of the link; 0: as fast as both sides can."""
        self._policy = LinkPower.ACTIVE

    # Bring-up and the end.

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
        regs.SCTL.write(DET=0, SPD=self.speed_limit, IPM=_NO_SLEEP)
        regs.SERR.write(EVERYTHING)
        cmd = regs.CMD.read()
        self._stay_awake()
        regs.CMD.modify(POD=1 if cmd.CPD else cmd.POD, SUD=1, ICC=Transition.ACTIVE)
        regs.CMD.modify(FRE=1)
        yield Until(regs.CMD.read, lambda cmd: cmd.FR, ENGINE_NS, "PxCMD.FR")

    def comreset(self) -> Procedure:
        """Reset the link and the device behind it. The command engine must be off. AHCI 10.4.2."""
        self._stay_awake()
        self.regs.SCTL.write(DET=1, SPD=self.speed_limit, IPM=_NO_SLEEP)
        yield Pause(COMRESET_NS)
        self.regs.SCTL.modify(DET=0)

    def link(self) -> Procedure:
        """Wait for the device; False when there is none. AHCI 10.1.2, 10.4.2."""
        regs = self.regs
        # What is expected to pass without a device is no error, so no Until: a look each time until presence is certain.
        waited = 0
        while not (detection := self.detection()) and waited < PRESENCE_NS:
            yield Pause(MS)
            waited += MS
        if detection in (Detection.NOTHING, Detection.OFFLINE):
            return False
        yield Until(regs.SSTS.read, lambda ssts: ssts.DET is Detection.UP, LINK_NS, "PxSSTS.DET=UP")
        regs.SERR.write(EVERYTHING)     # the bits of a link that was just made, PxSERR.X holds the first FIS back
        yield Until(regs.TFD.read, lambda tfd: not tfd & (PxTFD.BSY.mask | PxTFD.DRQ.mask), SPIN_UP_NS, "PxTFD.BSY clear")
        return True

    def detection(self) -> int:
        """PxSSTS.DET. Raises DeviceGone."""
        status = int(self.regs.SSTS.read())
        if status == EVERYTHING:
            raise DeviceGone(self.name)
        return status & 0xF

    def settled(self) -> Procedure:
        """Wait until the PHY says the same for some time: a plug bounces. Whether somebody is there."""
        last, steady, waited = -1, 0, 0
        while steady < SETTLE_NS and waited < RESTLESS_NS:
            detection = self.detection()
            if detection != last:
                last, steady = detection, 0
            yield Pause(LOOK_AT_PHY_NS)
            steady += LOOK_AT_PHY_NS
            waited += LOOK_AT_PHY_NS
        return last not in (Detection.NOTHING, Detection.OFFLINE)

    def start_commands(self) -> None:
        """Process the command list. BSY and DRQ must be clear. AHCI 10.3.1."""
        self.regs.SERR.write(EVERYTHING)
        self.regs.IS.write(EVERYTHING)
        self._internal.forget_received()
        self.regs.CMD.modify(ST=1)

    def stuck(self) -> bool:
        """Whether only a reset helps, after the command engine was stopped: it runs on, or `busy`. AHCI 10.4.1."""
        return self.busy() or bool(self.regs.CMD.read().CR)

    def busy(self) -> bool:
        """Whether the device is busy or wants to move data, or the link is down."""
        tfd = self.regs.TFD.read()
        return bool(tfd.BSY or tfd.DRQ or self.regs.SSTS.read().DET is not Detection.UP)

    def kind(self) -> Signature | int:
        """What is at the other end."""
        return _signature(int(self.regs.SIG.read()))

    def watch(self) -> None:
        """No commands run: only who comes or goes interrupts."""
        self.regs.IS.write(EVERYTHING)
        self.regs.IE.write(PLUG)

    @property
    def plug_causes(self) -> int:
        """What of PxIS says that somebody came or went; of a link that may sleep, PhyRdy says nothing. AHCI 8.3.1."""
        return PLUG & ~PxIS.PRCS.mask if self._policy is not LinkPower.ACTIVE else PLUG

    @property
    def error_causes(self) -> int:
        """What of PxIS needs attention."""
        return ERRORS & ~PLUG | self.plug_causes

    def link_errors(self) -> int:
        """PxSERR, without what only says that the link woke."""
        errors = int(self.regs.SERR.read())
        return errors & ~_WOKE if self._policy is not LinkPower.ACTIVE else errors

    # What kind of device there is, where it matters to the controller. AHCI 3.3.7.

    def is_packet(self, there: bool) -> None:
        """PxCMD.ATAPI, for the activity LED."""
        self.regs.CMD.modify(ATAPI=int(there))

    def is_multiplier(self) -> Procedure:
        """PxCMD.PMA, which is written only while the command engine is off. AHCI 3.3.7."""
        yield from self.stop_commands()
        self.regs.CMD.modify(PMA=1)
        self.start_commands()

    # Link power. AHCI 8.3.1, SATA 8.

    def sleep(self, policy: LinkPower) -> None:
        """Let the link sleep as far as the policy has it. Changes of PhyRdy are then no news."""
        self._policy = policy
        if policy is not LinkPower.ACTIVE:
            self.regs.SCTL.modify(IPM=_FORBIDDEN[policy])
            self.regs.CMD.modify(ALPE=1, ASP=int(policy is LinkPower.SLUMBER))

    def _stay_awake(self) -> None:
        self._policy = LinkPower.ACTIVE
        self.regs.CMD.modify(ALPE=0, ASP=0, PMA=0, ATAPI=0)

    # Commands of our own.

    def internal(self, own: Own, pm: int = 0) -> Procedure:
        """Carry out a command of our own while nothing else runs; its Answer.

        Raises Refused when the device says that it failed; the command engine runs again then, unless it is stuck.
        """
        regs = self.regs
        self._internal.start(own.fis(pm), own.flags(pm), own.octets, own.data, own.packet)
        try:
            yield Until(regs.CI.read, lambda ci: not ci & 1 or regs.IS.read() & self.error_causes, own.timeout_ns,
                        f"the end of {own.name}")
        finally:
            data = self._internal.end(own.octets)
        tfd, cause = regs.TFD.read(), regs.IS.read()
        if tfd.ERR or tfd.DF or regs.CI.read() & 1 or cause & self.error_causes & ~PLUG:
            refused = Refused(self.name, f"it answers {own.name} with status {tfd} ({cause})", int(tfd) & 0xFF, tfd.ERROR)
            yield from self._restart()
            raise refused
        if cause & self.plug_causes:
            raise DeviceTimeout(self.name, f"the end of {own.name}: the link went", int(cause), 0.0)
        answer = Answer(data, self._internal.received())
        regs.IS.write(cause)
        self._internal.forget_received()
        return answer

    def _restart(self) -> Procedure:
        """The command engine off and on, which is how it gets over an error. AHCI 6.2.2.1."""
        yield from self.stop_commands()
        if not self.stuck():
            self.start_commands()

    def software_reset(self, pm: int = 0) -> Procedure:
        """Reset the device at a multiplier's port, or the one there is; its signature. SATA 11.4, AHCI 10.4.1."""
        regs = self.regs
        for on in (True, False):
            own = commands.software_reset(on)
            self._internal.start(own.fis(pm), own.flags(pm), 0)
            try:
                yield Until(regs.CI.read, lambda ci: not ci & 1, own.timeout_ns, "the end of a software reset")
            finally:
                self._internal.end(0)
            yield Pause(SRST_NS)
        received = self._internal.received
        yield Until(lambda: received()[0], lambda kind: kind == _FIS_D2H, SRST_ANSWER_NS, "the answer to a software reset")
        yield Until(regs.TFD.read, lambda tfd: not tfd & (PxTFD.BSY.mask | PxTFD.DRQ.mask), SPIN_UP_NS, "PxTFD.BSY clear")
        fis = received()
        regs.IS.write(EVERYTHING)
        return _signature(fis[12] | int.from_bytes(fis[4:7], "little") << 8)


def _signature(value: int) -> Signature | int:
    return Signature(value) if value in Signature._value2member_map_ else value
