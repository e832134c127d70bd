"""`rustosctl disk`: the daemon's disks, raw: files, memory, and those of the controllers that were taken."""

import contextlib
import math
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, BinaryIO, Literal

import msgspec
import typer

from rustosd.cli import calls, plots, shell, tables
from rustosd.cli.calls import Json, call, checked, known
from rustosd.cli.drive import drive_facts
from rustosd.cli.tables import Column, Listing, milliseconds, octets, plain
from rustosd.control import disk_protocol as p
from rustosd.control import nbd_protocol
from rustosd.control.client import CallFailed, Client
from rustosd.values import ExportName, parse_size

HEX_OCTETS = 512
"""What a terminal gets to see of a disk, unless told how much."""
ROUND_S = 1.0
"""A benchmark goes in rounds: after each one shows how it goes, and one that is interrupted ends with it."""
PERCENTILES = {"50": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999}
_REPORT_S = 0.2

DISKS = Listing("disks", "disk", "disks", (
    Column("DISK", "name"), Column("MODEL", "model", folds=True), Column("SERIAL", "serial"),
    Column("SIZE", "octets", True, octets), Column("SECTOR", "sector_octets", True), Column("DEPTH", "queue_depth", True),
))


EXPORTS = Listing("exports", "export", "exports", (
    Column("EXPORT", "name"), Column("DISK", "disk"), Column("SIZE", "octets", True, octets),
    Column("ACCESS", "read_only", False, lambda read_only: "read" if read_only else "write"),
    Column("CLIENTS", "connections", True), Column("READ", "read_octets", True, octets),
    Column("WRITTEN", "written_octets", True, octets), Column("ERRORS", "errors", True),
))


def _complete_export(incomplete: str) -> list[str]:
    return known("export.list", lambda told: [row.name for row in told.exports], incomplete)


PARTITIONS = Listing("partitions", "partition", "partitions", (
    Column("PARTITION", "name"), Column("SIZE", "octets", True, octets), Column("OFFSET", "offset", True),
    Column("KIND", "kind"), Column("LABEL", "label"),
))
USERS = Listing("users", "user", "users", (
    Column("USER", "user"), Column("DISK", "disk"), Column("REQUESTS", "requests", True),
    Column("READ AND WRITTEN", "octets", True, octets), Column("WAITING", "waiting", True),
    Column("UNDER WAY", "under_way", True), Column("THROTTLED", "throttled", True), Column("FAILED", "failed", True),
))
LATENCY = Listing("operations", "operation", "operations", (
    Column("OPERATION", "operation"), Column("REQUESTS", "requests", True), Column("MEAN", "mean_us", True, milliseconds),
    Column("50% WITHIN", "p50_us", True, milliseconds), Column("99% WITHIN", "p99_us", True, milliseconds),
))


def _complete_disk(incomplete: str) -> list[str]:
    return known("disk.list", lambda rows: [name for row in rows for name in (row.name, row.serial)], incomplete)


app = typer.Typer(help="The disks, raw: files, memory, and those of the controllers that were taken.", rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="DISK", autocompletion=_complete_disk,
                                     help="Its name, its serial number, or a beginning that only one has.")]
Offset = Annotated[str, typer.Option(metavar="OCTETS", help="Where to begin: 4096, 64K, 1MiB.")]
Yes = Annotated[bool, typer.Option("--yes", help="Overwrite what is there.")]


