import struct

BPF_MOST: int
BPF_CELLS: int
INSTRUCTION: struct.Struct

class BpfProgram:
    def __init__(self, octets: bytes) -> None: ...
    @property
    def length(self) -> int: ...
    def run(self, frame: bytes, part1: bytes = b"", part2: bytes = b"") -> int: ...
