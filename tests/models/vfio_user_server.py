"""A vfio-user server for device models, and a strict one: what a client does wrong is refused and written down.

A model is an object with `regions`, `irqs`, `read`, `write`, `reset` and `attach` (see `Model`); the server gives it a
`Port` through which it reaches the client's memory and raises interrupts. One client at a time, served by one thread.
"""

import array
import errno
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import NamedTuple, Protocol

HEADER = struct.Struct("=HHIII")
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, SET_IRQS = 1, 2, 3, 4, 5, 7, 8
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = 9, 10, 11, 12, 13
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
INTX, MSI, MSIX, ERR, REQ = range(5)
CONFIG = 7
_ANSWER_S = 10


class Region(NamedTuple):
    """A region of a model. With `fd` the client may map it, or the `areas` of it, (offset, size)."""

    size: int
    fd: int = -1
    areas: tuple[tuple[int, int], ...] = ()
    offset: int = 0


class Model(Protocol):
    """A device."""

    regions: dict[int, Region]
    irqs: dict[int, int]
    """How many vectors of each kind."""

    def attach(self, port: "Port") -> None:
        """A client has come."""

    def read(self, region: int, offset: int, octets: int) -> bytes:
        """One access. Raises OSError to refuse it."""

    def write(self, region: int, offset: int, octets: bytes) -> None:
        """One access. Raises OSError to refuse it."""

    def reset(self) -> None:
        """As after power on."""


class Refused(Exception):
    """The client's fault; `number` is the errno it is told."""

    def __init__(self, what: str, number: int = errno.EINVAL):
        super().__init__(what)
        self.number = number


class Closed(Exception):
    """The client has gone."""


class Packet(NamedTuple):
    number: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]


class Stream:
    """Messages on a socket, blocking."""

    def __init__(self, connection: socket.socket, max_fds: int):
        self.socket, self.max_fds = connection, max_fds

    def receive(self) -> Packet:
        fds: list[int] = []
        head = self._read(HEADER.size, fds)
        number, command, size, flags, error = HEADER.unpack(head)
        if not HEADER.size <= size <= 2 << 20:
            raise Closed
        packet = Packet(number, command, flags, error, self._read(size - HEADER.size, fds), fds)
        if len(fds) > self.max_fds:
            raise Refused(f"{len(fds)} file descriptors")
        return packet

    def send(self, number: int, command: int, flags: int, payload: bytes, error: int = 0, fds: tuple[int, ...] = ()) -> None:
        message = HEADER.pack(number, command, HEADER.size + len(payload), flags, error) + payload
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.socket.sendmsg([message], beside)
            self.socket.sendall(message[sent:])
        except OSError:
            raise Closed from None

    def _read(self, octets: int, fds: list[int]) -> bytes:
        found = b""
        while len(found) < octets:
            try:
                part, beside, _, _ = self.socket.recvmsg(octets - len(found), socket.CMSG_SPACE(4 * 64))
            except OSError:
                raise Closed from None
            for _, _, data in beside:
                numbers = array.array("i")
                numbers.frombytes(data)
                fds += numbers
            if not part:
                raise Closed
            found += part
        return found


