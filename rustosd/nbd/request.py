"""Requests of NBD's transmission phase: read, judged, and carried to the disk and back.

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
    Request,
    Segment,
)
from cython.cimports.libc.errno import EAGAIN, EDQUOT, EFBIG, EINTR, EINVAL, ENOMEM, ENOSPC, EOPNOTSUPP, EROFS
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memmove, memset
from cython.cimports.mm.hw import get16, get32, get64, load64
from cython.cimports.posix.uio import iovec
from cython.cimports.rustosd.sockets import MSG_DONTWAIT, msghdr, recvmsg
from cython.cimports.rustosd.nbd.peer import (
    AT_DISK,
    CACHE_MOST,
    DRAIN,
    ENDED_BAD_MAGIC,
    ENDED_DISCONNECT,
    ENDED_EOF,
    ENDED_LOST,
    ENDED_OVERSIZE,
    INPUT,
    ORDINARY_PAYLOAD,
    PAGE,
    PAYLOAD,
    P_BLOCKED,
    P_BROKEN,
    P_DEAF,
    P_DRAINING,
    P_EOF,
    P_GROW,
    P_HUNG_UP,
    P_READABLE,
    P_SMALL,
    P_TRY,
    Peer,
    SECTORS_MOST,
    SLOTS,
    SMALL,
    STATUS_PAGES,
    Shape,
    Slot,
    TURN_MOST,
    peer_break,
    peer_enqueue,
    peer_release,
    peer_take_memory,
)
from cython.cimports.rustosd.nbd.reply import reply
from cython.cimports.rustosd.nbd.wire import (
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
    REQUEST_MAGIC,
    REQUEST_OCTETS,
)

if not cython.compiled:
    raise ImportError("rustosd.nbd.request must be compiled: python setup.py build_ext --inplace")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def receive_requests(p: cython.pointer[Peer]) -> cython.bint:
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
                p.reason = ENDED_LOST if p.flags & P_DEAF else ENDED_EOF
            elif failed == EINTR:
                p.flags |= P_READABLE
            elif failed != EAGAIN:
                peer_break(p, ENDED_LOST)
            break
        moved += got
        # that was all there is, and more makes the socket readable anew
        if cython.cast(uint64_t, got) < asked and not p.flags & P_HUNG_UP:
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
        reply(p, slot)
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
    peer_enqueue(p, slot)
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
    carries: cython.bint
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
    # QEMU 10's WRITEs lack the flag that they must have, and its data come all the same.
    carries = command == CMD_WRITE or (p.extended and flags & CMD_FLAG_PAYLOAD_LEN != 0)
    payload = length if carries else 0
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
            reply(p, slot)
    elif s.length == 0 and command != CMD_FLUSH:
        reply(p, slot)
    elif command == CMD_WRITE:
        s.stage = PAYLOAD
        p.receiving = cython.cast(cython.int, slot)
        p.got = 0
    else:
        peer_enqueue(p, slot)
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
        return peer_take_memory(p, s, STATUS_PAGES * PAGE) or _starve(p)
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
    return peer_take_memory(p, s, s.piece) or _starve(p)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _starve(p: cython.pointer[Peer]) -> cython.bint:
    """There is not enough memory for a request."""
    if not p.flags & P_SMALL:
        p.flags |= P_GROW
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def next_part(p: cython.pointer[Peer], request: cython.pointer[Request], segment: cython.pointer[Segment]) -> cython.bint:
    """What the disk is to do next, which is so until `part_handed`; False when there is nothing."""
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
def part_handed(p: cython.pointer[Peer], request: cython.pointer[cython.const[Request]]) -> cython.void:
    """What `next_part` said is on its way."""
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
def part_ended(p: cython.pointer[Peer], slot: uint32_t, error: cython.int) -> cython.void:
    """A part has ended."""
    s: cython.pointer[Slot] = cython.address(p.slots[slot])
    s.parts -= 1
    p.at_disk -= 1
    if error and s.error == NBD_OK:
        s.error = _translated(error, s)
    if s.parts or s.stage != AT_DISK:
        return
    if p.flags & P_BROKEN:
        peer_release(p, slot)
        return
    if s.flush_after and s.error == NBD_OK and s.done + s.piece >= s.length:
        s.flush_after = False
        s.operation = FLUSH
        s.disk_flags = 0
        peer_enqueue(p, slot)
        return
    if s.command == CMD_WRITE or s.command == CMD_CACHE:
        s.done += s.piece
        if s.done < s.length and _next_piece(p, s, slot):
            return
    reply(p, slot)


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
    peer_enqueue(p, slot)
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
