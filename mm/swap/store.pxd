from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from mm.swap.device cimport PAGE, UNIT, Device
from mm.swap.pack cimport Packer
from mm.swap.runs cimport RunMap
from mm.swap.seal cimport SEAL, Sealer
from mm.swap.slots cimport SlotTable
from mm.swap.sys cimport pthread_mutex_t

cdef enum:
    BATCH = 128                 # pages sealed and written at once
    PAGE_UNITS = 8
    REGION = 512                # pages: what was given back in it is discarded together

cdef enum Kind:
    EMPTY                       # nothing was written
    SAME                        # one word all over, which is in `seal`
    PLAIN                       # a whole page
    PACKED                      # fewer octets
    BROKEN                      # it could not be written

# Where a slot's page is, and how to know that it is the one.
cdef struct Record:
    uint64_t number             # of its writing: no two pages have the same one
    uint32_t place              # on the device, in units
    uint16_t octets             # that are sealed
    uint8_t kind
    uint8_t units               # that it takes
    uint8_t seal[SEAL]

# What one thread at a time needs to write or read a batch.
cdef struct Scratch:
    Scratch *next
    uint8_t *data               # BATCH pages
    void *sealing
    void *packing
    Record draft[BATCH]

# Why `write_pages` or `read_pages` did not work, and with which slots.
cdef struct Failure:
    int error                   # an errno; ENOSPC: there is no room
    bint corrupt                # the device gave something else than was written
    uint32_t first, count

cdef struct Totals:
    uint64_t pages_written, octets_written, writes
    uint64_t pages_read, octets_read, reads
    uint64_t octets_discarded
    uint64_t corrupt, read_again, failed, full
    # As it is now:
    uint64_t same, packed, octets_stored

cdef class SwapStore:
    cdef readonly Device device
    cdef readonly SlotTable slots
    cdef readonly Sealer sealer
    cdef readonly Packer packer             # None: pages are written whole
    cdef RunMap space                       # units that are taken, with a packer; else a slot's place is its own
    cdef Record *records
    cdef uint64_t *stale                    # a bit for each region in which something was given back since it was trimmed
    cdef uint32_t regions
    cdef pthread_mutex_t lock               # of all that follows, and of `space`
    cdef Scratch *idle
    cdef uint64_t next_number
    cdef Totals totals

    cdef int64_t take(self, uint32_t want, uint32_t *got) noexcept nogil
    cdef bint share_pages(self, uint32_t first, uint32_t count) noexcept nogil
    cdef uint32_t release_pages(self, uint32_t first, uint32_t count) noexcept nogil
    cdef void clear_pages(self, uint32_t first, uint32_t count) noexcept nogil
    cdef int write_pages(self, uint32_t first, uint32_t count, const uint8_t *data, Failure *failure) noexcept nogil
    cdef int read_pages(self, uint32_t first, uint32_t count, uint8_t *data, Failure *failure) noexcept nogil

    cdef _free_all_scratch(self)
    cdef _raise(self, str what, Failure failure)
    cdef Scratch *_scratch(self) noexcept nogil
    cdef void _put_back(self, Scratch *s) noexcept nogil
    cdef void _free_scratch(self, Scratch *s) noexcept nogil
    cdef int _write_batch(self, Scratch *s, uint32_t first, uint32_t count, const uint8_t *data, Failure *failure) noexcept nogil
    cdef int _seal_batch(self, Scratch *s, uint32_t first, uint32_t count, const uint8_t *data) noexcept nogil
    cdef int _place_own(self, Scratch *s, uint32_t first, uint32_t count, const uint8_t *sealed) noexcept nogil
    cdef int _place_packed(self, Scratch *s, uint32_t count) noexcept nogil
    cdef void _commit(self, Scratch *s, uint32_t first, uint32_t count, int error) noexcept nogil
    cdef void _clear(self, Record *r) noexcept nogil
    cdef int _read_batch(self, Scratch *s, uint32_t first, uint32_t count, uint8_t *data, Failure *failure) noexcept nogil
    cdef int _read_run(self, Scratch *s, uint32_t first, uint32_t count, uint8_t *data, Failure *failure) noexcept nogil
    cdef int _open_page(self, Scratch *s, uint32_t slot, uint8_t *sealed, uint8_t *page) noexcept nogil
    cdef uint64_t _trim_region(self, uint32_t region) noexcept nogil
    cdef uint32_t _hold_units(self, uint32_t at, uint32_t end, uint32_t *count) noexcept nogil
    cdef void _count_write(self, uint64_t octets) noexcept nogil
