from collections.abc import Iterable
from enum import IntFlag

from drivers.device import DmaMemory

REQUESTS: int
SEGMENTS: int

class Operation(IntFlag):
    READ = 0
    WRITE = 1
    FLUSH = 2
    TRIM = 3
    WRITE_ZEROES = 4
    EXTENTS = 5

class Flag(IntFlag):
    FUA = 1
    KEEP_ALLOCATED = 2
    FAST = 4
    BARRIER = 8

class ExtentFlag(IntFlag):
    HOLE = 1
    ZERO = 2

class RequestBurst:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def count(self) -> int: ...
    def append(
        self, operation: int, tag: int, lba: int = 0, sectors: int = 0,
        segments: Iterable[tuple[DmaMemory, int, int]] = (), *, fua: bool = False, flags: int = 0,
    ) -> bool: ...
    def tags(self) -> list[int]: ...
    def items(self) -> list[tuple[int, int, int, int, int, list[tuple[int, int]]]]: ...
    def take(self, taken: int) -> None: ...
    def clear(self) -> None: ...

class CompletionBurst:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def count(self) -> int: ...
    def items(self) -> list[tuple[int, int]]: ...
    def append(self, tag: int, error: int = 0) -> bool: ...
    def clear(self) -> None: ...
