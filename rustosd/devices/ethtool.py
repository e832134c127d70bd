"""What ethtool(8) sets on a network card: reading all of it, and setting again what a driver has begun anew without.

Structures as linux/ethtool.h has them, over ioctl(2), which every kernel answers. Each question is also the answer, so a
setting is kept as the octets that the kernel gave. Not kept are receive hashing and n-tuple rules, which none of the cards
we drive has.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from ctypes import addressof, create_string_buffer
from typing import Final, NamedTuple

_SIOCETHTOOL: Final = 0x8946
_GLINKSETTINGS, _SLINKSETTINGS = 0x4C, 0x4D
_GFEATURES, _SFEATURES = 0x3A, 0x3B
_MOST_FEATURE_BLOCKS: Final = 16
_MASKS_AT: Final = 48
"""Behind struct ethtool_link_settings: supported, advertised and the partner's modes, each so many words."""
_NOT_THERE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOTTY})
"""A card without the setting; a driver that refuses the question."""


class _Words(NamedTuple):
    """A structure of 32-bit words: the command, what can be, what is set."""

    get: int
    set: int
    words: int
    settable: tuple[int, ...]


_BY_WORDS: Final[Mapping[str, _Words]] = {
    "channels": _Words(0x3C, 0x3D, 9, (5, 6, 7, 8)),
    "rings": _Words(0x10, 0x11, 9, (5, 6, 7, 8)),
    "coalescing": _Words(0x0E, 0x0F, 23, tuple(range(1, 23))),
    "pause frames": _Words(0x12, 0x13, 4, (1, 2, 3)),
    "wake-on-LAN": _Words(0x05, 0x06, 5, (2, 3, 4)),
    "energy-efficient Ethernet": _Words(0x44, 0x45, 10, (2, 5, 6, 7)),
    "private flags": _Words(0x27, 0x28, 2, (1,)),
    "message level": _Words(0x07, 0x08, 2, (1,)),
}
FEATURES: Final = "features"
LINK: Final = "speed and negotiation"


def read(name: str) -> dict[str, str]:
    """All settings that the interface's driver has, each as hexadecimal octets."""
    with _Card(name) as card:
        return {key: octets.hex() for key, octets in card.all()}


def restore(name: str, settings: Mapping[str, str]) -> list[str]:
    """Set again what differs from `settings`; in words, what cannot be set."""
    complaints = []
    with _Card(name) as card:
        for key, wanted in settings.items():
            try:
                card.set(key, bytes.fromhex(wanted))
            except OSError as error:
                complaints.append(f"{name} has not its {key} as ethtool showed them: {error.strerror}")
    return complaints


class _Card:
    """A context: one interface, to be asked and told. Every method raises OSError."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> "_Card":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def all(self) -> Iterator[tuple[str, bytes]]:
        """Every setting there is, in the order to restore them in."""
        questions: dict[str, Callable[[], bytes]] = {key: lambda words=words: self._words(words)
                                                     for key, words in _BY_WORDS.items()}
        questions |= {FEATURES: self._features, LINK: self._link}
        for key, ask in questions.items():
            try:
                yield key, ask()
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise

    def set(self, key: str, wanted: bytes) -> None:
        """One setting, if it is not like that already."""
        if key == FEATURES:
            self._set_features(wanted)
        elif key == LINK:
            if _chosen(self._link()) != _chosen(wanted):
                self._ask(struct.pack("I", _SLINKSETTINGS) + wanted[4:])
        else:
            words = _BY_WORDS[key]
            now, then = (struct.unpack(f"{words.words}I", octets) for octets in (self._words(words), wanted))
            if any(now[index] != then[index] for index in words.settable):
                self._ask(struct.pack("I", words.set) + wanted[4:])

    def _words(self, words: _Words) -> bytes:
        return self._ask(struct.pack(f"{words.words}I", words.get, *[0] * (words.words - 1)))

    def _features(self) -> bytes:
        """The kernel's number of blocks, and each block: what can be switched, what is asked for, active, never changed."""
        octets = self._ask(struct.pack("II", _GFEATURES, _MOST_FEATURE_BLOCKS) + bytes(16 * _MOST_FEATURE_BLOCKS))
        return octets[:8 + 16 * struct.unpack_from("I", octets, 4)[0]]

    def _set_features(self, wanted: bytes) -> None:
        now = self._features()
        count, = struct.unpack_from("I", wanted, 4)
        blocks = b""
        for at in range(8, 8 + 16 * count, 16):
            available, asked = struct.unpack_from("II", wanted, at)
            can, asked_now = struct.unpack_from("II", now, at)
            blocks += struct.pack("II", available & can & (asked ^ asked_now), asked)
        if any(blocks[at:at + 4] != bytes(4) for at in range(0, len(blocks), 8)):
            self._ask(struct.pack("II", _SFEATURES, count) + blocks)

    def _link(self) -> bytes:
        """Asked with no room for the masks, the kernel answers how many words of them it has, as a negative number."""
        first = self._ask(struct.pack("I", _GLINKSETTINGS) + bytes(_MASKS_AT - 4))
        words = -_WORDS_OF.unpack_from(first, 15)[0]
        if words <= 0:
            raise OSError(errno.EOPNOTSUPP, "no link modes")
        question = bytearray(struct.pack("I", _GLINKSETTINGS) + bytes(_MASKS_AT - 4 + 12 * words))
        _WORDS_OF.pack_into(question, 15, words)
        return self._ask(bytes(question))

    def _ask(self, structure: bytes) -> bytes:
        buffer = create_string_buffer(structure, len(structure))
        fcntl.ioctl(self._socket, _SIOCETHTOOL, struct.pack("16sP16x", self._name, addressof(buffer)))
        return buffer.raw


_WORDS_OF = struct.Struct("b")


def _chosen(link: bytes) -> tuple[object, ...]:
    """What somebody chooses of struct ethtool_link_settings: speed and duplex count only where nothing is negotiated."""
    speed, duplex = struct.unpack_from("IB", link, 4)
    negotiates, crossing, master = link[11], link[14], link[17]
    words = link[15]
    advertised = link[_MASKS_AT + 4 * words:_MASKS_AT + 8 * words]
    return (negotiates, crossing, master, advertised) if negotiates else (negotiates, crossing, master, speed, duplex)
