"""`rustosctl disk` for drives behind controllers of ours: health, caches, what destroys, and the ports they are at."""

from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from rustosd.cli import calls, shell, tables
from rustosd.cli.calls import Json, call, checked, known
from rustosd.cli.disk import Name, Offset, app, which
from rustosd.cli.drive import GIGABITS, counts_text, drive_facts
from rustosd.cli.tables import Column, Listing, duration, octets, plain
from rustosd.control import disk_protocol
from rustosd.control import sata_protocol as p
from rustosd.values import parse_size

NEWEST_EVENTS = 8

ATTRIBUTES = Listing("attributes", "attribute", "attributes", (
    Column("NR", "number", True), Column("ATTRIBUTE", "name"), Column("VALUE", "value", True), Column("WORST", "worst", True),
    Column("THRESHOLD", "threshold", True, lambda value: plain(value or None)), Column("RAW", "raw", True),
    Column("STATE", "failed", text=lambda failed: "failed" if failed else "ok"),
))
TESTS = Listing("tests", "self-test", "self-tests", (
    Column("SELF-TEST", "kind"), Column("RESULT", "result"), Column("AT HOURS", "hours", True),
))


PORTS = Listing("ports", "port", "ports", (
    Column("PORT", "name"), Column("STATE", "state"), Column("ATTACHED", "kind"),
    Column("LINK", "generation", text=lambda value: GIGABITS.get(value, plain(None))), Column("POWER", "link_power"),
    Column("ERRORS", "errors", text=counts_text, folds=True), Column("MEASURES", "measures", text=counts_text, folds=True),
))
Serial = Annotated[str | None, typer.Option(metavar="SERIAL", help="The disk's serial number, so that it is the right one.")]
Test = Annotated[Literal["short", "long", "abort"] | None, typer.Option(help="Have the disk test itself, or stop that.")]


def _complete_port(incomplete: str) -> list[str]:
    return known("disk.ports", lambda rows: [row.name for row in rows], incomplete)


@app.command()
def ports(
    port: Annotated[str | None, typer.Argument(metavar="[PORT]", autocompletion=_complete_port,
                                               help="Only this one, with what happened to it.")] = None,
    json: Json = False,
) -> None:
    """The ports of the AHCI controllers that were taken: who is there, how fast, what went wrong."""
    rows: list[p.DiskPort] = call("disk.ports")
    if port is None:
        tables.show(PORTS, rows, json)
        return
    found = next((row for row in rows if row.name == port), None)
    if found is None:
        raise shell.Stop(f"there is no port {port}; rustosctl disk ports lists them")
    if json:
        tables.print_json("port", found)
        return
    tables.show_facts((
        ("port", found.name), ("state", found.state), ("reason", plain(found.reason)), ("attached", plain(found.kind)),
        ("disks", plain(found.disks)), ("link", GIGABITS.get(found.generation or 0, plain(None))),
        ("slowed down to", GIGABITS.get(found.speed_limit or 0, plain(None))), ("link power", found.link_power),
        ("queuing", plain(found.queuing)), ("errors", counts_text(found.errors)), ("measures", counts_text(found.measures)),
        *((f"{duration(event.age_s)} ago", f"{event.what}: {event.why}") for event in found.events[-NEWEST_EVENTS:]),
    ))


@app.command()
def drive(disk: Name, json: Json = False) -> None:
    """What the drive of a disk says of itself, and how its link is."""
    found: p.Drive = call("disk.drive", which(disk))
    if json:
        tables.print_json("drive", found)
    else:
        tables.show_facts((("disk", found.disk), ("serial", plain(found.serial)), *drive_facts(found)))


@app.command()
def retry(
    port: Annotated[str, typer.Argument(metavar="PORT", autocompletion=_complete_port, help="As rustosctl disk ports has it.")],
) -> None:
    """Give a port that has failed, or seems empty, another chance: full speed, queuing, and resets as many as it takes."""
    call("disk.retry", p.PortName(disk=which(port).disk))
    print(f"{port} is tried again; see: rustosctl disk ports {port}")


