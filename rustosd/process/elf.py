"""Names and unwinding tables of programs' files, as far as a back-trace needs them (ELF-64, System V ABI, DWARF 5 6.4).

The files are the programs' own and may say anything: what makes no sense is ValueError, nothing is read beyond bounds, and the
work is bounded.
"""

import bisect
import contextlib
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

SYMBOLS_MOST: Final = 400_000
_FILE_MOST: Final = 2 << 30
_INSTRUCTIONS_MOST: Final = 4096
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_INDEX, _INDEX_ENTRY = struct.Struct("<4B"), struct.Struct("<ii")
_NAME_MOST: Final = 256
_AUGMENTATION_MOST: Final = 16
_MAGIC: Final = b"\x7fELF\x02\x01"              # 64 bits, little-endian
_X86_64: Final = 62
_PT_LOAD, _PT_GNU_EH_FRAME = 1, 0x6474_E550
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_FUNCTIONS: Final = frozenset((2, 10))          # STT_FUNC, STT_GNU_IFUNC
_FRAME_SECTIONS: Final = frozenset((1, 0x7000_0001))       # SHT_PROGBITS, SHT_X86_64_UNWIND
_ENTRIES_MOST: Final = 100_000
_PCREL, _DATAREL, _OMIT = 0x10, 0x30, 0xFF
_FORMATS: Final = {0: "<Q", 2: "<H", 3: "<I", 4: "<Q", 0xA: "<h", 0xB: "<i", 0xC: "<q"}
RETURN_ADDRESS: Final = 16                      # DWARF's number of it (System V ABI AMD64, figure 3.36)


class Row(NamedTuple):
    """How to find a frame's caller: CFA = register + offset; saved registers lie at CFA + their offset."""

    cfa_register: int
    cfa_offset: int
    saved: dict[int, int]


