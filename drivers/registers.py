"""Registers, declared once: the driver's verbs, the trace, the dump and the documentation come from one class each.

    class STATUS(Reg, at=0x0008, access=RO, spec="8254x 13.4.2"):
        "Device status."
        LU    = Bits(1, doc="link up")
        SPEED = Bits(7, 6, Speed)

    regs = RegisterFile(device.bar(0), RegisterMap.of("82540EM", globals()), device.name)
    regs.CTRL.modify(SLU=1)
    regs.CTRL.wait(RST=0, timeout_ns=MS)
    if regs.STATUS.read().LU: ...

On the class a field is its position (`STATUS.LU.mask` is an integer for compiled code); on a value it is what the
value says (`status.LU`). A value is an int. What the declaration does not know is shown, never hidden.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, ClassVar, Self, overload

from drivers.device import Bar
from drivers.errors import DeviceError, DeviceGone, DeviceTimeout

MS = 1_000_000
_WIDTHS = (8, 16, 32, 64)
_LONGEST_ARRAY = 4096
_SPIN_NS = 20_000       # below this a sleep takes longer than what it waits for
_LONGEST_NAP_NS = MS


class DeclarationError(TypeError):
    """A register or a map is declared in a way that cannot be."""


class Access(Enum):
    """What reading and writing a register, or a field, does."""

    RO = "ro", True, False
    """Read only."""
    RW = "rw", True, True
    """Reads what was written."""
    WO = "wo", False, True
    """Write only; reading means nothing."""
    RC = "rc", True, False
    """Reading changes it: clears it, or takes from a queue. A dump does not read it."""
    W1C = "w1c", True, True
    """Writing ones clears."""
    W1S = "w1s", True, True
    """Writing ones sets; zeros change nothing."""
    RCW1C = "rc/w1c", True, True
    """Reading clears, and so does writing ones."""

    def __init__(self, text: str, readable: bool, writable: bool):
        self.text, self.readable, self.writable = text, readable, writable

    @property
    def quiet(self) -> bool:
        """Whether reading changes nothing."""
        return self.readable and self not in (Access.RC, Access.RCW1C)

    def __str__(self) -> str:
        return self.text


RO, RW, WO, RC, W1C, W1S, RCW1C = Access


class Bits:
    """A field: one bit, or the bits from `high` down to `low`, with the names of its values where they have names.

    `access` is given where it differs from the register's: `modify` writes zeros to W1C and W1S fields it does not name.
    """

    __slots__ = ("access", "doc", "enum", "high", "low", "mask", "name", "owner")

    def __init__(self, high: int, low: int | None = None, enum: type[Enum] | None = None, *, doc: str = "",
                 access: Access | None = None):
        low = high if low is None else low
        if not 0 <= low <= high:
            raise DeclarationError(f"Bits({high}, {low}): high first, then low, neither negative")
        self.high, self.low, self.enum, self.doc, self.access = high, low, enum, doc, access
        self.mask = (1 << high + 1) - (1 << low)
        self.name = self.owner = ""
        for member in enum or ():
            if not isinstance(member.value, int) or not 0 <= member.value <= self.largest:
                raise DeclarationError(f"{member!r} does not fit Bits({high}, {low})")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.owner = name, owner.__name__

    @property
    def width(self) -> int:
        """In bits."""
        return self.high - self.low + 1

    @property
    def largest(self) -> int:
        """The largest value it holds."""
        return self.mask >> self.low

    @overload
    def __get__(self, value: None, owner: type) -> Self: ...
    @overload
    def __get__(self, value: "Reg", owner: type) -> Any: ...
    def __get__(self, value, owner):
        return self if value is None else self.decode(value)

    def decode(self, value: int) -> Any:
        """What `value` says here: a bool for one bit, an enum member where there is one for it, else an int."""
        raw = (value & self.mask) >> self.low
        if self.enum is not None:
            try:
                return self.enum(raw)
            except ValueError:
                return raw
        return bool(raw) if self.high == self.low else raw

    def encode(self, given: int | Enum) -> int:
        """The value as bits in place. Raises ValueError when it does not fit."""
        number = given.value if isinstance(given, Enum) else given
        if not 0 <= number <= self.largest:
            raise ValueError(f"{self.owner}.{self.name} has {self.width} bits: {given!r} does not fit")
        return number << self.low

    def text(self, value: int) -> str:
        """As a trace shows it; empty for what is not worth a word (a clear bit)."""
        shown = self.decode(value)
        if isinstance(shown, Enum):
            return f"{self.name}={shown.name}"
        if shown is True:
            return self.name
        return f"{self.name}={shown}" if 0 < shown < 10 else f"{self.name}={shown:#x}" if shown else ""

    def __repr__(self) -> str:
        return f"{self.owner}.{self.name}[{self.high}:{self.low}]"


class Reg(int):
    """A register: the class is its declaration, an instance a value of it.

    `at`: its offset, in octets unless the map says otherwise; without it, a layout that others inherit.
    `width`: 8, 16, 32 or 64 bits; 64 are two accesses, the low half first. `count`, `stride`: an array.
    `spec`: where it is described. `reset`: its value after reset. `all_ones`: all ones is an answer, not absence.

    Raises DeclarationError for overlapping and oversize fields.
    """

    at: ClassVar[int | None] = None
    access: ClassVar[Access] = RW
    width: ClassVar[int] = 32
    count: ClassVar[int | None] = None
    stride: ClassVar[int] = 0
    spec: ClassVar[str] = ""
    reset: ClassVar[int | None] = None
    all_ones: ClassVar[bool] = False
    ones: ClassVar[int] = 0xFFFF_FFFF
    known: ClassVar[int] = 0xFFFF_FFFF
    fields: ClassVar[Mapping[str, Bits]] = {}
    sticky: ClassVar[int] = 0
    """Bits that `modify` writes as zeros unless it names them: writing back a one would act."""

    def __init_subclass__(cls, *, at: int | None = None, access: Access | None = None, width: int | None = None,
                          count: int | None = None, stride: int | None = None, spec: str | None = None,
                          reset: int | None = None, all_ones: bool | None = None):
        super().__init_subclass__()
        given = {"at": at, "access": access, "width": width, "count": count, "stride": stride, "spec": spec,
                 "reset": reset, "all_ones": all_ones}
        for name, value in given.items():
            if value is not None:
                setattr(cls, name, value)
        cls.ones = (1 << cls.width) - 1
        if stride is None and count is not None:
            cls.stride = cls.width // 8
        _check_shape(cls)
        own = {name: field for name, field in vars(cls).items() if isinstance(field, Bits)}
        cls.fields = {**cls.fields, **own}
        cls.known, cls.sticky = _check_fields(cls)

    def __new__(cls, value: int = 0, /, **fields: int | Enum) -> Self:
        """`value` with the named fields changed: `CTRL(SLU=1)`, `CTRL(old, RST=1)`.

        Raises ValueError for what does not fit, AttributeError for a field there is not.
        """
        if not 0 <= value <= cls.ones:
            raise ValueError(f"{cls.__name__} has {cls.width} bits: {value:#x} does not fit")
        for name, given in fields.items():
            field = cls.field(name)
            value = value & ~field.mask | field.encode(given)
        return int.__new__(cls, value)

    @classmethod
    def field(cls, name: str) -> Bits:
        """The field called so. Raises AttributeError, with the nearest name."""
        try:
            return cls.fields[name]
        except KeyError:
            raise AttributeError(f"{cls.__name__} has no field {name}{_nearest(name, cls.fields)}") from None

    @classmethod
    def offset(cls, index: int = 0) -> int:
        """Where element `index` of the array is, or the register itself. Raises IndexError."""
        if not 0 <= index < (cls.count or 1):
            raise IndexError(f"{cls.__name__} has {cls.count or 1} elements, there is no [{index}]")
        return cls.at + index * cls.stride

    @classmethod
    def label(cls, index: int = 0) -> str:
        """Its name, with the index when it is an array."""
        return cls.__name__ if cls.count is None else f"{cls.__name__}[{index}]"

    @property
    def unknown(self) -> int:
        """The bits that are set and not declared."""
        return self & ~self.known

    def __str__(self) -> str:
        """The fields that say something, then the unknown bits: "LU SPEED=MB1000 ?0x80000000"."""
        if not self.fields:
            return f"{int(self):#x}"
        words = [word for field in self.fields.values() if (word := field.text(self))]
        if self.unknown:
            words.append(f"?{self.unknown:#x}")
        return " ".join(words) or "0"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x}: {self})"


_TAKEN = frozenset(dir(Reg))
_FILE_NAMES = frozenset(("map", "device", "base", "trace", "clock", "sleep", "record", "load", "store", "dump"))


def _check_shape(cls: type[Reg]) -> None:
    if cls.width not in _WIDTHS:
        raise DeclarationError(f"{cls.__name__}: width {cls.width} is none of {_WIDTHS}")
    if cls.at is not None and cls.at < 0:
        raise DeclarationError(f"{cls.__name__}: at {cls.at} is negative")
    if cls.count is not None and not (1 <= cls.count <= _LONGEST_ARRAY and cls.stride >= 1):
        raise DeclarationError(f"{cls.__name__}: an array has 1 to {_LONGEST_ARRAY} elements and a stride above zero")
    if cls.reset is not None and not 0 <= cls.reset <= cls.ones:
        raise DeclarationError(f"{cls.__name__}: the reset value {cls.reset:#x} does not fit {cls.width} bits")


def _check_fields(cls: type[Reg]) -> tuple[int, int]:
    """The bits that are declared, and those of them that `modify` must not write back."""
    known = sticky = 0
    for name, field in cls.fields.items():
        if name in _TAKEN:
            raise DeclarationError(f"{cls.__name__}.{name}: every register has an attribute of that name")
        if field.mask > cls.ones:
            raise DeclarationError(f"{cls.__name__}.{name}: bit {field.high} is beyond {cls.width} bits")
        if field.mask & known:
            other = next(n for n, f in cls.fields.items() if f.mask & field.mask)
            raise DeclarationError(f"{cls.__name__}.{name} overlaps {other}")
        known |= field.mask
        if field.access in (W1C, W1S):
            sticky |= field.mask
    return (known if cls.fields else cls.ones), sticky


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


class RegisterMap:
    """The registers of one device, or of one part that it has many of. Raises DeclarationError when two overlap.

    One that is only read and one that is only written may share an address. `unit` is how many octets an address
    counts: 1, or 2 where addresses count 16-bit words as those of a PHY do.
    """

    def __init__(self, name: str, registers: Iterable[type[Reg]], *, unit: int = 1):
        self.name, self.unit = name, unit
        self.registers: dict[str, type[Reg]] = {}
        self._read: dict[int, tuple[type[Reg], int]] = {}
        self._written: dict[int, tuple[type[Reg], int]] = {}
        for reg in sorted(registers, key=lambda r: (r.at is None, r.at)):
            self._add(reg)
        self.end = max((*self._read, *self._written), default=-1) + 1
        """One more than the last address."""

    @classmethod
    def of(cls, name: str, namespace: Mapping[str, object], *, unit: int = 1) -> Self:
        """All registers of a module (`globals()`) or a class (`vars(...)`); layouts without an address are left out."""
        found = [thing for thing in namespace.values() if isinstance(thing, type) and issubclass(thing, Reg)]
        return cls(name, dict.fromkeys(reg for reg in found if reg.at is not None), unit=unit)

    def _add(self, reg: type[Reg]) -> None:
        if reg.at is None:
            raise DeclarationError(f"{self.name}: {reg.__name__} has no address")
        if reg.__name__ in self.registers:
            raise DeclarationError(f"{self.name}: two registers are called {reg.__name__}")
        if reg.__name__ in _FILE_NAMES:
            raise DeclarationError(f"{self.name}: a RegisterFile has an attribute {reg.__name__} of its own")
        self.registers[reg.__name__] = reg
        octets = reg.width // 8
        span = max(octets // self.unit, 1)
        for index in range(reg.count or 1):
            at = reg.offset(index)
            if at * self.unit % min(octets, 4):
                raise DeclarationError(f"{self.name}: {reg.label(index)} at {at:#x} is not aligned to its width")
            for address in range(at, at + span):
                for used, uses in ((self._read, reg.access.readable), (self._written, reg.access.writable)):
                    if uses and address in used:
                        other, i = used[address]
                        raise DeclarationError(f"{self.name}: {reg.label(index)} overlaps {other.label(i)} at {address:#x}")
                    if uses:
                        used[address] = reg, index

    def find(self, offset: int, writing: bool = False) -> tuple[type[Reg], int] | None:
        """The register, and the index in it, that a read or a write at `offset` reaches."""
        first, second = (self._written, self._read) if writing else (self._read, self._written)
        return first.get(offset) or second.get(offset)

    def name_at(self, offset: int, writing: bool = False) -> str:
        """What is at `offset`: "STATUS", "RAL[3]", "STATUS+2" for a part, "?0x1234" where nothing is declared."""
        found = self.find(offset, writing)
        if found is None:
            return f"?{offset:#x}"
        reg, index = found
        inside = offset - reg.offset(index)
        return f"{reg.label(index)}+{inside}" if inside else reg.label(index)

    def decode(self, offset: int, value: int, writing: bool = False, width: int = 32) -> str:
        """`value` in the words of the register at `offset`; as a number where it is not the whole register."""
        found = self.find(offset, writing)
        if found is None or found[0].offset(found[1]) != offset or found[0].width != width or value > found[0].ones:
            return f"{value:#x}"
        return str(int.__new__(found[0], value))

    def describe(self) -> Iterator["FieldRow"]:
        """The documentation: a row for each register and each of its fields."""
        for reg in self.registers.values():
            size = "" if reg.count is None else f"[{reg.count}]"
            summary = (reg.__doc__ or "").partition("\n")[0]
            yield FieldRow(reg.at, reg.__name__ + size, f"{reg.width} bits", str(reg.access), summary, reg.spec)
            for field in reg.fields.values():
                place = f"{field.high}" if field.high == field.low else f"{field.high}:{field.low}"
                named = ", ".join(f"{member.value} {member.name}" for member in field.enum or ())
                doc = "; ".join(part for part in (field.doc, named) if part)
                yield FieldRow(reg.at, f"{reg.__name__}.{field.name}", place, str(field.access or reg.access), doc, "")


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A line of a map's documentation."""

    offset: int
    name: str
    bits: str
    access: str
    doc: str
    spec: str


