"""What an operator can ask about PCI devices and do with them. Looking at sysfs blocks, so a thread does it."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from drivers import acpi
from drivers.device import ConfigSpace
from drivers.e1000.chips import CHIPS, INTEL
from drivers.errors import DeviceError, TableError
from drivers.pci import capabilities, taking
from drivers.pci.config import header_registers, open_config
from drivers.pci.names import Names, read_names
from drivers.pci.sysfs import Bdf, PciBus, PciDevice
from drivers.pci.uses import HostUses
from drivers.registers import RegisterFile
from rustosd.control import device_protocol as p
from rustosd.control.server import OperationFailed
from rustosd.devices import kinds

CONFIGURATION = "configuration space"
MOST_ROWS = 10_000
"""How many registers one dump tells."""


class HeldDevice(Protocol):
    """A device of the daemon's: `rustosd.devices.Held`."""

    bdf: str
    kind: str
    backend: str
    before: str | None
    interface: str | None
    device: Any                     # drivers.device.Device
    driver: Any                     # with `registers` and `statistics()`
    disks: Mapping[str, Any]        # rustosd.disks.AsyncDisk by name
    state: str
    reason: str
    left_out: Sequence[str]


class Devices(Protocol):
    """The daemon's devices: `rustosd.devices.DeviceManager`. Both verbs raise DeviceError and ValueError."""

    held: Mapping[str, HeldDevice]

    def take(self, bdfs: Sequence[str], *, force: bool = False, backend: str = "vfio") -> Awaitable[list[HeldDevice]]:
        """Take all of them from the kernel, or none."""

    def give(self, bdf: str) -> Awaitable[None]:
        """Give one back to the kernel, with its addresses and routes."""


class DeviceCore(Protocol):
    """What these operations need of the daemon."""

    stack: Any
    devices: Devices | None
    """None: this daemon drives no PCI devices."""
    storage: Iterable[Any]
    """All its disks: `rustosd.storage.Storage`."""

    def kick(self) -> None: ...


class DeviceOperations:
    """The methods of `device_protocol.METHODS` that begin with "device."; what is read is below `root`."""

    core: DeviceCore
    root: Path

    async def device_list(self, query: p.DeviceQuery) -> list[p.DeviceEntry]:
        return await asyncio.to_thread(_entries, self.root, self._holdings(), query.bridges)

    async def device_show(self, which: p.DeviceName) -> p.DeviceDetails:
        held = self._held().get(which.bdf)
        own = _Own()
        if held is not None and held.driver is not None:
            own = _Own(_look(held.device.config), getattr(held.driver, "interrupt_kind", None),
                       _numbers(held.driver.statistics()))
        return await asyncio.to_thread(_details, self.root, self._holdings(), which.bdf, own)

    async def device_take(self, request: p.DeviceTake) -> list[p.Taken]:
        held = await self._devices().take(list(dict.fromkeys(map(str, request.bdfs))), force=request.force,
                                          backend=request.backend)
        self.core.kick()
        return [self._taken(each) for each in held]

    async def device_give(self, which: p.DeviceName) -> list[p.Given]:
        devices = self._devices()
        if which.bdf not in devices.held:
            raise OperationFailed(f"{which.bdf} is not ours; {_ours(devices.held)}")
        before = list(devices.held)
        await devices.give(str(which.bdf))
        self.core.kick()
        return await asyncio.to_thread(_given, self.root, [bdf for bdf in before if bdf not in devices.held])

    async def device_regs(self, query: p.RegisterQuery) -> p.RegisterDump:
        held = self._held().get(query.bdf)
        if held is None or held.device is None:
            return await asyncio.to_thread(_config_dump, self.root, query.bdf, query.names)
        if query.config:
            return _dump(query.bdf, CONFIGURATION, _config_files(held.device.config, query.bdf), query.names)
        registers = _registers(held)
        return _dump(query.bdf, registers.map.name, [("", registers)], query.names)

    async def device_trace(self, query: p.TraceQuery) -> p.RegisterTrace:
        held = self._held().get(query.bdf)
        if held is None:
            raise OperationFailed(f"{query.bdf} is not ours, so only the kernel knows what it does to its registers; take "
                                  f"it first: rustosctl device take {query.bdf}")
        registers = _registers(held)
        if registers.trace is not None:
            raise OperationFailed(f"somebody traces {query.bdf} already; try again when that is over")
        matching = _matching(query.names, registers.map.registers)
        trace, begun = registers.record(p.TRACE_CAPACITY), registers.clock()
        try:
            await asyncio.sleep(query.seconds)
        finally:
            registers.trace = None
        rows = [p.RegisterAccess(time_us=(row.time_ns - begun) / 1000, verb=row.verb, offset=row.offset, name=row.name,
                                 value=row.value, text=row.text, times=row.times)
                for row in trace.rows(registers.map)
                if matching is None or row.name.partition("[")[0].partition("+")[0] in matching]
        return p.RegisterTrace(bdf=query.bdf, source=registers.map.name, seconds=query.seconds, lost=trace.lost,
                               accesses=rows)

    def _devices(self) -> Devices:
        if self.core.devices is None:
            raise OperationFailed("this daemon drives no PCI devices; it can only show them: rustosctl device list")
        return self.core.devices

    def _held(self) -> Mapping[str, HeldDevice]:
        return self.core.devices.held if self.core.devices is not None else {}

    def _holdings(self) -> dict[str, p.Holding]:
        return {bdf: p.Holding(backend=held.backend, kind=held.kind, before=held.before, interface=held.interface,
                               disks=list(held.disks), state=held.state, reason=held.reason or None)
                for bdf, held in self._held().items()}

    def _taken(self, held: HeldDevice) -> p.Taken:
        stack, name = self.core.stack, held.interface
        indices = {row["index"] for row in stack.interfaces() if row["name"] == name}
        return p.Taken(
            bdf=held.bdf, kind=held.kind, backend=held.backend, before=held.before, interface=name,
            addresses=[row["address"] for row in stack.addresses()
                       if row["name"] == name and not ip_interface(row["address"]).is_link_local],
            routes=[row["prefix"] for row in stack.routes() if row["kind"] == "static" and row["interface"] in indices],
            disks=list(held.disks), left_out=list(held.left_out))


