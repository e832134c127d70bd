"""Classic BPF: a checker that lets only programs through that must end and stay within their frame, and what runs them."""

import struct

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memset
from cython.cimports.mm.hw import get16, get32

if not cython.compiled:
    raise ImportError("netstack.bpf must be compiled: python setup.py build_ext --inplace")

INSTRUCTION = struct.Struct("<HBBI")
"""An instruction in the octets of a program: code, jump_true, jump_false, k."""
_JUMPS = frozenset((JEQ_K, JEQ_X, JGT_K, JGT_X, JGE_K, JGE_X, JSET_K, JSET_X))
_MEMORY = frozenset((LD_MEM, LDX_MEM, ST, STX))
_CODES = _JUMPS | _MEMORY | frozenset((
    RET_K, RET_A, LD_W_ABS, LD_H_ABS, LD_B_ABS, LD_W_IND, LD_H_IND, LD_B_IND, LD_LEN, LD_IMM, LDX_IMM, LDX_LEN, LDX_MSH, JA,
    ADD_K, ADD_X, SUB_K, SUB_X, MUL_K, MUL_X, DIV_K, DIV_X, MOD_K, MOD_X, OR_K, OR_X, AND_K, AND_X, XOR_K, XOR_X, LSH_K,
    LSH_X, RSH_K, RSH_X, NEG, TAX, TXA))


@cython.final
@cython.cclass
class BpfProgram:
    """A program that was checked: it ends after at most as many steps as it has instructions."""

    def __cinit__(self, octets: bytes):
        """`octets`: `INSTRUCTION` after `INSTRUCTION`. Raises ValueError that names the first one that is wrong."""
        rows = _checked(octets)
        self.instructions = cython.cast(cython.pointer[Instruction], malloc(len(rows) * cython.sizeof(Instruction)))
        if self.instructions == cython.NULL:
            raise MemoryError
        self.length = len(rows)
        for i, (code, jump_true, jump_false, k) in enumerate(rows):
            self.instructions[cython.cast(cython.int, i)] = Instruction(code, jump_true, jump_false, k)

    def __dealloc__(self):
        free(self.instructions)

    def run(self, frame: bytes, part1: bytes = b"", part2: bytes = b"") -> int:
        """What the program says to a frame, which may be in three parts: how many octets of it are wanted, 0 for none."""
        pieces: Pieces
        pieces.part[0] = frame
        pieces.part[1] = part1
        pieces.part[2] = part2
        pieces.part_length[0] = len(frame)
        pieces.part_length[1] = len(part1)
        pieces.part_length[2] = len(part2)
        pieces.length = len(frame) + len(part1) + len(part2)
        return bpf_run(self.instructions, cython.address(pieces))


