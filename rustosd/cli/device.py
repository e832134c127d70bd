"""`rustosctl device`: which PCI devices there are, taking them from the kernel and giving them back, their registers."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call, checked, known
from rustosd.cli.tables import Column, Listing, octets, plain
from rustosd.control import device_protocol as p
from rustosd.values import PciAddress

_CORPORATE = re.compile(r",? (?:Corporation|Corp\.|Inc\.|Co\.,? Ltd\.|Ltd\.)", re.ASCII)
_BAR_KINDS = {"mem32": "32-bit memory", "mem64": "64-bit memory", "io": "I/O ports", "rom": "ROM"}


def _complete_bdf(incomplete: str) -> list[str]:
    return known("device.list", lambda rows: [row.bdf for row in rows], incomplete, p.DeviceQuery(bridges=False))


def _complete_held(incomplete: str) -> list[str]:
    return known("device.list", lambda rows: [row.bdf for row in rows if row.held], incomplete, p.DeviceQuery(bridges=False))


app = typer.Typer(help="PCI devices: take them from the kernel, give them back.", rich_markup_mode=None)
Bdf = Annotated[str, typer.Argument(metavar="BDF", help="As 0000:03:00.0.", autocompletion=_complete_bdf)]
Bdfs = Annotated[list[str], typer.Argument(metavar="BDF...", help="As 0000:03:00.0.", autocompletion=_complete_bdf)]
Held = Annotated[list[str], typer.Argument(metavar="BDF...", help="As 0000:03:00.0.", autocompletion=_complete_held)]
Force = Annotated[bool, typer.Option("--force", help="Even if the host depends on it, or loses something with it.")]
Bridges = Annotated[bool, typer.Option("--all", "-a", help="Also bridges, which nobody can take.")]


def _kind(kind: str) -> str:
    return kind.removesuffix(" controller")


def _name(name: str) -> str:
    return _CORPORATE.sub("", name)


def _used_by(row: p.DeviceEntry) -> str:
    """The kernel's interfaces and disks; of a device that is ours, the stack's interface and our disks."""
    if row.held is None:
        return plain(row.interfaces + row.disks)
    if row.held.interface is not None:
        return f"our {row.held.interface}"
    count = len(row.held.disks)
    return f"our {count} disk{'' if count == 1 else 's'}" if row.held.kind == "ahci" else "us"


def _take(row: p.DeviceEntry) -> str:
    """Whether it can be taken, or why not, or that it is ours already."""
    if row.held is not None:
        return f"ours, by {row.held.backend}" if row.held.state == "running" else f"{row.held.state}: {plain(row.held.reason)}"
    if not row.obstacles:
        return "yes"
    more = f" (+{len(row.obstacles) - 1})" if len(row.obstacles) > 1 else ""
    return f"no: {row.obstacles[0].text}{more}"


DEVICES = Listing("devices", "device", "devices", (
    Column("DEVICE", "bdf"), Column("KIND", "kind", text=_kind, folds=True), Column("DRIVER", "driver"),
    Column("GROUP", "iommu_group", True), Column("USED BY", "", text=_used_by, folds=True),
    Column("NAME", "name", text=_name, folds=True), Column("TAKE", "", text=_take, folds=True),
))


def _hex(value: int | None) -> str:
    return tables.MISSING if value is None else f"{value:#x}"


REGISTERS = Listing("registers", "register", "registers", (
    Column("OFFSET", "offset", True, _hex), Column("REGISTER", "name"), Column("ACCESS", "access"),
    Column("VALUE", "value", True, _hex), Column("MEANING", "text", folds=True),
))
ACCESSES = Listing("accesses", "access", "accesses", (
    Column("TIME", "time_us", True, lambda time_us: f"{time_us / 1000:.3f} ms"), Column("VERB", "verb"),
    Column("OFFSET", "offset", True, _hex), Column("REGISTER", "name"), Column("VALUE", "value", True, _hex),
    Column("TIMES", "times", True), Column("MEANING", "text", folds=True),
))


def _list(bridges: bool, as_json: bool) -> None:
    tables.show(DEVICES, call("device.list", p.DeviceQuery(bridges=bridges)), as_json)


@app.callback(invoke_without_command=True)
def alone(context: typer.Context, every: Bridges = False, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        _list(every, json)


@app.command("list")
def list_(every: Bridges = False, json: Json = False) -> None:
    """PCI devices: who drives each, what hangs on it, and whether it can be taken or why not."""
    _list(every, json)


@app.command()
def show(bdf: Bdf, json: Json = False) -> None:
    """All about one device: link, BARs, capabilities, IOMMU group, and everything that stands in the way of taking it."""
    details: p.DeviceDetails = call("device.show", p.DeviceName(bdf=checked(PciAddress, bdf)))
    if json:
        tables.print_json("device", details)
    else:
        tables.show_facts(_facts(details))


def _facts(details: p.DeviceDetails) -> Iterator[tuple[str, str]]:
    device = details.device
    board = f"{details.subsystem_vendor_id:04x}:{details.subsystem_id:04x}"
    yield "device", device.bdf
    yield "is", f"{device.kind}: {device.name}"
    yield "ids", f"{details.vendor_id:04x}:{details.device_id:04x} revision {details.revision:02x}"
    yield "class", f"{details.class_code:06x}"
    yield "board", f"{board} {details.subsystem or ''}".strip()
    yield "driver", plain(device.driver)
    for user in details.users:
        yield "used by", user
    yield from _placement(details)
    for bar in details.bars:
        prefetch = ", prefetchable" if bar.prefetch else ""
        name = "ROM" if bar.kind == "rom" else f"BAR {bar.index}"
        kind = "" if bar.kind == "rom" else f"{_BAR_KINDS.get(bar.kind, bar.kind)} "
        yield name, f"{octets(bar.octets)}, {kind}at {bar.address:#x}{prefetch}"
    yield "IOMMU group", _group(details)
    yield "resets", plain(details.reset_methods)
    yield from _configuration(details)
    yield from _ownership(device, details)


def _placement(details: p.DeviceDetails) -> Iterator[tuple[str, str]]:
    yield "slot", plain(details.slot)
    yield "behind", plain(details.upstream)
    if details.physical_function is not None:
        yield "virtual function of", details.physical_function
    if details.virtual_functions_total:
        yield "virtual functions", f"{details.virtual_functions or 0} of {details.virtual_functions_total}"
    yield "NUMA node", plain(details.numa_node)
    yield "IRQ", plain(details.irq)
    if (link := details.link) is not None:
        most = f", below its {link.max_speed_gts or 0:g} GT/s x{link.max_width or 0}" if link.degraded else ""
        now = f"{link.speed_gts:g} GT/s x{link.width or 0}" if link.speed_gts is not None else "down"
        yield "link", now + most


def _group(details: p.DeviceDetails) -> str:
    if details.device.iommu_group is None:
        return "none: no IOMMU confines its DMA"
    others = [member for member in details.group_members if member != details.device.bdf]
    return f"{details.device.iommu_group}, " + (f"with {', '.join(others)}" if others else "alone")


def _configuration(details: p.DeviceDetails) -> Iterator[tuple[str, str]]:
    config = details.config
    yield "configuration", f"{config.octets} octets by {config.how}" if config.how else "not readable"
    for reason in config.passed_over:
        yield "not by", reason
    for capability in details.capabilities:
        version = "" if capability.version is None else f" {capability.version}"
        text = f": {capability.text}" if capability.text else ""
        yield "capability", f"{capability.offset:#05x} {capability.name}{version}{text}"
    for problem in details.capability_problems:
        yield "capability", f"broken: {problem}"


def _ownership(device: p.DeviceEntry, details: p.DeviceDetails) -> Iterator[tuple[str, str]]:
    held = device.held
    if held is None:
        yield "can be taken", "yes" if device.takeable else "no"
        for obstacle in device.obstacles:
            yield "in the way", f"{obstacle.text}: {obstacle.advice}"
        return
    yield "ours", f"by {held.backend}, {held.state}" + (f": {held.reason}" if held.reason else "")
    yield "goes back to", plain(held.before)
    if held.interface is not None:
        yield "interface", held.interface
    for disk in held.disks:
        yield "disk", disk
    yield "interrupts", plain(details.interrupts)
    for name, value in details.statistics.items():
        if value:
            yield name.replace("_", " "), str(value)


@app.command()
def take(
    bdfs: Bdfs,
    force: Force = False,
    backend: Annotated[Literal["vfio", "uio", "vfio-noiommu"],
                       typer.Option(help="How: the last two let the device reach all memory.")] = "vfio",
    json: Json = False,
) -> None:
    """Take devices from the kernel, all of them or none; a NIC comes with its addresses and routes."""
    taken: list[p.Taken] = call("device.take", p.DeviceTake(bdfs=_distinct(bdfs), force=force, backend=backend))
    if json:
        tables.print_json("taken", taken)
        return
    for each in taken:
        print(_taken(each))
        for what in each.left_out:
            print(f"{each.bdf}: not taken over: {what}")


def _distinct(bdfs: list[str]) -> list[PciAddress]:
    addresses = list(dict.fromkeys(checked(PciAddress, bdf) for bdf in bdfs))
    if len(addresses) > p.MOST_DEVICES:
        raise typer.BadParameter(f"at most {p.MOST_DEVICES} devices at once")
    return addresses


def _taken(each: p.Taken) -> str:
    by_whom = f"from {each.before} " if each.before else ""
    what = ""
    if each.interface is not None:
        addresses = f"with {', '.join(each.addresses)}" if each.addresses else "without addresses"
        routes = f", routes to {', '.join(each.routes)}" if each.routes else ""
        what = f"; it is the interface {each.interface} {addresses}{routes}"
    elif each.kind == "ahci":
        what = f"; its disks: {', '.join(each.disks)}" if each.disks else "; no disk answers on it"
    return f"{each.bdf}: taken {by_whom}by {each.backend}{what}"


@app.command()
def give(bdfs: Held, json: Json = False) -> None:
    """Give devices back to the kernel, with their addresses and routes, and with the rest of their IOMMU groups."""
    given: list[p.Given] = []
    for bdf in _distinct(bdfs):
        if any(row.bdf == bdf for row in given):
            continue
        rows = call("device.give", p.DeviceName(bdf=bdf))
        given += rows
        for row in () if json else rows:
            print(_given(row), flush=True)
    if json:
        tables.print_json("given", given)


def _given(row: p.Given) -> str:
    if not row.present:
        return f"{row.bdf}: forgotten; it is not on the bus any more"
    if row.driver is None:
        return f"{row.bdf}: given back; no driver of the kernel's took it, as before"
    return f"{row.bdf}: given back to {row.driver}" + (f" as {', '.join(row.interfaces)}" if row.interfaces else "")


@app.command()
def regs(
    bdf: Bdf,
    registers: Annotated[list[str] | None, typer.Option(
        "--registers", "-r", metavar="NAME", help="Only these: CTRL, or RX*; again for more, or NAME,NAME.")] = None,
    config: Annotated[bool, typer.Option("--config", help="Configuration space, also of a device that is ours.")] = False,
    trace: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0.001, max=p.LONGEST_TRACE_S, help="What the driver reads and writes for so long.")] = None,
    json: Json = False,
) -> None:
    """Registers, decoded: of a device that is ours all that can be read without changing it, else configuration space.

    A trace shows what the driver reads and writes; its bursts of frames and blocks go past it.
    """
    address = checked(PciAddress, bdf)
    names = tuple(name for word in registers or () for name in word.split(",") if name)
    if trace is not None:
        if config:
            raise typer.BadParameter("a trace is of the device's own registers, not of its --config")
        _show_trace(call("device.trace", p.TraceQuery(bdf=address, seconds=trace, names=names)), json)
        return
    dump: p.RegisterDump = call("device.regs", p.RegisterQuery(bdf=address, names=names, config=config))
    if json:
        tables.print_json("registers", dump)
        return
    print(f"{dump.bdf}: {dump.source}")
    tables.show(REGISTERS, dump.registers, False)


def _show_trace(trace: p.RegisterTrace, as_json: bool) -> None:
    if as_json:
        tables.print_json("trace", trace)
        return
    print(f"{trace.bdf}: {trace.source}, {trace.seconds:g} s" + (f"; {trace.lost} more came before" if trace.lost else ""))
    tables.show(ACCESSES, trace.accesses, False)