# Looking at sysfs: in a thread

class _Seen(NamedTuple):
    """Configuration space as far as it could be read."""

    access: p.ConfigAccess
    capabilities: list[p.DeviceCapability]
    problems: list[str]


class _Own(NamedTuple):
    """What only the driver of a device that is ours can tell."""

    seen: _Seen | None = None
    interrupts: str | None = None
    statistics: dict[str, int] | None = None


def _entries(root: Path, holdings: Mapping[str, p.Holding], bridges: bool) -> list[p.DeviceEntry]:
    bus, host = PciBus(root), HostUses(root)
    devices = [device for device in bus.devices() if bridges or not device.is_bridge]
    names = read_names({(device.vendor, device.device) for device in devices}, root)
    rows = [_entry(device, bus, host, names, holdings.get(device.name)) for device in devices]
    left = sorted(holdings.keys() - {row.bdf for row in rows})
    return rows + [_left(bdf, holdings[bdf]) for bdf in left]


def _entry(device: PciDevice, bus: PciBus, host: HostUses, names: Names, held: p.Holding | None) -> p.DeviceEntry:
    row = taking.row(device, bus, host, names)
    obstacles = [p.Obstacle(why=reason.why.value, text=reason.text, advice=reason.advice, forcible=reason.forcible)
                 for reason in row.reasons]
    if not device.is_bridge and kinds.kind_of(device) == kinds.OTHER:
        obstacles.insert(0, p.Obstacle(why="no_driver", text="rustosd has no driver for it", forcible=False,
                                       advice=f"it drives {kinds.known()}"))
    return p.DeviceEntry(
        bdf=row.bdf, kind=row.kind, name=_name(row, device), bridge=device.is_bridge, driver=row.driver,
        iommu_group=row.iommu_group,
        interfaces=[each.name for each in row.uses.interfaces], disks=[each.name for each in row.uses.disks], held=held,
        takeable=held is None and not obstacles, obstacles=obstacles if held is None else [])


def _name(row: taking.DeviceRow, device: PciDevice) -> str:
    """From pci.ids; where it has none, we still know what we have a driver for."""
    if row.name == f"{device.vendor:04x}:{device.device:04x}" and device.vendor == INTEL and device.device in CHIPS:
        return f"Intel {CHIPS[device.device].name}"
    return row.name


def _left(bdf: str, held: p.Holding) -> p.DeviceEntry:
    """One that is ours and has left the bus."""
    return p.DeviceEntry(bdf=bdf, kind=held.kind, name="not on the bus any more", bridge=False, driver=None, iommu_group=None,
                         interfaces=[], disks=[], held=held, takeable=False, obstacles=[])


def _details(root: Path, holdings: Mapping[str, p.Holding], bdf: str, own: _Own) -> p.DeviceDetails:
    bus = PciBus(root)
    device = bus.device(bdf)
    host = HostUses(root)
    names = read_names([(device.vendor, device.device)], root)
    entry = _entry(device, bus, host, names, holdings.get(bdf))
    seen = own.seen or _look_from_outside(device, root)
    uses = host.of(device)
    return p.DeviceDetails(
        device=entry, vendor_id=device.vendor, device_id=device.device, subsystem_vendor_id=device.subsystem_vendor,
        subsystem_id=device.subsystem_device, class_code=device.class_code, revision=device.revision,
        subsystem=names.subsystem(device.vendor, device.device, device.subsystem_vendor, device.subsystem_device),
        numa_node=device.numa_node, slot=device.slot, upstream=_text(device.upstream), irq=device.irq,
        virtual_functions=device.sriov_vfs, virtual_functions_total=device.sriov_total,
        physical_function=_text(device.physical_function), link=_link(device),
        bars=[p.Bar(index=bar.index, kind=bar.kind.value, address=bar.address, octets=bar.size, prefetch=bar.prefetch)
              for bar in device.bars],
        capabilities=seen.capabilities, capability_problems=seen.problems,
        group_members=[] if device.iommu_group is None else [str(member) for member in bus.group(device.iommu_group)],
        reset_methods=list(device.reset_methods), config=seen.access, users=uses.words(),
        interrupts=own.interrupts, statistics=own.statistics or {})


