"""`rustosctl nc`: standard input and output on a connection of the stack, as netcat has it."""

import contextlib
import errno
import os
import select
import socket
import sys
from typing import Annotated

import typer

from rustosd.cli import shell
from rustosd.cli.calls import Settings

CHUNK = 65536
DATAGRAM = 1400             # octets of input that make one
LAST_ANSWER_S = 1.0         # how long to wait for UDP's answers when the input has ended


def nc(
    host: Annotated[str | None, typer.Argument(help="Name or address; with -l the one to listen on.")] = None,
    port: Annotated[str | None, typer.Argument(help="Port or service name.")] = None,
    listen: Annotated[bool, typer.Option("-l", help="Wait for one connection instead.")] = False,
    udp: Annotated[bool, typer.Option("-u", help="UDP instead of TCP.")] = False,
    v4: Annotated[bool, typer.Option("-4", help="IPv4 only.")] = False,
    v6: Annotated[bool, typer.Option("-6", help="IPv6 only.")] = False,
    wait_s: Annotated[float | None, typer.Option("-w", min=0.001, help="Give up connecting, and end when nothing moves "
                                                                      "both ways, after so many seconds.")] = None,
    source: Annotated[str | None, typer.Option("-s", help="Local address.")] = None,
    source_port: Annotated[int, typer.Option("-p", min=0, max=65535, help="Local port.")] = 0,
    probe: Annotated[bool, typer.Option("-z", help="Only see whether it connects.")] = False,
    verbose: Annotated[bool, typer.Option("-v", help="Say on stderr who is connected.")] = False,
) -> int:
    """Standard input and output on a connection of the stack: nc HOST PORT, nc -l PORT. Exit status 1 when it fails.

    The end of standard input closes our side; the command ends with the other side's.
    """
    host, port = (None, host) if port is None and listen else (host, port)
    if port is None or (host is None and not listen):
        raise typer.BadParameter("give HOST and PORT, or -l and PORT")
    if v4 and v6:
        raise typer.BadParameter("-4 and -6 exclude each other")
    family = socket.AF_INET if v4 else socket.AF_INET6 if v6 else 0
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    number = _port(port, "udp" if udp else "tcp")
    local = (source, source_port) if source or source_port else None
    try:
        make = _listening if listen else _connected
        with make(host, number, family, kind, local, wait_s, verbose) as sock:
            return shell.OK if probe else _relay(sock, udp, wait_s)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.ENETDOWN:       # the text says of what and what to do
            raise shell.Stop(str(error.strerror), shell.UNREACHABLE) from None
        raise shell.Stop(f"{host or '*'} port {port}: {error.strerror or error}") from None


def _port(port: str, protocol: str) -> int:
    """Its number. Raises BadParameter: getaddrinfo takes numbers that are too large, and means another port."""
    with contextlib.suppress(OSError, OverflowError):
        number = int(port) if port.isdecimal() else socket.getservbyname(port, protocol)
        if number <= 65535:
            return number
    raise typer.BadParameter(f"{port!r} is no port: give a number up to 65535, or the name of a {protocol} service")


def _say(verbose: bool, text: str) -> None:
    if verbose:
        print(f"nc: {text}", file=sys.stderr, flush=True)


def _socket(family: int, kind: int):
    """A socket of the stack of the daemon that the options before the command name."""
    from rustosd.client import Daemon, Socket
    return Socket(family, kind, daemon=Daemon(Settings.socket))


def _connected(host: str, port: int, family: int, kind: int, local: tuple | None, wait_s: float | None, verbose: bool):
    """A socket connected to the first address that answers."""
    failed: OSError | None = None
    for found, _, _, _, address in socket.getaddrinfo(host, port, family, kind):
        sock = _socket(found, kind)
        try:
            sock.settimeout(wait_s)
            if local:
                sock.bind((local[0] or "", local[1]))
            sock.connect(address)
            _say(verbose, f"connected to {address[0]} port {address[1]}")
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed or OSError("no address")


def _listening(host: str | None, port: int, family: int, kind: int, local: tuple | None, wait_s: float | None,
               verbose: bool):
    """The first who connects; for UDP the first who sends, its datagram included."""
    found, _, _, _, address = socket.getaddrinfo(host, port, family or (0 if host else socket.AF_INET6), kind, 0,
                                                 socket.AI_PASSIVE)[0]
    listener = _socket(found, kind)
    listener.bind(address[:2])
    if kind == socket.SOCK_STREAM:
        with listener:
            listener.listen(1)
            _say(verbose, f"listening on {address[0]} port {listener.getsockname()[1]}")
            sock, peer = listener.accept()
    else:
        _say(verbose, f"listening on {address[0]} port {listener.getsockname()[1]}")
        sock = listener
        _, peer = sock.recvfrom(0, socket.MSG_PEEK)
        sock.connect(peer[:2])
    _say(verbose, f"connection from {peer[0]} port {peer[1]}")
    return sock


def _relay(sock, udp: bool, wait_s: float | None) -> int:
    """Both ways at once, until the other side has closed; UDP has no end but ours, a second after the input's."""
    sock.settimeout(0)
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    unsent = memoryview(b"")
    input_open = True
    while True:
        sources = [sock, stdin] if input_open and not unsent else [sock]
        readable, writable, _ = select.select(sources, [sock] if unsent else [], [], wait_s)
        if not readable and not writable:
            return shell.OK
        if sock in readable:
            octets = _receive(sock)
            if octets == b"" and not udp:
                return shell.OK
            _write_all(stdout, octets or b"")
        if stdin in readable:
            unsent = memoryview(os.read(stdin, DATAGRAM if udp else CHUNK))
            input_open = bool(unsent)
        if unsent:
            unsent = _send(sock, unsent)
        elif stdin in readable and udp:
            wait_s = LAST_ANSWER_S if wait_s is None else wait_s
        elif stdin in readable:
            sock.shutdown(socket.SHUT_WR)


def _receive(sock) -> bytes | None:
    try:
        return sock.recv(CHUNK)
    except BlockingIOError:
        return None


def _send(sock, octets: memoryview) -> memoryview:
    try:
        return octets[sock.send(octets):]
    except BlockingIOError:
        return octets


def _write_all(fd: int, octets: bytes) -> None:
    while octets:
        octets = octets[os.write(fd, octets):]
