"""vfio-user, protocol 0.1: its messages as octets, and back. Without a socket; from QEMU's docs/interop/vfio-user.rst.

A message is a header and a payload on a stream; file descriptors travel beside the first octets. All numbers have the
host's byte order. What the peer sends is checked here, and what does not hold is a ProtocolError.
"""

import errno
import json
import os
import struct
from enum import IntEnum
from typing import NamedTuple

from drivers import vfio_abi
from drivers.vfio_abi import DeviceFlag, DeviceInfo, IrqFlag, IrqInfo, RegionInfo

MAJOR, MINOR = 0, 1
HEADER_OCTETS = 16
MAX_DATA = 1 << 20
"""`max_data_xfer_size` as we tell it, and as it is when nobody tells."""
MAX_FDS = 8
"""`max_msg_fds` as we tell it."""
MAX_VERSION = 4096
MAX_REGION_INFO = 1 << 16
MAX_REGION = 1 << 40
"""No BAR is larger."""
MAX_VECTORS = 2048
"""MSI-X has no more; PCI 6.8.2."""
_MAX_MESSAGE = HEADER_OCTETS + 16 + MAX_DATA
_DEFAULT_FDS = 1
_DEFAULT_PAGES = 4096

_HEADER = struct.Struct("=HHIII")
_TYPE, _REPLY, _NO_REPLY, _ERROR = 0xF, 0x1, 0x10, 0x20
_REGION_ACCESS = struct.Struct("=QII")
_DMA_ACCESS = struct.Struct("=QQ")


class Command(IntEnum):
    """What a message asks for."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class ProtocolError(Exception):
    """The peer sent what is no vfio-user."""


class Message(NamedTuple):
    """One message. Whoever has it owns its file descriptors."""

    number: int
    command: int
    reply: bool
    wanted: bool
    """Whether a command wants a reply."""
    error: int
    """The errno of a reply that refuses, 0 for one that does not."""
    payload: bytes
    fds: list[int]

    def close(self) -> None:
        """Give up the file descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Capabilities(NamedTuple):
    """What the server said in its VERSION. `twin` is the index of the file descriptor that is the second socket."""

    fds: int
    data: int
    pages: int
    maps: int
    twin: int | None


