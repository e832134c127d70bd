"""NBD's handshake, fixed newstyle, from the server's side: octets in, octets out, no I/O and no clock.

    hello()         what the server says first
    receive(data)   what it answers; then look at `state`
    secured()       TLS has been set up: everything agreed on before is forgotten

NBD: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, and for extended headers the same file in the
branch extension-ext-header. Whatever a client sends gets the reply that is named there; what has none ends the connection
with a reason.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from rustosd.nbd.export import CONTEXT, CONTEXT_ID, Export

GREETING: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
REPLY_MAGIC: Final = 0x3E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2        # handshake flags, and the client's
OPTION_HEADER: Final = struct.Struct(">8sII")
REPLY_HEADER: Final = struct.Struct(">QIII")
STRING_MOST: Final = 4096               # "Conventions"
OPTION_OCTETS_MOST: Final = 64 << 10    # longer data are skipped and refused; far longer ones end the connection
SKIP_MOST: Final = 1 << 20
OPTIONS_MOST: Final = 128               # a client that has not chosen by then is no client
QUERIES_MOST: Final = 32
LISTED_OCTETS_MOST: Final = 1 << 20     # of one LIST's answer


class Option(IntEnum):
    """What clients ask for."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """How an option is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


class Info(IntEnum):
    """What INFO and GO tell."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Tls(Enum):
    """Proto: "TLS support"."""

    NONE = "NOTLS"
    SELECTIVE = "SELECTIVETLS"
    FORCED = "FORCEDTLS"


class State(Enum):
    """How far a handshake has come."""

    HAGGLING = "haggling"
    TLS_WANTED = "tls_wanted"       # nothing is to be sent or read but by TLS from here on: do it, then `secured`
    TRANSMISSION = "transmission"   # see `Negotiation.chosen`
    OVER = "over"                   # see `Negotiation.reason`: close once the answer is sent


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was agreed on."""

    export: Export
    transmission_flags: int
    structured: bool
    extended: bool
    context: int | None
    """The id of base:allocation, if that was chosen."""


class _Refused(Exception):
    """An option that is answered by an error."""

    def __init__(self, reply: Reply, message: str):
        super().__init__(message)
        self.reply = reply


class _Broken(Exception):
    """A client that has broken a rule which leaves nothing to answer; the text is the reason in metrics."""


