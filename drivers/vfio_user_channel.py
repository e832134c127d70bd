"""The socket of a vfio-user client: a request waits for its reply, and the server's own requests are answered meanwhile.

Nothing here waits without end, whatever the server does. While nobody asks, a thread listens, since the server may want
memory, or end, at any time.
"""

import array
import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from drivers.errors import DeviceError, DeviceGone, DeviceTimeout
from drivers.vfio_user_abi import MAX_FDS, Command, Inbox, Message, ProtocolError, command, reply

TIMEOUT_S: Final = 5.0
"""How long a server may take for anything but a reset."""
_MAX_UNSENT = 4 << 20
"""Answers that the server does not take; then none of its commands are read until it does."""
_READ = 1 << 16
_CLOSED = "its server has closed the connection. Has it ended?"


class Channel:
    """One socket. Any thread may use it; one at a time does."""

    def __init__(self, name: str, connection: socket.socket, serve: Callable[[Message], bytes]) -> None:
        """`connection` becomes the channel's. `serve` answers a command's payload, or raises OSError or ProtocolError."""
        connection.setblocking(False)
        self.name, self.socket = name, connection
        self.lost = ""
        """Why there is no connection any more."""
        self.listen: Callable[[bool], None] = lambda _on: None
        """Told off while a request listens by itself."""
        self._serve = serve
        self._lock = threading.RLock()
        self._inbox = Inbox()
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._number = 0

    def request(self, kind: Command, payload: bytes, fds: Sequence[int] = (), timeout_s: float = TIMEOUT_S) -> Message:
        """Ask the server and wait for its reply, which the caller closes.

        Raises OSError with the server's errno when it refuses; DeviceTimeout when it does not answer, DeviceError when it
        answers nonsense: both are the connection's end; DeviceGone from then on.
        """
        with self._lock:
            self._raise_if_lost()
            self._number = self._number + 1 & 0xFFFF
            self._unsent.append((memoryview(command(self._number, kind, payload)), fds))
            self.listen(False)
            try:
                answer = self._turn((self._number, kind), timeout_s, f"the answer to {kind.name}")
            finally:
                self.listen(True)
        assert answer is not None
        if answer.error:
            answer.close()
            raise OSError(answer.error, os.strerror(answer.error))
        return answer

    def service(self) -> None:
        """Answer what the server has asked for meanwhile."""
        with self._lock, suppress(DeviceError):     # `lost` tells
            if not self.lost:
                self._turn(None, TIMEOUT_S, "the rest of a message")

    def broken(self, error: ProtocolError) -> DeviceError:
        """End the connection: what the server sent does not hold."""
        self.lose(f"its server broke the protocol: {error}")
        return DeviceError(self.name, f"the server sent what is no vfio-user: {error}. The connection is closed; is the socket "
                                      "another program's?", errno.EPROTO)

    def lose(self, why: str) -> None:
        """End the connection. Whoever waits on the socket wakes up."""
        with self._lock:
            self.lost = self.lost or why
            self._unsent.clear()
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once nobody uses it."""
        self.lose("it was closed")
        self._inbox.close()
        self.socket.close()

    def _raise_if_lost(self) -> None:
        if self.lost:
            raise DeviceGone(self.name, self.lost)

    def _turn(self, awaited: tuple[int, Command] | None, timeout_s: float, what: str) -> Message | None:
        """Send, receive and answer until the awaited reply is there, or, with None, nothing is left half done."""
        start = time.monotonic()
        found = None
        try:
            while True:
                self._send()
                if found and not self._unsent:
                    return found
                # Of a server that takes no answers no commands are read.
                full = sum(len(view) for view, _ in self._unsent) > _MAX_UNSENT
                message = None if full else self._receive()
                if message is None:
                    if awaited is None and not self._unsent and not self._inbox.partial:
                        return None
                    self._wait(start + timeout_s, full)
                elif not message.reply:
                    self._answer(message)
                elif not found and (message.number, message.command) == awaited:
                    found = message
                else:
                    message.close()
                    raise ProtocolError(f"a reply that nobody awaits, to command {message.command}")
                if time.monotonic() - start > timeout_s and not (found and not self._unsent):
                    self.lose(f"its server did not answer within {timeout_s:.0f} s")
                    raise DeviceTimeout(self.name, what, 0, timeout_s)
        except BaseException as error:
            if found:
                found.close()
            if isinstance(error, ProtocolError):
                raise self.broken(error) from None
            if isinstance(error, (OSError, EOFError)):
                self.lose(_CLOSED)
                raise DeviceGone(self.name, _CLOSED) from None
            raise

    def _send(self) -> None:
        """As much as the socket takes."""
        while self._unsent:
            view, fds = self._unsent[0]
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.socket.sendmsg([view], beside, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            if sent < len(view):
                self._unsent[0] = view[sent:], ()       # the file descriptors went with the first octets
            else:
                self._unsent.popleft()

    def _receive(self) -> Message | None:
        """The next message; None when it is not there yet."""
        while True:
            try:
                octets, beside, flags, _ = self.socket.recvmsg(min(self._inbox.wanted, _READ),
                                                               socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            fds = array.array("i")
            for level, kind, data in beside:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[:len(data) // 4 * 4])
            message = self._inbox.take(octets, list(fds)) if octets else None
            if flags & socket.MSG_CTRUNC:
                if message:
                    message.close()
                raise ProtocolError("more file descriptors in one message than we said")
            if not octets:
                raise EOFError
            if message:
                return message

    def _answer(self, message: Message) -> None:
        message_fds = len(message.fds)
        message.close()
        if message_fds:
            raise ProtocolError("file descriptors with a command")
        try:
            answer = reply(message, self._serve(message))
        except OSError as error:
            answer = reply(message, b"", error.errno or errno.EIO)
        if message.wanted:
            self._unsent.append((memoryview(answer), ()))

    def _wait(self, deadline: float, full: bool) -> None:
        poll = select.poll()
        poll.register(self.socket, (0 if full else select.POLLIN) | (select.POLLOUT if self._unsent else 0))
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


class Listener:
    """The thread that hears what the server says of its own accord, on one socket or two."""

    def __init__(self, channels: list[Channel], lost: Callable[[], None]) -> None:
        """`lost` is called, from the thread, once a channel has been lost, and so all have."""
        self._channels = {channel.socket.fileno(): channel for channel in channels}
        self._lost = lost
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._stop, select.EPOLLIN)
        for fd, channel in self._channels.items():
            self._epoll.register(fd, select.EPOLLIN)
            channel.listen = lambda on, fd=fd: self._listen(fd, on)
        self._thread = threading.Thread(target=self._run, name="vfio-user", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. The channels stay the caller's."""
        for channel in self._channels.values():
            channel.listen = lambda _on: None
        os.eventfd_write(self._stop, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._epoll.close()
        os.close(self._stop)

    def _listen(self, fd: int, on: bool) -> None:
        with suppress(OSError, ValueError):     # a lost one is not listened to any more
            self._epoll.modify(fd, select.EPOLLIN if on else 0)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop:
                    return
                channel = self._channels[fd]
                channel.service()
                if channel.lost:
                    self._end(channel.lost)

    def _end(self, why: str) -> None:
        for fd, channel in self._channels.items():
            channel.lose(why)
            with suppress(OSError):
                self._epoll.unregister(fd)
        self._lost()