class Inbox:
    """Messages out of a stream, exactly as many octets at a time as belong to the next one.

    Exactly, since file descriptors belong to the octets they came with.
    """

    def __init__(self) -> None:
        self._header = b""
        self._payload = bytearray()
        self._size = 0
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """How many octets to read next, at least one."""
        if len(self._header) < HEADER_OCTETS:
            return HEADER_OCTETS - len(self._header)
        return self._size - HEADER_OCTETS - len(self._payload)

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._header)

    def take(self, octets: bytes, fds: list[int]) -> Message | None:
        """What was read, at most `wanted` octets; a message once it is whole. Owns the fds. Raises ProtocolError."""
        self._fds += fds
        if len(self._fds) > MAX_FDS:
            raise ProtocolError(f"{len(self._fds)} file descriptors in one message; we said {MAX_FDS}")
        if len(self._header) < HEADER_OCTETS:
            self._header += octets
            if len(self._header) < HEADER_OCTETS:
                return None
            self._size = _HEADER.unpack(self._header)[2]
            if not HEADER_OCTETS <= self._size <= _MAX_MESSAGE:
                raise ProtocolError(f"a message of {self._size} octets")
        else:
            self._payload += octets
        return self._message() if not self.wanted else None

    def close(self) -> None:
        """Give up what came with a message that never ended."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _message(self) -> Message:
        number, command, _, flags, error = _HEADER.unpack(self._header)
        kind = flags & _TYPE
        if kind > _REPLY or flags & ~(_TYPE | _NO_REPLY | _ERROR):
            raise ProtocolError(f"flags {flags:#x}")
        if kind == _REPLY:
            # An error may come without its number.
            error = error & 0xFFFF or errno.EIO if flags & _ERROR else 0
        message = Message(number, command, kind == _REPLY, not flags & _NO_REPLY, error, bytes(self._payload), self._fds)
        self._header, self._payload, self._fds = b"", bytearray(), []
        return message


def command(number: int, kind: Command, payload: bytes) -> bytes:
    """A command that wants a reply."""
    return _HEADER.pack(number, kind, HEADER_OCTETS + len(payload), 0, 0) + payload


def reply(to: Message, payload: bytes, error: int = 0) -> bytes:
    """The answer to a command; one that refuses has no payload."""
    body = b"" if error else payload
    return _HEADER.pack(to.number, to.command, HEADER_OCTETS + len(body), _REPLY | (_ERROR if error else 0), error) + body


def version(*, twin: bool) -> bytes:
    """What we speak and take. Migration is not among it."""
    capabilities = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_DATA, "pgsizes": 4096}
    if twin:
        capabilities["twin_socket"] = {"supported": True}
    return struct.pack("=HH", MAJOR, MINOR) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


def decode_version(payload: bytes, fds: int) -> Capabilities:
    """The server's answer, which came with so many file descriptors. Raises ProtocolError."""
    if len(payload) < 4:
        raise ProtocolError(f"a VERSION of {len(payload)} octets")
    major, minor = struct.unpack_from("=HH", payload)
    if major != MAJOR or minor > MINOR:
        raise ProtocolError(f"protocol {major}.{minor}; we speak {MAJOR}.{MINOR}")
    told = _capabilities(payload[4:])
    twin = None
    if isinstance(second := told.get("twin_socket"), dict) and second.get("supported") is True:
        twin = _number(second, "fd_index", -1, 0, fds - 1)
    return Capabilities(
        fds=min(_number(told, "max_msg_fds", _DEFAULT_FDS, 0, 1 << 31), MAX_FDS),
        data=min(_number(told, "max_data_xfer_size", MAX_DATA, 8, 1 << 63), MAX_DATA),
        pages=_number(told, "pgsizes", _DEFAULT_PAGES, 1, 1 << 63),
        maps=_number(told, "max_dma_maps", 65535, 1, 1 << 63), twin=twin)


def _capabilities(text: bytes) -> dict:
    if not text:
        return {}
    if not text.endswith(b"\0"):
        raise ProtocolError("the version's text does not end with a zero")
    try:
        whole = json.loads(text[:-1].decode() or "{}")
    except (ValueError, RecursionError):
        raise ProtocolError("the version's text is no JSON") from None
    told = whole.get("capabilities", {}) if isinstance(whole, dict) else None
    if not isinstance(told, dict):
        raise ProtocolError("the version's capabilities are no object")
    return told


def _number(told: dict, name: str, default: int, least: int, most: int) -> int:
    value = told.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"{name} is {str(value)[:40]!r}")
    return value


def dma_map(iova: int, size: int, *, offset: int = 0) -> bytes:
    """Memory for reading and writing; its file goes beside the message, if it may be mapped."""
    return struct.pack("=IIQQQ", 32, 3, offset, iova, size)


def dma_unmap(iova: int, size: int) -> bytes:
    """Exactly what was mapped."""
    return struct.pack("=IIQQ", 24, 0, iova, size)


def device_info() -> bytes:
    """A question."""
    return struct.pack("=IIII", 16, 0, 0, 0)


def decode_device_info(payload: bytes) -> DeviceInfo:
    """Its answer. Raises ProtocolError."""
    _, flags, regions, irqs = _exact("=IIII", payload, "device info")
    if not flags & DeviceFlag.PCI or regions <= vfio_abi.CONFIG_REGION:
        raise ProtocolError(f"no PCI device: flags {flags:#x}, {regions} regions")
    return DeviceInfo(DeviceFlag(flags & 3), regions, irqs)


def region_info(index: int, room: int = 32) -> bytes:
    """A question; `room` is how long the answer may be."""
    return struct.pack("=IIIIQQ", room, 0, index, 0, 0, 0)