class Negotiation:
    """One connection's handshake. `exports`: all there are, the first one is the default; it may change meanwhile."""

    def __init__(self, exports: Mapping[str, Export], *, tls: Tls = Tls.NONE, max_payload: int = 32 << 20,
                 shutting_down: Callable[[], bool] = lambda: False):
        self.exports, self.tls, self.max_payload, self.shutting_down = exports, tls, max_payload, shutting_down
        self.state = State.HAGGLING
        self.reason = ""
        """Once over: "abort", or how the client broke the rules."""
        self.chosen: Chosen | None = None
        self.secure = False
        self.options = 0
        self._input = bytearray()
        self._fixed: bool | None = None     # None: the client's flags have not come
        self._no_zeroes = False
        self._skipping: tuple[int, int] | None = None   # the option whose data are too long, and how much is to come
        self._forget()

    def _forget(self) -> None:
        """Proto, STARTTLS: no state survives it."""
        self._structured = self._extended = False
        self._contexts: tuple[str, int | None] | None = None    # the export's name, and the id of what was chosen

    def hello(self) -> bytes:
        """What the server begins with."""
        return GREETING + OPTION_MAGIC + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES)

    def receive(self, data: bytes) -> bytes:
        """Take in what has come; what is to be sent. Never raises."""
        self._input += data
        answers = bytearray()
        try:
            while self.state is State.HAGGLING and self._step(answers):
                pass
        except _Broken as broken:
            self.state, self.reason = State.OVER, str(broken)
        if self.state is State.TLS_WANTED and self._input:
            # what was sent in the clear must not count as if it had come by TLS
            self.state, self.reason = State.OVER, "data_before_tls"
        return bytes(answers)

    def secured(self) -> None:
        """TLS is up: go on over it."""
        self.secure = True
        self._forget()
        self.state = State.HAGGLING

    def leftover(self) -> bytes:
        """What has come behind the handshake."""
        return bytes(self._input)

    # One message.

    def _step(self, answers: bytearray) -> bool:
        if self._skipping is not None:
            return self._skip(answers)
        if self._fixed is None:
            return self._take_client_flags()
        if len(self._input) < OPTION_HEADER.size:
            return False
        magic, option, octets = OPTION_HEADER.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            raise _Broken("bad_magic")
        if octets > SKIP_MOST:
            raise _Broken("oversize_option")
        if not self._fixed and option != Option.EXPORT_NAME:
            raise _Broken("not_fixed_newstyle")
        if octets > OPTION_OCTETS_MOST:
            if option == Option.EXPORT_NAME:
                raise _Broken("oversize_option")
            del self._input[:OPTION_HEADER.size]
            self._skipping = option, octets
            return True
        if len(self._input) < OPTION_HEADER.size + octets:
            return False
        data = bytes(self._input[OPTION_HEADER.size:OPTION_HEADER.size + octets])
        del self._input[:OPTION_HEADER.size + octets]
        self._count_option()
        self._answer(option, data, answers)
        return True

    def _take_client_flags(self) -> bool:
        if len(self._input) < 4:
            return False
        flags = int.from_bytes(self._input[:4], "big")
        if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
            raise _Broken("unknown_flags")
        del self._input[:4]
        self._fixed, self._no_zeroes = bool(flags & FIXED_NEWSTYLE), bool(flags & NO_ZEROES)
        return True

    def _skip(self, answers: bytearray) -> bool:
        option, left = self._skipping
        taken = min(left, len(self._input))
        del self._input[:taken]
        self._skipping = (option, left - taken) if left > taken else None
        if self._skipping is None:
            self._count_option()
            _add(answers, option, Reply.ERR_TOO_BIG, b"more data than any option needs")
        return self._skipping is None

    def _count_option(self) -> None:
        self.options += 1
        if self.options > OPTIONS_MOST:
            raise _Broken("option_flood")

    def _answer(self, option: int, data: bytes, answers: bytearray) -> None:
        if option == Option.EXPORT_NAME:
            answers += self._export_name(data)
            return
        if option == Option.ABORT:
            _add(answers, option, Reply.ACK)
            self.state, self.reason = State.OVER, "abort"
            return
        replies: list[tuple[Reply, bytes]] = []
        try:
            self._check_allowed(option)
            handler = self._HANDLERS.get(option)
            if handler is None:
                raise _Refused(Reply.ERR_UNSUP, "this server does not know that option")
            handler(self, option, data, replies)
        except _Refused as refused:
            replies.append((refused.reply, str(refused).encode()))
        for reply, payload in replies:
            _add(answers, option, reply, payload)

    def _check_allowed(self, option: int) -> None:
        if self.shutting_down():
            raise _Refused(Reply.ERR_SHUTDOWN, "the server is shutting down")
        if self.tls is Tls.FORCED and not self.secure and option != Option.STARTTLS:
            raise _Refused(Reply.ERR_TLS_REQD, "this server wants TLS first")

    # Options.

    def _export_name(self, data: bytes) -> bytes:
        """The old way into transmission, which knows no errors."""
        if self.tls is Tls.FORCED and not self.secure:
            raise _Broken("tls_required")
        if self._extended:
            raise _Broken("export_name_after_extended_headers")
        if self.shutting_down():
            raise _Broken("shutting_down")
        try:
            export = self._find(_text(data))
        except _Refused as refused:
            raise _Broken("tls_required" if refused.reply is Reply.ERR_TLS_REQD else "unknown_export") from None
        flags = self._enter(export)
        return struct.pack(">QH", export.octets, flags) + bytes(0 if self._no_zeroes else 124)

    def _list(self, option: int, data: bytes, replies: list) -> None:
        _check_empty(data)
        octets = 0
        for export in self._visible():
            name, description = export.name.encode(), export.description.encode()
            replies.append((Reply.SERVER, struct.pack(">I", len(name)) + name + description))
            octets += len(name) + len(description) + 24
            if octets > LISTED_OCTETS_MOST:
                raise _Refused(Reply.ERR_TOO_BIG, "there are more exports than one answer holds")
        replies.append((Reply.ACK, b""))

    def _starttls(self, option: int, data: bytes, replies: list) -> None:
        _check_empty(data)
        if self.secure:
            raise _Refused(Reply.ERR_INVALID, "TLS is in use already")
        if self.tls is Tls.NONE:
            raise _Refused(Reply.ERR_POLICY, "this server is not configured for TLS")
        replies.append((Reply.ACK, b""))
        self.state = State.TLS_WANTED

    def _info(self, option: int, data: bytes, replies: list) -> None:
        """INFO and GO."""
        reader = _Reader(data)
        name = reader.string()
        wanted = [reader.number(2) for _ in range(reader.number(2))]
        reader.end()
        if len(set(wanted)) != len(wanted):
            raise _Refused(Reply.ERR_INVALID, "an information is asked for twice")
        export = self._find(name)
        flags = export.flags(self._structured or self._extended)
        replies.append((Reply.INFO, struct.pack(">HQH", Info.EXPORT, export.octets, flags)))
        if Info.NAME in wanted:
            replies.append((Reply.INFO, struct.pack(">H", Info.NAME) + export.name.encode()))
        if Info.DESCRIPTION in wanted and export.description:
            replies.append((Reply.INFO, struct.pack(">H", Info.DESCRIPTION) + export.description.encode()))
        replies.append((Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, *export.block_sizes(self.max_payload))))
        replies.append((Reply.ACK, b""))
        if option == Option.GO:
            self._enter(export)

    def _structured_reply(self, option: int, data: bytes, replies: list) -> None:
        _check_empty(data)
        if self._extended:
            raise _Refused(Reply.ERR_EXT_HEADER_REQD, "extended headers are in use, which is more")
        if self._structured:
            raise _Refused(Reply.ERR_INVALID, "structured replies are in use already")
        self._structured = True
        replies.append((Reply.ACK, b""))

    def _extended_headers(self, option: int, data: bytes, replies: list) -> None:
        _check_empty(data)
        if self._extended:
            raise _Refused(Reply.ERR_INVALID, "extended headers are in use already")
        self._extended = True
        replies.append((Reply.ACK, b""))

    def _meta_context(self, option: int, data: bytes, replies: list) -> None:
        """LIST_META_CONTEXT and SET_META_CONTEXT. The one context is base:allocation."""
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._contexts = None       # also when this fails
        if not (self._structured or self._extended):
            raise _Refused(Reply.ERR_INVALID, "structured replies come first")
        reader = _Reader(data)
        name = reader.string()
        count = reader.number(4)
        if count > QUERIES_MOST:
            raise _Refused(Reply.ERR_TOO_BIG, f"at most {QUERIES_MOST} queries")
        queries = [reader.string() for _ in range(count)]
        reader.end()
        for query in queries:
            if ":" not in query:
                raise _Refused(Reply.ERR_INVALID, "a query has a namespace and a colon")
        export = self._find(name, Reply.ERR_UNKNOWN)
        wildcard = not setting and ("base:" in queries or not queries)
        if export.has_status and (wildcard or CONTEXT in queries):
            identity = CONTEXT_ID if setting else 0
            replies.append((Reply.META_CONTEXT, struct.pack(">I", identity) + CONTEXT.encode()))
            if setting:
                self._contexts = name, CONTEXT_ID
        replies.append((Reply.ACK, b""))

    _HANDLERS: Final = {
        Option.LIST: _list, Option.STARTTLS: _starttls, Option.INFO: _info, Option.GO: _info,
        Option.STRUCTURED_REPLY: _structured_reply, Option.EXTENDED_HEADERS: _extended_headers,
        Option.LIST_META_CONTEXT: _meta_context, Option.SET_META_CONTEXT: _meta_context,
    }

    def _visible(self) -> list[Export]:
        """The exports this client may know of."""
        return [export for export in self.exports.values() if self.secure or not export.tls_only]

    def _find(self, name: str, hidden: Reply = Reply.ERR_TLS_REQD) -> Export:
        """The empty name is the first export. Who has no TLS learns nothing of the names of those that need it: `hidden` is
        the answer for them and for all that do not exist, TLS_REQD to the options that may have that ("SELECTIVETLS mode").
        """
        export = self.exports.get(name)
        if export is None and not name:
            export = next(iter(self.exports.values()), None)
        if export is not None and (self.secure or not export.tls_only):
            return export
        if not self.secure and self.tls is Tls.SELECTIVE and any(other.tls_only for other in self.exports.values()):
            raise _Refused(hidden, "there is no such export without TLS")
        raise _Refused(Reply.ERR_UNKNOWN, "there is no such export")

    def _enter(self, export: Export) -> int:
        """Transmission begins; the flags for it."""
        flags = export.flags(self._structured or self._extended)
        context = None
        if self._contexts is not None and self._find_quietly(self._contexts[0]) is export:
            context = self._contexts[1]
        self.chosen = Chosen(export, flags, self._structured, self._extended, context)
        self.state = State.TRANSMISSION
        return flags

    def _find_quietly(self, name: str) -> Export | None:
        try:
            return self._find(name)
        except _Refused:
            return None