class File:
    """A file's octets, read when they are asked for: a mapping would be a signal to us when somebody cuts the file short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def read(self, at: int, octets: int) -> bytes:
        """As many as there are. Raises ValueError."""
        try:
            return os.pread(self._fd, octets, at)
        except (OSError, OverflowError):
            raise ValueError("not in the file") from None

    def unpack(self, layout: struct.Struct, at: int) -> tuple:
        """Raises ValueError when it is cut off."""
        octets = self.read(at, layout.size)
        if len(octets) < layout.size:
            raise ValueError("cut off")
        return layout.unpack(octets)


class Elf:
    """One file. Addresses are the file's own."""

    def __init__(self, file: File) -> None:
        """Raises ValueError for what is no program of this machine."""
        self._file = file
        if file.read(0, 6) != _MAGIC:
            raise ValueError("not an ELF file of 64 bits")
        (_, machine, _, _, segments_at, sections_at, _, _, segment_size, segments, section_size, sections,
         self._names_index) = self._file.unpack(_HEADER, 0)
        if machine != _X86_64 or segment_size != _SEGMENT.size:
            raise ValueError("not for x86-64")
        self._loads: list[tuple[int, int, int]] = []            # address, octets in the file, offset
        self._frames_at = 0
        for index in range(segments):
            kind, _, offset, address, _, octets_there, _, _ = self._file.unpack(_SEGMENT, segments_at + index * _SEGMENT.size)
            if kind == _PT_LOAD:
                self._loads.append((address, octets_there, offset))
            elif kind == _PT_GNU_EH_FRAME:
                self._frames_at = address
        self._sections = []
        if section_size == _SECTION.size:
            with contextlib.suppress(ValueError):               # cut off, as some packers do
                self._sections = [self._file.unpack(_SECTION, sections_at + index * _SECTION.size) for index in range(sections)]

    @classmethod
    def open(cls, path: Path, inode: int) -> Self:
        """The file of a mapping. Raises OSError, ValueError; also when another file has its name now."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= _FILE_MOST or found.st_ino != inode:
                raise ValueError("not the file that is mapped")
        except BaseException:
            os.close(fd)
            raise
        return cls(File(fd))

    def address_of(self, offset: int) -> int:
        """The address that an offset of the file is loaded at. Raises ValueError."""
        for address, octets, at in self._loads:
            if at <= offset < at + octets:
                return address + offset - at
        raise ValueError("not loaded")

    def names(self, addresses: Iterable[int]) -> dict[int, tuple[str, int]]:
        """For each address the function around it and how far inside it is, where there is one."""
        wanted = sorted(set(addresses))
        found: dict[int, tuple[str, int]] = {}
        left = SYMBOLS_MOST
        for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
            for section in self._sections:
                if section[1] == kind and section[6] < len(self._sections) and left > 0 and len(found) < len(wanted):
                    left -= self._scan(section, wanted, found, left)
        return found

    def _scan(self, section: tuple, wanted: list[int], found: dict[int, tuple[str, int]], most: int) -> int:
        """Look through a table of symbols, at most so many; how many there were."""
        texts_at = self._sections[section[6]][4]
        table = self._file.read(section[4], min(section[5], most * _SYMBOL.size))
        count = len(table) // _SYMBOL.size
        for name, info, _, _, address, size in _SYMBOL.iter_unpack(table[:count * _SYMBOL.size]):
            if info & 0xF in _FUNCTIONS and size:
                for one in wanted[bisect.bisect_left(wanted, address):bisect.bisect_left(wanted, address + size)]:
                    if one not in found:
                        found[one] = self._text(texts_at + name), one - address
        return count

    def _text(self, at: int) -> str:
        return self._file.read(at, _NAME_MOST).partition(b"\0")[0].decode(errors="replace")

    def row(self, address: int) -> Row | None:
        """How to leave the function around an address; None: the file does not say. Raises ValueError."""
        if not self._frames_at:
            return self._search(address)
        at = self._offset(self._frames_at)
        version, pointer, count_kind, table_kind = self._file.unpack(_INDEX, at)
        if version != 1 or table_kind != _DATAREL | 0xB:
            return None
        reader = _Reader(self._file, at + 4, self._frames_at + 4)
        reader.pointer(pointer)
        count = reader.pointer(count_kind)
        low, high, table = 0, count, reader.at
        while high - low > 1:
            middle = (low + high) // 2
            if self._file.unpack(_INDEX_ENTRY, table + 8 * middle)[0] + self._frames_at <= address:
                low = middle
            else:
                high = middle
        start, entry = self._file.unpack(_INDEX_ENTRY, table + 8 * low)
        if count == 0 or start + self._frames_at > address:
            return None
        return self._entry(entry + self._frames_at, address)

    def _search(self, address: int) -> Row | None:
        """As `row` in a file without an index, as static programs are: entry by entry."""
        section = next((one for one in self._sections
                        if one[1] in _FRAME_SECTIONS and self._section_name(one) == ".eh_frame"), None)
        if section is None:
            return None
        encodings: dict[int, int] = {}
        reader = _Reader(self._file, section[4], section[3])
        end = section[4] + section[5]
        for _ in range(_ENTRIES_MOST):
            if reader.at + 8 > end or not (length := reader.take("<I")):
                return None
            after, entry, common_at = reader.at + length, reader.address - 4, reader.at
            if back := reader.take("<I"):
                if common_at - back not in encodings:
                    encodings[common_at - back] = _Common(self._file, common_at - back).encoding
                encoding = encodings[common_at - back]
                start = reader.pointer(encoding)
                if start <= address < start + reader.pointer(encoding & 0xF):
                    return self._entry(entry, address)
            reader.at = after
        return None

    def _section_name(self, section: tuple) -> str:
        names = self._sections[self._names_index] if self._names_index < len(self._sections) else section
        return self._text(names[4] + section[0])

    def _entry(self, entry: int, address: int) -> Row | None:
        """The row of a frame description entry (DWARF 5 6.4.1, as .eh_frame has it)."""
        reader = _Reader(self._file, self._offset(entry), entry)
        length = reader.take("<I")
        end = reader.at + length
        common_at = reader.address
        common = _Common(self._file, self._offset(common_at - reader.take("<I")))
        start = reader.pointer(common.encoding)
        if not start <= address < start + reader.pointer(common.encoding & 0xF):
            return None
        if common.augmented:
            reader.skip(reader.unsigned())
        machine = _Machine(common)
        machine.run(common.instructions, None)
        machine.initial = dict(machine.saved)
        machine.location = start
        reader.limit = end
        machine.run(reader, address)
        return machine.row()

    def _offset(self, address: int) -> int:
        for start, octets, at in self._loads:
            if start <= address < start + octets:
                return at + address - start
        raise ValueError("not in the file")


class _Reader:
    """Reads on from an offset of a file, which is at `address`, as far as `limit`."""

    def __init__(self, file: File, at: int, address: int) -> None:
        self._file = file
        self.at = at
        self._shift = address - at
        self.limit = sys.maxsize

    @property
    def address(self) -> int:
        return self.at + self._shift

    def more(self) -> bool:
        return self.at < self.limit

    def take(self, layout: str) -> int:
        one = struct.Struct(layout)
        value, = self._file.unpack(one, self.at)
        self.at += one.size
        return value

    def skip(self, octets: int) -> None:
        self.at += octets

    def unsigned(self) -> int:
        """LEB128."""
        value = shift = 0
        while shift < 70:
            octet = self.take("<B")
            value |= (octet & 0x7F) << shift
            shift += 7
            if not octet & 0x80:
                return value
        raise ValueError("a number without end")

    def signed(self) -> int:
        start = self.at
        value = self.unsigned()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> bits - 1 else value

    def pointer(self, kind: int) -> int:
        """Encoded as the exception tables do (LSB Core 10.5.1). Raises ValueError for what they do not use here."""
        if kind == _OMIT:
            return 0
        here = self.address
        if kind & 0xF == 1:
            value = self.unsigned()
        elif kind & 0xF in _FORMATS:
            value = self.take(_FORMATS[kind & 0xF])
        else:
            raise ValueError("a pointer of another kind")
        if kind & 0x70 == _PCREL:
            value += here
        elif kind & 0x70:
            raise ValueError("a pointer relative to something else")
        return value & 0xFFFF_FFFF_FFFF_FFFF


class _Common:
    """A common information entry: what several frame descriptions share."""

    def __init__(self, file: File, at: int) -> None:
        reader = _Reader(file, at, 0)
        length = reader.take("<I")
        end = reader.at + length
        if reader.take("<I") != 0:
            raise ValueError("no common information entry")
        reader.skip(1)                              # version
        octets = file.read(reader.at, _AUGMENTATION_MOST).partition(b"\0")[0]
        text = octets.decode("ascii", "replace")
        reader.at += len(octets) + 1
        self.code_unit, self.data_unit = reader.unsigned(), reader.signed()
        self.return_register = reader.unsigned()
        self.encoding = 0
        self.augmented = text.startswith("z")
        if self.augmented:
            size = reader.unsigned()
            after = reader.at + size
            for letter in text[1:]:
                if letter == "R":
                    self.encoding = reader.take("<B")
                elif letter == "P":
                    kind = reader.take("<B")
                    reader.skip(struct.calcsize(_FORMATS.get(kind & 0xF, "<Q")))
                elif letter == "L":
                    reader.skip(1)
                elif letter != "S":
                    break
            reader.at = after
        elif text:
            raise ValueError("an augmentation of another kind")
        reader.limit = end
        self.instructions = reader


class _Machine:
    """Call frame instructions, carried out as far as an address (DWARF 5 6.4.2)."""

    def __init__(self, common: _Common) -> None:
        self._common = common
        self.location = 0
        self.saved: dict[int, int] = {}
        self.initial: dict[int, int] = {}
        self._register, self._offset = 7, 8
        self._unclear = False                       # the CFA is an expression
        self._kept: list[tuple[dict[int, int], int, int, bool]] = []

    def row(self) -> Row | None:
        if self._unclear or self._common.return_register not in self.saved:
            return None
        saved = {RETURN_ADDRESS if key == self._common.return_register else key: at for key, at in self.saved.items()}
        return Row(self._register, self._offset, saved)

    def run(self, reader: _Reader, until: int | None) -> None:
        for _ in range(_INSTRUCTIONS_MOST):
            if not reader.more():
                return
            octet = reader.take("<B")
            high, low = octet & 0xC0, octet & 0x3F
            if high == 0x40 or (high == 0 and low in (0x01, 0x02, 0x03, 0x04)):
                self._advance(reader, high, low)
                if until is not None and self.location > until:
                    return
            elif high == 0x80:
                self.saved[low] = reader.unsigned() * self._common.data_unit
            elif high == 0xC0:
                self._restore(low)
            else:
                self._other(reader, low)

    def _advance(self, reader: _Reader, high: int, low: int) -> None:
        if high:
            self.location += low * self._common.code_unit
        elif low == 0x01:
            self.location = reader.pointer(self._common.encoding)
        else:
            self.location += reader.take({2: "<B", 3: "<H", 4: "<I"}[low]) * self._common.code_unit

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self.saved[register] = self.initial[register]
        else:
            self.saved.pop(register, None)

    def _other(self, reader: _Reader, operation: int) -> None:
        unit = self._common.data_unit
        if operation == 0x05:                       # offset_extended
            register = reader.unsigned()
            self.saved[register] = reader.unsigned() * unit
        elif operation == 0x11:                     # offset_extended_sf
            register = reader.unsigned()
            self.saved[register] = reader.signed() * unit
        elif operation == 0x06:                     # restore_extended
            self._restore(reader.unsigned())
        elif operation in (0x07, 0x08):             # undefined, same_value
            self.saved.pop(reader.unsigned(), None)
        elif operation == 0x0A:                     # remember_state
            self._kept.append((dict(self.saved), self._register, self._offset, self._unclear))
        elif operation == 0x0B and self._kept:      # restore_state
            self.saved, self._register, self._offset, self._unclear = self._kept.pop()
        elif operation in (0x0C, 0x12):             # def_cfa, def_cfa_sf
            self._register, self._unclear = reader.unsigned(), False
            self._offset = reader.unsigned() if operation == 0x0C else reader.signed() * unit
        elif operation == 0x0D:                     # def_cfa_register
            self._register = reader.unsigned()
        elif operation in (0x0E, 0x13):             # def_cfa_offset, def_cfa_offset_sf
            self._offset = reader.unsigned() if operation == 0x0E else reader.signed() * unit
        elif operation == 0x0F:                     # def_cfa_expression
            reader.skip(reader.unsigned())
            self._unclear = True
        elif operation in (0x10, 0x16):             # expression, val_expression
            self.saved.pop(reader.unsigned(), None)
            reader.skip(reader.unsigned())
        elif operation in (0x09, 0x14, 0x15):       # register, val_offset, val_offset_sf: not the callee-saved in memory
            self.saved.pop(reader.unsigned(), None)
            reader.unsigned()
        elif operation == 0x2E:                     # GNU_args_size
            reader.unsigned()
        elif operation != 0x00:
            raise ValueError(f"call frame instruction {operation:#x}")
