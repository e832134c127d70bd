"""Who called whom in a stopped thread: by the unwinding tables of the files that are mapped, else by frame pointers."""

import contextlib
import struct
from pathlib import Path
from typing import Final, NamedTuple

from rustosd.process.elf import RETURN_ADDRESS, Elf, Row
from rustosd.process.notify import read_memory
from rustosd.process.ptrace import Registers

FRAMES_MOST: Final = 64
FILES_MOST: Final = 32
_RBP, _RSP = 6, 7
_NUMBERS: Final = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
"""Registers in DWARF's order."""


class Mapping(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    executable: bool
    offset: int
    inode: int
    path: str


class Frame(NamedTuple):
    """One call: where it goes on, in which function and file."""

    address: int
    function: str               # empty: unknown
    offset: int                 # in the function; in the file where it is unknown
    file: str

    def __str__(self) -> str:
        place = f"{self.function}+{self.offset:#x}" if self.function else f"?+{self.offset:#x}"
        return f"{self.address:#018x} {place} ({self.file or 'no file'})"


def parse_maps(text: str) -> list[Mapping]:
    """The lines of /proc/PID/maps; what is none is left out."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, IndexError):
            fields = line.split(None, 5)
            start, _, end = fields[0].partition("-")
            found.append(Mapping(int(start, 16), int(end, 16), fields[1][2] == "x", int(fields[2], 16), int(fields[4]),
                                 fields[5] if len(fields) > 5 else ""))
    return found


class Unwinder:
    """The stack of one thread that stands still."""

    def __init__(self, tid: int, registers: Registers, maps: str) -> None:
        self._tid = tid
        self._maps = parse_maps(maps)
        self._files: dict[str, Elf | None] = {}
        self._values = {number: getattr(registers, name) for number, name in enumerate(_NUMBERS)}
        self._at = registers.rip

    def frames(self) -> list[Frame]:
        """The innermost first."""
        addresses = list(self._walk())
        return self._named(addresses)

    def _walk(self) -> list[int]:
        found = [self._at]
        caller = None if self._mapping(self._at) else self._word(self._values[_RSP])
        if caller is not None:              # it has called what is no code: whoever did lies on the stack
            self._values[_RSP] += 8
            self._at = caller
            found.append(caller)
        while len(found) < FRAMES_MOST and self._mapping(self._at) is not None:
            before = self._values[_RSP]
            # A return address may lie behind its function's end, when the call was its last instruction.
            row = self._row(self._at - (len(found) > 1))
            caller = self._by_table(row) if row is not None else self._by_pointer()
            if not caller or self._values[_RSP] <= before:
                break
            self._at = caller
            found.append(caller)
        return found

    def _by_table(self, row: Row) -> int | None:
        base = self._values.get(row.cfa_register)
        if base is None:
            return None
        frame = base + row.cfa_offset
        caller = self._word(frame + row.saved[RETURN_ADDRESS])
        for number, at in row.saved.items():
            if number != RETURN_ADDRESS and (value := self._word(frame + at)) is not None:
                self._values[number] = value
        self._values[_RSP] = frame
        return caller

    def _by_pointer(self) -> int | None:
        pointer = self._values[_RBP]
        if pointer < self._values[_RSP]:
            return None
        caller, above = self._word(pointer + 8), self._word(pointer)
        self._values[_RSP] = pointer + 16
        self._values[_RBP] = above or 0
        return caller if caller and self._mapping(caller) else None

    def _word(self, address: int) -> int | None:
        try:
            return struct.unpack("<Q", read_memory(self._tid, address & 0xFFFF_FFFF_FFFF_FFFF, 8))[0]
        except OSError:
            return None

    def _mapping(self, address: int) -> Mapping | None:
        return next((one for one in self._maps if one.executable and one.start <= address < one.end), None)

    def _file(self, mapping: Mapping) -> Elf | None:
        if not mapping.path.startswith("/"):
            return None
        if mapping.path not in self._files:
            self._files[mapping.path] = None
            if len(self._files) <= FILES_MOST:
                name = mapping.path.replace("\\012", "\n")      # as the kernel writes it there
                with contextlib.suppress(OSError, ValueError):
                    self._files[mapping.path] = Elf.open(Path(f"/proc/{self._tid}/root{name}"), mapping.inode)
        return self._files[mapping.path]

    def _row(self, address: int) -> Row | None:
        mapping = self._mapping(address)
        file = self._file(mapping) if mapping else None
        if mapping is None or file is None:
            return None
        with contextlib.suppress(ValueError, struct.error, IndexError):
            return file.row(file.address_of(address - mapping.start + mapping.offset))
        return None

    def _named(self, addresses: list[int]) -> list[Frame]:
        """With the functions' names, one look into each file."""
        places: list[tuple[Mapping | None, int]] = []
        wanted: dict[str, set[int]] = {}
        for index, address in enumerate(addresses):
            mapping = self._mapping(address)
            own = address - (index > 0)
            if mapping is not None:
                own += mapping.offset - mapping.start
                if (file := self._file(mapping)) is not None:
                    with contextlib.suppress(ValueError):
                        own = file.address_of(own)
                        wanted.setdefault(mapping.path, set()).add(own)
            places.append((mapping, own))
        names: dict[str, dict[int, tuple[str, int]]] = {}
        for path, ones in wanted.items():
            with contextlib.suppress(ValueError, struct.error):
                names[path] = self._files[path].names(ones)
        found = []
        for index, (address, (mapping, own)) in enumerate(zip(addresses, places, strict=True)):
            path = mapping.path if mapping else ""
            function, offset = names.get(path, {}).get(own, ("", own))
            found.append(Frame(address, function, offset + (index > 0), path))
        return found
