"""Frames in bursts: what crosses between a device and the stack, once per burst."""

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy


@cython.final
@cython.cclass
class RxBurst:
    """Up to `BURST` received frames. The memory they point to is the driver's."""

    def __cinit__(self):
        self.count = 0
        self.copied = 0

    def __dealloc__(self):
        self.clear()

    @cython.ccall
    def append(self, frame: bytes, segment_size: cython.int = 0, flags: cython.int = 0) -> cython.bint:
        """Add a copy of a frame, which lives until `clear`; False when the burst is full.

        For tests, fuzzing and replay: drivers fill the C array themselves. The copy is a heap block of exactly the
        frame's length, so that AddressSanitizer sees who reads one octet too many, or reads on after `clear`.
        """
        if self.count == BURST or self.copied == BURST:
            return False
        copy: cython.pointer[uint8_t] = cython.cast(cython.pointer[uint8_t], malloc(max(len(frame), 1)))
        if copy == cython.NULL:
            raise MemoryError("no memory for a frame")
        memcpy(copy, PyBytes_AS_STRING(frame), len(frame))
        self.copies[self.copied] = copy
        self.copied += 1
        f: cython.pointer[RxFrame] = cython.address(self.frames[self.count])
        f.data = copy
        f.length = len(frame)
        f.segment_size = segment_size
        f.flags = flags
        self.count += 1
        return True

    @cython.ccall
    def clear(self) -> cython.void:
        """Empty the burst and free the copies behind it."""
        self.count = 0
        while self.copied:
            self.copied -= 1
            free(self.copies[self.copied])

    def keep_ends(self, on: bool) -> None:
        """From now on note how each frame ended, or stop it. Who looks at frames asks for it; nobody else pays."""
        self.ends = self._ends if on else cython.NULL

    def ends_kept(self) -> list:
        """How each frame ended, a number of the stack's; empty when that is not noted."""
        return [self.ends[i] for i in range(self.count)] if self.ends != cython.NULL else []

    def __len__(self):
        return self.count

    def frames_bytes(self) -> list:
        """A copy of each frame as bytes, super-segments whole."""
        return [PyBytes_FromStringAndSize(cython.cast(cython.pointer[cython.char], self.frames[i].data),
                                          self.frames[i].length) for i in range(self.count)]

    def segment_sizes(self) -> list:
        """The segment size of each frame; 0 for an ordinary one."""
        return [self.frames[i].segment_size for i in range(self.count)]

    def flags(self) -> list:
        """The flags of each frame: `Feature.RX_CHECKSUM` or 0."""
        return [self.frames[i].flags for i in range(self.count)]


@cython.final
@cython.cclass
class TxBurst:
    """Up to `capacity` frames to send, filled by the stack and emptied by a driver."""

    def __cinit__(self, capacity: cython.int = BURST):
        self.count = 0
        self.capacity = min(capacity, BURST)
        self._keep = []

    def append(self, head: bytes, part0: bytes = b"", part1: bytes = b"", *, segment_size: cython.int = 0,
               checksum_start: cython.int = 0, checksum_offset: cython.int = 0, l3_offset: cython.int = 14,
               family: cython.int = 0) -> bool:
        """Add a frame made of up to three bytes objects; False when the burst is full.

        For tests and replay: the stack fills the C array itself. Raises ValueError for a head above `HEAD_ROOM` octets.
        """
        if len(head) > HEAD_ROOM:
            raise ValueError(f"a head of {len(head)} octets; at most {HEAD_ROOM} fit")
        if self.count >= self.capacity:
            return False
        if self.count == 0:
            self._keep.clear()
        self._keep.append((part0, part1))
        f: cython.pointer[TxFrame] = cython.address(self.frames[self.count])
        memcpy(f.head, PyBytes_AS_STRING(head), len(head))
        f.head_length = len(head)
        f.part[0] = cython.cast(cython.pointer[uint8_t], PyBytes_AS_STRING(part0))
        f.part[1] = cython.cast(cython.pointer[uint8_t], PyBytes_AS_STRING(part1))
        f.part_length[0] = len(part0)
        f.part_length[1] = len(part1)
        f.length = len(head) + len(part0) + len(part1)
        f.segment_size = segment_size
        f.checksum_start = checksum_start
        f.checksum_offset = checksum_offset
        f.l3_offset = l3_offset
        f.family = family
        self.count += 1
        return True

    def limit(self, capacity: cython.int) -> None:
        """Set how many frames the device has room for, 0 to `BURST`."""
        self.capacity = max(0, min(capacity, BURST))

    def clear(self) -> None:
        """Forget the frames, as a driver does once it has taken them."""
        self.count = 0

    def refuse(self) -> cython.int:
        """Take none of the frames, as a device that is gone; how many there were."""
        refused: cython.int = self.count
        i: cython.int
        for i in range(refused):
            self.refused |= cython.cast(uint64_t, 1) << i
        self.count = 0
        return refused

    def forget_refused(self) -> None:
        """What `refused` says is known: begin anew."""
        self.refused = 0

    def __len__(self):
        return self.count

    def frames_bytes(self) -> list:
        """A copy of each frame as bytes, super-segments whole."""
        out: list = []
        i: cython.int
        for i in range(self.count):
            out.append(_flatten(cython.address(self.frames[i])))
        return out

    def segment_sizes(self) -> list:
        """The segment size of each frame; 0 for an ordinary one."""
        return [self.frames[i].segment_size for i in range(self.count)]

    def orders(self) -> list:
        """What the device is asked to do with each frame and told of it: (segment_size, checksum_start,
        checksum_offset, l3_offset, family)."""
        return [(self.frames[i].segment_size, self.frames[i].checksum_start, self.frames[i].checksum_offset,
                 self.frames[i].l3_offset, self.frames[i].family) for i in range(self.count)]


@cython.cfunc
def _flatten(f: cython.pointer[TxFrame]) -> bytes:
    out: bytes = PyBytes_FromStringAndSize(cython.NULL, f.length)
    to: cython.pointer[cython.char] = PyBytes_AS_STRING(out)
    memcpy(to, f.head, f.head_length)
    to += f.head_length
    if f.part_length[0]:
        memcpy(to, f.part[0], f.part_length[0])
    if f.part_length[1]:
        memcpy(to + f.part_length[0], f.part[1], f.part_length[1])
    return out
