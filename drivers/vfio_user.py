"""A PCI function that is another process: the client's side of vfio-user 0.1 over a Unix socket.

The server is not trusted: it sees the memory given to the device, as a device does, and nothing else; what it sends is
checked, and whatever it does, a call here ends with an answer or an error. Device models are driven this way
(tests/models/vfio_user_server.py is one), and devices that QEMU or SPDK would be given.
"""

import asyncio
import errno
import fcntl
import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from drivers import vfio_user_abi as abi
from drivers.bar import CallBar, MappedBar, SparseBar
from drivers.device import Bar
from drivers.errors import DeviceError, DeviceRefused
from drivers.vfio_abi import DeviceInfo, IrqFlag, IrqInfo, RegionInfo
from drivers.vfio_device import COMMAND, VfioDevice
from drivers.vfio_user_abi import Command, Message, ProtocolError
from drivers.vfio_user_channel import TIMEOUT_S, Channel, Listener
from mm.dma import HUGE_PAGE, LOW_END, AddressRange, DmaExhausted, DmaPool, HostMemory, IovaSpace

RESET_S: Final = 30.0
"""How long a server may take for a reset."""
_ADDRESSES = AddressRange(0, (1 << 39) - 1)
"""What the device is told; every server takes so many bits."""

_COMMAND_MEMORY: Final = 1 << 1

_T = TypeVar("_T")


def open_vfio_user(path: str, *, share_memory: bool = True, map_unsealed: bool = False,
                   timeout_s: float = TIMEOUT_S) -> "VfioUserDevice":
    """Connect to the server at a Unix socket.

    `share_memory` False keeps our memory unmapped: the server asks for each transfer. A BAR is mapped when its file cannot
    be cut short (F_SEAL_SHRINK), which would kill this process at its next access; `map_unsealed` maps any, for a server you
    trust. Raises DeviceRefused (nobody there), DeviceError (no vfio-user), DeviceTimeout.
    """
    session = _Session(path, _connect(path, timeout_s), share_memory, timeout_s)
    try:
        return VfioUserDevice(session, map_unsealed=map_unsealed)
    except OSError as error:
        session.close()
        raise DeviceError(path, f"its server does not describe the device: {error.strerror}", error.errno or 0) from None
    except BaseException:
        session.close()
        raise


class VfioUserDevice(VfioDevice):
    """A PCI function behind a socket; see drivers.device.Device."""

    def __init__(self, session: "_Session", *, map_unsealed: bool) -> None:
        self._session = session
        handle = _ServerHandle(session, map_unsealed=map_unsealed)
        super().__init__(session.name, session.name, "vfio-user", handle, DmaPool(session.window), session.close)

    def bar(self, index: int) -> Bar:
        """Base address register 0 to 5. Raises DeviceError when there is none."""
        self._decode_memory()
        return super().bar(index)

    def reset(self) -> str:
        """As VfioDevice.reset."""
        how = super().reset()
        self._decode_memory()
        return how

    def _decode_memory(self) -> None:
        """Let the device answer at its BARs. For VFIO the kernel does that."""
        command = self.config.read(COMMAND, 2)
        if not command & _COMMAND_MEMORY:
            self.config.write(COMMAND, 2, command | _COMMAND_MEMORY)

    def on_release_request(self, callback: Callable[[], None]) -> None:
        """Call back, from the running loop, when the server wants the device back (REQ) or has ended: close it.

        Raises RuntimeError without a running loop.
        """
        loop = asyncio.get_running_loop()
        self._session.on_lost(lambda: loop.call_soon_threadsafe(callback))
        super().on_release_request(callback)


