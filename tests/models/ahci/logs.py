"""What a drive keeps in its logs: READ LOG EXT. ACS-4 9."""

import struct

DIRECTORY, NCQ_ERROR, NCQ_SEND, IDENTIFY_DATA = 0x00, 0x10, 0x13, 0x30
_IDENTIFY_PAGES = (0, 1, 2, 3, 8)
"""The list of them, the copy, capacity, capabilities, Serial ATA; the last two say nothing."""


def queued_error(tag: int, status: int, error: int, lba: int = 0, count: int = 0, *, queued: bool = True) -> bytes:
    """The page of the NCQ command error log. ACS-4 9.14."""
    page = bytearray(512)
    page[0] = tag if queued else 0x80
    page[2], page[3] = status, error
    page[4:7], page[8:11] = lba.to_bytes(6, "little")[:3], lba.to_bytes(6, "little")[3:]
    page[7] = 0x40
    page[12], page[13] = count & 0xFF, count >> 8
    page[511] = -sum(page) & 0xFF
    return bytes(page)


def directory(pages: dict[int, int]) -> bytes:
    """Which logs there are, and of how many pages."""
    words = [0] * 256
    words[0] = 1
    for log, count in pages.items():
        words[log] = count
    return struct.pack("<256H", *words)


def send_and_receive() -> bytes:
    """NCQ SEND AND RECEIVE: data set management, with trim. ACS-4 9.17."""
    return struct.pack("<II", 1, 1).ljust(512, b"\0")


def identify_data(drive, page: int) -> bytes:
    """IDENTIFY DEVICE data, page by page. ACS-4 9.11."""
    if page == 1:
        return drive.identify()
    if page not in _IDENTIFY_PAGES:
        return bytes(512)
    rest = {0: bytes([len(_IDENTIFY_PAGES), *_IDENTIFY_PAGES]), 2: struct.pack("<Q", 1 << 63 | drive.sectors)}.get(page, b"")
    return (struct.pack("<Q", 1 << 63 | page << 16 | 1) + rest).ljust(512, b"\0")
