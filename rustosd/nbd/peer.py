"""One connection in NBD's transmission phase: requests in, replies out, and the memory in between.

A request lives in a slot from its header to the last octet of its reply. Memory comes from the connection's arena, which is
the disk's own (`Disk.allocate`): payloads are received into it and replies sent out of it. When slots or memory run out the
connection is not read from until replies have left; so a client can hold only so much, however it behaves.

A request too large for the memory goes piece by piece, one after the other. A piece goes to the disk in parts no larger than
the disk takes. NBD: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, whose names are used here.
"""

import cython
from cython.cimports.drivers.request import (
    EXTENTS,
    FAST,
    FLUSH,
    FUA,
    KEEP_ALLOCATED,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Extent,
    Request,
    Segment,
)
from cython.cimports.libc.errno import EAGAIN, EDQUOT, EFBIG, EINTR, EINVAL, ENOMEM, ENOSPC, EOPNOTSUPP, EROFS
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy, memmove, memset
from cython.cimports.mm.hw import get16, get32, get64, load64, put16, put32, put64, store64, trailing_zeros
from cython.cimports.posix.uio import iovec
from cython.cimports.rustosd.handoff.splice import MSG_DONTWAIT, MSG_NOSIGNAL, msghdr, recvmsg, sendmsg
from cython.cimports.rustosd.nbd.wire import (
    CHUNK_BLOCK_STATUS,
    CHUNK_BLOCK_STATUS_EXT,
    CHUNK_ERROR,
    CHUNK_NONE,
    CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE,
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REPLY_OCTETS,
    EXTENDED_REQUEST_MAGIC,
    EXTENDED_REQUEST_OCTETS,
    FLAG_READ_ONLY,
    FLAG_SEND_CACHE,
    FLAG_SEND_DF,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
    NBD_OK,
    REPLY_FLAG_DONE,
    REQUEST_MAGIC,
    REQUEST_OCTETS,
    SIMPLE_REPLY_MAGIC,
    SIMPLE_REPLY_OCTETS,
    STATE_HOLE,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    STRUCTURED_REPLY_OCTETS,
)

if not cython.compiled:
    raise ImportError("rustosd.nbd.peer must be compiled: python setup.py build_ext --inplace")

IOVECS = cython.declare(cython.int, 128)        # of one sendmsg


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_init(p: cython.pointer[Peer], fd: cython.int, shape: cython.pointer[cython.const[Shape]],
              counts: cython.pointer[Counts]) -> cython.void:
    """A fresh connection on a struct of any content; it has no memory yet."""
    i: cython.int
    memset(p, 0, cython.sizeof(Peer))
    p.fd = fd
    p.shape = shape
    p.counts = counts
    p.receiving = -1
    p.flags = P_READABLE | P_TRY
    for i in range(SLOTS):
        p.free[i] = cython.cast(uint16_t, SLOTS - 1 - i)
    p.free_count = SLOTS


