# What every disk without hardware behind it asks of a request before it begins.
from libc.errno cimport EINVAL, EOPNOTSUPP, EROFS
from libc.stdint cimport uint32_t, uint64_t
from drivers.request cimport EXTENTS, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES, Extent, Request, Segment

cdef struct Bounds:
    uint64_t sectors            # of the disk
    uint32_t sector_octets
    uint32_t max_sectors        # of a read or write
    uint32_t max_segments
    bint read_only
    bint trim
    bint extents

cdef inline int check(const Bounds *b, const Request *r, const Segment *segments) noexcept nogil:
    """0, or the errno of a request that makes no sense to this disk."""
    cdef uint64_t total = 0
    cdef uint32_t i
    if r.operation == FLUSH:
        return EINVAL if r.segment_count or r.sectors else 0
    if r.operation > EXTENTS or (r.flags & FUA and (r.operation == READ or r.operation == EXTENTS)):
        return EOPNOTSUPP
    if r.sectors == 0 or r.sectors > b.sectors or r.lba > b.sectors - r.sectors:
        return EINVAL
    if b.read_only and r.operation != READ and r.operation != EXTENTS:
        return EROFS
    if r.operation == TRIM or r.operation == WRITE_ZEROES:
        if r.operation == TRIM and not b.trim:
            return EOPNOTSUPP
        return EINVAL if r.segment_count else 0
    if r.operation == EXTENTS:
        if not b.extents:
            return EOPNOTSUPP
        return 0 if r.segment_count == 1 and segments[0].octets >= sizeof(Extent) else EINVAL
    if r.sectors > b.max_sectors or r.segment_count > b.max_segments:
        return EINVAL
    for i in range(r.segment_count):
        if segments[i].octets == 0:
            return EINVAL
        total += segments[i].octets
    return 0 if total == <uint64_t>r.sectors * b.sector_octets else EINVAL