def decode_region_info(payload: bytes, index: int) -> tuple[int, RegionInfo]:
    """Its answer: how long it is when it is whole, and as much of it as there is. Raises ProtocolError."""
    if len(payload) < 32:
        raise ProtocolError(f"region info of {len(payload)} octets")
    needed, _, answered = struct.unpack_from("=III", payload)
    if answered != index or needed > MAX_REGION_INFO:
        raise ProtocolError(f"region info of region {answered}, {needed} octets; asked for {index}")
    region = vfio_abi.decode_region(payload)
    if region.size > MAX_REGION or region.offset > 1 << 62:
        raise ProtocolError(f"region {index} has {region.size:#x} octets at {region.offset:#x}")
    if index == vfio_abi.CONFIG_REGION and region.size not in (256, 4096):
        raise ProtocolError(f"configuration space of {region.size} octets")
    end = 0
    for start, size in sorted(region.areas or ()):
        if start < end or not size or (start | size) & 4095 or start + size > -(-region.size // 4096) * 4096:
            raise ProtocolError(f"region {index} of {region.size:#x} octets has a part {start:#x}+{size:#x} to map")
        end = start + size
    return needed, region


def irq_info(index: int) -> bytes:
    """A question."""
    return struct.pack("=IIII", 16, 0, index, 0)


def decode_irq_info(payload: bytes, index: int) -> IrqInfo:
    """Its answer. Raises ProtocolError."""
    _, flags, answered, count = _exact("=IIII", payload, "interrupt info")
    if answered != index or count > MAX_VECTORS:
        raise ProtocolError(f"interrupt info of kind {answered}, {count} vectors; asked for {index}")
    return IrqInfo(IrqFlag(flags & 15), count)


def irq_eventfds(index: int, start: int, count: int) -> bytes:
    """Raise these vectors by the eventfds beside the message."""
    return struct.pack("=IIIII", 20, 4 | 32, index, start, count)


def irq_disable(index: int) -> bytes:
    """All vectors of a kind."""
    return struct.pack("=IIIII", 20, 1 | 32, index, 0, 0)


def irq_mask(index: int, *, masked: bool) -> bytes:
    """Vector 0 of a kind."""
    return struct.pack("=IIIII", 20, 1 | (8 if masked else 16), index, 0, 1)


def region_read(index: int, offset: int, octets: int) -> bytes:
    """A question."""
    return _REGION_ACCESS.pack(offset, index, octets)


def region_write(index: int, offset: int, octets: bytes) -> bytes:
    """A command; its answer is checked as a read's is, without octets."""
    return _REGION_ACCESS.pack(offset, index, len(octets)) + octets


def decode_region_access(payload: bytes, index: int, offset: int, octets: int, *, data: bool) -> bytes:
    """The octets read, or none for what was written. Raises ProtocolError."""
    if len(payload) != _REGION_ACCESS.size + (octets if data else 0):
        raise ProtocolError(f"{len(payload)} octets answer an access to {octets}")
    if (answer := _REGION_ACCESS.unpack_from(payload)) != (offset, index, octets):
        raise ProtocolError(f"an access to region {index}, {octets} octets at {offset:#x}, is answered with {answer}")
    return payload[_REGION_ACCESS.size:]


def decode_dma(message: Message) -> tuple[int, int, bytes]:
    """A server's DMA_READ or DMA_WRITE: address, how many octets, and what to write. Raises ProtocolError."""
    head = _DMA_ACCESS.size
    if len(message.payload) < head:
        raise ProtocolError(f"a DMA command of {len(message.payload)} octets")
    address, count = _DMA_ACCESS.unpack_from(message.payload)
    carried = count if message.command == Command.DMA_WRITE else 0
    if count > MAX_DATA or len(message.payload) != head + carried:
        raise ProtocolError(f"a DMA command for {count} octets with {len(message.payload) - head}")
    return address, count, message.payload[head:]


def dma_done(address: int, count: int, octets: bytes = b"") -> bytes:
    """The answer: libvfio-user takes only one whose count has 64 bits, in both directions."""
    return _DMA_ACCESS.pack(address, count) + octets


def _exact(form: str, payload: bytes, what: str) -> tuple:
    if len(payload) != struct.calcsize(form):
        raise ProtocolError(f"{what} of {len(payload)} octets")
    return struct.unpack(form, payload)