@app.command()
def smart(disk: Name, test: Test = None, json: Json = False) -> int:
    """A disk's health as it says itself. The exit status is 1 when it says that it is about to fail."""
    with calls.daemon() as daemon:
        if test is not None:
            daemon.call("disk.test", p.DiskTest(disk=which(disk).disk, kind=test))
        found: p.Health = daemon.call("disk.health", which(disk))
    if json:
        tables.print_json("health", found)
    else:
        tables.show_facts(_health_facts(found))
        for listing, rows in ((ATTRIBUTES, found.attributes), (TESTS, found.tests)):
            if rows:
                print()
                tables.show(listing, rows, False)
    return shell.FAILED if found.healthy is False else shell.OK


def _health_facts(found: p.Health) -> Iterator[tuple[str, str]]:
    yield "disk", found.disk
    yield "health", {True: "good", False: "about to fail: copy what is on it now", None: plain(None)}[found.healthy]
    yield "temperature", plain(None) if found.celsius is None else f"{found.celsius} °C"
    yield "power-on hours", plain(found.hours)
    yield "errors written down", plain(found.error_count)
    left = f", {found.test_left_percent}% left" if found.test_left_percent else ""
    yield "self-test", f"{plain(found.test)}{left}"
    yield "tests take", f"short {found.short_minutes} min, long {found.long_minutes} min"


@app.command()
def cache(disk: Name, state: Annotated[Literal["on", "off"], typer.Argument(metavar="on|off")]) -> None:
    """Switch a disk's write cache, which is emptied first. Off is slow, and for software that does not flush."""
    call("disk.cache", p.DiskCache(disk=which(disk).disk, on=state == "on"))
    print(f"the write cache of {disk} is {state}, until its controller is given back")


@app.command()
def standby(disk: Name) -> None:
    """Empty a disk's cache and stop it; the next request starts it again."""
    call("disk.standby", which(disk))
    print(f"{disk} stands still until it is needed")


@app.command()
def trim(
    disk: Name,
    offset: Offset = "0",
    length: Annotated[str | None, typer.Option(metavar="OCTETS", help="How much; else to the end of the disk.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Destroy what is there.")] = False,
) -> None:
    """Tell an SSD that what is in some sectors is needed no more, which destroys it. Refuses without --yes."""
    begin, wanted = checked(parse_size, offset), None if length is None else checked(parse_size, length)
    with calls.daemon() as daemon:
        row: disk_protocol.Disk = daemon.call("disk.show", which(disk)).disk
        size = row.octets - begin if wanted is None else wanted
        if size <= 0 or begin + size > row.octets:
            raise shell.Stop(f"{row.name} ends at {row.octets}: there are no {max(size, 1)} octets from {begin} on")
        if begin % row.sector_octets or size % row.sector_octets:
            raise shell.Stop(f"{row.name} has sectors of {row.sector_octets} octets: only whole ones are trimmed", shell.USAGE)
        if not yes:
            raise shell.Stop(f"this destroys {octets(size)} from {begin} on of {row.name} ({row.model}, serial {row.serial}); "
                             "say --yes to do it", shell.USAGE)
        daemon.call("disk.trim", p.DiskTrim(disk=row.name, lba=begin // row.sector_octets, sectors=size // row.sector_octets,
                                            token=row.serial or row.name))
    print(f"{octets(size)} of {row.name} trimmed from {begin} on")


@app.command()
def erase(
    disk: Name,
    serial: Serial = None,
    enhanced: Annotated[bool, typer.Option("--enhanced", help="Also what lies in sectors that were replaced.")] = False,
) -> None:
    """Have a disk erase itself, all of it; it can take hours. Refuses unless its serial number is typed: --serial SERIAL"""
    with calls.daemon() as daemon:
        row: disk_protocol.Disk = daemon.call("disk.show", which(disk)).disk
        if serial is None:
            raise shell.Stop(f"this destroys everything on {row.name} ({row.model}, {octets(row.octets)}); say --serial "
                             f"{row.serial or row.name} to do it", shell.USAGE)
        daemon.call("disk.erase", p.DiskErase(disk=row.name, token=serial, enhanced=enhanced))
    print(f"{row.name} has erased itself")