class Port:
    """What a model sees of its client."""

    def __init__(self, server: "Server", stream: Stream, second: Stream | None):
        self._server, self._stream, self._second = server, stream, second
        self.maps: dict[int, tuple[int, mmap.mmap | None]] = {}
        self.eventfds: dict[tuple[int, int], int] = {}
        self.masked = False
        self.level = False
        self.backlog: deque[Packet] = deque()
        self._number = 0

    def dma_read(self, iova: int, octets: int) -> bytes:
        """From the client's memory. Raises OSError for what it has not shown."""
        memory, at = self._place(iova, octets)
        if memory is not None:
            return memory[at:at + octets]
        answer = self._ask(DMA_READ, struct.pack("=QQ", iova, octets))
        if answer[:16] != struct.pack("=QQ", iova, octets) or len(answer) != 16 + octets:
            raise Refused("the answer to DMA_READ")
        return answer[16:]

    def dma_write(self, iova: int, octets: bytes) -> None:
        """To the client's memory."""
        memory, at = self._place(iova, len(octets))
        if memory is not None:
            memory[at:at + len(octets)] = octets
            return
        head = struct.pack("=QQ", iova, len(octets))
        if self._ask(DMA_WRITE, head + octets) != head:
            raise Refused("the answer to DMA_WRITE")

    def line(self, level: bool) -> None:
        """INTx: a level, held back by its client each time it comes."""
        self.level = level
        if level and not self.masked and (fd := self.eventfds.get((INTX, 0))) is not None:
            self.masked = True
            os.eventfd_write(fd, 1)

    def message(self, kind: int, vector: int) -> None:
        """MSI or MSI-X."""
        if (fd := self.eventfds.get((kind, vector))) is not None:
            os.eventfd_write(fd, 1)

    def enabled(self, kind: int) -> bool:
        return any(key[0] == kind for key in self.eventfds)

    def close(self) -> None:
        for _, memory in self.maps.values():
            if memory is not None:
                memory.close()
        for fd in self.eventfds.values():
            os.close(fd)
        self.maps.clear()
        self.eventfds.clear()
        for stream in (self._stream, self._second):
            if stream is not None:
                stream.socket.close()

    def _place(self, iova: int, octets: int) -> tuple[mmap.mmap | None, int]:
        for start, (size, memory) in self.maps.items():
            if start <= iova and iova + octets <= start + size:
                return memory, iova - start
        raise OSError(errno.EFAULT, f"nothing mapped at {iova:#x}")

    def _ask(self, command: int, payload: bytes) -> bytes:
        """A command of ours; the client's that come first on the same socket wait."""
        stream = self._second or self._stream
        self._number = self._number + 1 & 0xFFFF
        stream.send(self._number, command, 0, payload)
        while True:
            packet = stream.receive()
            if packet.flags & 0xF != REPLY:
                self.backlog.append(packet)
                continue
            if (packet.number, packet.command) != (self._number, command):
                raise Refused("a reply to something else")
            if packet.flags & ERROR:
                raise OSError(packet.error, os.strerror(packet.error))
            return packet.payload