class _Reader:
    """Takes the data of an option apart; what does not fit is ERR_INVALID."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def number(self, octets: int) -> int:
        return int.from_bytes(self._take(octets), "big")

    def string(self) -> str:
        octets = self.number(4)
        if octets > STRING_MOST:
            raise _Refused(Reply.ERR_INVALID, f"a string has at most {STRING_MOST} octets")
        return _text(self._take(octets))

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(Reply.ERR_INVALID, f"{len(self._data) - self._at} octets too many")

    def _take(self, octets: int) -> bytes:
        if octets > len(self._data) - self._at:
            raise _Refused(Reply.ERR_INVALID, "the data end too early")
        self._at += octets
        return self._data[self._at - octets:self._at]


def _text(octets: bytes) -> str:
    """A string of the protocol. Raises _Refused."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise _Refused(Reply.ERR_INVALID, "a string is not UTF-8") from None
    if "\0" in text or len(octets) > STRING_MOST:
        raise _Refused(Reply.ERR_INVALID, "a string is too long, or has a NUL in it")
    return text


def _check_empty(data: bytes) -> None:
    if data:
        raise _Refused(Reply.ERR_INVALID, "this option has no data")


def _add(answers: bytearray, option: int, reply: int, payload: bytes = b"") -> None:
    answers += REPLY_HEADER.pack(REPLY_MAGIC, option, reply, len(payload)) + payload
