"""The 8254x and the 82574 as their datasheets say, as strict as they could be: registers, NVM, PHY, rings, offloads.

What leaves the card is in `wire`, super-segments split. `deliver` puts a frame on the wire the other way.
"""

import struct
import time

from drivers.e1000 import registers as r
from drivers.e1000.chips import CHIPS
from drivers.e1000.registers import MAP_8254X, MAP_82574, STATISTICS, Classic, Express
from drivers.registers import Access
from tests.models.device import Misuse
from tests.support.offload import fold

MAC = bytes.fromhex("525400aabbcc")
ONES = 0xFFFF_FFFF
TX_CAUSES = {"msix": 1 << 22, "other": 1 << 0}
RX_CAUSES = {"msix": 1 << 20, "other": 1 << 7}


class Model:
    """One card. `chip` is its device ID."""

    size = 0x20000
    address = 0

    def __init__(self, chip: int = 0x100E):
        self.chip = CHIPS[chip]
        self.map = MAP_82574 if self.chip.express else MAP_8254X
        words = [*(int.from_bytes(MAC[i:i + 2], "little") for i in (0, 2, 4)), *[0x1234] * 60]
        self.nvm = [*words, (0xBABA - sum(words)) & 0xFFFF]
        self.wire: list[bytes] = []
        self.writes: list[tuple[str, int]] = []
        self.gone = self.zeros = self.hung = False
        self.negotiated = True
        self.phy_answers = True
        self.device = self.bus = None
        self.clock = time.monotonic
        self._power_on()

    def attach(self, device) -> None:
        self.device = device

    def _power_on(self) -> None:
        self.counts = dict.fromkeys(STATISTICS, 0)
        self.memory: dict[int, int] = {}
        self.icr = self.ims = 0
        self.reset_at = 0.0
        self.phy = {0: 0x1140, 1: 0x796D, 2: 0x0141, 3: 0x0CB1, 4: 0x01E1, 5: 0x45E1, 9: 0x0E00, 10: 0x7C00}
        self.context: tuple | None = None
        self.parts: list[bytes] = []
        self.tx_command = self.tx_options = 0
        self.poll = {}
        if self.chip.express:
            self.memory[r.EECD.at] = r.EECD(AUTO_READ=1, PRESENT=1)

    def value(self, register) -> int:
        return self.memory.get(register.at, 0)

    # The BAR.

    def read32(self, at: int) -> int:
        if self.gone or self.zeros:
            return ONES if self.gone else 0
        self._settled(at)
        found = self.map.find(at)
        if found is None:
            raise Misuse(f"read of {at:#x}, where no register is")
        register, _ = found
        if not register.access.readable:
            raise Misuse(f"read of {register.__name__}, which is write only")
        special = getattr(self, f"_read_{register.__name__}", None)
        if special:
            return special()
        for name, counter in STATISTICS.items():
            if counter is register:
                value, self.counts[name] = self.counts[name], 0
                return value if at == register.at else 0
        return self.memory.get(at, 0)

    def write32(self, at: int, value: int) -> None:
        if not 0 <= value <= ONES:
            raise Misuse(f"{value:#x} does not fit 32 bits")
        if self.gone or self.zeros:
            return
        self._settled(at)
        found = self.map.find(at, writing=True)
        if found is None or not found[0].access.writable:
            raise Misuse(f"write to {self.map.name_at(at, True)}, which cannot be written")
        register, index = found
        if value & ~register.known & ONES and register is not r.IMC:     # all of IMC is how one masks everything
            raise Misuse(f"{register.__name__}: reserved bits in {value:#x}")
        self.writes.append((register.label(index), value))
        special = getattr(self, f"_write_{register.__name__}", None)
        if special:
            special(value)
        elif register.access is not Access.WO:
            self.memory[at] = value


    def _settled(self, at: int) -> None:
        if self.reset_at and self.clock() - self.reset_at < 0.005:
            raise Misuse(f"{self.map.name_at(at)} is touched right after a reset")

    # General.

    def _read_CTRL(self) -> int:
        return self.value(r.CTRL)

    def _write_CTRL(self, value: int) -> None:
        if value & r.CTRL.RST.mask:
            split = self.value(r.PBA)
            if self.value(r.RCTL) & r.RCTL.EN.mask or self.value(r.TCTL) & r.TCTL.EN.mask:
                raise Misuse("reset with a ring running")
            if self.chip.express and not value & r.CTRL.MASTER_DISABLE.mask:
                raise Misuse("reset without stopping DMA first (82574 10.2.2)")
            self._power_on()
            self.memory[r.PBA.at] = split       # 8254x 13.4.16
            self.reset_at = self.clock()
            self._line()
            return
        self.memory[r.CTRL.at] = value

    def _read_STATUS(self) -> int:
        control = r.CTRL(self.value(r.CTRL))
        up = control.SLU and self.negotiated
        return int(r.STATUS(FD=1, LU=up, SPEED=2, MASTER_ENABLE=self.chip.express and not control.MASTER_DISABLE))

    def _write_EERD(self, value: int) -> None:
        layout = Express.EERD if self.chip.express else Classic.EERD
        wanted = layout(value)
        if not wanted.START or wanted.DONE or wanted.DATA:
            raise Misuse(f"EERD is started with {value:#x}")
        word = self.nvm[wanted.ADDRESS]
        self.poll["EERD"] = [int(layout(ADDRESS=wanted.ADDRESS)), int(layout(ADDRESS=wanted.ADDRESS, DONE=1, DATA=word))]

    def _read_EERD(self) -> int:
        answers = self.poll["EERD"]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _write_MDIC(self, value: int) -> None:
        v = r.MDIC(value)
        if self.chip.express and not self.value(Express.EXTCNF_CTRL) & Express.EXTCNF_CTRL.MDIO_SW.mask:
            raise Misuse("MDIC is used without owning it")
        if v.PHYADD != 1 or v.READY or v.ERROR:
            raise Misuse(f"MDIC {v}")
        done = r.MDIC(value, READY=1)
        if v.REGADD not in self.phy or not self.phy_answers:
            done = r.MDIC(done, ERROR=1)
        elif v.OP == r.MdiOperation.WRITE:
            self.phy[v.REGADD] = v.DATA & ~0x8200      # RESET and RESTART clear themselves
        else:
            done = r.MDIC(done, DATA=self.phy[v.REGADD])
        self.poll["MDIC"] = [value, int(done)]

    def _read_MDIC(self) -> int:
        answers = self.poll["MDIC"]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    # Interrupts.

    def cause(self, bits: int) -> None:
        self.icr |= bits
        self._line()

    def _line(self) -> None:
        interrupt = self.device and self.device.interrupt
        if interrupt:
            interrupt.line(bool(self.icr & self.ims))

    def _msix(self) -> bool:
        return bool(self.device.interrupt and self.device.interrupt.kind == "msix")

    def _queue_cause(self, table) -> int:
        if not self._msix():
            return table["other"]
        if not self.value(Express.IVAR) & 0x80808:
            raise Misuse("IVAR gives a cause no vector")
        return table["msix"]

    def _read_ICR(self) -> int:
        value = self.icr
        if not self._msix():
            self.icr = 0
        self._line()
        return value

    def _write_ICR(self, value: int) -> None:
        self.icr &= ~value
        self._line()

    def _write_ICS(self, value: int) -> None:
        self.cause(value)

    def _read_IMS(self) -> int:
        return self.ims

    def _write_IMS(self, value: int) -> None:
        self.ims |= value
        self._line()

    def _write_IMC(self, value: int) -> None:
        self.ims &= ~value
        self._line()

    # Receive.

    @property
    def longest(self) -> int:
        """Octets of a frame it lets pass, without FCS. It sends longer ones without being told; a driver should not."""
        return self.chip.longest if self.value(r.RCTL) & r.RCTL.LPE.mask else 1518

    def _write_RCTL(self, value: int) -> None:
        if value & r.RCTL.EN.mask and not self.value(r.RCTL) & r.RCTL.EN.mask:
            self._check_ring("RX", r.RDBAL, r.RDLEN)
            if not self.value(r.RAH) & r.RAH.AV.mask:
                raise Misuse("receive is enabled without an address (8254x 14.4)")
        self.memory[r.RCTL.at] = value

    def _write_RDLEN(self, value: int) -> None:
        self._ring_idle("RDLEN", r.RCTL)
        self.memory[r.RDLEN.at] = value

    def _write_RDT(self, value: int) -> None:
        if value >= max(self.value(r.RDLEN) // 16, 1):
            raise Misuse(f"RDT {value} is beyond the ring")
        self.memory[r.RDT.at] = value
        if self.value(r.RCTL) & r.RCTL.EN.mask:
            at = self.value(r.RDH)
            while at != value:      # what the device owns must be as it wants it
                address, rest = struct.unpack("<QQ", self._descriptor(r.RDBAL, at))
                if rest or not address:
                    raise Misuse(f"receive descriptor {at} is given back as {address:#x}, {rest:#x}")
                at = (at + 1) % (self.value(r.RDLEN) // 16)

    def free(self) -> int:
        """Receive descriptors the device owns."""
        return (self.value(r.RDT) - self.value(r.RDH)) % max(self.value(r.RDLEN) // 16, 1)

    def deliver(self, frame: bytes, status: int = 0, errors: int = 0, piece: int = 2048) -> bool:
        """A frame comes in. `status`, `errors`: more bits, errors as in the legacy octet; `piece`: octets to a descriptor."""
        parts = -(-len(frame) // piece)
        if len(frame) > self.longest:
            self.counts["oversize"] += 1
            return False
        if not self.value(r.RCTL) & r.RCTL.EN.mask or self.free() < parts:
            self.counts["missed_frames"] += 1
            self.cause(1 << 6)
            return False
        for part in range(parts):
            octets = frame[part * piece:(part + 1) * piece]
            at = self.value(r.RDH)
            descriptor = self._descriptor(r.RDBAL, at)
            self.bus.write(struct.unpack_from("<Q", descriptor)[0], octets)
            bits = 1 | (2 if part == parts - 1 else 0) | status
            place = self._base(r.RDBAL) + 16 * at
            if self.chip.express and self.value(Express.RFCTL) & Express.RFCTL.EXSTEN.mask:
                self.bus.write(place, struct.pack("<QIHH", 0xDEAD_BEEF_DEAD_BEEF, bits | errors << 24, len(octets), 0))
            else:
                self.bus.write(place + 8, struct.pack("<HHBBH", len(octets), 0xBEEF, bits, errors, 0xF00D))
            self.memory[r.RDH.at] = (at + 1) % (self.value(r.RDLEN) // 16)
        self.counts["good_frames_received"] += 1
        self.cause(self._queue_cause(RX_CAUSES))
        return True

    # Transmit.

    def _write_TCTL(self, value: int) -> None:
        if value & r.TCTL.EN.mask:
            self._check_ring("TX", r.TDBAL, r.TDLEN)
        self.memory[r.TCTL.at] = value

    def _write_TDLEN(self, value: int) -> None:
        self._ring_idle("TDLEN", r.TCTL)
        self.memory[r.TDLEN.at] = value

    def _write_TDT(self, value: int) -> None:
        if value >= max(self.value(r.TDLEN) // 16, 1):
            raise Misuse(f"TDT {value} is beyond the ring")
        self.memory[r.TDT.at] = value
        if self.value(r.TCTL) & r.TCTL.EN.mask and not self.hung:
            self.run_transmit()

    def run_transmit(self, most: int = 1 << 16) -> None:
        """Work off descriptors, `most` of them."""
        reported = False
        while most and self.value(r.TDH) != self.value(r.TDT):
            most -= 1
            at = self.value(r.TDH)
            low, high = struct.unpack("<QQ", self._descriptor(r.TDBAL, at))
            if high >> 32 & 0xF:
                raise Misuse(f"transmit descriptor {at} has status bits set")
            self._transmit_descriptor(low, high)
            if high & 1 << 27:
                self.bus.write(self._base(r.TDBAL) + 16 * at + 12, struct.pack("<I", high >> 32 | 1))
                reported = True
            self.memory[r.TDH.at] = (at + 1) % (self.value(r.TDLEN) // 16)
        if reported:
            self.cause(self._queue_cause(TX_CAUSES))

    def _transmit_descriptor(self, low: int, high: int) -> None:
        if not high & 1 << 29:
            raise Misuse("a legacy descriptor: the driver has no use for one")
        kind = high >> 20 & 0xF
        if kind == 0:
            if self.parts:
                raise Misuse("a context descriptor inside a frame")
            self.context = low, high
            return
        if kind != 1:
            raise Misuse(f"descriptor type {kind}")
        length = high & 0xFFFFF
        if not 0 < length <= 16288:
            raise Misuse(f"a data descriptor of {length} octets")
        if not self.parts:
            self.tx_command, self.tx_options = high & 0xFF00_0000, high >> 40 & 0xFF
        elif (high ^ self.tx_command) & 1 << 26:
            raise Misuse("TSE differs within a frame")
        self.parts.append(self.bus.read(low, length))
        if high & 1 << 24:
            frame = b"".join(self.parts)
            self.parts = []
            if not high & 1 << 25:
                raise Misuse("a frame without FCS")
            self._send(frame)

    def _send(self, frame: bytes) -> None:
        if not self.tx_options and not self.tx_command & 1 << 26:
            self._out(frame)
            return
        if self.context is None:
            raise Misuse("an offload without context")
        low, high = self.context
        ip_start, ip_at, ip_end, start, at, end = struct.unpack("<BBHBBH", struct.pack("<Q", low))
        if start <= ip_start or at <= start or at + 2 > len(frame) or end:
            raise Misuse(f"context {low:#x} does not fit")
        if not self.tx_command & 1 << 26:
            if high & 1 << 26:
                raise Misuse("a frame that is not to be split uses a context for splitting")
            data = bytearray(frame)
            put_sum(data, start, at, len(data))
            self._out(bytes(data))
            return
        self._split(frame, high, (ip_start, ip_at, ip_end), (start, at))

    def _split(self, frame: bytes, high: int, ip: tuple[int, int, int], tcp: tuple[int, int]) -> None:
        """8254x 3.5."""
        ip_start, ip_at, ip_end = ip
        start, at = tcp
        payload, headers, segment = high & 0xFFFFF, high >> 40 & 0xFF, high >> 48
        v4 = bool(high & 1 << 25)
        if not high & 1 << 26 or not high & 1 << 24:
            raise Misuse("splitting with a context that is not for splitting TCP")
        if payload != len(frame) - headers or not segment or headers != start + (frame[start + 12] >> 4) * 4:
            raise Misuse(f"PAYLEN {payload}, HDRLEN {headers}, MSS {segment} for {len(frame)} octets")
        if (frame[ip_start] >> 4) != (4 if v4 else 6):
            raise Misuse("TUCMD.IP contradicts the packet")
        if v4 and (frame[ip_start + 2:ip_start + 4] != b"\0\0" or frame[ip_start + 10:ip_start + 12] != b"\0\0"
                   or not self.tx_options & 1 or (ip_at, ip_end) != (ip_start + 10, start - 1)):
            raise Misuse("the IPv4 header is not ready for splitting")
        if not self.tx_options & 2:
            raise Misuse("splitting without TCP checksums")
        for number, offset in enumerate(range(0, payload, segment)):
            data = bytearray(frame[:headers] + frame[headers + offset:headers + offset + segment])
            last = offset + segment >= payload
            if v4:
                struct.pack_into(">H", data, ip_start + 2, len(data) - ip_start)
                identity = struct.unpack_from(">H", data, ip_start + 4)[0]
                struct.pack_into(">H", data, ip_start + 4, identity + number & 0xFFFF)
                put_sum(data, ip_start, ip_at, start)
            else:
                struct.pack_into(">H", data, ip_start + 4, len(data) - ip_start - 40)
            sequence = struct.unpack_from(">I", data, start + 4)[0]
            struct.pack_into(">I", data, start + 4, sequence + offset & ONES)
            if not last:
                data[start + 13] &= ~0x09       # FIN and PSH belong to the last
            struct.pack_into(">H", data, at, fold(struct.unpack_from(">H", data, at)[0] + len(data) - start))
            put_sum(data, start, at, len(data))
            self._out(bytes(data))
        self.counts["super_segments_sent"] += 1

    def _out(self, frame: bytes) -> None:
        if len(frame) > self.longest:
            raise Misuse(f"a frame of {len(frame)} octets on the wire")
        self.wire.append(frame)
        self.counts["good_frames_sent"] += 1

    # Rings.

    def _base(self, low) -> int:
        return self.memory.get(low.at, 0) | self.memory.get(low.at + 4, 0) << 32

    def _descriptor(self, low, index: int) -> bytes:
        return self.bus.read(self._base(low) + 16 * index, 16)

    def _check_ring(self, what: str, low, length) -> None:
        if self._base(low) % 16 or not self.value(length) or self.value(length) % 128:
            raise Misuse(f"{what} is enabled with its ring at {self._base(low):#x} of {self.value(length)} octets")

    def _ring_idle(self, what: str, control) -> None:
        if self.value(control) & 2:
            raise Misuse(f"{what} is changed while the ring runs")


def put_sum(data: bytearray, start: int, at: int, end: int) -> None:
    """Complete the Internet checksum at `at` over [start, end)."""
    octets = bytes(data[start:end]) + b"\0" * ((end - start) & 1)
    total = fold(sum(struct.unpack(f">{len(octets) // 2}H", octets)))
    struct.pack_into(">H", data, at, ~total & 0xFFFF)