class Server:
    """Serves a model at a Unix socket until closed. `violations` says what clients did wrong."""

    def __init__(self, path: str, model: Model, *, twin: bool = True, max_fds: int = 8, max_data: int = 1 << 20,
                 reset: bool = True, automasked: bool = True, sweeps: bool = False):
        """`sweeps`: DMA_UNMAP may cover several mappings, or none, as QEMU's with an IOMMU in front of the device do."""
        self.sweeps = sweeps
        self.path, self.model = path, model
        self.twin, self.max_fds, self.max_data, self.can_reset, self.automasked = twin, max_fds, max_data, reset, automasked
        self.violations: list[str] = []
        self.counts: dict[int, int] = {}
        """How often each command came."""
        self.port: Port | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """As if its process had been killed."""
        self._stop.close()
        self._thread.join(10)
        self._listener.close()
        self._stopped.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _run(self) -> None:
        while self._wait(self._listener):
            connection, _ = self._listener.accept()
            connection.settimeout(_ANSWER_S)
            self._serve(Stream(connection, self.max_fds))

    def _wait(self, readable: socket.socket) -> bool:
        """False once it is to end."""
        found, _, _ = select.select([readable, self._stopped], [], [])
        return self._stopped not in found

    def _serve(self, stream: Stream) -> None:
        self.port = port = Port(self, stream, None)
        try:
            self._negotiate(stream, port)
            self.model.attach(port)
            while port.backlog or self._wait(stream.socket):
                packet = port.backlog.popleft() if port.backlog else stream.receive()
                self._answer(stream, port, packet)
        except Closed:
            pass
        except Refused as error:
            self.violations.append(str(error))
        finally:
            port.close()

    def _answer(self, stream: Stream, port: Port, packet: Packet) -> None:
        self.counts[packet.command] = self.counts.get(packet.command, 0) + 1
        out: tuple[bytes, tuple[int, ...]] = b"", ()
        number = 0
        try:
            if packet.flags & ~NO_REPLY or packet.error:
                raise Refused(f"command {packet.command} with flags {packet.flags:#x}, error {packet.error}")
            out = self._do(port, packet)
        except Refused as error:
            self.violations.append(str(error))
            number = error.number
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            for fd in packet.fds:
                os.close(fd)
        if not packet.flags & NO_REPLY:
            payload, fds = (b"", ()) if number else out
            stream.send(packet.number, packet.command, REPLY | (ERROR if number else 0), payload, number, fds)

    def _negotiate(self, stream: Stream, port: Port) -> None:
        if not self._wait(stream.socket):
            raise Closed
        packet = stream.receive()
        _need(packet.command == VERSION and packet.flags == 0 and not packet.fds, "the first message is no VERSION")
        major, minor = struct.unpack_from("=HH", packet.payload)
        _need(major == 0 and minor in (0, 1), f"version {major}.{minor}")       # QEMU says 0.0
        _need(packet.payload.endswith(b"\0"), "a text without its end")
        told = json.loads(packet.payload[4:-1])["capabilities"]
        _need(1 <= told["max_msg_fds"] <= 253 and told["max_data_xfer_size"] >= 4096, f"capabilities {told}")
        mine: dict = {"max_msg_fds": self.max_fds, "max_data_xfer_size": self.max_data, "pgsizes": 4096}
        fds: tuple[int, ...] = ()
        if self.twin and told.get("twin_socket", {}).get("supported"):
            ours, theirs = socket.socketpair()
            ours.settimeout(_ANSWER_S)
            port._second = Stream(ours, 0)
            mine["twin_socket"] = {"supported": True, "fd_index": 0}
            fds = (theirs.detach(),)
        payload = struct.pack("=HH", major, minor) + json.dumps({"capabilities": mine}).encode() + b"\0"
        try:
            stream.send(packet.number, VERSION, REPLY, payload, fds=fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _do(self, port: Port, packet: Packet) -> tuple[bytes, tuple[int, ...]]:
        command, payload = packet.command, packet.payload
        _need(not packet.fds or command in (DMA_MAP, SET_IRQS), f"file descriptors with command {command}")
        if command == DMA_MAP:
            self._map(port, packet)
            return b"", ()
        if command == DMA_UNMAP:
            return self._unmap(port, payload), ()
        if command == GET_INFO:
            _need(payload == struct.pack("=IIII", 16, 0, 0, 0), "DEVICE_GET_INFO's fields")
            return struct.pack("=IIII", 16, 2 | self.can_reset, 9, 5), ()
        if command == GET_REGION_INFO:
            return self._region_info(payload)
        if command == GET_IRQ_INFO:
            argsz, flags, index, count = _exact("=IIII", payload, "DEVICE_GET_IRQ_INFO")
            _need((argsz, flags, count) == (16, 0, 0) and index < 5, "DEVICE_GET_IRQ_INFO's fields")
            maskable = 2 | 4 if index == INTX and self.automasked else 0
            return struct.pack("=IIII", 16, 1 | maskable, index, self.model.irqs.get(index, 0)), ()
        if command == SET_IRQS:
            self._set_irqs(port, packet)
            return b"", ()
        if command in (REGION_READ, REGION_WRITE):
            return self._access(command, payload), ()
        if command == RESET:
            _need(not payload and self.can_reset, "DEVICE_RESET")
            self.model.reset()
            return b"", ()
        raise Refused(f"command {command}", errno.ENOTSUP)

    def _map(self, port: Port, packet: Packet) -> None:
        argsz, flags, offset, address, size = _exact("=IIQQQ", packet.payload, "DMA_MAP")
        _need(argsz == 32 and 1 <= flags <= 3, f"DMA_MAP's argsz {argsz}, flags {flags}")
        _need(size > 0 and not (address | size | offset) & 4095, f"DMA_MAP of {size:#x} at {address:#x}")
        if any(address < start + length and start < address + size for start, (length, _) in port.maps.items()):
            raise Refused(f"DMA_MAP of {address:#x} twice", errno.EEXIST)
        memory = None
        _need(len(packet.fds) <= 1, "DMA_MAP's file descriptors")
        if packet.fds:
            _need(os.fstat(packet.fds[0]).st_size >= offset + size, "DMA_MAP's file is too short")
            memory = mmap.mmap(packet.fds[0], size, offset=offset)
        else:
            _need(offset == 0, "DMA_MAP's offset without a file")
        port.maps[address] = size, memory

    def _unmap(self, port: Port, payload: bytes) -> bytes:
        argsz, flags, address, size = _exact("=IIQQ", payload, "DMA_UNMAP")
        _need(argsz >= 24 and flags == 0, "DMA_UNMAP's fields")
        if self.sweeps:
            end = address + size
            covered = [start for start, (length, _) in port.maps.items() if address <= start and start + length <= end]
        elif port.maps.get(address, (0, None))[0] == size:
            covered = [address]
        else:
            raise Refused(f"DMA_UNMAP of {size:#x} at {address:#x}, which is no mapping", errno.ENOENT)
        for start in covered:
            _, memory = port.maps.pop(start)
            if memory is not None:
                memory.close()
        return payload

    def _region_info(self, payload: bytes) -> tuple[bytes, tuple[int, ...]]:
        argsz, flags, index, cap, size, offset = _exact("=IIIIQQ", payload, "DEVICE_GET_REGION_INFO")
        _need(argsz >= 32 and not (flags | cap | size | offset) and index < 9, "DEVICE_GET_REGION_INFO's fields")
        region = self.model.regions.get(index, Region(0))
        sparse = b""
        if region.areas:
            sparse = struct.pack("=HHIII", 1, 1, 0, len(region.areas), 0) + b"".join(
                struct.pack("=QQ", *area) for area in region.areas)
        flags = (3 if region.size else 0) | (4 if region.fd >= 0 else 0) | (8 if sparse else 0)
        whole = 32 + len(sparse) <= argsz
        head = struct.pack("=IIIIQQ", 32 + len(sparse), flags, index, 32 if sparse and whole else 0, region.size, region.offset)
        return head + (sparse if whole else b""), (region.fd,) if region.fd >= 0 else ()

    def _set_irqs(self, port: Port, packet: Packet) -> None:
        argsz, flags, index, start, count = _exact("=IIIII", packet.payload, "DEVICE_SET_IRQS")
        data, action = flags & 7, flags & 0x38
        _need(argsz == 20 and flags == data | action and data in (1, 2, 4) and action in (8, 16, 32),
              f"DEVICE_SET_IRQS with argsz {argsz}, flags {flags:#x}")
        there = self.model.irqs.get(index, 0)
        _need(there and start + count <= there, f"DEVICE_SET_IRQS of {start}+{count} of {there}, kind {index}")
        if data == 4:
            _need(action == 32 and count and len(packet.fds) in (0, count), "DEVICE_SET_IRQS with eventfds")
            for vector, fd in enumerate(packet.fds, start):
                self._drop(port, index, vector)
                port.eventfds[index, vector] = os.dup(fd)
            port.masked = port.masked and index != INTX
        elif action == 32:
            _need(data == 1 and not count and not start, "DEVICE_SET_IRQS' trigger")
            for vector in range(there):
                self._drop(port, index, vector)
        else:
            _need(index == INTX and self.automasked and (start, count) == (0, 1) and data == 1, "what is not maskable")
            port.masked = action == 8
            port.line(port.level)

    @staticmethod
    def _drop(port: Port, index: int, vector: int) -> None:
        if (fd := port.eventfds.pop((index, vector), -1)) >= 0:
            os.close(fd)

    def _access(self, command: int, payload: bytes) -> bytes:
        _need(len(payload) >= 16, "a region access cut short")
        offset, index, count = struct.unpack_from("=QII", payload)
        size = self.model.regions.get(index, Region(0)).size
        _need(0 < count <= self.max_data and offset + count <= size, f"{count} octets at {offset:#x} of region {index}")
        if command == REGION_READ:
            _need(len(payload) == 16, "REGION_READ's length")
            octets = self.model.read(index, offset, count)
            assert len(octets) == count
            return payload + octets
        _need(len(payload) == 16 + count, "REGION_WRITE's length")
        self.model.write(index, offset, payload[16:])
        return payload[:16]


def sealed_file(size: int) -> int:
    """A file for a region that the client may map without fear."""
    fd = os.memfd_create("region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _need(true: object, what: str) -> None:
    if not true:
        raise Refused(what)


def _exact(form: str, payload: bytes, what: str) -> tuple:
    _need(len(payload) == struct.calcsize(form), f"{what} of {len(payload)} octets")
    return struct.unpack(form, payload)