def _link(device: PciDevice) -> p.LinkState | None:
    link = device.link
    return None if link is None else p.LinkState(speed_gts=link.speed, width=link.width, max_speed_gts=link.max_speed,
                                                 max_width=link.max_width, degraded=link.degraded)


def _look_from_outside(device: PciDevice, root: Path) -> _Seen:
    """The configuration space of a device that is not ours."""
    try:
        reached = _open_config(device, root)
    except DeviceError as error:
        return _Seen(p.ConfigAccess(how=None, octets=0, passed_over=[str(error)]), [], [])
    try:
        return _look(reached.config, reached.passed_over, device)
    finally:
        reached.config.close()


def _look(config: ConfigSpace, passed_over: Iterable[str] = (), device: PciDevice | None = None) -> _Seen:
    access = p.ConfigAccess(how=config.how, octets=config.size, passed_over=list(passed_over))
    try:
        found = capabilities.read_capabilities(config, device.bars if device else ())
    except DeviceError as error:
        return _Seen(access, [], [str(error)])
    rows = [p.DeviceCapability(offset=row.offset, name=row.name, version=row.version, text=row.text)
            for row in capabilities.rows(found)]
    return _Seen(access, rows, list(found.problems))


def _open_config(device: PciDevice, root: Path):
    try:
        mcfg = acpi.table("MCFG", root)
    except (TableError, OSError):
        mcfg = None
    return open_config(device.bdf, mcfg, root, memory=str(root / "dev/mem"))


def _given(root: Path, bdfs: Iterable[str]) -> list[p.Given]:
    """What the kernel has made of them by now."""
    bus = PciBus(root)
    rows = []
    for bdf in bdfs:
        device = bus.find(Bdf.parse(bdf))
        nets = sorted(entry.name for entry in (device.path / "net").glob("*")) if device is not None else []
        rows.append(p.Given(bdf=bdf, present=device is not None, driver=device.driver if device else None, interfaces=nets))
    return rows


# Registers

def _registers(held: HeldDevice) -> RegisterFile:
    if held.driver is None:
        why = f"it is gone: {held.reason}" if held.state == "gone" else "we have no driver for it"
        raise OperationFailed(f"{held.bdf} has no registers to read, {why}")
    return held.driver.registers


def _config_dump(root: Path, bdf: str, names: Sequence[str]) -> p.RegisterDump:
    """The header and the capabilities we know, of a device that we have not opened."""
    reached = _open_config(PciBus(root).device(bdf), root)
    try:
        return _dump(bdf, CONFIGURATION, _config_files(reached.config, bdf), names)
    finally:
        reached.config.close()


def _config_files(config: ConfigSpace, bdf: str) -> list[tuple[str, RegisterFile]]:
    """The header's registers go by their names, those of capabilities by "MSI-X.CONTROL"."""
    files = [("", header_registers(config, bdf))]
    for capability in capabilities.read_capabilities(config).entries:
        if (file := capabilities.registers(config, capability, bdf)) is not None:
            files.append((f"{file.map.name.replace(' ', '-')}.", file))
    return files


def _dump(bdf: str, source: str, files: Sequence[tuple[str, RegisterFile]], names: Sequence[str]) -> p.RegisterDump:
    matching = _matching(names, [prefix + name for prefix, file in files for name in file.map.registers])
    rows = []
    for prefix, file in files:
        chosen = [name for name in file.map.registers if matching is None or prefix + name in matching]
        rows += [p.RegisterValue(offset=file.base + row.offset, name=prefix + row.name, access=row.access, value=row.value,
                                 text=row.text) for row in file.dump(chosen)]
    return p.RegisterDump(bdf=bdf, source=source, registers=rows[:MOST_ROWS])


def _matching(patterns: Sequence[str], names: Iterable[str]) -> set[str] | None:
    """The names that a pattern matches, whatever their case; None for all. Raises OperationFailed for a pattern without."""
    if not patterns:
        return None
    by_folded = {name.upper(): name for name in names}
    found = set()
    for pattern in patterns:
        hits = [name for folded, name in by_folded.items() if fnmatchcase(folded, pattern.upper())]
        if not hits:
            near = get_close_matches(pattern.upper(), by_folded, 1)
            raise OperationFailed(f"there is no register {pattern}" + (f"; did you mean {by_folded[near[0]]}?" if near else
                                                                       "; without --registers you see all of them"))
        found.update(hits)
    return found


def _ours(held: Mapping[str, HeldDevice]) -> str:
    return f"ours: {', '.join(held)}" if held else "none is: see rustosctl device list"


def _numbers(statistics: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in statistics.items() if isinstance(value, int)}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
