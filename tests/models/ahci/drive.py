"""A disk: its contents, what it answers, and what shall go wrong.

As it comes it is a plain one with the little that a driver needs. With `full` it has everything the model knows: logs,
SMART, security, trim, power modes.
"""

import struct
from dataclasses import dataclass, field

from tests.models.ahci import commands as ata
from tests.models.ahci import logs, security, smart
from tests.models.ahci.commands import Answer, Command, Trouble, refused
from tests.models.ahci.identity import full_identification, identification
from tests.models.device import Misuse

SECTOR = 512
_CAUSES = {cause.value for cause in Trouble}
CACHE_ON, CACHE_OFF, FEATURE_ON, FEATURE_OFF, DEVICE_POWER = 0x02, 0x82, 0x10, 0x90, 3
_FEATURES = (0x03, CACHE_ON, CACHE_OFF, FEATURE_ON, FEATURE_OFF, 0xAA, 0x55)
"""SET FEATURES: with the transfer mode and look-ahead, which change nothing here."""


@dataclass
class Drive:
    """A disk. `media` is what it would read back, `durable` what would be there after a power cut, by LBA."""

    sectors: int = 4096
    identity: bytes = b""
    signature: int = 0x101
    log: bool = False
    fail: dict = field(default_factory=dict)
    """By LBA: the error register's bits, or "hang", "link", "bus", or a function of the Command that says which."""
    broken: dict = field(default_factory=dict)
    """The same by a command's code."""
    media: dict = field(default_factory=dict)
    durable: dict = field(default_factory=dict)
    spins_up_after: int = 0
    """So many looks at PxTFD are answered with BSY after a reset."""
    executed: list = field(default_factory=list)
    full: bool = False
    model: str = "STRICT DISK"
    serial: str = "S-1"
    sector_octets: int = SECTOR
    physical_octets: int = SECTOR
    trim: bool = True
    queued_trim: bool = True

    def __post_init__(self):
        self.identity = self.identity or identification(self.sectors, log=self.log)
        self.sectors, = struct.unpack_from("<Q", self.identity, 200)
        self.log = self.log or self.full
        self.dirty: set[int] = set()
        self.trimmed: list[tuple[int, int]] = []
        self.cache, self.multiple, self.device_power = True, 16, False
        self.standby = False
        self.error_count = 0
        self.security, self.smart = security.Security(self), smart.Smart(self)
        self.start()

    def start(self) -> None:
        """Power on, or COMRESET."""
        self.error_log = None
        self.was_queued_error = False   # it takes nothing but READ LOG EXT and resets

    def join(self, port) -> None:
        """Where it is plugged in."""

    def soft_reset(self, target: int) -> int:
        """The signature that it answers with, whichever port of a multiplier is meant."""
        self.was_queued_error = False
        return self.signature

    def power_cut(self) -> None:
        """What was not flushed is gone, and so is what only power keeps."""
        self.media = dict(self.durable)
        self.dirty.clear()
        self.cache, self.device_power, self.standby = True, False, False
        self.security.power_on()
        self.start()

    def erase(self) -> None:
        """All of it."""
        self.media.clear()
        self.durable.clear()
        self.dirty.clear()

    def sector(self, lba: int) -> bytes:
        return self.media.get(lba, bytes(self.sector_octets))

    def identify(self) -> bytes:
        return full_identification(self) if self.full else self.identity

    def execute(self, c: Command, bus) -> Answer:
        """Carry a command out."""
        if self.was_queued_error and c.code not in (ata.READ_LOG, ata.READ_LOG_DMA):
            raise Misuse("a command after a queued error, before the log was read (SATA 13.6.4)")
        self.executed.append((c.code, c.lba, c.sectors))
        fate = self._fate(c)
        if fate in _CAUSES:
            return Answer(trouble=Trouble(fate))
        if fate is not None:
            answer = refused(fate, lba=c.lba)
        elif self.security.locked and c.code in (*ata.READS, *ata.WRITES):
            answer = refused()
        else:
            answer = self._do(c, bus)
        if answer.failed:
            self.error_count += 1
            if c.queued:
                self.was_queued_error = True
                self.error_log = logs.queued_error(c.slot, ata.BAD, answer.error, c.lba)
        return answer

    def _fate(self, c: Command):
        fate = self.broken.get(c.code)
        if fate is None and c.code in (*ata.READS, *ata.WRITES, ata.VERIFY):
            fate = next((self.fail[lba] for lba in range(c.lba, c.lba + c.sectors) if lba in self.fail), None)
        return fate(c) if callable(fate) else fate

    def _do(self, c: Command, bus) -> Answer:
        if c.code in ata.READS or c.code in ata.WRITES:
            return self._move(c, bus)
        if c.code in (ata.FLUSH, ata.FLUSH_28):
            self.flush()
            return Answer()
        if c.code == ata.IDENTIFY:
            return c.scatter(bus, self.identify())
        if c.code in (ata.READ_LOG, ata.READ_LOG_DMA):
            return self._read_log(c, bus)
        return self._do_more(c, bus) if self.full else refused()

    def _do_more(self, c: Command, bus) -> Answer:
        if c.code == ata.SMART:
            return self.smart.execute(c, bus)
        if c.code in security.COMMANDS:
            return self.security.execute(c, bus)
        if c.code == ata.SET_FEATURES:
            return self._set_feature(c)
        if c.code == ata.DATA_SET_MANAGEMENT and self.trim and c.feature & 1:
            return self._trim(c.gather(bus))
        if c.code == ata.SEND_FPDMA and self.trim and self.queued_trim and c.count >> 8 & 0x1F == 0 and c.auxiliary & 1:
            return self._trim(c.gather(bus))
        if c.code == ata.CHECK_POWER:
            return Answer(count=0x00 if self.standby else 0xFF)
        if c.code in (ata.STANDBY_NOW, ata.STANDBY, ata.SLEEP):
            self.flush()
            self.standby = True
            return Answer()
        if c.code in (ata.IDLE_NOW, ata.IDLE):
            self.standby = False
            return Answer()
        if c.code in (ata.VERIFY, ata.VERIFY_28):
            return Answer() if c.lba + c.sectors <= self.sectors else refused(ata.IDNF, lba=c.lba)
        if c.code == ata.SET_MULTIPLE:
            self.multiple = c.count & 0xFF
            return Answer()
        return refused()

    def _move(self, c: Command, bus) -> Answer:
        if c.octets != c.sectors * self.sector_octets:
            raise Misuse("PRDs do not fit the sectors")
        if c.lba + c.sectors > self.sectors:
            return refused(ata.IDNF, lba=c.lba)
        self.standby = False
        if c.code not in ata.WRITES:
            return c.scatter(bus, b"".join(self.sector(c.lba + i) for i in range(c.sectors)))
        data, size = c.gather(bus), self.sector_octets
        for i in range(c.sectors):
            self.media[c.lba + i] = data[size * i:size * (i + 1)]
        written = range(c.lba, c.lba + c.sectors)
        self.dirty.update(written)
        if c.fua or not self.cache:
            self.flush(written)
        return Answer(moved=len(data))

    def flush(self, lbas=None) -> None:
        """What is in the cache becomes durable."""
        for lba in list(self.dirty) if lbas is None else lbas:
            if lba in self.media:
                self.durable[lba] = self.media[lba]
            else:
                self.durable.pop(lba, None)
            self.dirty.discard(lba)

    def _trim(self, ranges: bytes) -> Answer:
        for entry, in struct.iter_unpack("<Q", ranges):
            lba, count = entry & (1 << 48) - 1, entry >> 48
            if lba + count > self.sectors:
                return refused(ata.IDNF, lba=lba)
            if count:
                self.trimmed.append((lba, count))
            for one in range(lba, lba + count):
                if self.media.pop(one, None) is not None or one in self.durable:
                    self.dirty.add(one)
        return Answer(moved=len(ranges))

    def _set_feature(self, c: Command) -> Answer:
        feature = c.feature & 0xFF
        if feature not in _FEATURES:
            return refused()
        if feature in (CACHE_ON, CACHE_OFF):
            if feature == CACHE_OFF:
                self.flush()
            self.cache = feature == CACHE_ON
        elif feature in (FEATURE_ON, FEATURE_OFF) and c.count & 0xFF == DEVICE_POWER:
            self.device_power = feature == FEATURE_ON
        return Answer()

    def _read_log(self, c: Command, bus) -> Answer:
        if not self.log:
            return refused()
        log, page = c.lba & 0xFF, c.lba >> 8 & 0xFF | c.lba >> 24 & 0xFF00
        if log == logs.NCQ_ERROR:
            self.was_queued_error = False
            return c.scatter(bus, self.error_log or logs.queued_error(0, ata.GOOD, 0, queued=False))
        if not self.full:
            return refused()
        if log == logs.DIRECTORY:
            return c.scatter(bus, logs.directory({0x10: 1, 0x13: 1 if self.trim and self.queued_trim else 0, 0x30: 9}))
        if log == logs.NCQ_SEND and self.trim and self.queued_trim:
            return c.scatter(bus, logs.send_and_receive())
        if log == logs.IDENTIFY_DATA:
            return c.scatter(bus, b"".join(logs.identify_data(self, page + i) for i in range(c.count or 1)))
        return refused()
