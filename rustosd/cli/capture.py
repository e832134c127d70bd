"""`rustosctl capture`: frames of the interfaces, to the terminal, to a file, or to Wireshark."""

import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, BinaryIO, Literal

import typer

from rustosd.capture.pcapng import MalformedCapture, Packet, Reader
from rustosd.cli import calls, shell
from rustosd.cli.calls import call, checked
from rustosd.cli.summary import summary
from rustosd.control import capture_protocol as p
from rustosd.control import protocol
from rustosd.control.client import Client
from rustosd.values import InterfaceName

CHUNK = 1 << 18


def _complete_interface(incomplete: str) -> list[str]:
    return calls.known("nic.list", lambda rows: [row.name for row in rows], incomplete)


def _complete_reason(incomplete: str) -> list[str]:
    return calls.known("drops.list", lambda rows: sorted({row.reason for row in rows}), incomplete)


def capture(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[INTERFACE]... [FILTER]", help="Names of interfaces, then a filter as tcpdump takes it.",
        autocompletion=_complete_interface)] = None,
    interface: Annotated[list[str] | None, typer.Option("-i", "--interface", help="An interface; may be given several times.",
                                                        autocompletion=_complete_interface)] = None,
    write: Annotated[str | None, typer.Option("-w", "--write", metavar="FILE",
                                              help="Write pcapng; - is standard output.")] = None,
    count: Annotated[int | None, typer.Option("-c", "--count", min=1, help="End after so many frames.")] = None,
    snaplen: Annotated[int, typer.Option("-s", "--snaplen", min=14, max=p.SNAP_OCTETS,
                                         help="Octets of each frame.")] = p.SNAP_OCTETS,
    duration_s: Annotated[float | None, typer.Option("--duration", min=0.001, max=7 * 86_400,
                                                     help="End after so many seconds.")] = None,
    direction: Annotated[Literal["both", "in", "out"], typer.Option(help="Only what comes in, or goes out.")] = "both",
    drops: Annotated[bool, typer.Option("--drops", help="Only frames that were dropped.")] = False,
    reason: Annotated[list[str] | None, typer.Option("--reason", help="Only frames dropped for this reason; may be given "
                                                     "several times.", autocompletion=_complete_reason)] = None,
    buffer_kib: Annotated[int, typer.Option("-B", "--buffer", min=64, max=65536, metavar="KIB",
                                            help="What may wait in the daemon while we are slow.")] = p.BUFFER_KIB,
) -> int:
    """See frames: rustosctl capture rustos0 tcp port 80, or -w - | tshark -r -. Ctrl-C ends it.

    Without -w a line for each. A frame that was dropped says why, also in the pcapng file, as its comment.
    """
    if write == "-" and sys.stdout.isatty():
        raise typer.BadParameter("pcapng is nothing for a terminal; redirect it: -w - | wireshark -k -i -")
    names, expression = _divided(list(words or ()), list(interface or ()))
    request = p.CaptureRequest(
        interfaces=tuple(checked(InterfaceName, name) for name in names), program=_program(expression, snaplen),
        expression=expression, snap_octets=snaplen, direction=direction, drops=drops or bool(reason),
        reasons=tuple(reason or ()), count=count, duration_ms=None if duration_s is None else round(duration_s * 1000) or 1,
        buffer_kib=buffer_kib)
    with calls.daemon() as daemon, _output(write) as output:
        return _run(daemon, request, output)


def _divided(words: list[str], interfaces: list[str]) -> tuple[list[str], str]:
    """Interfaces and filter: words at the front that are names of interfaces are no part of the filter."""
    if words and not interfaces:
        rows: list[protocol.Nic] = call("nic.list")
        names = {row.name for row in rows}
        while words and words[0] in names:
            interfaces.append(words.pop(0))
    return interfaces, " ".join(words)


def _program(expression: str, snaplen: int) -> bytes:
    if not expression:
        return b""
    from rustosd.cli.libpcap import FilterError, NoLibrary, compiled
    try:
        return compiled(expression, snaplen)
    except NoLibrary as error:
        raise shell.Stop(str(error)) from None
    except FilterError as error:
        hint = ", nor is it an interface; see: rustosctl nic" if " " not in expression else "; see: man pcap-filter"
        raise shell.Stop(f"{error}{hint}", shell.USAGE) from None


@contextmanager
def _output(write: str | None) -> Iterator[BinaryIO | None]:
    """Where pcapng goes; None: lines go to standard output."""
    if write is None:
        yield None
    elif write == "-":
        yield sys.stdout.buffer
    else:
        try:
            with open(write, "wb") as file:
                yield file
        except OSError as error:
            raise shell.Stop(f"cannot write {write}: {error.strerror}") from None


def _run(daemon: Client, request: p.CaptureRequest, output: BinaryIO | None) -> int:
    reader = Reader()
    with _asked_to_stop() as asked:
        started, end = daemon.take("capture.start", request)
        with end:
            asked.end = end
            print(f"capturing on {', '.join(started.interfaces)}", file=sys.stderr, flush=True)
            try:
                for octets in iter(lambda: _received(end), b""):
                    if output is not None:
                        output.write(reader.feed_whole(octets))
                        output.flush()
                    else:
                        _print(reader.feed(octets)[1])
            except MalformedCapture as error:
                raise shell.Stop(f"what the daemon sends is no capture: {error}") from None
    return _conclude(daemon, reader)


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(CHUNK)
    except ConnectionResetError:
        return b""


class _Asked:
    """What a signal shuts down: the daemon then sends the rest, and the end."""

    end: socket.socket | None = None


@contextmanager
def _asked_to_stop() -> Iterator[_Asked]:
    asked = _Asked()

    def stop(_number: int, _frame: object) -> None:
        if asked.end is None:
            raise KeyboardInterrupt
        try:
            asked.end.shutdown(socket.SHUT_WR)
        except OSError:         # it is over already
            raise KeyboardInterrupt from None

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(packets: list[Packet]) -> None:
    for packet in packets:
        if packet.lost:
            print(f"-- {packet.lost} frames are missing here: this was too slow --")
        print(line(packet))
    sys.stdout.flush()


def line(packet: Packet) -> str:
    """A captured frame as one line."""
    seconds, rest = divmod(packet.time_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    dropped = f" [dropped: {packet.dropped}]" if packet.dropped else ""
    direction = "In " if packet.direction == "in" else "Out"
    return f"{clock}.{rest // 1000:06d} {packet.interface} {direction} {summary(packet.octets, packet.length)}{dropped}"


def _conclude(daemon: Client, reader: Reader) -> int:
    if not reader.complete:
        raise shell.Stop(f"the daemon on {daemon.path} went away; what it had captured until then is complete",
                         shell.UNREACHABLE)
    received, accepted, lost = (sum(amounts) for amounts in zip(*reader.tallies.values(), strict=True))
    print(f"{accepted - lost} frames captured, {accepted} of {received} passed the filter"
          + (f", {lost} lost because this was too slow" if lost else ""), file=sys.stderr)
    return shell.OK