@dataclass(frozen=True, slots=True)
class RegisterRow:
    """A line of a dump. `value` is None for what was not read, and `text` then says why."""

    offset: int
    name: str
    access: str
    value: int | None
    text: str


@dataclass(slots=True)
class Entry:
    """One access, or several equal ones in a row."""

    time_ns: int
    writing: bool
    offset: int
    width: int
    value: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A line of a decoded trace."""

    time_ns: int
    verb: str
    offset: int
    name: str
    value: int
    text: str
    times: int


class Trace:
    """The last `capacity` accesses. Equal ones in a row, as a poll makes them, count as one."""

    def __init__(self, capacity: int = 1024):
        self.entries: deque[Entry] = deque(maxlen=capacity)
        self.total = 0

    def add(self, time_ns: int, writing: bool, offset: int, width: int, value: int) -> None:
        self.total += 1
        last = self.entries[-1] if self.entries else None
        if last and (last.writing, last.offset, last.width, last.value) == (writing, offset, width, value):
            last.times += 1
        else:
            self.entries.append(Entry(time_ns, writing, offset, width, value))

    @property
    def lost(self) -> int:
        """How many accesses no longer fit."""
        return self.total - sum(entry.times for entry in self.entries)

    def rows(self, names: RegisterMap) -> Iterator[TraceRow]:
        """The accesses in the words of a map, oldest first."""
        for e in tuple(self.entries):
            yield TraceRow(e.time_ns, "write" if e.writing else "read", e.offset, names.name_at(e.offset, e.writing),
                           e.value, names.decode(e.offset, e.value, e.writing, e.width), e.times)


class RegisterFile:
    """The registers of a map as they stand in a BAR: each an attribute with the verbs its access mode allows.

    `regs.CTRL.read()`, `regs.CTRL.modify(RST=1)`, `regs.RAL[3].write(...)`. `base` is where the map begins, for parts
    that a device has several of. For the control path: about a microsecond an access. Not for several threads.

    Raises DeviceError when the BAR is smaller than the map.
    """

    def __init__(self, bar: Bar, map: RegisterMap, device: str = "", *, base: int = 0,
                 clock: Callable[[], int] = time.monotonic_ns, sleep: Callable[[float], None] = time.sleep):
        if map.unit == 1 and base + map.end > bar.size:
            raise DeviceError(device or map.name, f"the registers of {map.name} end at {base + map.end:#x} and the BAR at "
                              f"{bar.size:#x}: is this the device and the BAR you mean?")
        self.map, self.device, self.base = map, device or map.name, base
        self.trace: Trace | None = None
        self.clock, self.sleep = clock, sleep
        self._bar = bar
        for name, reg in map.registers.items():
            setattr(self, name, _Slots(self, reg) if reg.count is not None else _slot(self, reg))

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("map")
        near = _nearest(name, known.registers) if known else ""
        raise AttributeError(f"{known.name if known else 'RegisterFile'} has no register {name}{near}")

    def record(self, capacity: int = 1024) -> Trace:
        """Keep the last `capacity` accesses from now on, until `trace` is set to None."""
        self.trace = Trace(capacity)
        return self.trace

    def load(self, offset: int, width: int) -> int:
        """Read `width` bits at an offset of the map."""
        value = self._read(offset, width)
        if self.trace is not None:
            self.trace.add(self.clock(), False, offset, width, value)
        return value

    def _read(self, offset: int, width: int) -> int:
        bar, at = self._bar, self.base + offset
        if width == 32:
            return bar.read32(at)
        if width == 64:
            return bar.read32(at) | bar.read32(at + 4) << 32
        return bar.read16(at) if width == 16 else bar.read8(at)

    def store(self, offset: int, width: int, value: int) -> None:
        """Write `width` bits at an offset of the map."""
        if self.trace is not None:
            self.trace.add(self.clock(), True, offset, width, value)
        bar, at = self._bar, self.base + offset
        if width == 32:
            bar.write32(at, value)
        elif width == 64:
            bar.write32(at, value & 0xFFFF_FFFF)
            bar.write32(at + 4, value >> 32)
        elif width == 16:
            bar.write16(at, value)
        else:
            bar.write8(at, value)

    def dump(self, names: Iterable[str] | None = None) -> Iterator[RegisterRow]:
        """A row for each register, or each named one, by address; equal neighbours of an array share one.

        What reading changes is not read. A dump leaves nothing in the trace.
        """
        for reg in self.map.registers.values() if names is None else [self.map.registers[name] for name in names]:
            if not reg.access.quiet:
                why = "write only" if not reg.access.readable else "not read: reading changes it"
                size = "" if reg.count is None else f"[0..{reg.count - 1}]"
                yield RegisterRow(reg.at, reg.__name__ + size, str(reg.access), None, why)
                continue
            values = [int.__new__(reg, self._read(reg.offset(i), reg.width)) for i in range(reg.count or 1)]
            for first, last in _runs(values):
                name = reg.label(first) if first == last else f"{reg.__name__}[{first}..{last}]"
                yield RegisterRow(reg.offset(first), name, str(reg.access), int(values[first]), str(values[first]))


def _runs(values: list[Reg]) -> Iterator[tuple[int, int]]:
    """First and last index of each run of equal values."""
    first = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[first]:
            yield first, i - 1
            first = i


class _Slot:
    """A register at its place. Which verbs it has depends on its access mode."""

    def __init__(self, file: RegisterFile, reg: type[Reg], index: int = 0):
        self._file, self.reg, self.offset, self.name = file, reg, reg.offset(index), reg.label(index)

    def __getattr__(self, verb: str) -> Any:
        reg = self.__dict__.get("reg")
        if reg is None or verb.startswith("_"):
            raise AttributeError(verb)
        raise AttributeError(f"{self.name} is {reg.access}: it has no {verb}")


class _Read(_Slot):
    def read(self) -> Reg:
        """Its value now: one access."""
        return int.__new__(self.reg, self._file.load(self.offset, self.reg.width))


class _Wait(_Slot):
    def wait_until(self, done: Callable[[Any], bool], timeout_ns: int, what: str) -> Any:
        """Read until `done(value)`, at least once; the value. Sleeps between reads: never on a per-packet path.

        Raises DeviceTimeout naming `what`, and DeviceGone when it reads all ones.
        """
        file, reg = self._file, self.reg
        return wait_until(self.read, done, timeout_ns, device=file.device, what=what,
                          gone=None if reg.all_ones else reg.ones, clock=file.clock, sleep=file.sleep)

    def wait(self, *, timeout_ns: int, **fields: int | Enum) -> Any:
        """Read until the fields have these values: `regs.CTRL.wait(RST=0, timeout_ns=MS)`. As `wait_until`."""
        wanted, mask = self.reg(**fields), 0
        for name in fields:
            mask |= self.reg.field(name).mask
        what = " ".join(f"{self.name}.{name}={getattr(value, 'name', value)}" for name, value in fields.items())
        return self.wait_until(lambda value: value & mask == wanted, timeout_ns, what)


class _Write(_Slot):
    def write(self, value: int = 0, /, **fields: int | Enum) -> None:
        """Write `value` with the named fields changed; all others are as in `value`. Raises ValueError: does not fit."""
        reg = self.reg
        if isinstance(value, Reg) and not isinstance(value, reg):
            raise ValueError(f"{self.name}: {value!r} is a value of another register")
        if fields or not 0 <= value <= reg.ones:
            value = reg(value, **fields)
        self._file.store(self.offset, reg.width, int(value))


class _Modify(_Read, _Write):
    def modify(self, **fields: int | Enum) -> Reg:
        """Read, change the named fields, write; what was written. Fields that act when written as ones stay zero."""
        value = self.reg(self.read() & ~self.reg.sticky, **fields)
        self._file.store(self.offset, self.reg.width, int(value))
        return value


class _ReadOnly(_Read, _Wait):
    pass


class _ReadWrite(_Modify, _Wait):
    pass


class _Acknowledge(_Read, _Write, _Wait):
    pass


class _ReadClear(_Read):
    pass


class _ReadClearAcknowledge(_Read, _Write):
    pass


_KINDS: dict[Access, type[_Slot]] = {
    RO: _ReadOnly, RW: _ReadWrite, WO: _Write, RC: _ReadClear, W1C: _Acknowledge, W1S: _Acknowledge,
    RCW1C: _ReadClearAcknowledge,
}


def _slot(file: RegisterFile, reg: type[Reg], index: int = 0) -> _Slot:
    return _KINDS[reg.access](file, reg, index)


class _Slots:
    """An array of registers."""

    def __init__(self, file: RegisterFile, reg: type[Reg]):
        self.reg = reg
        self._slots = tuple(_slot(file, reg, index) for index in range(reg.count))

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self._slots):
            raise IndexError(f"{self.reg.__name__} has {len(self._slots)} elements, there is no [{index}]")
        return self._slots[index]

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._slots)


def wait_until(read: Callable[[], int], done: Callable[[Any], bool], timeout_ns: int, *, device: str, what: str,
               gone: int | None = None, clock: Callable[[], int] = time.monotonic_ns,
               sleep: Callable[[float], None] = time.sleep) -> Any:
    """Call `read` until `done(value)`; the value. Always reads once more after the deadline before it gives up.

    Naps of a quarter of the time already waited, at most a millisecond: it overshoots by no more.

    Raises DeviceTimeout(device, what, ...), and DeviceGone when the value is `gone`.
    """
    start = clock()
    while True:
        waited = clock() - start
        value = read()
        if value == gone:
            raise DeviceGone(device)
        if done(value):
            return value
        if waited >= timeout_ns:
            raise DeviceTimeout(device, what, int(value), waited / 1e9)
        nap = min(waited // 4, _LONGEST_NAP_NS, timeout_ns - waited)
        if nap >= _SPIN_NS:
            sleep(nap / 1e9)
