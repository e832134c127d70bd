"""Replies of NBD's transmission phase: simple, structured and extended ones, sent straight from the disk's memory.

NBD: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, whose names are used here.
"""

import cython
from cython.cimports.drivers.request import Extent
from cython.cimports.libc.errno import EAGAIN, EINTR
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memset
from cython.cimports.mm.hw import load64, put16, put32, put64, store64
from cython.cimports.posix.uio import iovec
from cython.cimports.rustosd.sockets import MSG_DONTWAIT, MSG_NOSIGNAL, msghdr, sendmsg
from cython.cimports.rustosd.nbd.peer import (
    ENDED_MID_READ,
    PAGE,
    P_BROKEN,
    P_DEAF,
    P_FULL,
    Peer,
    REPLYING,
    SECTORS_MOST,
    SLOTS,
    STATUS_PAGES,
    Slot,
    peer_break,
    peer_enqueue,
    peer_release,
)
from cython.cimports.rustosd.nbd.wire import (
    CHUNK_BLOCK_STATUS,
    CHUNK_BLOCK_STATUS_EXT,
    CHUNK_ERROR,
    CHUNK_NONE,
    CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE,
    CMD_BLOCK_STATUS,
    CMD_FLAG_DF,
    CMD_FLAG_REQ_ONE,
    CMD_READ,
    CMD_WRITE,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REPLY_OCTETS,
    NBD_EIO,
    NBD_OK,
    REPLY_FLAG_DONE,
    SIMPLE_REPLY_MAGIC,
    SIMPLE_REPLY_OCTETS,
    STATE_HOLE,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    STRUCTURED_REPLY_OCTETS,
)

if not cython.compiled:
    raise ImportError("rustosd.nbd.reply must be compiled: python setup.py build_ext --inplace")


IOVECS = cython.declare(cython.int, 128)        # of one sendmsg


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply(p: cython.pointer[Peer], slot: uint32_t) -> cython.void:
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
        peer_release(p, slot)
        return
    else:
        p.held = False                      # it is the first in the row still
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
def send_replies(p: cython.pointer[Peer], now: int64_t) -> cython.bint:
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
    while p.out_count and not p.held and not p.flags & (P_FULL | P_BROKEN):
        if p.flags & P_DEAF:
            _drop_first(p)
            moved = True
            continue
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
            if not s.last and not _in_chunks(p):
                break
        memset(cython.address(message), 0, cython.sizeof(msghdr))
        message.msg_iov = parts
        message.msg_iovlen = count
        sent = sendmsg(p.fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if c_errno == EAGAIN:
                p.flags |= P_FULL
            elif c_errno != EINTR:
                p.flags |= P_DEAF           # what it has sent before it left is done all the same
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
        if not s.last and not _in_chunks(p):
            p.held = True
            _go_on(p, s, slot)
            break
        p.out_head = (p.out_head + 1) % SLOTS
        p.out_count -= 1
        if s.last:
            peer_release(p, slot)
        else:
            _go_on(p, s, slot)
    p.out_sent = octets


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _drop_first(p: cython.pointer[Peer]) -> cython.void:
    """Nobody takes the first reply."""
    peer_release(p, p.out[p.out_head])
    p.out_head = (p.out_head + 1) % SLOTS
    p.out_count -= 1
    p.out_sent = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _go_on(p: cython.pointer[Peer], s: cython.pointer[Slot], slot: uint32_t) -> cython.void:
    """A piece of a READ is sent: the next one."""
    s.done += s.piece
    s.piece = min(s.piece, s.length - s.done)
    peer_enqueue(p, slot)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _in_chunks(p: cython.pointer[Peer]) -> cython.bint:
    """Whether pieces of a READ are chunks of their own, between which others' may come."""
    return p.structured or p.extended