@app.callback(invoke_without_command=True)
def alone(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(json)


@app.command("list")
def list_(json: Json = False) -> None:
    """The disks: files, memory, and those of the controllers that were taken."""
    tables.show(DISKS, call("disk.list"), json)


@app.command()
def show(disk: Name, json: Json = False) -> None:
    """All about one disk: sizes, features, what is on it, what was done with it."""
    details: p.DiskDetails = call("disk.show", which(disk))
    if json:
        tables.print_json("disk", details)
        return
    row = details.disk
    drive = call("disk.drive", which(row.name)) if details.drive else None
    tables.show_facts((
        ("disk", row.name), ("model", plain(row.model)), ("serial", plain(row.serial)), ("firmware", plain(row.firmware)),
        ("size", f"{octets(row.octets)} ({row.octets} octets)"),
        ("sectors", f"{row.sector_octets} octets, {row.physical_octets} on the medium"),
        ("queue depth", str(row.queue_depth)), ("features", plain([feature.replace("_", " ") for feature in details.features])),
        ("holds", plain(details.holds)), *(drive_facts(drive) if drive is not None else ()),
        *((("partition table", plain(details.table)),) if details.table else ()),
        *((name.replace("_", " "), str(value)) for name, value in details.statistics.items() if value),
    ))
    for listing, rows in ((PARTITIONS, details.partitions), (USERS, details.users), (LATENCY, details.latency)):
        if rows:
            print()
            tables.show(listing, rows, False)


@app.command()
def read(
    disk: Name,
    offset: Offset = "0",
    length: Annotated[str | None, typer.Option(metavar="OCTETS", help="How much; else to the end of the disk.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output.")] = "-",
    hexdump: Annotated[bool, typer.Option("--hex", help="As hexadecimal; a terminal gets that anyway.")] = False,
) -> None:
    """Copy from a disk to a file: rustosctl disk read 0000:00:04.0/1 --offset 1M --length 64K -o FILE"""
    begin, wanted = checked(parse_size, offset), None if length is None else checked(parse_size, length)
    if wanted == 0:
        raise typer.BadParameter("--length is at least 1 octet")
    hexdump = hexdump or (output == "-" and sys.stdout.isatty())
    with calls.daemon() as daemon:
        row: p.Disk = daemon.call("disk.show", which(disk)).disk
        rest = row.octets - begin
        if rest <= 0 or (wanted or 0) > rest:
            raise shell.Stop(f"{row.name} ends at {row.octets}: there are no {wanted or 1} octets from {begin} on")
        if hexdump and wanted is None:
            wanted = HEX_OCTETS
        end = begin + (rest if wanted is None else min(wanted, rest))
        with _opened(output, "wb") as file, _progress(end - begin, "read") as advance:
            for at, chunk in _chunks(daemon, row.name, begin, end):
                file.write(plots.hexdump(at, chunk).encode() if hexdump else chunk)
                advance(len(chunk))


def _chunks(daemon: Client, name: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    at = begin
    while at < end:
        chunk = daemon.call("disk.read", p.DiskRead(disk=name, offset=at, octets=min(p.MAX_READ_OCTETS, end - at))).octets
        yield at, chunk
        at += len(chunk)


@app.command()
def write(
    disk: Name,
    offset: Offset = "0",
    source: Annotated[str, typer.Option("--input", "-i", metavar="FILE", help="- is standard input.")] = "-",
    yes: Yes = False,
) -> None:
    """Copy from a file onto a disk, and have the disk put it on its medium. Refuses without --yes."""
    begin = checked(parse_size, offset)
    with calls.daemon() as daemon, _opened(source, "rb") as file:
        details: p.DiskDetails = daemon.call("disk.show", which(disk))
        row, size = details.disk, _size_of(file)
        if size == 0:
            raise shell.Stop(f"{source} is empty: there is nothing to write")
        if begin + (size or 1) > row.octets:
            raise shell.Stop(f"{row.name} ends at {row.octets}: {source} does not fit from {begin} on; nothing was written")
        if not yes:
            raise shell.Stop(_warning(details, begin, size), shell.USAGE)
        if file.isatty():
            raise typer.BadParameter("name a file with -i, or pipe into this")
        done = 0
        with _progress(size, "written") as advance:
            # Up to the end of a sector: then only the first and the last are written in part.
            while chunk := file.read(p.MAX_WRITE_OCTETS - (begin + done) % row.sector_octets):
                try:
                    daemon.call("disk.write", p.DiskWrite(disk=row.name, token=row.serial or row.name, offset=begin + done,
                                                          octets=chunk))
                except CallFailed as error:
                    raise shell.Stop(f"{error}; {done} octets were written before") from None
                done += len(chunk)
                advance(len(chunk))
        daemon.call("disk.flush", which(row.name))
    print(f"{octets(done)} written to {row.name} at {begin}, and flushed")


def _warning(details: p.DiskDetails, begin: int, size: int | None) -> str:
    row = details.disk
    there = f", which begins with {' and '.join(details.holds)}" if details.holds else ""
    what = f"everything from {begin} on" if size is None else f"the {size} octets from {begin} to {begin + size}"
    serial = f"serial {row.serial}, " if row.serial else ""
    return f"this overwrites {what} of {row.name} ({row.model}, {serial}{octets(row.octets)}){there}; say --yes to do it"


@app.command()
def bench(
    disk: Name,
    pattern: Annotated[Literal["random", "sequential"], typer.Option(help="Where to read.")] = "random",
    block: Annotated[str, typer.Option(metavar="OCTETS", help="Of one request.")] = "4K",
    depth: Annotated[int, typer.Option(min=1, max=p.MAX_DEPTH, help="Requests at the same time.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600)] = 5.0,
    json: Json = False,
) -> int:
    """Measure reading from a disk: requests a second, bandwidth, latency. Ctrl-C ends it early."""
    size = checked(parse_size, block)
    if not 512 <= size <= 1 << 20:
        raise typer.BadParameter(f"--block is from 512 octets to 1 MiB, not {size}")
    with calls.daemon() as daemon:
        request = p.DiskBench(disk=which(disk).disk, pattern=pattern, block_octets=size, depth=depth)
        rounds = _rounds(daemon, request, seconds)
    if not rounds:
        return shell.INTERRUPTED
    result = report(rounds)
    if json:
        tables.print_json("bench", result)
    else:
        print("\n".join(_lines(result)))
    return shell.FAILED if result.errors else shell.OK


def _rounds(daemon: Client, request: p.DiskBench, seconds: float) -> list[p.BenchRound]:
    """One after the other, until the time is over or Ctrl-C."""
    rounds: list[p.BenchRound] = []
    left = seconds
    try:
        while left > 0:
            length = min(left, ROUND_S)
            rounds.append(daemon.call("disk.bench", msgspec.structs.replace(request, seconds=length)))
            left = round(left - length, 6)
            rates = [_rate(each) for each in rounds]
            share = (seconds - left) / seconds
            _report(f"{plots.progress(share)} {seconds - left:g} of {seconds:g} s  {rates[-1]:.0f} requests/s  "
                    f"{plots.sparkline(rates)}")
    except KeyboardInterrupt:
        pass
    _report("")
    return rounds


def _rate(each: p.BenchRound) -> float:
    return each.requests / each.seconds if each.seconds else 0.0


def report(rounds: Sequence[p.BenchRound]) -> p.Bench:
    """All rounds of one benchmark, at least one, as one result."""
    first, seconds, requests = rounds[0], sum(each.seconds for each in rounds), sum(each.requests for each in rounds)
    counts: Counter[float] = Counter()
    for each in rounds:
        counts.update({bucket.below_us: bucket.requests for bucket in each.histogram})
    histogram = [p.LatencyBucket(below_us=below, requests=counts[below]) for below in sorted(counts)]
    return p.Bench(
        disk=first.disk, pattern=first.pattern, block_octets=first.block_octets, depth=first.depth, seconds=seconds,
        requests=requests, errors=sum(each.errors for each in rounds),
        requests_per_second=requests / seconds if seconds else 0.0,
        octets_per_second=requests * first.block_octets / seconds if seconds else 0.0,
        mean_us=sum(each.mean_us * each.requests for each in rounds) / requests if requests else 0.0,
        longest_us=max(each.longest_us for each in rounds),
        percentiles_us={name: value for name, share in PERCENTILES.items()
                        if (value := _percentile(histogram, share)) is not None},
        histogram=histogram, rounds=[_rate(each) for each in rounds])


def _percentile(histogram: Sequence[p.LatencyBucket], share: float) -> float | None:
    wanted = share * sum(bucket.requests for bucket in histogram)
    for bucket in histogram:
        wanted -= bucket.requests
        if wanted <= 0:
            return bucket.below_us
    return None


def _lines(result: p.Bench) -> Iterator[str]:
    yield f"{result.disk}: {result.pattern}, {octets(result.block_octets)} at depth {result.depth} for {result.seconds:.1f} s"
    errors = f", {result.errors} errors" if result.errors else ""
    yield (f"{result.requests_per_second:.0f} requests/s, {octets(round(result.octets_per_second))}/s, "
           f"{result.requests} requests{errors}")
    parts = [f"{name}% within {value / 1000:.3f}" for name, value in result.percentiles_us.items()]
    yield f"latency mean {result.mean_us / 1000:.3f}, {', '.join(parts)}, longest {result.longest_us / 1000:.3f} ms"
    if len(result.rounds) > 1:
        yield f"requests/s over time {plots.sparkline(result.rounds)}"
    yield from plots.bars([(f"< {below / 1000:.3f} ms", count) for below, count in _octaves(result.histogram)])


def _octaves(histogram: Sequence[p.LatencyBucket]) -> list[tuple[float, int]]:
    """The same in buckets that double, without a gap: few enough for a picture."""
    counts: Counter[int] = Counter()
    for bucket in histogram:
        counts[math.ceil(math.log2(max(bucket.below_us, 1.0)))] += bucket.requests
    return [(2.0 ** octave, counts[octave]) for octave in range(min(counts), max(counts) + 1)] if counts else []


@app.command()
def exports(json: Json = False) -> None:
    """What NBD clients can use, and where they reach it."""
    told: nbd_protocol.Exports = call("export.list")
    if json:
        tables.print_json("nbd", told)
        return
    tables.show(EXPORTS, told.exports, False)
    for uri in told.uris:
        print(f"reached by {uri}")


@app.command()
def export(
    disk: Name,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients ask for; else the disk's name.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Clients cannot change it.")] = False,
    tls_only: Annotated[bool, typer.Option("--tls-only", help="Only for those who have begun TLS.")] = False,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What clients are told about it.")] = "",
    json: Json = False,
) -> None:
    """Let NBD clients use a disk, until the daemon ends; an [[export]] in the configuration does it for good."""
    row: nbd_protocol.Export = call("export.add", nbd_protocol.ExportDisk(
        disk=which(disk).disk, name=None if name is None else checked(ExportName, name), read_only=read_only,
        tls_only=tls_only, description=description))
    if json:
        tables.print_json("export", row)
    else:
        print(f"{row.disk} is exported as {row.name}")


@app.command()
def unexport(name: Annotated[str, typer.Argument(metavar="EXPORT", autocompletion=_complete_export)],
             json: Json = False) -> None:
    """Let NBD clients use it no more: requests under way end, then their connections, and all is flushed."""
    done = call("export.del", nbd_protocol.ExportChoice(name=checked(ExportName, name)))
    if json:
        tables.print_json("export", done)


# Files and what a person sees meanwhile

def which(disk: str) -> p.DiskName:
    """A disk by its name, as parameters."""
    if not 1 <= len(disk) <= p.LONGEST_NAME:
        raise typer.BadParameter(f"{disk!r} is no name of a disk")
    return p.DiskName(disk=disk)


@contextlib.contextmanager
def _opened(path: str, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    """The file, or our standard input or output; what goes wrong with it ends the command."""
    reading = mode == "rb"
    try:
        if path == "-":
            file = sys.stdin.buffer if reading else sys.stdout.buffer
            yield file
            if not reading:
                file.flush()
        else:
            with open(path, mode) as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise shell.Stop(f"cannot {'read' if reading else 'write'} {path}: {error.strerror or error}") from None


def _size_of(file: BinaryIO) -> int | None:
    """How much is in a regular file; None for a pipe."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):
        return None
    return max(status.st_size - file.tell(), 0) if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def _progress(total: int | None, done: str) -> Iterator[Callable[[int], None]]:
    """What to tell each amount to; a person at a terminal sees how far it is."""
    begun = shown = time.monotonic()
    amount = 0

    def advance(more: int) -> None:
        nonlocal amount, shown
        amount += more
        now = time.monotonic()
        if now - shown >= _REPORT_S:
            shown = now
            share = f" ({100 * amount // total}%)" if total else ""
            _report(f"{octets(amount)} {done}{share}, {octets(round(amount / (now - begun)))}/s")

    try:
        yield advance
    finally:
        _report("")


def _report(text: str) -> None:
    """In the place of the last report, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
