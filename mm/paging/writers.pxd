# Whether who reads a page from swap writes it at once. A struct, part of a space; `Writers` shows it to Python.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SAMPLES = 16

cdef struct WriteGuess:
    uint64_t pages[SAMPLES]     # the latest that came for a reader, and are protected: 0 when written since
    uint32_t at                 # where the next one goes
    uint32_t share              # how many of those before them were written while they were here, of 256
    uint32_t unsampled          # pages decided on while most are written: one in SAMPLES comes protected

cdef bint guess_written(WriteGuess *guess) noexcept nogil
cdef void guess_sample(WriteGuess *guess, uint64_t page) noexcept nogil
cdef void guess_seen(WriteGuess *guess, uint64_t page) noexcept nogil

cdef class Writers:
    cdef WriteGuess guess
