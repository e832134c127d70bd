"""A disk: its contents, what it answers, and what shall go wrong."""

from dataclasses import dataclass, field

from tests.models.ahci.commands import FLUSH, IDENTIFY, NO_SECTORS, READ_LOG, Command
from tests.models.ahci.identity import identification
from tests.models.ahci.logs import NCQ_ERROR, queued_error
from tests.models.device import Misuse

SECTOR = 512


@dataclass
class Drive:
    """A disk: its contents, and what shall go wrong."""

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

    def __post_init__(self):
        self.identity = self.identity or identification(self.sectors, log=self.log)
        self.start()

    def start(self) -> None:
        """Power on, or COMRESET."""
        self.error_log = None
        self.was_queued_error = False   # it takes nothing but READ LOG EXT and resets

    def sector(self, lba: int) -> bytes:
        return self.media.get(lba, bytes(SECTOR))

    def execute(self, c: Command, bus) -> int | str | None:
        """Carry a command out. None: done; a number: the error register; "hang", "link", "bus": what happens instead."""
        if self.was_queued_error and c.code != READ_LOG:
            raise Misuse("a command after a queued error, before the log was read (SATA 13.6.4)")
        if c.code not in NO_SECTORS and c.octets != c.sectors * SECTOR:
            raise Misuse("PRDs do not fit the sectors")
        self.executed.append((c.code, c.lba, c.sectors))
        fate = self.broken.get(c.code)
        if fate is None and c.code not in NO_SECTORS:
            fate = next((self.fail[lba] for lba in range(c.lba, c.lba + c.sectors) if lba in self.fail), None)
        if callable(fate):
            fate = fate(c)
        if fate is None:
            self.transfer(c, bus)
        elif not isinstance(fate, str) and c.queued:
            self.was_queued_error = True
            self.error_log = queued_error(c.slot, 0x41, fate)
        return fate

    def transfer(self, c: Command, bus) -> None:
        if c.code == FLUSH:
            self.durable.update(self.media)
        elif c.code == IDENTIFY:
            bus.write(c.pieces[0][0], self.identity)
        elif c.code == READ_LOG:
            if not self.log or c.lba != NCQ_ERROR:
                raise Misuse("READ LOG EXT of a drive without that log")
            self.was_queued_error = False
            bus.write(c.pieces[0][0], self.error_log)
        elif c.write:
            data = b"".join(bus.read(*piece) for piece in c.pieces)
            for i in range(c.sectors):
                self.media[c.lba + i] = data[SECTOR * i:SECTOR * (i + 1)]
                if c.fua:
                    self.durable[c.lba + i] = self.media[c.lba + i]
        else:
            scatter(bus, c, b"".join(self.sector(c.lba + i) for i in range(c.sectors)))


def scatter(bus, c: Command, data: bytes) -> None:
    """What is read goes to the command's memory."""
    for address, octets in c.pieces:
        bus.write(address, data[:octets])
        data = data[octets:]