def _checked(octets: bytes) -> list:
    """The instructions as tuples, when all is well with them. Raises ValueError."""
    count = len(octets) // INSTRUCTION.size
    if len(octets) % INSTRUCTION.size or not 1 <= count <= BPF_MOST:
        raise ValueError(f"a filter program is 1 to {BPF_MOST} instructions of {INSTRUCTION.size} octets, "
                         f"not {len(octets)} octets")
    rows = list(INSTRUCTION.iter_unpack(octets))
    for i, (code, jump_true, jump_false, k) in enumerate(rows):
        if code not in _CODES:
            raise ValueError(f"filter instruction {i}: there is no code {code:#x}")
        furthest = k if code == JA else max(jump_true, jump_false) if code in _JUMPS else 0
        if code not in (RET_K, RET_A) and i + 1 + furthest >= count:
            raise ValueError(f"filter instruction {i} leads beyond the end of the program")
        if code in _MEMORY and k >= BPF_CELLS:
            raise ValueError(f"filter instruction {i}: there is no memory cell {k}")
        if code in (DIV_K, MOD_K) and k == 0:
            raise ValueError(f"filter instruction {i} divides by zero")
        if code in (LSH_K, RSH_K) and k >= 32:
            raise ValueError(f"filter instruction {i} shifts by {k} bits, of 32")
    return rows


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gather(frame: cython.pointer[cython.const[Pieces]], at: uint64_t, n: uint32_t) -> uint32_t:
    """n octets in network order, from wherever they lie; they are within the frame."""
    value: uint32_t = 0
    i: cython.int = 0
    while n:
        while at >= frame.part_length[i]:
            at -= frame.part_length[i]
            i += 1
        value = (value << 8) | frame.part[i][at]
        at += 1
        n -= 1
    return value


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _load(frame: cython.pointer[cython.const[Pieces]], at: uint64_t, n: uint32_t) -> uint32_t:
    """As `_gather`, at once where it lies in the first part."""
    if at + n > frame.part_length[0]:
        return _gather(frame, at, n)
    if n == 4:
        return get32(frame.part[0] + at)
    return get16(frame.part[0] + at) if n == 2 else frame.part[0][at]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bpf_run(program: cython.pointer[cython.const[Instruction]], frame: cython.pointer[cython.const[Pieces]]) -> uint32_t:
    i: cython.pointer[cython.const[Instruction]] = program
    a: uint32_t = 0
    x: uint32_t = 0
    k: uint32_t
    at: uint64_t
    code: cython.int
    memory: uint32_t[16]
    memset(memory, 0, cython.sizeof(memory))
    while True:
        code = i.code
        k = i.k
        if code == RET_K:
            return k
        elif code == RET_A:
            return a
        elif code == LD_W_ABS or code == LD_W_IND:
            at = cython.cast(uint64_t, k) + (x if code == LD_W_IND else 0)
            if at + 4 > frame.length:
                return 0
            a = _load(frame, at, 4)
        elif code == LD_H_ABS or code == LD_H_IND:
            at = cython.cast(uint64_t, k) + (x if code == LD_H_IND else 0)
            if at + 2 > frame.length:
                return 0
            a = _load(frame, at, 2)
        elif code == LD_B_ABS or code == LD_B_IND:
            at = cython.cast(uint64_t, k) + (x if code == LD_B_IND else 0)
            if at >= frame.length:
                return 0
            a = _load(frame, at, 1)
        elif code == LDX_MSH:       # the length of an IPv4 header, from its first octet
            if k >= frame.length:
                return 0
            x = (_load(frame, k, 1) & 0x0F) << 2
        elif code == LD_LEN:
            a = frame.length
        elif code == LDX_LEN:
            x = frame.length
        elif code == LD_IMM:
            a = k
        elif code == LDX_IMM:
            x = k
        elif code == LD_MEM:
            a = memory[k]
        elif code == LDX_MEM:
            x = memory[k]
        elif code == ST:
            memory[k] = a
        elif code == STX:
            memory[k] = x
        elif code == JA:
            i += k
        elif code == JEQ_K:
            i += i.jump_true if a == k else i.jump_false
        elif code == JGT_K:
            i += i.jump_true if a > k else i.jump_false
        elif code == JGE_K:
            i += i.jump_true if a >= k else i.jump_false
        elif code == JSET_K:
            i += i.jump_true if a & k else i.jump_false
        elif code == JEQ_X:
            i += i.jump_true if a == x else i.jump_false
        elif code == JGT_X:
            i += i.jump_true if a > x else i.jump_false
        elif code == JGE_X:
            i += i.jump_true if a >= x else i.jump_false
        elif code == JSET_X:
            i += i.jump_true if a & x else i.jump_false
        elif code == ADD_K:
            a += k
        elif code == ADD_X:
            a += x
        elif code == SUB_K:
            a -= k
        elif code == SUB_X:
            a -= x
        elif code == MUL_K:
            a *= k
        elif code == MUL_X:
            a *= x
        elif code == DIV_K:
            a = a // k
        elif code == MOD_K:
            a = a % k
        elif code == DIV_X or code == MOD_X:
            if x == 0:
                return 0
            a = a // x if code == DIV_X else a % x
        elif code == AND_K:
            a &= k
        elif code == AND_X:
            a &= x
        elif code == OR_K:
            a |= k
        elif code == OR_X:
            a |= x
        elif code == XOR_K:
            a ^= k
        elif code == XOR_X:
            a ^= x
        elif code == LSH_K:
            a <<= k
        elif code == RSH_K:
            a >>= k
        elif code == LSH_X:
            a = a << x if x < 32 else 0
        elif code == RSH_X:
            a = a >> x if x < 32 else 0
        elif code == NEG:
            a = 0 - a
        elif code == TAX:
            x = a
        else:                       # TXA: the checker lets no other code through
            a = x
        i += 1
