"""The NVM (EEPROM), read a word at a time through EERD: the MAC address and the checksum over all."""

from typing import Final

from drivers.errors import DeviceError
from drivers.registers import MS, RegisterFile

WORDS: Final = 0x40
CHECKSUM: Final = 0xBABA
"""What words 0 to 3Fh add up to. 8254x 5.6; 82574 6.1."""
WORD_NS: Final = 10 * MS
LOADED_NS: Final = 100 * MS


def read_word(regs: RegisterFile, address: int) -> int:
    """One 16-bit word. Raises DeviceTimeout."""
    regs.EERD.write(START=1, ADDRESS=address)
    return regs.EERD.wait(DONE=1, timeout_ns=WORD_NS).DATA


def read_mac(regs: RegisterFile) -> bytes:
    """The six octets that the maker gave it. Raises DeviceError when the NVM's checksum or the address is wrong."""
    words = [read_word(regs, address) for address in range(WORDS)]
    if sum(words) & 0xFFFF != CHECKSUM:
        raise DeviceError(regs.device, f"the NVM's words add up to {sum(words) & 0xFFFF:#06x}, not {CHECKSUM:#06x}: its "
                          "content is damaged. Give the MAC address in the configuration, or have the NVM written anew")
    mac = b"".join(word.to_bytes(2, "little") for word in words[:3])
    if mac[0] & 1 or not any(mac):
        raise DeviceError(regs.device, f"the NVM says that its MAC address is {mac.hex(':')}, which is none: give one in "
                          "the configuration")
    return mac
