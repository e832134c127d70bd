"""TLS for NBD: what a configuration says as an `ssl.SSLContext`, and a relay that lets the rest see plain octets.

Certificates need nothing besides Python. Pre-shared keys need Python 3.13, or the package sslpsk3 before that.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

HELD_MOST: Final = 256 << 10
"""Octets in each direction between the two sockets; then the faster one waits."""
LINGER_S: Final = 30.0
"""How long a client may take for its last octets once our side has closed."""
KEY_LEAST, KEY_MOST = 16, 64
"""Octets of a pre-shared key: fewer can be guessed, more OpenSSL does not take."""
PSK_CIPHERS: Final = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:DHE-PSK-AES256-GCM-SHA384:" \
    "DHE-PSK-AES128-GCM-SHA256:DHE-PSK-CHACHA20-POLY1305"


class TlsError(ValueError):
    """TLS cannot be had as configured; the message says what to do."""


def context(certificate: str | None, key: str | None, client_ca: str | None, psk_file: str | None) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or later. Raises TlsError."""
    made = _psk_context(psk_file) if psk_file else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        _load("certificate", certificate, made.load_cert_chain, certificate, key)
    if client_ca is not None:
        if certificate is None:
            raise TlsError("client_ca: clients can only be asked for theirs by a server with a certificate = ...")
        _load("client_ca", client_ca, made.load_verify_locations, client_ca)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _load(what: str, path: str, load: Callable, *arguments: object) -> None:
    try:
        load(*arguments)
    except ssl.SSLError as error:
        raise TlsError(f"{what}: {path} is not what it should be, in PEM, or does not fit its key: {error.reason or error}"
                       ) from None
    except OSError as error:
        raise TlsError(f"{what}: {path} (or its key) cannot be read: {error.strerror}") from None


def read_keys(path: str) -> dict[str, bytes]:
    """The keys of a file as GnuTLS's psktool writes it: "identity:hexadecimal key" on each line. Raises TlsError."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TlsError(f"psk: {path} cannot be read: {error}") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        identity, colon, digits = line.strip().rpartition(":")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if not (colon and identity and KEY_LEAST <= len(key) <= KEY_MOST):
            raise TlsError(f"psk: {path}:{number}: not identity:key with {KEY_LEAST} to {KEY_MOST} octets in hexadecimal; "
                           "`psktool -u NAME -p FILE` makes one")
        keys[identity] = key
    if not keys:
        raise TlsError(f"psk: {path} has no key; `psktool -u NAME -p {path}` adds one")
    return keys


def _psk_context(path: str) -> ssl.SSLContext:
    keys = read_keys(path)
    made = _psk_class()(ssl.PROTOCOL_TLS_SERVER)
    made.set_psk_server_callback(lambda identity: keys.get(identity or "", b""))
    with contextlib.suppress(ssl.SSLError):     # of those it has; TLS 1.3 needs none of them
        made.set_ciphers(f"{PSK_CIPHERS}:DEFAULT")
    return made


def _psk_class() -> type[ssl.SSLContext]:
    """Raises TlsError where there is none."""
    if hasattr(ssl.SSLContext, "set_psk_server_callback"):
        return ssl.SSLContext
    try:
        from sslpsk3 import SSLPSKContext
    except ImportError:
        raise TlsError("psk: pre-shared keys need Python 3.13, or the package sslpsk3 (with a C compiler and OpenSSL's "
                       "headers, libssl-dev): pip install 'rustosd[psk]'") from None
    return SSLPSKContext


def _wrap(context: ssl.SSLContext, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
    """A connection's TLS. sslpsk3 would begin its handshake anew each time it is gone on with, so here it is told once."""
    made = context.wrap_bio(incoming, outgoing, server_side=True)
    if hasattr(context, "setup_psk_callbacks"):
        context.setup_psk_callbacks(made)
    return made


