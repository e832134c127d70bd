"""Which pages leave memory, when all that is known of them is when they come: nobody sees how a page in memory is used.

Pages that come are FRESH, and leave in the order they came. The names of those that have left are kept for a while, some more
than there are pages in memory; who comes back in that time is PROVEN and stays, in up to seven eighths of memory. So a scan
passes through FRESH, and of a loop that is larger than memory a part stays. Whether PROVEN pages are still worth their place is
found out by letting one go now and then: when fewer of those come back than of the fresh ones, it is they that leave.

The idea is that of 2Q and ARC, without what those learn from hits; docs/swap.md has the figures, and what else was tried.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, realloc
from cython.cimports.libc.string import memset

if not cython.compiled:
    raise ImportError("mm.swap.policy must be compiled: python setup.py build_ext --inplace")

_FIRST_SIZE = cython.declare(uint32_t, 256)
_FRESH_SHARE = cython.declare(uint32_t, 8)          # of memory, at least one in so many pages is for FRESH
_PROBE_EVERY = cython.declare(uint32_t, 16)
_GONE_SHARE = cython.declare(uint32_t, 4)           # names of PROVEN kept: of memory one in so many
_WEIGHT = cython.declare(cython.double, 0.0078125)    # of the latest page in what is known of how many come back
_MARGIN = cython.declare(cython.double, 0.1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_init(p: cython.pointer[Policy]) -> cython.bint:
    """False: there is no memory."""
    memset(p, 0, cython.sizeof(Policy))
    p.fresh_return = p.proven_return = 0.5
    p.nodes = cython.cast(cython.pointer[Node], calloc(_FIRST_SIZE, cython.sizeof(Node)))
    p.table = cython.cast(cython.pointer[uint32_t], calloc(_FIRST_SIZE * 2, 4))
    p.size, p.used, p.mask = _FIRST_SIZE, 1, _FIRST_SIZE * 2 - 1
    return p.nodes != cython.NULL and p.table != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_free(p: cython.pointer[Policy]) -> cython.void:
    free(p.nodes)
    free(p.table)
    p.nodes, p.table = cython.NULL, cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_arrive(p: cython.pointer[Policy], page: uint64_t, asked: cython.bint) -> cython.bint:
    """A page is in memory now: somebody has `asked` for it, or it came along. False: there is no memory to know that."""
    at: uint32_t = _find(p, page)
    came_back: cython.bint = False
    if at and p.nodes[at].queue <= PROVEN:
        return True
    if at:
        came_back = asked
        if came_back:
            _learn(p, p.nodes[at].queue, True)
        _unlink(p, at)
    else:
        at = _new_node(p, page)
        if at == 0:
            return False
    p.arrived += asked
    p.returned += came_back
    _append(p, at, PROVEN if came_back and _has_room(p) else FRESH)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_touch(p: cython.pointer[Policy], page: uint64_t) -> cython.void:
    """A page in memory is seen to be in use, some time after it came."""
    at: uint32_t = _find(p, page)
    queue: uint8_t
    if at and p.nodes[at].queue <= PROVEN:
        queue = p.nodes[at].queue
        _unlink(p, at)
        _append(p, at, PROVEN if _has_room(p) else queue)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_choose(p: cython.pointer[Policy], pages: cython.pointer[uint64_t], want: uint32_t) -> uint32_t:
    """Up to `want` pages that leave now; how many. One that cannot leave is to `stay`."""
    count: uint32_t = 0
    at: uint32_t
    queue: uint8_t
    while count < want and policy_resident(p):
        queue = _who_leaves(p)
        at = p.oldest[queue]
        pages[count] = p.nodes[at].page
        count += 1
        _unlink(p, at)
        _append(p, at, FRESH_GONE if queue == FRESH else PROVEN_GONE)
    _forget_old_names(p, count)
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_stay(p: cython.pointer[Policy], page: uint64_t) -> cython.void:
    """A page that was chosen is in memory still, and is the last to be chosen again."""
    at: uint32_t = _find(p, page)
    if at and p.nodes[at].queue > PROVEN:
        _unlink(p, at)
        _append(p, at, FRESH)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_forget(p: cython.pointer[Policy], page: uint64_t) -> cython.void:
    """There is no such page any more."""
    at: uint32_t = _find(p, page)
    if at:
        _remove(p, at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_forget_range(p: cython.pointer[Policy], first: uint64_t, end: uint64_t) -> cython.void:
    """There are no pages any more from `first` up to `end`. Bounded by how many are known."""
    at: uint32_t
    page: uint64_t
    if end - first > p.used:
        for at in range(1, p.used):
            if p.nodes[at].queue != NOWHERE and first <= p.nodes[at].page and p.nodes[at].page < end:
                _remove(p, at)
    else:
        for page in range(first, end):
            policy_forget(p, page)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_is_in_memory(p: cython.pointer[Policy], page: uint64_t) -> cython.bint:
    at: uint32_t = _find(p, page)
    return at != 0 and p.nodes[at].queue <= PROVEN


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _has_room(p: cython.pointer[Policy]) -> cython.bint:
    """Whether one more PROVEN page leaves FRESH its share."""
    resident: uint32_t = policy_resident(p) + 1
    return p.counts[PROVEN] + resident // _FRESH_SHARE < resident


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _who_leaves(p: cython.pointer[Policy]) -> uint8_t:
    p.since_probe += 1
    if p.counts[PROVEN] and (
            p.counts[FRESH] < policy_resident(p) // _FRESH_SHARE or p.counts[FRESH] == 0
            or p.proven_return < p.fresh_return - _MARGIN or p.since_probe >= _PROBE_EVERY):
        p.since_probe = 0
        return PROVEN
    return FRESH


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _learn(p: cython.pointer[Policy], queue: uint8_t, came_back: cython.bint) -> cython.void:
    """One of those that had left a queue came back, or did not in all the time its name was kept."""
    if queue == FRESH_GONE:
        p.fresh_return += (came_back - p.fresh_return) * _WEIGHT
    else:
        p.proven_return += (came_back - p.proven_return) * _WEIGHT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _forget_old_names(p: cython.pointer[Policy], left: uint32_t) -> cython.void:
    """`left`: pages that have just left, and were in memory a moment ago."""
    resident: uint32_t = policy_resident(p) + left
    queue: uint8_t
    most: uint32_t
    for queue in range(FRESH_GONE, QUEUES):
        most = resident + resident // _FRESH_SHARE if queue == FRESH_GONE else resident // _GONE_SHARE
        while p.counts[queue] > most:
            _learn(p, queue, False)
            _remove(p, p.oldest[queue])


# queues

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _append(p: cython.pointer[Policy], at: uint32_t, queue: uint8_t) -> cython.void:
    node: cython.pointer[Node] = cython.address(p.nodes[at])
    node.queue, node.newer, node.older = queue, 0, p.newest[queue]
    if node.older:
        p.nodes[node.older].newer = at
    else:
        p.oldest[queue] = at
    p.newest[queue] = at
    p.counts[queue] += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _unlink(p: cython.pointer[Policy], at: uint32_t) -> cython.void:
    node: cython.pointer[Node] = cython.address(p.nodes[at])
    if node.older:
        p.nodes[node.older].newer = node.newer
    else:
        p.oldest[node.queue] = node.newer
    if node.newer:
        p.nodes[node.newer].older = node.older
    else:
        p.newest[node.queue] = node.older
    p.counts[node.queue] -= 1


# nodes by page: open addressing, nothing is ever a grave

@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _home(p: cython.pointer[Policy], page: uint64_t) -> uint32_t:
    """Where to look first."""
    return cython.cast(uint32_t, (page * cython.cast(uint64_t, 0x9E3779B97F4A7C15)) >> 32) & p.mask


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _find(p: cython.pointer[Policy], page: uint64_t) -> uint32_t:
    """The node of a page; 0: it is not known."""
    where: uint32_t = _home(p, page)
    while p.table[where]:
        if p.nodes[p.table[where]].page == page:
            return p.table[where]
        where = (where + 1) & p.mask
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _new_node(p: cython.pointer[Policy], page: uint64_t) -> uint32_t:
    """In no queue yet; 0: there is no memory."""
    at: uint32_t = p.spare
    where: uint32_t
    if at == 0 and p.used == p.size and not _grow(p):
        return 0
    if at:
        p.spare = p.nodes[at].newer
    else:
        at = p.used
        p.used += 1
    p.nodes[at].page = page
    where = _home(p, page)
    while p.table[where]:
        where = (where + 1) & p.mask
    p.table[where] = at
    return at


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(p: cython.pointer[Policy]) -> cython.bint:
    size: uint32_t = p.size * 2
    nodes: cython.pointer[Node] = cython.cast(cython.pointer[Node], realloc(p.nodes, size * cython.sizeof(Node)))
    table: cython.pointer[uint32_t]
    at: uint32_t
    where: uint32_t
    if nodes == cython.NULL:
        return False
    p.nodes = nodes
    table = cython.cast(cython.pointer[uint32_t], calloc(cython.cast(cython.size_t, size) * 2, 4))
    if table == cython.NULL:
        return False
    memset(nodes + p.size, 0, (size - p.size) * cython.sizeof(Node))
    free(p.table)
    p.table, p.size, p.mask = table, size, size * 2 - 1
    for at in range(1, p.used):         # all are in use, or there would have been a spare one
        where = _home(p, nodes[at].page)
        while table[where]:
            where = (where + 1) & p.mask
        table[where] = at
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _remove(p: cython.pointer[Policy], at: uint32_t) -> cython.void:
    """From its queue and from the table, whose later entries move up."""
    where: uint32_t = _home(p, p.nodes[at].page)
    look: uint32_t
    home: uint32_t
    while p.table[where] != at:
        where = (where + 1) & p.mask
    look = (where + 1) & p.mask
    while p.table[look]:
        home = _home(p, p.nodes[p.table[look]].page)
        if ((look - home) & p.mask) >= ((look - where) & p.mask):
            p.table[where] = p.table[look]
            where = look
        look = (look + 1) & p.mask
    p.table[where] = 0
    _unlink(p, at)
    p.nodes[at].queue, p.nodes[at].newer = NOWHERE, p.spare
    p.spare = at


@cython.final
@cython.cclass
class Replacement:
    """The policy for Python: tests, and measurements on traces."""

    def __cinit__(self):
        if not policy_init(cython.address(self.policy)):
            raise MemoryError

    def __dealloc__(self):
        policy_free(cython.address(self.policy))

    def arrive(self, page: int, asked: bool = True) -> None:
        """A page is in memory now: somebody has asked for it, or it came along."""
        if not policy_arrive(cython.address(self.policy), page, asked):
            raise MemoryError

    def touch(self, page: int) -> None:
        """A page in memory is seen to be in use, some time after it came."""
        policy_touch(cython.address(self.policy), page)

    def choose(self, want: int) -> list[int]:
        """Pages that leave now."""
        pages: uint64_t[256]
        count: uint32_t = policy_choose(cython.address(self.policy), pages, min(want, 256))
        return [pages[i] for i in range(count)]

    def stay(self, page: int) -> None:
        """A page that was chosen is in memory still."""
        policy_stay(cython.address(self.policy), page)

    def forget(self, first: int, count: int = 1) -> None:
        """There are no such pages any more."""
        policy_forget_range(cython.address(self.policy), first, first + count)

    def queues(self) -> tuple[int, int, int, int]:
        """Pages in memory that are fresh and proven, and names of those that have left."""
        c: cython.pointer[uint32_t] = self.policy.counts
        return c[FRESH], c[PROVEN], c[FRESH_GONE], c[PROVEN_GONE]

    def returned(self) -> tuple[int, int]:
        """Pages that were asked for, and how many of them had left not long ago."""
        return self.policy.arrived, self.policy.returned

    def __contains__(self, page: int) -> bool:
        return policy_is_in_memory(cython.address(self.policy), page)

    def __len__(self) -> int:
        return policy_resident(cython.address(self.policy))
