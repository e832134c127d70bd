"""A client that says whatever a test wants to: NBD's messages as octets, and replies taken apart."""

import asyncio
import struct
from dataclasses import dataclass, field

from rustosd.nbd import wire
from rustosd.nbd.negotiation import OPTION_MAGIC, Option, Reply

FIXED, NO_ZEROES = 1, 2
PATIENCE_S = 60
CHUNKS = {getattr(wire, name): name for name in dir(wire) if name.startswith("CHUNK_")}


def option(number: int, data: bytes = b"", magic: bytes = OPTION_MAGIC) -> bytes:
    """One option as a client sends it."""
    return magic + struct.pack(">II", number, len(data)) + data


def string(text: str | bytes) -> bytes:
    """A string with its length before it."""
    octets = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(octets)) + octets


def go(name: str, *wanted: int) -> bytes:
    """The data of INFO and GO."""
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def contexts(name: str, *queries: str) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def replies(octets: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply, payload) of everything a server has answered to options."""
    found = []
    while octets:
        magic, number, kind, length = struct.unpack_from(">QIII", octets)
        assert magic == 0x3E889045565A9
        found.append((number, kind, octets[20:20 + length]))
        octets = octets[20 + length:]
    return found


@dataclass
class Answer:
    """Everything that was said about one request."""

    error: int = 0
    data: dict[int, bytes] = field(default_factory=dict)        # by offset
    holes: list[tuple[int, int]] = field(default_factory=list)
    status: list[tuple[int, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def content(self, offset: int, length: int) -> bytes:
        """What a READ has read; every octet exactly once."""
        octets, seen = bytearray(length), 0
        for at, piece in self.data.items():
            octets[at - offset:at - offset + len(piece)] = piece
            seen += len(piece)
        assert seen + sum(size for _, size in self.holes) == length and len(octets) == length
        return bytes(octets)


class RawClient:
    """One connection. Replies are read in any order; `answer` waits for one request's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self.structured = self.extended = False
        self.octets = self.flags = self.cookie = 0
        self.reads: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()

    @classmethod
    async def connect(cls, path, *, structured: bool = True, extended: bool = False, context: bool = False,
                      name: str = "disk") -> "RawClient":
        """In transmission."""
        client = cls(*await asyncio.open_unix_connection(path))
        assert (await client.read(18))[:16] == b"NBDMAGIC" + OPTION_MAGIC
        client.writer.write(struct.pack(">I", FIXED | NO_ZEROES))
        if extended:
            client.extended = (await client.option(Option.EXTENDED_HEADERS))[-1][1] == Reply.ACK
        elif structured:
            client.structured = (await client.option(Option.STRUCTURED_REPLY))[-1][1] == Reply.ACK
        if context:
            answered = await client.option(Option.SET_META_CONTEXT, contexts(name, "base:allocation"))
            assert [kind for _, kind, _ in answered] == [Reply.META_CONTEXT, Reply.ACK]
        for _, kind, payload in await client.option(Option.GO, go(name, 3)):
            assert kind in (Reply.INFO, Reply.ACK), payload
            if kind == Reply.INFO and payload[:2] == b"\0\0":
                client.octets, client.flags = struct.unpack(">QH", payload[2:])
        return client

    async def read(self, octets: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(octets), PATIENCE_S)

    async def option(self, number: int, data: bytes = b"") -> list[tuple[int, int, bytes]]:
        """All replies to one option."""
        self.writer.write(option(number, data))
        found = []
        while not found or found[-1][1] in (Reply.SERVER, Reply.INFO, Reply.META_CONTEXT):
            header = await self.read(20)
            _, answered, kind, length = struct.unpack(">QIII", header)
            assert answered == number
            found.append((answered, kind, await self.read(length)))
        return found

    def request(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"",
                magic: int | None = None) -> int:
        """Send a request; its cookie."""
        self.cookie += 1
        if self.extended:
            header = struct.pack(">IHHQQQ", magic or wire.EXTENDED_REQUEST_MAGIC, flags, command, self.cookie, offset, length)
        else:
            header = struct.pack(">IHHQQI", magic or wire.REQUEST_MAGIC, flags, command, self.cookie, offset, length)
        if command == wire.CMD_READ:
            self.reads[self.cookie] = length
        self.answers[self.cookie] = Answer()
        self.writer.write(header + payload)
        return self.cookie

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        """Send a WRITE."""
        return self.request(wire.CMD_WRITE, offset, len(data), flags | (0x20 if self.extended else 0), data)

    async def answer(self, cookie: int) -> Answer:
        """Wait until the request has ended."""
        while cookie not in self.ended:
            await self._reply()
        return self.answers[cookie]

    async def ask(self, *arguments, **options) -> Answer:
        """`request` and `answer`."""
        return await self.answer(self.request(*arguments, **options))

    async def _reply(self) -> None:
        magic = int.from_bytes(await self.read(4), "big")
        if magic == wire.SIMPLE_REPLY_MAGIC:
            assert not self.extended
            error, cookie = struct.unpack(">IQ", await self.read(12))
            answer = self.answers[cookie]
            answer.error = error
            answer.kinds.append("simple")
            if cookie in self.reads and not error:
                assert not self.structured
                answer.data[-1] = await self.read(self.reads[cookie])
            self.ended.add(cookie)
            return
        if self.extended:
            assert magic == wire.EXTENDED_REPLY_MAGIC
            flags, kind, cookie, _, length = struct.unpack(">HHQQQ", await self.read(28))
        else:
            assert magic == wire.STRUCTURED_REPLY_MAGIC and self.structured
            flags, kind, cookie, length = struct.unpack(">HHQI", await self.read(16))
        self._chunk(self.answers[cookie], kind, await self.read(length))
        assert cookie not in self.ended
        if flags & wire.REPLY_FLAG_DONE:
            self.ended.add(cookie)

    def _chunk(self, answer: Answer, kind: int, payload: bytes) -> None:
        answer.kinds.append(CHUNKS[kind])
        if kind == wire.CHUNK_OFFSET_DATA:
            assert len(payload) > 8
            answer.data[int.from_bytes(payload[:8], "big")] = payload[8:]
        elif kind == wire.CHUNK_OFFSET_HOLE:
            answer.holes.append(struct.unpack(">QI", payload))
        elif kind == wire.CHUNK_BLOCK_STATUS:
            answer.status = list(struct.iter_unpack(">II", payload[4:]))
        elif kind == wire.CHUNK_BLOCK_STATUS_EXT:
            assert int.from_bytes(payload[4:8], "big") == len(payload[8:]) // 16
            answer.status = list(struct.iter_unpack(">QQ", payload[8:]))
        elif kind == wire.CHUNK_ERROR:
            answer.error, said = struct.unpack(">IH", payload[:6])
            assert said == len(payload) - 6
        else:
            assert kind == wire.CHUNK_NONE and not payload

    async def is_over(self) -> bool:
        """Whether the server closes."""
        try:
            while await asyncio.wait_for(self.reader.read(1 << 16), PATIENCE_S):
                pass
        except ConnectionResetError:
            pass
        return True

    async def close(self) -> None:
        self.writer.close()
