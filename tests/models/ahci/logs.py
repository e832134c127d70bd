"""What a drive keeps of its errors. ACS-3 9."""

NCQ_ERROR = 0x10


def queued_error(tag: int, status: int, error: int) -> bytes:
    """The page of the NCQ command error log. ACS-3 9.14."""
    page = bytearray(512)
    page[0], page[2], page[3] = tag, status, error
    page[511] = -sum(page) & 0xFF
    return bytes(page)
