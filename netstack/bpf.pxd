# Classic BPF, the packet filter of McCanne and Jacobson 1993: programs as libpcap compiles them, checked once, then run
# on each frame without a way to leave the frame or to go on for ever.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cpdef enum:
    BPF_MOST = 4096             # instructions, as Linux has it
    BPF_CELLS = 16              # of scratch memory

# What libpcap's own bpf_filter knows, and nothing else.
cdef enum Opcode:
    RET_K = 0x06
    RET_A = 0x16
    LD_W_ABS = 0x20
    LD_H_ABS = 0x28
    LD_B_ABS = 0x30
    LD_W_IND = 0x40
    LD_H_IND = 0x48
    LD_B_IND = 0x50
    LD_LEN = 0x80
    LD_IMM = 0x00
    LD_MEM = 0x60
    LDX_IMM = 0x01
    LDX_MEM = 0x61
    LDX_LEN = 0x81
    LDX_MSH = 0xB1
    ST = 0x02
    STX = 0x03
    JA = 0x05
    JEQ_K = 0x15
    JEQ_X = 0x1D
    JGT_K = 0x25
    JGT_X = 0x2D
    JGE_K = 0x35
    JGE_X = 0x3D
    JSET_K = 0x45
    JSET_X = 0x4D
    ADD_K = 0x04
    ADD_X = 0x0C
    SUB_K = 0x14
    SUB_X = 0x1C
    MUL_K = 0x24
    MUL_X = 0x2C
    DIV_K = 0x34
    DIV_X = 0x3C
    OR_K = 0x44
    OR_X = 0x4C
    AND_K = 0x54
    AND_X = 0x5C
    LSH_K = 0x64
    LSH_X = 0x6C
    RSH_K = 0x74
    RSH_X = 0x7C
    NEG = 0x84
    MOD_K = 0x94
    MOD_X = 0x9C
    XOR_K = 0xA4
    XOR_X = 0xAC
    TAX = 0x07
    TXA = 0x87

# struct sock_filter, bpf(4)
cdef struct Instruction:
    uint16_t code
    uint8_t jump_true           # instructions to skip when the condition holds ...
    uint8_t jump_false          # ... and when it does not
    uint32_t k

# A frame, which may lie in up to three places.
cdef struct Pieces:
    const uint8_t *part[3]
    uint32_t part_length[3]     # 0 for a part that is not used
    uint32_t length             # of all

# How much of the frame the program wants: 0 is nothing. The program must have been checked.
cdef uint32_t bpf_run(const Instruction *program, const Pieces *frame) noexcept nogil

cdef class BpfProgram:
    cdef Instruction *instructions
    cdef readonly int length
