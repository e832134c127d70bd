"""Everything of the controller but frames: bring-up as the datasheet's checklist, filters, interrupts, statistics, halt."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from drivers.device import Device
from drivers.e1000.chips import OVERHEAD, Chip
from drivers.e1000.nvm import LOADED_NS, read_mac
from drivers.e1000.phy import Negotiation, Phy
from drivers.e1000.receive import RxRing
from drivers.e1000.registers import MAP_8254X, MAP_82574, RAL, STATISTICS, VFTA, BufferSize, Cause, MTA, Speed
from drivers.e1000.transmit import TxRing
from drivers.errors import DeviceGone, DeviceTimeout
from drivers.registers import MS, RegisterFile

EVERYTHING: Final = 0xFFFF_FFFF
ORDINARY_MTU: Final = 1500
"""Longer packets make long frames, which the device drops unless RCTL.LPE says otherwise."""
VLAN_ETHERTYPE: Final = 0x8100
RESET_S: Final = 0.010
"""After CTRL.RST nothing may be read for a while: the EEPROM is loaded. 8254x 13.4.1; 82574 4.6.1."""
RESET_NS: Final = 100 * MS
MASTER_NS: Final = 100 * MS
DRAIN_S: Final = 0.001
"""What may still be under way when a ring is turned off is over by then: one frame at 10 Mb/s takes 1.2 ms, 10 us at 1 Gb/s."""
MODERATION_UNIT_NS: Final = 256
COLLISION_THRESHOLD: Final = 15
COLLISION_DISTANCE: Final = 64
"""Full duplex; 8254x 14.5."""


@dataclass
class Filters:
    """Which frames to receive besides broadcasts and those to our address."""

    promiscuous: bool = False
    multicast: frozenset[bytes] | None = None
    """Groups; None: all of them."""
    vlans: frozenset[int] | None = None
    """VLANs whose tagged frames pass; None: all tags do."""


class Controller:
    """The registers of one card, as `regs`, and what is done with them."""

    def __init__(self, device: Device, chip: Chip, *, clock: Callable[[], int] = time.monotonic_ns,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises DeviceError when BAR 0 is not what it should be."""
        self.device, self.chip = device, chip
        self.regs = RegisterFile(device.bar(0), MAP_82574 if chip.express else MAP_8254X, device.name, clock=clock,
                                 sleep=sleep)
        self.phy = Phy(self.regs, shared=chip.express)
        self.filters = Filters()
        self.mtu = ORDINARY_MTU
        """Octets of the largest IP packet. A new one counts from the next reset on."""
        self.counts = dict.fromkeys(STATISTICS, 0)

    @property
    def longest(self) -> int:
        """Octets of the longest frame, with one VLAN tag, without FCS."""
        return self.mtu + OVERHEAD

    # Bring-up: 8254x 14, 82574 4.6.

    def reset(self) -> None:
        """Steps 1 to 4: quiet, reset, and its NVM loaded. All registers are as after power-on.

        Raises DeviceGone, DeviceTimeout.
        """
        regs = self.regs
        # 1. No interrupts (82574 4.6).
        self.mask(EVERYTHING)
        # 2. No DMA: the rings stop, and the bus falls silent (82574 4.6).
        self.stop()
        # 3. Reset. It is also when a new split of the packet buffer counts (8254x 13.4.16).
        if regs.CTRL.read() == EVERYTHING:
            raise DeviceGone(self.device.name)
        regs.PBA.modify(RX_KB=self.chip.receive_buffer_kb(self.longest))
        regs.CTRL.modify(RST=1)
        regs.sleep(RESET_S)
        regs.CTRL.wait(RST=0, timeout_ns=RESET_NS)
        # 4. Loaded from the NVM; 8254x have no bit that says so, and RESET_S covers it.
        if self.chip.express:
            regs.EECD.wait(AUTO_READ=1, timeout_ns=LOADED_NS)
        # The reset unmasks nothing, but 82574 4.6 asks for it again.
        self.mask(EVERYTHING)
        self.acknowledge()

    def read_mac(self) -> bytes:
        """Step 5: the address from the NVM. Raises DeviceError when the checksum is wrong."""
        return read_mac(self.regs)

    def start_link(self, reset_phy: bool) -> None:
        """Step 6: the link. 8254x 14.3; 82574 4.6. It comes up by itself; see `link_up`."""
        regs = self.regs
        # Speed and duplex from the PHY, nothing forced; DMA as the bus master bit says.
        regs.CTRL.modify(MASTER_DISABLE=0, SLU=1, ASDE=1, LRST=0, PHY_RST=0, ILOS=0, FRCSPD=0, FRCDPLX=0, RFCE=0, TFCE=0, VME=0)
        # Tags stay in the frames, both ways (VME is 0): the stack sees what was sent. The filter needs to know them.
        regs.VET.write(TYPE=VLAN_ETHERTYPE)
        # No flow control: a slow peer must not hold up all others.
        for register in (regs.FCAL, regs.FCAH, regs.FCT, regs.FCTTV):
            register.write(0)
        if reset_phy:
            self.phy.reset()

    def clear_statistics(self) -> None:
        """Step 7: reading them begins anew. 8254x 14.8."""
        self._read_statistics()
        self.counts = dict.fromkeys(STATISTICS, 0)

    def start_receive(self, mac: bytes, ring: RxRing) -> None:
        """Step 8: receive. 8254x 14.4; 82574 4.6."""
        regs = self.regs
        self._write_address(mac)
        self._write_tables()
        regs.RDTR.write(0)          # ITR alone moderates; 8254x 13.4.30
        regs.RADV.write(0)
        regs.RXCSUM.write(IPOFL=1, TUOFL=1)
        if self.chip.express:
            regs.RFCTL.modify(EXSTEN=ring.extended)
        regs.RXDCTL.write(GRAN=1, WTHRESH=1)
        regs.RDBAL.write(ring.iova & 0xFFFF_FFFF)
        regs.RDBAH.write(ring.iova >> 32)
        regs.RDLEN.write(ring.size * 16)
        regs.RDH.write(0)
        regs.RDT.write(0)
        regs.RCTL.write(EN=1, BAM=1, BSIZE=BufferSize.B2048, SECRC=1, LPE=self.mtu > ORDINARY_MTU, **self._modes())
        ring.offer()

    def start_transmit(self, ring: TxRing) -> None:
        """Step 9: transmit. 8254x 14.5; 82574 4.6."""
        regs = self.regs
        regs.TDBAL.write(ring.iova & 0xFFFF_FFFF)
        regs.TDBAH.write(ring.iova >> 32)
        regs.TDLEN.write(ring.size * 16)
        regs.TDH.write(0)
        regs.TDT.write(0)
        regs.TIDV.write(0)
        regs.TXDCTL.write(GRAN=1, WTHRESH=1, ONE=self.chip.express)
        regs.TIPG.write(IPGT=self.chip.inter_packet_gap, IPGR1=8, IPGR2=6)
        regs.TCTL.write(EN=1, PSP=1, CT=COLLISION_THRESHOLD, COLD=COLLISION_DISTANCE, MULR=self.chip.express)

    def start_interrupts(self, kind: str, moderation_us: int) -> None:
        """Step 10: how interrupts come; what is unmasked comes from now on. 8254x 13.4.18; 82574 7.4."""
        regs = self.regs
        interval = min(moderation_us * 1000 // MODERATION_UNIT_NS, 0xFFFF)
        regs.ITR.write(INTERVAL=interval)
        if kind == "msix":
            regs.EITR[0].write(INTERVAL=interval)
            regs.EIAC.write(0)      # causes stay until they are acknowledged: we ask for them once a burst, all together
            regs.CTRL_EXT.modify(PBA_SUPPORT=1, EIAME=0, IAME=0)
            # Everything to vector 0.
            regs.IVAR.write(RXQ0=0, RXQ0_VALID=1, TXQ0=0, TXQ0_VALID=1, OTHER=0, OTHER_VALID=1)

    # Running.

    def mask(self, causes: int) -> None:
        """Let these causes interrupt no more."""
        self.regs.IMC.write(causes)

    def unmask(self, causes: int) -> None:
        """Let these causes interrupt; at once if one is pending."""
        self.regs.IMS.write(causes)

    def acknowledge(self) -> Cause:
        """What has happened since the last time; forget it. Raises DeviceGone."""
        causes = self.regs.ICR.read()
        if causes == EVERYTHING:
            raise DeviceGone(self.device.name)
        if self.chip.express and causes:
            self.regs.ICR.write(causes)     # with MSI-X a read clears nothing; 82574 10.2.4
        return causes

    def kick(self, causes: int) -> None:
        """Interrupt as if these had happened."""
        self.regs.ICS.write(causes)

    def link_up(self) -> bool:
        """Whether the link is up. Raises DeviceGone."""
        status = self.regs.STATUS.read()
        if status == EVERYTHING:
            raise DeviceGone(self.device.name)
        return status.LU

    def link(self) -> tuple[int, bool] | None:
        """Megabits a second, and whether full duplex; None without a link. Raises DeviceGone."""
        status = self.regs.STATUS.read()
        if status == EVERYTHING:
            raise DeviceGone(self.device.name)
        return (10 ** (1 + min(status.SPEED, Speed.MB1000)), bool(status.FD)) if status.LU else None

    def paused(self) -> bool:
        """Whether the peer holds us back."""
        return self.regs.STATUS.read().TXOFF

    def running(self) -> bool:
        """Whether it still does what we told it: a card that lost power for a moment, or is gone from QEMU, does not."""
        control = self.regs.RCTL.read()
        return control != EVERYTHING and control.EN

    def negotiation(self) -> Negotiation:
        """What the PHY says of the link."""
        return self.phy.negotiation()

    def set_filters(self, filters: Filters) -> None:
        """Receive by these from now on."""
        self.filters = filters
        self._write_tables()
        modes = self._modes()
        if any(getattr(self.regs.RCTL.read(), name) != value for name, value in modes.items()):
            self.regs.RCTL.modify(**modes)

    def statistics(self) -> dict[str, int]:
        """What the device has counted since bring-up. Some 40 register reads."""
        self._read_statistics()
        return dict(self.counts)

    # The end.

    def stop(self) -> None:
        """No more frames, either way, and no more DMA. Does for a card in any state. Raises DeviceTimeout only for none."""
        regs = self.regs
        regs.RCTL.write(0)
        regs.TCTL.write(PSP=1)
        regs.sleep(DRAIN_S)
        if self.chip.express:
            regs.CTRL.modify(MASTER_DISABLE=1)
            with suppress(DeviceTimeout):       # the reset that follows ends what hangs; 82574 10.2.2
                regs.STATUS.wait(MASTER_ENABLE=0, timeout_ns=MASTER_NS)

    # Inside.

    def _write_address(self, mac: bytes) -> None:
        """Ours is number 0; the others are nobody's."""
        for index in range(RAL.count):
            octets = mac if index == 0 else bytes(6)
            self.regs.RAL[index].write(int.from_bytes(octets[:4], "little"))
            self.regs.RAH[index].write(ADDRESS=int.from_bytes(octets[4:], "little"), AV=index == 0)

    def _write_tables(self) -> None:
        groups = multicast_table(self.filters.multicast or ())
        vlans = vlan_table(self.filters.vlans or ())
        for index in range(MTA.count):
            self.regs.MTA[index].write(groups[index])
        for index in range(VFTA.count):
            self.regs.VFTA[index].write(vlans[index])

    def _modes(self) -> dict[str, bool]:
        """The fields of RCTL that the filters decide."""
        f = self.filters
        return {"UPE": f.promiscuous, "MPE": f.promiscuous or f.multicast is None,
                "VFE": f.vlans is not None and not f.promiscuous}

    def _read_statistics(self) -> None:
        for name, register in STATISTICS.items():
            value = getattr(self.regs, register.__name__).read()
            if value != register.ones:          # all ones: the card is gone, or a counter that stands at its end
                self.counts[name] += value


def multicast_table(groups: Iterable[bytes]) -> list[int]:
    """MTA for these groups, with RCTL.MO 0: bits 47 to 36 of the address index it. 8254x 13.5.1."""
    table = [0] * MTA.count
    for group in groups:
        index = group[4] >> 4 | group[5] << 4
        table[index >> 5] |= 1 << (index & 31)
    return table


def vlan_table(vlans: Iterable[int]) -> list[int]:
    """VFTA for these VLANs. 8254x 9.3."""
    table = [0] * VFTA.count
    for vlan in vlans:
        table[vlan >> 5] |= 1 << (vlan & 31)
    return table
