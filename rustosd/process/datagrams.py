"""UDP sockets of supervised programs.

The program has an AF_UNIX datagram socket. What arrives is sent to it from a socket of ours whose *name* is the sender's
address and port, so that it travels with the datagram and poll, epoll, FIONREAD and recv are the kernel's own; recvfrom and
recvmsg are answered here, with the name made an address again. A connected one is joined to one socket of ours in both
directions.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rustosd.client.wire import HEADER, pack_address, unpack_address
from rustosd.process import ancillary
from rustosd.process.call import MESSAGE_OCTETS, Call, Message
from rustosd.process.sockaddr import Endpoint, emit, parse
from rustosd.process.sockets import ANY, LOOPBACK, GuestSocket, Loop, State, error
from rustosd.process.threads import inode_of

_MOST: Final = {socket.AF_INET: 65507, socket.AF_INET6: 65527}      # RFC 768, RFC 8200
_PEER: Final = bytes(16), 0
_ANY_SOURCE: Final = bytes(16)
_BURST: Final = 64                                                  # datagrams that one socket moves before others do
_SENDERS_MOST: Final = 1024
_MESSAGE_STRIDE: Final = MESSAGE_OCTETS + 8                         # struct mmsghdr: and how many octets, padded
_COUNT = struct.Struct("=I")
_libc = ctypes.CDLL(None, use_errno=True)


class _Received(NamedTuple):
    data: bytes
    sender: Endpoint
    ours: bytes
    flags: int


class Senders:
    """Sockets whose names are the addresses of other hosts, and of ours that they sent to; those longest unused go first."""

    def __init__(self) -> None:
        self._prefix = b"\0rustosd-%d-" % os.getpid()
        self._sockets: OrderedDict[bytes, socket.socket] = OrderedDict()

    def named(self, address: bytes, port: int, ours: bytes) -> socket.socket:
        """The one whose name says where a datagram came from and to."""
        key = address + port.to_bytes(2) + ours
        if (known := self._sockets.get(key)) is not None:
            self._sockets.move_to_end(key)
            return known
        if len(self._sockets) >= _SENDERS_MOST:
            self._sockets.popitem(last=False)[1].close()
        made = self._sockets[key] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind(self._prefix + key)
        return made

    def ends(self, name: bytes | str | None) -> tuple[Endpoint, bytes] | None:
        """What such a name says; None: it is none."""
        if not isinstance(name, bytes) or not name.startswith(self._prefix) or len(name) != len(self._prefix) + 34:
            return None
        key = name[len(self._prefix):]
        return Endpoint(unpack_address(key[:16]), int.from_bytes(key[16:18])), key[18:]

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()


class DatagramSocket(GuestSocket):
    """One UDP socket."""

    kind, protocol = socket.SOCK_DGRAM, socket.IPPROTO_UDP

    def __init__(self, loop: Loop, family: int, senders: Senders) -> None:
        """Raises OSError."""
        super().__init__(loop, family, "")
        self._senders = senders
        self._end: socket.socket | None = None                  # towards the daemon
        self._peer: socket.socket | None = None                 # the program's, once it is connected
        self._held: tuple[socket.socket, bytes] | None = None   # a datagram for which the program has no room yet
        self._policed = False                                   # there are destinations that it may not send to
        self._allowed: set[Endpoint] = set()
        self._bound = False
        self._name: bytes = b""                                 # of the program's end
        self._open()

    def program_end(self) -> socket.socket:
        """The program's end, to be given to it and closed."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind("")
        self.inode, self._name = inode_of(end.fileno()), end.getsockname()
        return end

    def _open(self) -> None:
        made = self.loop.link.open("datagram", 4 if self.family == socket.AF_INET else 6)
        self.identity, self._policed = made.identity, made.policed
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=made.fd)
        self._end.setblocking(False)
        self.loop.watch(self._end.fileno(), select.EPOLLIN, self._arrived)

    # names

    def bind(self, call: Call, endpoint: Endpoint) -> None:
        self.note_names(self.ask("bind", host=endpoint.host, port=endpoint.port, v6only=self.v6only))
        self._bound = True
        call.answer()

    def connect(self, call: Call, endpoint: Endpoint | None) -> None:
        with socket.socket(fileno=call.borrow(self.inode)) as end:
            if endpoint is None:
                self._disconnect(end)
                return call.answer()
            host = LOOPBACK[self.family] if endpoint.host == ANY[self.family] else endpoint.host
            self.note_names(self.ask("connect", host=host, port=endpoint.port))
            if self._peer is None:
                self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._peer.setblocking(False)
                self._peer.bind("")
                self.loop.watch(self._peer.fileno(), select.EPOLLIN, self._written)
            end.connect(self._peer.getsockname())
        self.state = State.CONNECTED
        call.answer()

    def _disconnect(self, end: socket.socket) -> None:
        """Take datagrams from everybody again."""
        if self.state != State.CONNECTED:
            return
        _unconnect(end)
        self._drop_peer()
        self.state, self.remote = State.NEW, None
        local, bound = self.local, self._bound
        self._close_end()
        self._open()
        self.local = None
        if bound and local is not None:
            self.note_names(self.ask("bind", host=local.host, port=local.port, v6only=self.v6only))

    def listen(self, call: Call, backlog: int) -> None:
        raise error(errno.EOPNOTSUPP)

    def accept(self, call: Call, flags: int) -> None:
        raise error(errno.EOPNOTSUPP)

    # sending

    def send_to(self, call: Call, endpoint: Endpoint | None, data: bytes, flags: int) -> None:
        self._send(call, self._packet(endpoint, data), flags & socket.MSG_DONTWAIT != 0)

    def send_message(self, call: Call) -> None:
        message = call.message(call.pointer(1))
        packet = self._packet(self._named(call, message), message.gather(), ancillary.source(message.control()))
        self._send(call, packet, call.int(2) & socket.MSG_DONTWAIT != 0)

    def send_messages(self, call: Call) -> None:
        sent = 0
        for at, message in _messages(call):
            data = message.gather()
            packet = self._packet(self._named(call, message), data, ancillary.source(message.control()))
            try:
                self._end.send(packet)
            except OSError:
                if not sent:
                    raise
                break
            call.write(at + MESSAGE_OCTETS, _COUNT.pack(len(data)))
            sent += 1
        call.answer(sent)

    def _named(self, call: Call, message: Message) -> Endpoint | None:
        if not message.name:
            return None
        return parse(call.read_name(message.name, message.name_length), self.family)

    def _packet(self, endpoint: Endpoint | None, data: bytes, source: bytes = _ANY_SOURCE) -> bytes:
        """What the daemon is sent. Raises OSError (EDESTADDRREQ, EMSGSIZE)."""
        if len(data) > _MOST[self.family]:
            raise error(errno.EMSGSIZE)
        if endpoint is None:
            if self.state != State.CONNECTED:
                raise error(errno.EDESTADDRREQ)
            return HEADER.pack(*_PEER, 0, source) + data
        if self.local is None:
            self.note_names(self.ask("bind", host="", port=0, v6only=self.v6only))
        host = LOOPBACK[self.family] if endpoint.host == ANY[self.family] else endpoint.host
        if self._policed and endpoint not in self._allowed:
            self.ask("may", host=host, port=endpoint.port)      # to know at once; the daemon looks at each datagram anyway
            if len(self._allowed) >= _SENDERS_MOST:
                self._allowed.clear()
            self._allowed.add(endpoint)
        return HEADER.pack(pack_address(host.partition("%")[0]), endpoint.port, 0, source) + data

    def _send(self, call: Call, packet: bytes, at_once: bool) -> None:
        octets = len(packet) - HEADER.size
        try:
            self._end.send(packet)
            return call.answer(octets)
        except BlockingIOError:
            with socket.socket(fileno=call.borrow(self.inode)) as end:
                if at_once or not os.get_blocking(end.fileno()):
                    raise

        def attempt(_events: int) -> bool:
            with contextlib.suppress(BlockingIOError):
                self._end.send(packet)
                call.answer(octets)
                return True
            return False
        self.loop.wait(call, os.dup(self._end.fileno()), select.EPOLLOUT, attempt)

    def _written(self, _events: int) -> None:
        """The program has written to its peer, as to a file."""
        for _ in range(_BURST):
            try:
                data, writer = self._peer.recvfrom(_MOST[self.family])
                if writer == self._name:
                    self._end.send(HEADER.pack(*_PEER, 0, _ANY_SOURCE) + data)
            except BlockingIOError:
                return
            except OSError as failed:
                self.error = failed.errno or errno.EIO
                return

    # receiving

    def _arrived(self, _events: int) -> None:
        """From the daemon to the program."""
        for _ in range(_BURST):
            try:
                packet = self._end.recv(HEADER.size + 65535)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if len(packet) < HEADER.size:
                self.error = errno.ENETDOWN
                self._close_end()
                return
            address, port, failed, ours = HEADER.unpack_from(packet)
            if failed:
                self._tell_error(failed)
                continue
            sender = self._peer or self._senders.named(address, port, ours)
            if not self._hand_over(sender, packet[HEADER.size:]):
                return

    def _hand_over(self, sender: socket.socket, data: bytes) -> bool:
        """Put a datagram into the program's queue; without room there it waits, and with it the daemon."""
        try:
            sender.sendto(data, self._name)
        except BlockingIOError:
            self._held = sender, data
            self.loop.forget(self._end.fileno())
            self.loop.later(self._try_again)
            return False
        except OSError:
            pass        # nobody holds it any more: the next look finds out
        return True

    def _try_again(self) -> None:
        if self._held is not None and self._end is not None:
            held, self._held = self._held, None
            if self._hand_over(*held):
                self.loop.watch(self._end.fileno(), select.EPOLLIN, self._arrived)

    def _tell_error(self, number: int) -> None:
        """Something came back for what was sent: the next read fails.

        One that the kernel carries out fails with ECONNRESET. That is what a datagram socket gets when its peer, which had
        not read everything, turns to somebody else (net/unix/af_unix.c, unix_dgram_disconnected).
        """
        self.error = number
        if self._peer is None:
            return
        self._written(0)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind("")
            other.sendto(b"", self._peer.getsockname())
            self._peer.connect(self._name)
            self._peer.connect(other.getsockname())
        _unconnect(self._peer)

    def receive_from(self, call: Call, octets: int, flags: int) -> None:
        def finish(got: _Received) -> None:
            call.write(call.pointer(1), got.data)
            call.write_sized(call.pointer(4), call.pointer(5), emit(got.sender, self.family))
            call.answer(len(got.data))
        self._receive(call, octets, flags, finish)

    def receive_message(self, call: Call) -> None:
        message = call.message(call.pointer(1))

        def finish(got: _Received) -> None:
            message.scatter(got.data)
            message.finish(emit(got.sender, self.family), got.flags, self._told(got))
            call.answer(len(got.data))
        self._receive(call, message.octets, call.int(2), finish)

    def receive_messages(self, call: Call) -> None:
        """As many as are there, at least one; the time limit is not looked at (Linux looks only between datagrams)."""
        messages = list(_messages(call))
        if not messages:
            return call.answer(0)

        def finish(got: _Received) -> None:
            count = 0
            end = socket.socket(fileno=call.borrow(self.inode))
            with end:
                while True:
                    at, message = messages[count]
                    message.scatter(got.data)
                    message.finish(emit(got.sender, self.family), got.flags, self._told(got))
                    call.write(at + MESSAGE_OCTETS, _COUNT.pack(len(got.data)))
                    count += 1
                    if count == len(messages):
                        break
                    try:
                        got = self._read(end, messages[count][1].octets, 0)
                    except OSError:
                        break
            call.answer(count)
        self._receive(call, messages[0][1].octets, call.int(3), finish)

    def _receive(self, call: Call, octets: int, flags: int, finish: Callable[[_Received], None]) -> None:
        """Read the next datagram and finish the call with it, now or when there is one."""
        if self.error:
            failed, self.error = self.error, 0
            with socket.socket(fileno=call.borrow(self.inode)) as end:
                end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise error(failed)
        end = socket.socket(fileno=call.borrow(self.inode))
        try:
            finish(self._read(end, octets, flags))
            return end.close()
        except BlockingIOError:
            if flags & socket.MSG_DONTWAIT or not os.get_blocking(end.fileno()):
                end.close()
                raise
        except BaseException:
            end.close()
            raise
        number = end.detach()

        def attempt(_events: int) -> bool:
            with socket.socket(fileno=os.dup(number)) as own:
                try:
                    finish(self._read(own, octets, flags))
                except BlockingIOError:
                    return False
                except OSError as failed:
                    failed_with, self.error = self.error or failed.errno or errno.EFAULT, 0
                    call.refuse(failed_with)
            return True
        self.loop.wait(call, number, select.EPOLLIN, attempt)

    def _read(self, end: socket.socket, octets: int, flags: int) -> _Received:
        """Raises BlockingIOError when there is nothing, OSError."""
        kept = flags & (socket.MSG_PEEK | socket.MSG_WAITALL)
        data, _, told, name = end.recvmsg(min(octets, 65535), 0, kept | socket.MSG_DONTWAIT)
        ends = self._senders.ends(name)
        if ends is None:
            sender, local = self.remote or Endpoint(ANY[self.family], 0), self.local or Endpoint(ANY[self.family], 0)
            ends = sender, pack_address(local.host.partition("%")[0])
        return _Received(data, *ends, told & socket.MSG_TRUNC)

    def _told(self, got: _Received) -> bytes:
        """The ancillary data of it."""
        return ancillary.arrived(got.ours, self.options, self.family) if self.options else b""

    # the end

    def held_by_somebody(self, probe: socket.socket) -> bool:
        """Whether the program's end is still there."""
        try:
            probe.connect(self._name)
        except ConnectionRefusedError:
            return False
        except OSError:
            pass        # it speaks with another one only: it is there
        return True

    def close(self) -> None:
        self._drop_peer()
        self._close_end()

    def _drop_peer(self) -> None:
        if self._peer is not None:
            self.loop.forget(self._peer.fileno())
            self._peer.close()
            self._peer = None

    def _close_end(self) -> None:
        if self._end is not None:
            self.loop.forget(self._end.fileno())
            self._end.close()
            self._end = None
            self._held = None


def _unconnect(one: socket.socket) -> None:
    """connect(2) with AF_UNSPEC, which Python's does not know for AF_UNIX."""
    unspecified = struct.pack("=H", socket.AF_UNSPEC)
    _libc.connect(one.fileno(), unspecified, len(unspecified))


def _messages(call: Call) -> Iterator[tuple[int, Message]]:
    """The array of struct mmsghdr of sendmmsg(2) and recvmmsg(2), as far as we go at a time."""
    first, count = call.pointer(1), call.int(2)
    for index in range(min(max(count, 0), _BURST)):
        at = first + index * _MESSAGE_STRIDE
        yield at, call.message(at)