# Memory: whole pages of the arena, by first fit, so that the same few stay in the processor's cache.

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_set_arena(p: cython.pointer[Peer], arena: cython.pointer[uint8_t], iova: uint64_t, pages: uint32_t) -> cython.void:
    """Give it other memory; none of the old is in use. `pages` is a multiple of 64, at most 64 * ARENA_WORDS."""
    p.arena = arena
    p.arena_iova = iova
    p.pages = pages
    p.flags = (p.flags & ~cython.cast(uint32_t, P_GROW)) | P_TRY
    if pages == 64 * ARENA_WORDS:
        p.flags |= P_SMALL
    memset(p.used, 0, cython.sizeof(p.used))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find_pages(p: cython.pointer[Peer], wanted: uint32_t) -> uint32_t:
    """Where so many free pages in a row begin; `p.pages`: nowhere."""
    at: uint32_t = 0
    stop: uint32_t
    word: uint64_t
    while at + wanted <= p.pages:
        word = ~p.used[at >> 6] >> (at & 63)        # ones are free pages, from `at` to the end of its word
        if word == 0:
            at = (at | 63) + 1
            continue
        at += trailing_zeros(word)
        if wanted == 1:
            return at
        stop = at
        while stop < p.pages and stop - at < wanted:
            word = p.used[stop >> 6] >> (stop & 63)
            if word:
                stop += trailing_zeros(word)
                break
            stop = (stop | 63) + 1
        if stop - at >= wanted:
            return at if at + wanted <= p.pages else p.pages
        at = stop
    return p.pages


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _mark_pages(p: cython.pointer[Peer], at: uint32_t, count: uint32_t, used: cython.bint) -> cython.void:
    end: uint32_t = at + count
    n: uint32_t
    mask: uint64_t
    while at < end:
        n = min(64 - (at & 63), end - at)
        mask = (~cython.cast(uint64_t, 0) >> (64 - n)) << (at & 63)
        if used:
            p.used[at >> 6] |= mask
        else:
            p.used[at >> 6] &= ~mask
        at += n
    p.pages_used = p.pages_used + count if used else p.pages_used - count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _take_memory(p: cython.pointer[Peer], s: cython.pointer[Slot], octets: uint64_t) -> cython.bint:
    """Memory for a slot; False when there is none now."""
    wanted: uint32_t = cython.cast(uint32_t, (octets + PAGE - 1) // PAGE)
    at: uint32_t = _find_pages(p, wanted)
    if at == p.pages:
        return False
    _mark_pages(p, at, wanted, True)
    s.page = at
    s.pages = wanted
    s.data = p.arena + cython.cast(uint64_t, at) * PAGE
    s.iova = p.arena_iova + cython.cast(uint64_t, at) * PAGE
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _release(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
    """The request is over: its memory and its slot are free again."""
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    if s.pages:
        _mark_pages(p, s.page, s.pages, False)
        s.pages = 0
    s.stage = FREE
    p.free[p.free_count] = cython.cast(uint16_t, slot)
    p.free_count += 1
    p.flags |= P_TRY


# In.

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_receive(p: cython.pointer[Peer]) -> cython.bint:
    """Read what the client has sent and begin its requests, as far as there is room for them; whether there was anything."""
    parts: iovec[2]
    message: msghdr
    s: cython.pointer[Slot]
    straight: uint64_t
    asked: uint64_t
    got: cython.Py_ssize_t
    failed: cython.int
    moved: uint64_t = 0
    before: uint32_t = p.start
    if p.flags & P_TRY:
        p.flags &= ~cython.cast(uint32_t, P_TRY | P_BLOCKED)
    if p.flags & (P_BLOCKED | P_BROKEN):
        return False
    while True:
        if not _parse(p):
            p.flags |= P_BLOCKED
            break
        if not p.flags & P_READABLE or moved >= TURN_MOST:
            break
        if p.start:
            memmove(p.input, p.input + p.start, p.end - p.start)
            p.end -= p.start
            p.start = 0
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = parts
        straight = 0
        if p.receiving >= 0 and p.drain == 0:
            s = cython.address(p.slots[p.receiving])
            straight = s.piece - p.got
            parts[0].iov_base = s.data + p.got
            parts[0].iov_len = straight
            message.msg_iovlen = 1
        parts[message.msg_iovlen].iov_base = p.input + p.end
        # what follows a large payload is likely another: only its header goes the long way
        parts[message.msg_iovlen].iov_len = PAGE if straight > SMALL else INPUT - p.end
        asked = straight + parts[message.msg_iovlen].iov_len
        message.msg_iovlen += 1
        got = recvmsg(p.fd, cython.address(message), MSG_DONTWAIT)
        failed = c_errno
        if got <= 0:
            p.flags &= ~cython.cast(uint32_t, P_READABLE)
            if got == 0:
                p.flags |= P_EOF
                p.reason = ENDED_EOF
            elif failed == EINTR:
                p.flags |= P_READABLE
            elif failed != EAGAIN:
                peer_break(p, ENDED_LOST)
            break
        moved += got
        if cython.cast(uint64_t, got) < asked:      # that was all there is; more makes the socket readable anew
            p.flags &= ~cython.cast(uint32_t, P_READABLE)
        if straight:
            if cython.cast(uint64_t, got) < straight:
                p.got += got
                continue
            p.got += straight
            got -= straight
        p.end += cython.cast(uint32_t, got)
    return moved != 0 or p.start != before


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _parse(p: cython.pointer[Peer]) -> cython.bint:
    """Begin the requests in the input; True when more input is what it takes to go on."""
    while not p.flags & (P_EOF | P_BROKEN):
        if p.receiving >= 0:
            if not _parse_payload(p):
                return p.drain != 0 or (p.receiving >= 0 and p.slots[p.receiving].stage == PAYLOAD)
        elif not _parse_request(p):
            return p.end - p.start < cython.cast(
                uint32_t, EXTENDED_REQUEST_OCTETS if p.extended else REQUEST_OCTETS) and not p.flags & P_EOF
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _parse_payload(p: cython.pointer[Peer]) -> cython.bint:
    """Take data that belong to a request; False when they are not all there, or not wanted yet."""
    slot: uint32_t = cython.cast(uint32_t, p.receiving)
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    n: uint64_t = p.end - p.start
    if p.drain:
        n = min(n, p.drain)
        p.start += cython.cast(uint32_t, n)
        p.drain -= n
        if p.drain:
            return False
        p.receiving = -1
        _reply(p, slot)
        return True
    if s.stage != PAYLOAD:
        return False                # the piece before is at the disk
    n = min(n, s.piece - p.got)
    memcpy(s.data + p.got, p.input + p.start, n)
    p.start += cython.cast(uint32_t, n)
    p.got += n
    if p.got < s.piece:
        return False
    if s.done + s.piece == s.length:
        p.receiving = -1
    _enqueue(p, slot)
    return p.receiving < 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _parse_request(p: cython.pointer[Peer]) -> cython.bint:
    """Begin one request; False when it is not all there, or there is no room for it."""
    header: cython.pointer[uint8_t] = p.input + p.start
    octets: uint32_t = EXTENDED_REQUEST_OCTETS if p.extended else REQUEST_OCTETS
    magic: uint32_t = EXTENDED_REQUEST_MAGIC if p.extended else REQUEST_MAGIC
    s: cython.pointer[Slot]
    slot: uint32_t
    command: uint16_t
    flags: uint16_t
    payload: uint64_t
    length: uint64_t
    if p.end - p.start < octets:
        return False
    if get32(header) != magic:
        peer_break(p, ENDED_BAD_MAGIC)
        return False
    flags = get16(header + 4)
    command = get16(header + 6)
    if command == CMD_DISC:
        p.flags |= P_EOF
        p.reason = ENDED_DISCONNECT
        return False
    if p.free_count == 0:
        return False
    length = get64(header + 24) if p.extended else get32(header + 24)
    if p.extended:
        payload = length if flags & CMD_FLAG_PAYLOAD_LEN else 0
    else:
        payload = length if command == CMD_WRITE else 0
    if payload > max(p.shape.max_payload, cython.cast(uint32_t, ORDINARY_PAYLOAD)):
        peer_break(p, ENDED_OVERSIZE)
        return False
    slot = p.free[p.free_count - 1]
    s = cython.address(p.slots[slot])
    s.cookie = load64(header + 8)
    s.offset = get64(header + 16)
    s.length = length
    s.command = command
    s.flags = flags
    s.done = 0
    s.handed = 0
    s.piece = 0
    s.parts = 0
    s.payload = 0
    s.pages = 0
    s.disk_flags = 0
    s.flush_after = False
    s.last = True
    s.error = _judge(p, s)
    if s.error == NBD_OK and not _prepare(p, s):
        return False                # it stays in the input until there is memory
    p.start += octets
    p.free_count -= 1
    p.counts.requests[min(command, cython.cast(uint16_t, 8))] += 1
    if s.error:
        s.stage = DRAIN
        if payload:
            p.receiving = cython.cast(cython.int, slot)
            p.drain = payload
        else:
            _reply(p, slot)
    elif s.length == 0 and command != CMD_FLUSH:
        _reply(p, slot)
    elif command == CMD_WRITE:
        s.stage = PAYLOAD
        p.receiving = cython.cast(cython.int, slot)
        p.got = 0
    else:
        _enqueue(p, slot)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _judge(p: cython.pointer[Peer], s: cython.pointer[Slot]) -> uint32_t:
    """NBD's error for a request that cannot be begun; NBD_OK for one that can. Proto: "Request types", "Error values"."""
    shape: cython.pointer[cython.const[Shape]] = p.shape
    allowed: uint16_t = CMD_FLAG_FUA if p.transmission & FLAG_SEND_FUA else 0
    beyond: cython.bint = s.offset > shape.octets or s.length > shape.octets - s.offset
    writes: cython.bint = False
    if s.command == CMD_READ:
        if p.transmission & FLAG_SEND_DF:
            allowed |= CMD_FLAG_DF
    elif s.command == CMD_WRITE:
        writes = True
        if p.extended:
            allowed |= CMD_FLAG_PAYLOAD_LEN
            if not s.flags & CMD_FLAG_PAYLOAD_LEN:
                return NBD_EINVAL
    elif s.command == CMD_WRITE_ZEROES:
        writes = True
        if not p.transmission & (FLAG_SEND_WRITE_ZEROES | FLAG_READ_ONLY):
            return NBD_EINVAL
        allowed |= CMD_FLAG_NO_HOLE
        if p.transmission & FLAG_SEND_FAST_ZERO:
            allowed |= CMD_FLAG_FAST_ZERO
    elif s.command == CMD_TRIM:
        writes = True
        if not p.transmission & (FLAG_SEND_TRIM | FLAG_READ_ONLY):
            return NBD_EINVAL
    elif s.command == CMD_BLOCK_STATUS:
        if not p.status or s.length == 0:
            return NBD_EINVAL
        allowed |= CMD_FLAG_REQ_ONE
    elif s.command == CMD_CACHE:
        if not p.transmission & FLAG_SEND_CACHE:
            return NBD_EINVAL
    elif s.command == CMD_FLUSH:
        if s.offset or s.length:
            return NBD_EINVAL
    else:
        return NBD_EINVAL
    if s.flags & ~allowed:
        return NBD_EINVAL
    if p.flags & P_DRAINING:
        return NBD_ESHUTDOWN
    if writes and p.transmission & FLAG_READ_ONLY:
        return NBD_EPERM
    if beyond:
        return NBD_ENOSPC if s.command == CMD_WRITE or s.command == CMD_WRITE_ZEROES else NBD_EINVAL
    if (s.offset | s.length) & (shape.sector_octets - 1):
        return NBD_EINVAL
    if s.length > shape.max_payload:
        if s.command == CMD_WRITE:
            return NBD_EINVAL
        if s.command == CMD_READ:
            return NBD_EOVERFLOW if p.structured or p.extended else NBD_EINVAL
    return NBD_OK


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _prepare(p: cython.pointer[Peer], s: cython.pointer[Slot]) -> cython.bint:
    """Say what the disk is to do, and take the memory for it; False when there is none now."""
    most: uint64_t = cython.cast(uint64_t, p.pages) * PAGE // 2
    if s.command == CMD_READ or s.command == CMD_CACHE:
        s.operation = READ
        if s.command == CMD_CACHE:
            s.length = min(s.length, cython.cast(uint64_t, CACHE_MOST))
    elif s.command == CMD_WRITE:
        s.operation = WRITE
    elif s.command == CMD_BLOCK_STATUS:
        s.operation = EXTENTS
        s.piece = s.length
        return _take_memory(p, s, STATUS_PAGES * PAGE) or _starve(p)
    elif s.command == CMD_FLUSH:
        s.operation = FLUSH
        return True
    else:
        s.operation = TRIM if s.command == CMD_TRIM else WRITE_ZEROES
        s.piece = s.length
        if s.flags & CMD_FLAG_NO_HOLE:
            s.disk_flags = KEEP_ALLOCATED
        if s.flags & CMD_FLAG_FAST_ZERO:
            s.disk_flags |= FAST
    if s.flags & CMD_FLAG_FUA and s.operation != READ:
        if p.shape.fua:
            s.disk_flags |= FUA
        else:
            s.flush_after = True
    if s.piece or s.length == 0:
        return True
    if s.length > most and not p.flags & P_SMALL and s.command != CMD_CACHE:
        return _starve(p)           # until it has grown
    if s.flags & CMD_FLAG_DF and s.length > most:
        s.error = NBD_EOVERFLOW     # one chunk is to hold it all
        return True
    s.piece = min(s.length, most)
    return _take_memory(p, s, s.piece) or _starve(p)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _starve(p: cython.pointer[Peer]) -> cython.bint:
    """There is not enough memory for a request."""
    if not p.flags & P_SMALL:
        p.flags |= P_GROW
    return False


# To the disk and back.

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enqueue(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
    """To the end of the row of those that wait for the disk."""
    p.slots[slot].stage = QUEUED
    p.slots[slot].handed = 0
    p.queue[(p.queue_head + p.queue_count) % SLOTS] = cython.cast(uint16_t, slot)
    p.queue_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_next(p: cython.pointer[Peer], request: cython.pointer[Request], segment: cython.pointer[Segment]) -> cython.bint:
    """What the disk is to do next, which is so until `peer_handed`; False when there is nothing."""
    slot: uint32_t
    s: cython.pointer[Slot]
    shape: cython.pointer[cython.const[Shape]] = p.shape
    n: uint64_t
    if p.queue_count == 0:
        return False
    slot = p.queue[p.queue_head]
    s = cython.address(p.slots[slot])
    request.tag = (cython.cast(uint64_t, p.index) << 16) | slot
    request.operation = s.operation
    request.flags = 0
    request.lba = 0
    request.sectors = 0
    request.segment_count = 0
    if s.operation == FLUSH:
        return True
    request.lba = (s.offset + s.done + s.handed) // shape.sector_octets
    if s.operation == READ or s.operation == WRITE:
        n = min(s.piece - s.handed, shape.part_most)
        segment.data = s.data + s.handed
        segment.iova = s.iova + s.handed
        segment.octets = cython.cast(uint32_t, n)
        request.segment_count = 1
    elif s.operation == EXTENTS:
        n = min(s.piece, cython.cast(uint64_t, SECTORS_MOST) * shape.sector_octets)
        segment.data = s.data
        segment.iova = s.iova
        segment.octets = STATUS_PAGES * PAGE
        request.segment_count = 1
    else:
        n = min(s.piece - s.handed, shape.trim_most)
    request.sectors = cython.cast(uint32_t, n // shape.sector_octets)
    request.flags = s.disk_flags
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_handed(p: cython.pointer[Peer], request: cython.pointer[cython.const[Request]]) -> cython.void:
    """What `peer_next` said is on its way."""
    s: cython.pointer[Slot] = cython.address(p.slots[p.queue[p.queue_head]])
    s.parts += 1
    p.at_disk += 1
    s.handed += cython.cast(uint64_t, request.sectors) * p.shape.sector_octets
    if s.handed >= s.piece or s.operation == EXTENTS or s.operation == FLUSH:
        s.stage = AT_DISK
        p.queue_head = (p.queue_head + 1) % SLOTS
        p.queue_count -= 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_complete(p: cython.pointer[Peer], slot: uint32_t, error: cython.int) -> cython.void:
    """A part has ended."""
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    s.parts -= 1
    p.at_disk -= 1
    if error and s.error == NBD_OK:
        s.error = _translated(error, s)
    if s.parts or s.stage != AT_DISK:
        return
    if p.flags & P_BROKEN:
        _release(p, slot)
        return
    if s.flush_after and s.error == NBD_OK and s.done + s.piece >= s.length:
        s.flush_after = False
        s.operation = FLUSH
        s.disk_flags = 0
        _enqueue(p, slot)
        return
    if s.command == CMD_WRITE or s.command == CMD_CACHE:
        s.done += s.piece
        if s.done < s.length and _next_piece(p, s, slot):
            return
    _reply(p, slot)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _next_piece(p: cython.pointer[Peer], s: cython.pointer[Slot], slot: uint32_t) -> cython.bint:
    """Go on with a WRITE or CACHE of several pieces; False when it has failed and nothing of it is to come."""
    if s.command == CMD_WRITE:
        p.flags |= P_TRY
        if s.error:
            p.drain = s.length - s.done
            s.stage = DRAIN
            return True
        s.piece = min(s.piece, s.length - s.done)
        p.got = 0
        s.stage = PAYLOAD
        return True
    if s.error:
        return False
    s.piece = min(s.piece, s.length - s.done)
    _enqueue(p, slot)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _translated(error: cython.int, s: cython.pointer[Slot]) -> uint32_t:
    """An errno of the disk as one of NBD's. Proto: "Error values"."""
    if error == ENOSPC or error == EDQUOT or error == EFBIG:
        return NBD_ENOSPC
    if error == EROFS:
        return NBD_EPERM
    if error == EINVAL:
        return NBD_EINVAL
    if error == ENOMEM:
        return NBD_ENOMEM
    if error == EOPNOTSUPP:
        return NBD_ENOTSUP if s.flags & CMD_FLAG_FAST_ZERO else NBD_EINVAL
    return NBD_EIO


# Out.

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reply(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
    """Say how a request, or a piece of a READ, has ended."""
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    h: cython.pointer[uint8_t] = s.header
    s.stage = REPLYING
    s.last = True
    s.payload = 0
    s.header_octets = 0
    if s.error:
        p.counts.errors[s.error & 127] += 1
    if s.command == CMD_READ and s.error == NBD_OK:
        s.last = s.done + s.piece >= s.length
        s.payload = cython.cast(uint32_t, s.piece)
        p.counts.read_octets += s.piece
    if s.command == CMD_WRITE and s.error == NBD_OK:
        p.counts.written_octets += s.length
    if p.extended or (p.structured and (s.command == CMD_READ or s.command == CMD_BLOCK_STATUS)):
        _reply_in_chunks(p, s)
    elif s.done == 0 or s.command != CMD_READ:
        put32(h, SIMPLE_REPLY_MAGIC)
        put32(h + 4, s.error)
        store64(h + 8, s.cookie)
        s.header_octets = SIMPLE_REPLY_OCTETS
    elif s.error:
        peer_break(p, ENDED_MID_READ)       # the header that says "no error" is sent
        _release(p, slot)
        return
    p.out[(p.out_head + p.out_count) % SLOTS] = cython.cast(uint16_t, slot)
    p.out_count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _chunk(p: cython.pointer[Peer], s: cython.pointer[Slot], kind: uint16_t, octets: uint32_t) -> cython.pointer[uint8_t]:
    """Begin a chunk in the slot's header; where its payload of so many octets goes."""
    h: cython.pointer[uint8_t] = s.header
    put32(h, EXTENDED_REPLY_MAGIC if p.extended else STRUCTURED_REPLY_MAGIC)
    put16(h + 4, REPLY_FLAG_DONE if s.last else 0)
    put16(h + 6, kind)
    store64(h + 8, s.cookie)
    if not p.extended:
        put32(h + 16, octets)
        return h + STRUCTURED_REPLY_OCTETS
    put64(h + 16, s.offset)
    put64(h + 24, octets)
    return h + EXTENDED_REPLY_OCTETS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _reply_in_chunks(p: cython.pointer[Peer], s: cython.pointer[Slot]) -> cython.void:
    """A structured or extended reply: one chunk for each piece."""
    at: cython.pointer[uint8_t]
    if s.error:
        at = _chunk_of_error(p, s)
    elif s.command == CMD_BLOCK_STATUS:
        at = _chunk_of_status(p, s)
    elif s.command != CMD_READ or s.payload == 0:
        at = _chunk(p, s, CHUNK_NONE, 0)
    elif not s.flags & CMD_FLAG_DF and _all_zeros(s.data, s.payload):
        at = _chunk(p, s, CHUNK_OFFSET_HOLE, 12)
        put64(at, s.offset + s.done)
        put32(at + 8, s.payload)
        at += 12
        s.payload = 0
        p.counts.holes += 1
    else:
        at = _chunk(p, s, CHUNK_OFFSET_DATA, s.payload + 8)
        put64(at, s.offset + s.done)
        at += 8
    s.header_octets = cython.cast(uint32_t, at - s.header)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _all_zeros(data: cython.pointer[cython.const[uint8_t]], octets: uint32_t) -> cython.bint:
    """Data that are none: found out as fast as memory is read, and at the first octet when they are some."""
    if octets < 16 or load64(data) or load64(data + octets - 8):
        return False
    return memcmp(data, data + 8, octets - 8) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _chunk_of_error(p: cython.pointer[Peer], s: cython.pointer[Slot]) -> cython.pointer[uint8_t]:
    """Where it ends."""
    at: cython.pointer[uint8_t] = _chunk(p, s, CHUNK_ERROR, 6)
    put32(at, s.error)
    put16(at + 4, 0)
    return at + 6


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _chunk_of_status(p: cython.pointer[Peer], s: cython.pointer[Slot]) -> cython.pointer[uint8_t]:
    """Turn the disk's extents into NBD's descriptors, in place; where the header ends.

    HOLE and ZERO are the same bits in both. A compact descriptor tells of less than 4 GiB, then the rest is left out.
    """
    extents: cython.pointer[Extent] = cython.cast(cython.pointer[Extent], s.data)
    at: cython.pointer[uint8_t]
    size: uint32_t = 16 if p.extended else 8
    most: uint32_t = 1 if s.flags & CMD_FLAG_REQ_ONE else STATUS_PAGES * PAGE // 16
    widest: uint64_t = SECTORS_MOST if p.extended else cython.cast(uint64_t, 0x80000000) // p.shape.sector_octets
    left: uint64_t = s.length // p.shape.sector_octets
    cut: cython.bint = False
    count: uint32_t = 0
    flags: uint32_t
    octets: uint64_t
    while count < most and left and extents[count].sectors and not cut:
        cut = extents[count].sectors > widest
        extents[count].sectors = cython.cast(uint32_t, min(min(left, widest), extents[count].sectors))
        left -= extents[count].sectors
        count += 1
    if count == 0:
        s.error = NBD_EIO           # a disk that knows nothing ends the request with an error
        p.counts.errors[cython.cast(cython.int, NBD_EIO)] += 1
        return _chunk_of_error(p, s)
    s.payload = count * size
    while count:                    # 8 octets become 8 or 16: from the last one on, none is overwritten unread
        count -= 1
        octets = cython.cast(uint64_t, extents[count].sectors) * p.shape.sector_octets
        flags = extents[count].flags & (STATE_HOLE | STATE_ZERO)
        at = s.data + count * size
        if p.extended:
            put64(at, octets)
            put64(at + 8, flags)
        else:
            put32(at, cython.cast(uint32_t, octets))
            put32(at + 4, flags)
    if not p.extended:
        at = _chunk(p, s, CHUNK_BLOCK_STATUS, s.payload + 4)
        put32(at, p.context)
        return at + 4
    at = _chunk(p, s, CHUNK_BLOCK_STATUS_EXT, s.payload + 8)
    put32(at, p.context)
    put32(at + 4, s.payload // size)
    return at + 8


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_send(p: cython.pointer[Peer], now: int64_t) -> cython.bint:
    """Send replies until none is left or the socket is full; whether any octet left."""
    parts: iovec[128]
    message: msghdr
    s: cython.pointer[Slot]
    count: cython.int
    i: uint32_t
    skip: uint64_t
    total: uint64_t
    sent: cython.Py_ssize_t
    moved: cython.bint = False
    while p.out_count and not p.flags & (P_FULL | P_BROKEN):
        count = 0
        total = 0
        skip = p.out_sent
        i = 0
        while i < p.out_count and count < IOVECS - 1:
            s = cython.address(p.slots[p.out[(p.out_head + i) % SLOTS]])
            if skip < s.header_octets:
                parts[count].iov_base = s.header + skip
                parts[count].iov_len = s.header_octets - skip
                total += parts[count].iov_len
                count += 1
                skip = 0
            else:
                skip -= s.header_octets
            if s.payload:
                parts[count].iov_base = s.data + skip
                parts[count].iov_len = s.payload - skip
                total += parts[count].iov_len
                count += 1
            skip = 0
            i += 1
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = parts
        message.msg_iovlen = count
        sent = sendmsg(p.fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if c_errno == EAGAIN:
                p.flags |= P_FULL
            elif c_errno != EINTR:
                peer_break(p, ENDED_LOST)
            continue
        moved = True
        p.progress_ns = now
        if cython.cast(uint64_t, sent) < total:
            p.flags |= P_FULL
        _sent(p, sent)
    return moved


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sent(p: cython.pointer[Peer], octets: uint64_t) -> cython.void:
    """So many octets of replies have left."""
    slot: uint32_t
    s: cython.pointer[Slot]
    octets += p.out_sent
    while p.out_count:
        slot = p.out[p.out_head]
        s = cython.address(p.slots[slot])
        if octets < s.header_octets + s.payload:
            break
        octets -= s.header_octets + s.payload
        p.out_head = (p.out_head + 1) % SLOTS
        p.out_count -= 1
        if s.last:
            _release(p, slot)
        else:
            s.done += s.piece
            s.piece = min(s.piece, s.length - s.done)
            _enqueue(p, slot)
    p.out_sent = octets


# The end.

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_break(p: cython.pointer[Peer], reason: uint32_t) -> cython.void:
    """End it at once: nothing is read, sent or given to the disk any more. What is at the disk keeps its memory until then."""
    if p.flags & P_BROKEN:
        return
    p.flags = (p.flags | P_BROKEN) & ~cython.cast(uint32_t, P_READABLE | P_GROW)
    p.reason = reason
    p.queue_count = 0
    p.out_count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_busy(p: cython.pointer[cython.const[Peer]]) -> cython.bint:
    """Whether there is something to do for it now."""
    if p.flags & P_BROKEN:
        return False
    return p.queue_count != 0 or (p.out_count != 0 and not p.flags & P_FULL) or p.flags & P_TRY != 0 or (
        p.flags & P_READABLE != 0 and not p.flags & (P_BLOCKED | P_EOF))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def peer_over(p: cython.pointer[cython.const[Peer]]) -> cython.bint:
    """Whether nothing keeps it from being closed."""
    if p.flags & P_BROKEN:
        return p.at_disk == 0
    if p.flags & (P_EOF | P_DRAINING) == 0:
        return False
    return p.at_disk == 0 and p.queue_count == 0 and p.out_count == 0 and (
        p.flags & P_EOF != 0 or (p.free_count == SLOTS and p.flags & (P_READABLE | P_TRY) == 0))