class Relay:
    """Between a client's socket, on which TLS is spoken, and one end of a socketpair, which carries the same in plain.

    It owns both. `secured` is called once the handshake has succeeded, `over` once when both are closed, with the reason
    if the handshake has failed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outer: socket.socket, inner: socket.socket, context: ssl.SSLContext,
                 secured: Callable[[], None], over: Callable[[str], None]):
        self._loop, self._outer, self._inner = loop, outer, inner
        self._secured, self._over = secured, over
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _wrap(context, self._incoming, self._outgoing)
        self._shaking = True
        self._to_outer, self._to_inner = bytearray(), bytearray()
        self._inner_eof = self._outer_eof = self._closed = False
        self._readers: set[socket.socket] = set()
        self._writers: set[socket.socket] = set()
        self._watch()

    def close(self, reason: str = "") -> None:
        """End both sides now. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for end in tuple(self._readers):
            self._loop.remove_reader(end)
        for end in tuple(self._writers):
            self._loop.remove_writer(end)
        self._outer.close()
        self._inner.close()
        self._over(reason)

    # What the loop calls.

    def _outer_readable(self) -> None:
        data = _receive(self._outer)
        if data is None:
            return
        if data:
            self._incoming.write(data)
        else:
            self._outer_eof = True
            self._incoming.write_eof()
        self._work()

    def _inner_readable(self) -> None:
        data = _receive(self._inner)
        if data is None:
            return
        if data:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self.close()
                return
        else:
            self._inner_eof = True
            self._loop.call_later(LINGER_S, self.close)     # who does not take the rest does not get it
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()      # close_notify; the peer's need not come
        self._work()

    def _work(self) -> None:
        """Move what can be moved, and see whether that was the end of it."""
        failure = self._shake() if self._shaking else ""
        if not self._shaking and not failure:
            self._decrypt()
        if self._outgoing.pending:
            self._to_outer += self._outgoing.read()
        if not (_send(self._outer, self._to_outer) and _send(self._inner, self._to_inner)):
            self.close(failure)
        elif failure:
            self.close(failure)         # what TLS has to say of it was sent
        elif self._inner_eof and not self._to_outer:
            self.close()
        elif self._outer_eof and not self._to_inner:
            self.close("tls_handshake" if self._shaking else "")
        else:
            self._watch()

    def _shake(self) -> str:
        """Go on with the handshake; why it has failed, or nothing."""
        try:
            ssl.SSLObject.do_handshake(self._tls)
        except ssl.SSLWantReadError:
            return ""
        except (ssl.SSLError, OSError, ValueError):
            return "tls_handshake"
        self._shaking = False
        self._secured()
        return ""

    def _decrypt(self) -> None:
        while len(self._to_inner) < HELD_MOST:
            try:
                data = self._tls.read(HELD_MOST)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError:
                self._outer_eof = True
                return
            if not data:
                self._outer_eof = True
                return
            self._to_inner += data

    def _watch(self) -> None:
        """Read from a side as long as the other keeps up."""
        self._set(self._readers, self._outer, len(self._to_inner) < HELD_MOST and not self._outer_eof,
                  self._loop.add_reader, self._loop.remove_reader, self._outer_readable)
        self._set(self._readers, self._inner,
                  len(self._to_outer) < HELD_MOST and not (self._shaking or self._inner_eof),
                  self._loop.add_reader, self._loop.remove_reader, self._inner_readable)
        for end, waiting in ((self._outer, self._to_outer), (self._inner, self._to_inner)):
            self._set(self._writers, end, bool(waiting), self._loop.add_writer, self._loop.remove_writer, self._work)

    @staticmethod
    def _set(watched: set, end: socket.socket, wanted: bool, add: Callable, remove: Callable, callback: Callable) -> None:
        if wanted and end not in watched:
            watched.add(end)
            add(end, callback)
        elif not wanted and end in watched:
            watched.discard(end)
            remove(end)


def _receive(end: socket.socket) -> bytes | None:
    """What there is; nothing at the end, None when there is nothing yet."""
    try:
        return end.recv(HELD_MOST)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


def _send(end: socket.socket, waiting: bytearray) -> bool:
    """As much as fits; False when the other side is gone."""
    while waiting:
        try:
            sent = end.send(waiting)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        del waiting[:sent]
    return True
