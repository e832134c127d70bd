"""pcapng (draft-ietf-opsawg-pcapng): the blocks around the packets, and a reader for what we write.

Packets themselves are written by `rustosd.capture.tape`, in C; all numbers are in this machine's byte order.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
STATISTICS: Final = 5
PACKET: Final = 6
BYTE_ORDER: Final = 0x1A2B3C4D
LINK_ETHERNET: Final = 1
NANOSECONDS: Final = 9
_ANY_LENGTH: Final = 0xFFFFFFFFFFFFFFFF
_BLOCK_MOST: Final = 1 << 20
_HEAD: Final = struct.Struct("=II")
_PACKET: Final = struct.Struct("=IIIII")
_OPTION: Final = struct.Struct("=HH")

# Option codes, of any block and of one kind.
COMMENT: Final = 1
_SHB_APPLICATION: Final = 4
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_RESOLUTION, _IF_FILTER = 2, 3, 6, 9, 11
EPB_FLAGS, EPB_DROPPED = 2, 4
_ISB_START, _ISB_END, _ISB_RECEIVED, _ISB_ACCEPTED, _ISB_LOST, _ISB_DELIVERED = 2, 3, 4, 6, 7, 8
INBOUND: Final = 1
OUTBOUND: Final = 2
_DROPPED: Final = "dropped: "


class MalformedCapture(ValueError):
    """What was read is no capture of ours."""


class Tally(NamedTuple):
    """What one interface's capture comes to, in frames."""

    received: int
    """Those that went by in the direction and with the end asked for."""
    accepted: int
    """... and that the filter wanted."""
    lost: int
    """... and for which there was no room, since the reader was too slow."""


def _options(*options: tuple[int, bytes]) -> bytes:
    octets = b"".join(_OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4) for code, value in options)
    return octets + _OPTION.pack(0, 0)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return _HEAD.pack(kind, length) + body + struct.pack("=I", length)


def section(application: str) -> bytes:
    """The block a capture begins with."""
    return _block(SECTION, struct.pack("=IHHq", BYTE_ORDER, 1, 0, -1) + _options((_SHB_APPLICATION, application.encode())))


def interface(name: str, description: str, mac: bytes | None, snap_octets: int, expression: str) -> bytes:
    """An interface, which packets name by how many came before it."""
    options = [(_IF_NAME, name.encode()), (_IF_DESCRIPTION, description.encode())]
    if mac is not None:
        options.append((_IF_MAC, mac))
    options.append((_IF_RESOLUTION, bytes((NANOSECONDS,))))
    if expression:
        options.append((_IF_FILTER, b"\0" + expression.encode()))       # 0: a filter as libpcap takes it
    return _block(INTERFACE, struct.pack("=HHI", LINK_ETHERNET, 0, snap_octets) + _options(*options))


def statistics(number: int, begun_ns: int, ended_ns: int, tally: Tally) -> bytes:
    """What became of an interface's frames; times are wall-clock ns."""
    def time(value: int) -> bytes:
        return struct.pack("=II", value >> 32, value & 0xFFFFFFFF)
    counts = zip((_ISB_RECEIVED, _ISB_ACCEPTED, _ISB_LOST, _ISB_DELIVERED),
                 (tally.received, tally.accepted, tally.lost, tally.accepted - tally.lost), strict=True)
    options = [(_ISB_START, time(begun_ns)), (_ISB_END, time(ended_ns)),
               *((code, struct.pack("=Q", count)) for code, count in counts)]
    return _block(STATISTICS, struct.pack("=I", number) + time(ended_ns) + _options(*options))


def comment(reason: str) -> bytes:
    """The option that says why a frame was dropped."""
    text = (_DROPPED + reason).encode()
    return _OPTION.pack(COMMENT, len(text)) + text + bytes(-len(text) % 4)


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame of a capture."""

    interface: str
    time_ns: int
    direction: str              # "in", "out"
    octets: bytes
    length: int                 # of the frame, of which `octets` may be only the beginning
    dropped: str | None         # the reason
    lost: int                   # frames missing before it, since the reader was too slow


class Reader:
    """Takes blocks apart as they come; `names` and `tallies` are known as far as their blocks have come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tallies: dict[str, Tally] = {}
        self._rest = b""

    def feed(self, octets: bytes) -> tuple[bytes, list[Packet]]:
        """What has become whole with these octets: the blocks as they are, and the packets among them.

        Raises MalformedCapture.
        """
        whole = self.feed_whole(octets)
        packets, at = [], 0
        for kind, _, end in _walk(whole):
            if kind == PACKET:
                packets.append(self._packet(whole[at + _HEAD.size:end - 4]))
            at = end
        return whole, packets

    def feed_whole(self, octets: bytes) -> bytes:
        """As `feed`, but packets are left alone."""
        octets, whole = self._rest + octets, 0
        for kind, body, end in _walk(octets):
            whole = end
            if kind == INTERFACE:
                self.names.append(_taken_apart(body[8:]).get(_IF_NAME, b"?").decode())
            elif kind == STATISTICS:
                self._statistics(body)
        self._rest = octets[whole:]
        return octets[:whole]

    @property
    def complete(self) -> bool:
        """Whether the capture has come to its end: no half block, and statistics of every interface."""
        return bool(self.names) and not self._rest and len(self.tallies) == len(self.names)

    def _packet(self, body: bytes) -> Packet:
        number, high, low, captured, length = _PACKET.unpack_from(body)
        if number >= len(self.names) or _PACKET.size + captured > len(body):
            raise MalformedCapture("a packet of no interface, or beyond its block")
        octets = body[_PACKET.size:_PACKET.size + captured]
        options = _taken_apart(body[_PACKET.size + captured + -captured % 4:])
        flags = int.from_bytes(options.get(EPB_FLAGS, b""), _order())
        text = options.get(COMMENT, b"").decode()
        return Packet(self.names[number], high << 32 | low, "out" if flags & 3 == OUTBOUND else "in", octets, length,
                      text.removeprefix(_DROPPED) or None, int.from_bytes(options.get(EPB_DROPPED, b""), _order()))

    def _statistics(self, body: bytes) -> None:
        (number,) = struct.unpack_from("=I", body)
        options = _taken_apart(body[12:])
        counts = [int.from_bytes(options.get(code, b""), _order()) for code in (_ISB_RECEIVED, _ISB_ACCEPTED, _ISB_LOST)]
        if number < len(self.names):
            self.tallies[self.names[number]] = Tally(*counts)


def _order() -> str:
    return "little" if struct.pack("=H", 1) == b"\1\0" else "big"


def _taken_apart(octets: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _OPTION.size <= len(octets):
        code, length = _OPTION.unpack_from(octets, at)
        if code == 0:
            break
        found[code] = octets[at + _OPTION.size:at + _OPTION.size + length]
        at += _OPTION.size + length + -length % 4
    return found


def _walk(octets: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Every whole block: its kind, its body (without a copy of a packet's), and where it ends."""
    at = 0
    while at + _HEAD.size <= len(octets):
        kind, length = _HEAD.unpack_from(octets, at)
        if not 12 <= length <= _BLOCK_MOST or length % 4:
            raise MalformedCapture(f"a block of {length} octets")
        if at + length > len(octets):
            return
        yield kind, b"" if kind == PACKET else octets[at + _HEAD.size:at + length - 4], at + length
        at += length