class _Session:
    """A negotiated connection: one socket, or a second one for what the server asks for."""

    def __init__(self, name: str, connection: socket.socket, share_memory: bool, timeout_s: float) -> None:
        self.name, self._timeout_s = name, timeout_s
        self.window = _Memory(self)
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._main = Channel(name, connection, self._serve)
        channels = [self._main]
        try:
            self.limits, twin = self.ask(Command.VERSION, abi.version(twin=True), self._version)
            if twin is not None:
                channels.append(Channel(name, twin, self._serve))
        except OSError as error:
            self._main.close()
            raise DeviceError(name, f"the server does not agree to protocol {abi.MAJOR}.{abi.MINOR}: {error.strerror}",
                              error.errno or 0) from None
        except BaseException:
            self._main.close()
            raise
        self.window.share = share_memory and self.limits.fds > 0
        self._channels = channels
        self._listener = Listener(channels, self._tell_lost)

    def ask(self, kind: Command, payload: bytes, decode: Callable[[Message], _T], *, fds: tuple[int, ...] = (),
            timeout_s: float = 0.0) -> _T:
        """One request and what its reply means. Raises as Channel.request does."""
        answer = self._main.request(kind, payload, fds, timeout_s or self._timeout_s)
        try:
            return decode(answer)
        except ProtocolError as error:
            raise self._main.broken(error) from None
        finally:
            answer.close()

    def tell(self, kind: Command, payload: bytes, *, fds: tuple[int, ...] = (), timeout_s: float = 0.0) -> None:
        """One request whose reply says no more than that it was done."""
        self.ask(kind, payload, lambda _answer: None, fds=fds, timeout_s=timeout_s)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once the connection has ended, from another thread, or now if it has."""
        with self._lock:
            if not self._main.lost:
                self._callbacks.append(callback)
                return
        callback()

    def close(self) -> None:
        """End the connection. Called once."""
        with self._lock:
            self._callbacks.clear()
        self._listener.close()
        for channel in self._channels:
            channel.close()

    def _version(self, answer: Message) -> tuple[abi.Capabilities, socket.socket | None]:
        limits = abi.decode_version(answer.payload, len(answer.fds))
        if not limits.pages & (2 * HUGE_PAGE - 1):
            raise ProtocolError(f"pages {limits.pages:#x}, all larger than {HUGE_PAGE:#x}")
        if limits.twin is None:
            return limits, None
        try:
            twin = socket.socket(fileno=answer.fds.pop(limits.twin))
        except OSError:
            raise ProtocolError("the second socket is none") from None
        if (twin.family, twin.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            twin.close()
            raise ProtocolError("the second socket is no Unix stream")
        return limits, twin

    def _serve(self, message: Message) -> bytes:
        """What the server asks for: memory."""
        if message.command not in (Command.DMA_READ, Command.DMA_WRITE):
            raise OSError(errno.ENOTSUP, f"command {message.command}")
        address, count, octets = abi.decode_dma(message)
        if message.command == Command.DMA_READ:
            return abi.dma_done(address, count, self.window.read(address, count))
        self.window.write(address, octets)
        return abi.dma_done(address, count)

    def _tell_lost(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            with suppress(RuntimeError):        # its loop is closed
                callback()


class _Memory:
    """What the server sees of this process; see mm.dma.Window."""

    largest = 1 << 38
    need_huge = False

    def __init__(self, session: _Session) -> None:
        self.share = False
        """Whether the server may map it."""
        self._session = session
        self._addresses = IovaSpace([_ADDRESSES])
        self._mapped: dict[int, HostMemory] = {}
        self._lock = threading.Lock()

    def map(self, memory: HostMemory, below_4g: bool) -> int:
        """Show all of it to the server; at which address."""
        if len(self._mapped) >= self._session.limits.maps:
            raise DmaExhausted(f"the server takes no more than {self._session.limits.maps} pieces of memory")
        iova = self._addresses.take(memory.size, end=LOW_END if below_4g else 1 << 64)
        with self._lock:
            self._mapped[iova] = memory         # the server may use it before we see its answer
        try:
            self._session.tell(Command.DMA_MAP, abi.dma_map(iova, memory.size), fds=(memory.fd,) if self.share else ())
        except BaseException as error:
            self._forget(iova)
            if isinstance(error, OSError):
                raise DmaExhausted(f"the server does not take {memory.size >> 10} KiB of memory: {error.strerror}") from None
            raise
        return iova

    def unmap(self, iova: int, size: int) -> None:
        """Hide it again."""
        with suppress(OSError, DeviceError):        # whom we cannot tell is gone
            self._session.tell(Command.DMA_UNMAP, abi.dma_unmap(iova, size))
        self._forget(iova)

    def read(self, iova: int, octets: int) -> bytes:
        """For a server that has not mapped it. Raises OSError for what is not shown."""
        with self._lock:
            memory, at = self._place(iova, octets)
            with memory.view() as whole:
                return bytes(whole[at:at + octets])

    def write(self, iova: int, octets: bytes) -> None:
        """The same, the other way."""
        with self._lock:
            memory, at = self._place(iova, len(octets))
            with memory.view() as whole:
                whole[at:at + len(octets)] = octets

    def _place(self, iova: int, octets: int) -> tuple[HostMemory, int]:
        for start, memory in self._mapped.items():
            if start <= iova and iova + octets <= start + memory.size:
                return memory, iova - start
        raise OSError(errno.EFAULT, f"no memory at {iova:#x}")

    def _forget(self, iova: int) -> None:
        with self._lock:
            del self._mapped[iova]
        self._addresses.give(iova)


class _ServerHandle:
    """VFIO's questions, asked of the server; see drivers.vfio_device.Handle."""

    how = "vfio-user"

    def __init__(self, session: _Session, *, map_unsealed: bool) -> None:
        self._session, self._map_unsealed = session, map_unsealed

    def info(self) -> DeviceInfo:
        """Its flags and counts."""
        return self._session.ask(Command.DEVICE_GET_INFO, abi.device_info(),
                                 lambda answer: abi.decode_device_info(answer.payload))

    def region(self, index: int) -> RegionInfo:
        """One region; its size is 0 when there is none."""
        region, fds = self._region(index)
        for fd in fds:
            os.close(fd)
        return region

    def calls(self, index: int, region: RegionInfo) -> "ServerBar":
        """The region, reached by messages."""
        return ServerBar(self, self._session.name, index, region.size)

    def mapped(self, index: int, region: RegionInfo) -> MappedBar | SparseBar:
        """The region, mapped where the server lets us. Raises OSError when it does not, or may not."""
        region, fds = self._region(index)
        try:
            if len(fds) != 1 or region.offset % 4096:
                raise OSError(errno.ENODEV, "nothing to map")
            self._refuse_short(fds[0], region)
            if region.areas is not None and region.areas != [(0, region.size)]:
                return SparseBar(self.calls(index, region), fds[0], region.offset, region.areas)
            return MappedBar(fds[0], region.size, region.offset)
        finally:
            for fd in fds:
                os.close(fd)

    def irq(self, index: int) -> IrqInfo:
        """One interrupt kind."""
        return self._session.ask(Command.DEVICE_GET_IRQ_INFO, abi.irq_info(index),
                                 lambda answer: abi.decode_irq_info(answer.payload, index))

    def irq_eventfds(self, index: int, fds: list[int]) -> int:
        """Enable a kind, with as many vectors a message as the server takes file descriptors."""
        most = self._session.limits.fds
        if not most:
            raise OSError(errno.ENOTSUP, "the server takes no file descriptors")
        if len(fds) > most and self.irq(index).flags & IrqFlag.NORESIZE:
            return most         # all of them at once, or none
        for start in range(0, len(fds), most):
            part = tuple(fds[start:start + most])
            self._session.tell(Command.DEVICE_SET_IRQS, abi.irq_eventfds(index, start, len(part)), fds=part)
        return 0

    def irq_disable(self, index: int) -> None:
        """Switch a kind off."""
        self._session.tell(Command.DEVICE_SET_IRQS, abi.irq_disable(index))

    def irq_mask(self, index: int, *, masked: bool) -> None:
        """Mask or unmask vector 0."""
        self._session.tell(Command.DEVICE_SET_IRQS, abi.irq_mask(index, masked=masked))

    def reset(self) -> None:
        """Reset the device."""
        self._session.tell(Command.DEVICE_RESET, b"", timeout_s=RESET_S)

    def close(self) -> None:
        """The session's end is the handle's."""

    def read(self, index: int, offset: int, octets: int) -> bytes:
        """Any number of octets of a region, in pieces that the server takes. Raises OSError."""
        found = bytearray()
        while octets > len(found):
            at, part = offset + len(found), min(octets - len(found), self._session.limits.data)
            found += self._session.ask(
                Command.REGION_READ, abi.region_read(index, at, part),
                lambda answer, at=at, part=part: abi.decode_region_access(answer.payload, index, at, part, data=True))
        return bytes(found)

    def write(self, index: int, offset: int, octets: bytes) -> None:
        """The same, written."""
        most = self._session.limits.data
        for start in range(0, len(octets), most):
            part, at = octets[start:start + most], offset + start
            self._session.ask(
                Command.REGION_WRITE, abi.region_write(index, at, part),
                lambda answer, at=at, part=part: abi.decode_region_access(answer.payload, index, at, len(part), data=False))

    def _region(self, index: int) -> tuple[RegionInfo, list[int]]:
        """One region, and the files that came with it, which are the caller's."""
        def decode(answer: Message) -> tuple[int, RegionInfo, list[int]]:
            whole, region = abi.decode_region_info(answer.payload, index)
            fds = answer.fds[:] if whole <= len(answer.payload) else []
            if fds:
                answer.fds.clear()
            return whole, region, fds

        room = 4096
        for _ in range(2):
            whole, region, fds = self._session.ask(Command.DEVICE_GET_REGION_INFO, abi.region_info(index, room), decode)
            if whole <= room:
                break
            room = whole
        return region, fds

    def _refuse_short(self, fd: int, region: RegionInfo) -> None:
        """A mapping beyond a file's end kills whoever touches it; so does one that the server cuts short later."""
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size < region.offset + region.size:
            raise OSError(errno.EINVAL, "the file is shorter than the region")
        if not self._map_unsealed and not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(errno.EPERM, "the file could be cut short")


