"""The security feature set: passwords, lock, freeze, erase. ACS-4 4.18."""

from tests.models.ahci.commands import (
    SECURITY_DISABLE,
    SECURITY_ERASE,
    SECURITY_FREEZE,
    SECURITY_PREPARE,
    SECURITY_SET_PASSWORD,
    Answer,
    Command,
    refused,
)

COMMANDS = range(SECURITY_SET_PASSWORD, SECURITY_DISABLE + 1)


class Security:
    """Of one drive."""

    def __init__(self, drive):
        self.drive = drive
        self.password: bytes | None = None
        self.power_on()

    def power_on(self) -> None:
        """Only this thaws it."""
        self.frozen = self.prepared = False
        self.locked = self.password is not None

    @property
    def enabled(self) -> bool:
        return self.password is not None

    def word(self) -> int:
        """Word 128 of IDENTIFY DEVICE."""
        return 1 | self.enabled << 1 | self.locked << 2 | self.frozen << 3 | 1 << 5

    def execute(self, c: Command, bus) -> Answer:
        prepared, self.prepared = self.prepared, c.code == SECURITY_PREPARE
        if self.frozen and c.code != SECURITY_FREEZE:
            return refused()
        if c.code == SECURITY_FREEZE:
            if self.locked:
                return refused()
            self.frozen = True
        elif c.code != SECURITY_PREPARE:
            password = c.gather(bus)[2:34]
            if c.code == SECURITY_SET_PASSWORD and not self.locked:
                self.password = password
                return Answer()
            if password != self.password or (c.code == SECURITY_ERASE and not prepared):
                return refused()
            self.locked = False
            if c.code == SECURITY_ERASE:
                self.drive.erase()
            if c.code in (SECURITY_ERASE, SECURITY_DISABLE):
                self.password = None
        return Answer()
