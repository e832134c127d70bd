"""Frames onto a tape: chosen by direction, end and filter, and written as pcapng blocks into a bounded ring.

A frame for which there is no room is lost to the capture, counted, and told with the next one that is kept.
"""

import cython
from cython.cimports.libc.errno import EAGAIN, EINTR
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.frame import RxFrame, TxFrame
from cython.cimports.netstack.bpf import bpf_run
from cython.cimports.netstack.verdict import DELIVERED, DEVICE_REFUSED, ETHERNET_NOT_FOR_US, FORWARDED

from netstack.verdict import LABELS
from rustosd.capture import pcapng

if not cython.compiled:
    raise ImportError("rustosd.capture.tape must be compiled: python setup.py build_ext --inplace")

PACKET = cython.declare(uint32_t, pcapng.PACKET)
FLAGS_OPTION = cython.declare(uint16_t, pcapng.EPB_FLAGS)
LOST_OPTION = cython.declare(uint16_t, pcapng.EPB_DROPPED)
PADDING = cython.declare(uint32_t, 0)

assert VERDICTS <= 256 and cython.sizeof(PacketHead) == 28


@cython.final
@cython.cclass
class Tape:
    """The frames of one capture. `put` and `drain` are the ends; `received` and `sent` are shown every burst."""

    def __cinit__(self, octets: uint64_t, program: BpfProgram = None, snap_octets: uint32_t = 262144, incoming: bool = True,
                  outgoing: bool = True, reasons: object = None, limit: uint64_t = 0xFFFFFFFFFFFFFFFF):
        """`octets`: of the ring, a power of two; `reasons`: verdict labels whose frames are wanted, None for all frames;
        `limit`: how many frames are kept. Nothing is captured before `follow`."""
        v: cython.uint
        option: bytes
        if octets & (octets - 1) or octets < 4096:
            raise ValueError(f"a ring of {octets} octets: a power of two from 4096 on is possible")
        self.ring = cython.cast(cython.pointer[uint8_t], malloc(octets))
        if self.ring == cython.NULL:
            raise MemoryError(f"no memory for a capture's {octets} octets")
        self.size = octets
        self.program = program
        self.snap_octets = snap_octets
        self.directions = (IN if incoming else 0) | (OUT if outgoing else 0)
        self.left = limit
        for v in range(VERDICTS):
            self.wanted[v] = reasons is None or LABELS[v] in reasons
            self.comment_length[v] = 0
            if v > FORWARDED:
                option = pcapng.comment(LABELS[v])
                assert len(option) <= COMMENT_MOST
                memcpy(self.comments[v], cython.cast(cython.p_char, option), len(option))
                self.comment_length[v] = len(option)
        memset(self.tallied, 0, cython.sizeof(self.tallied))
        for v in range(MAX_INTERFACES):
            self.tallied[v].number = v
        self.follow({})

    def __dealloc__(self):
        free(self.ring)

    def follow(self, numbers: dict) -> None:
        """Capture these interfaces from now on: their index in the stack -> their number in the capture."""
        for i in range(MAX_INTERFACES):
            number = numbers.get(i, -1)
            if not -1 <= number < MAX_INTERFACES:
                raise ValueError(f"a capture has no interface {number}")
            self.numbers[cython.cast(cython.int, i)] = number

    def tally(self, number: cython.int) -> object:
        """What the capture of an interface comes to, by its number in it."""
        if not 0 <= number < MAX_INTERFACES:
            raise ValueError(f"a capture has no interface {number}")
        t: cython.pointer[Tallied] = cython.address(self.tallied[number])
        return pcapng.Tally(t.received, t.accepted, t.lost)

    @property
    def used(self) -> int:
        """Octets that wait for the reader."""
        return self.head - self.tail

    def put(self, octets: bytes) -> bool:
        """Write whole blocks; False: there is no room."""
        if self.size - (self.head - self.tail) < cython.cast(uint64_t, len(octets)):
            return False
        self.write(cython.cast(cython.p_char, octets), len(octets))
        return True

    def received(self, index: cython.int, time_ns: uint64_t, burst: RxBurst) -> None:
        """Frames that came by an interface, and how they ended, which the burst must have been told to keep."""
        t: cython.pointer[Tallied] = self.tallied_at(index)
        f: cython.pointer[RxFrame]
        frame: Pieces
        k: cython.int
        if t == cython.NULL or burst.ends == cython.NULL:
            return
        memset(cython.address(frame), 0, cython.sizeof(Pieces))
        with cython.nogil:
            for k in range(burst.count):
                f = cython.address(burst.frames[k])
                frame.part[0] = f.data
                frame.part_length[0] = frame.length = f.length
                self.look(t, cython.address(frame), time_ns, IN, burst.ends[k])

    def sent(self, index: cython.int, time_ns: uint64_t, burst: TxBurst, count: cython.int) -> None:
        """The first `count` frames of a burst that a device has taken, or refused; before the stack's next verb."""
        t: cython.pointer[Tallied] = self.tallied_at(index)
        f: cython.pointer[TxFrame]
        frame: Pieces
        k: cython.int
        if t == cython.NULL:
            return
        with cython.nogil:
            for k in range(count):
                f = cython.address(burst.frames[k])
                frame.part[0] = f.head
                frame.part[1] = f.part[0]
                frame.part[2] = f.part[1]
                frame.part_length[0] = f.head_length
                frame.part_length[1] = f.part_length[0]
                frame.part_length[2] = f.part_length[1]
                frame.length = f.length
                self.look(t, cython.address(frame), time_ns, OUT,
                          DEVICE_REFUSED if burst.refused >> k & 1 else DELIVERED)

    def drain(self, fd: cython.int) -> cython.int:
        """Hand to a socket what waits, as much as it takes: a `Drained`."""
        at: uint64_t
        n: cython.Py_ssize_t
        while self.head != self.tail:
            at = self.tail & (self.size - 1)
            n = send(fd, self.ring + at, min(self.head - self.tail, self.size - at), MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0 and c_errno == EINTR:
                continue
            if n < 0:
                return BLOCKED if c_errno == EAGAIN else GONE
            self.tail += n
        return EMPTY

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def tallied_at(self, index: cython.int) -> cython.pointer[Tallied]:
        """Of an interface by its index in the stack; NULL: it is not captured."""
        if not 0 <= index < MAX_INTERFACES or self.numbers[index] < 0:
            return cython.NULL
        return cython.address(self.tallied[self.numbers[index]])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, octets: cython.pointer[cython.const[cython.void]], count: uint64_t) -> cython.void:
        """Append octets, for which there is room."""
        at: uint64_t = self.head & (self.size - 1)
        first: uint64_t = min(count, self.size - at)
        if count == 0:
            return
        memcpy(self.ring + at, octets, first)
        memcpy(self.ring, cython.cast(cython.pointer[cython.const[uint8_t]], octets) + first, count - first)
        self.head += count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, t: cython.pointer[Tallied], frame: cython.pointer[cython.const[Pieces]], time_ns: uint64_t,
             direction: uint32_t, verdict: cython.int) -> cython.void:
        """One frame: keep it if it is wanted and there is room."""
        captured: uint32_t = min(frame.length, self.snap_octets)
        if not (self.directions & direction and self.wanted[verdict] and self.left):
            return
        t.received += 1
        if self.program is not None:
            captured = min(captured, bpf_run(self.program.instructions, frame))
            if captured == 0:
                return
        t.accepted += 1
        self.keep(t, frame, captured, time_ns, direction | (_reception(frame, verdict) << 2 if direction == IN else 0), verdict)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def keep(self, t: cython.pointer[Tallied], frame: cython.pointer[cython.const[Pieces]], captured: uint32_t,
             time_ns: uint64_t, flags: uint32_t, verdict: cython.int) -> cython.void:
        """Write one Enhanced Packet Block, or count it as lost."""
        head: PacketHead
        padding: uint32_t = (0 - captured) & 3
        left: uint32_t = captured
        n: uint32_t
        i: cython.int
        head.kind = PACKET
        head.block_length = (cython.cast(uint32_t, cython.sizeof(PacketHead)) + captured + padding + 8
                             + (12 if t.untold else 0) + self.comment_length[verdict] + 8)
        if self.size - (self.head - self.tail) < head.block_length:
            t.lost += 1
            t.untold += 1
            return
        head.interface = t.number
        head.time_high = cython.cast(uint32_t, time_ns >> 32)
        head.time_low = cython.cast(uint32_t, time_ns)
        head.captured = captured
        head.length = frame.length
        self.write(cython.address(head), cython.sizeof(PacketHead))
        for i in range(3):
            n = min(left, frame.part_length[i])
            self.write(frame.part[i], n)
            left -= n
        self.write(cython.address(PADDING), padding)
        _write_option(self, FLAGS_OPTION, cython.address(flags), 4)
        if t.untold:
            _write_option(self, LOST_OPTION, cython.address(t.untold), 8)
            t.untold = 0
        self.write(self.comments[verdict], self.comment_length[verdict])
        self.write(cython.address(PADDING), 4)      # opt_endofopt
        self.write(cython.address(head.block_length), 4)
        self.left -= 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write_option(tape: Tape, code: uint16_t, value: cython.pointer[cython.const[cython.void]], n: uint16_t) -> cython.void:
    tape.write(cython.address(code), 2)
    tape.write(cython.address(n), 2)
    tape.write(value, n)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reception(frame: cython.pointer[cython.const[Pieces]], verdict: cython.int) -> uint32_t:
    """The reception type of epb_flags: 1 unicast, 2 multicast, 3 broadcast, 4 promiscuous; 0: not known."""
    i: cython.int
    if frame.part_length[0] < 6:
        return 0
    if not frame.part[0][0] & 1:
        return 4 if verdict == ETHERNET_NOT_FOR_US else 1
    for i in range(6):
        if frame.part[0][i] != 0xFF:
            return 2
    return 3