class ServerBar(CallBar):
    """A region reached by messages."""

    def __init__(self, handle: _ServerHandle, name: str, index: int, size: int) -> None:
        super().__init__(size)
        self._handle, self._name, self._index = handle, name, index

    def read_block(self, offset: int, octets: int) -> bytes:
        """Octets as they lie there, however many: for tables and memory, not for registers. Raises DeviceError."""
        if offset < 0 or octets < 0 or offset + octets > self.size:
            raise IndexError(f"{octets} octets at {offset:#x} of {self.size:#x}")
        return self._load(offset, octets)

    def write_block(self, offset: int, octets: bytes) -> None:
        """The same, written."""
        if offset < 0 or offset + len(octets) > self.size:
            raise IndexError(f"{len(octets)} octets at {offset:#x} of {self.size:#x}")
        self._store(offset, octets)

    def _load(self, offset: int, octets: int) -> bytes:
        try:
            return self._handle.read(self._index, offset, octets)
        except OSError as error:
            raise self._refused("read", offset, octets, error) from None

    def _store(self, offset: int, octets: bytes) -> None:
        try:
            self._handle.write(self._index, offset, octets)
        except OSError as error:
            raise self._refused("write", offset, len(octets), error) from None

    def _refused(self, verb: str, offset: int, octets: int, error: OSError) -> DeviceError:
        return DeviceError(self._name, f"the server refuses to {verb} {octets} octets at {offset:#x} of region {self._index}: "
                                       f"{error.strerror}. Is the device meant to have a register there?", error.errno or 0)


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        hint = {errno.ENOENT: "there is no such socket: has the server been started?",
                errno.ECONNREFUSED: "nobody listens there: has the server ended?",
                errno.EACCES: "no permission: run as the server's user"}.get(error.errno or 0, str(error.strerror or error))
        raise DeviceRefused(path, hint) from None
    return connection
