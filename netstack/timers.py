"""Deadlines in an indexed heap: the earliest at once, any of them set, moved or cleared in O(log n)."""

import errno

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t
from cython.cimports.libc.stdlib import free, realloc
from cython.cimports.libc.string import memset

_FIRST_CAPACITY = cython.declare(uint32_t, 64)
_NEVER = (1 << 63) - 1


@cython.cfunc
@cython.exceptval(-1, check=False)
def timers_create(t: cython.pointer[TimerHeap], limit: uint32_t) -> cython.int:
    """An empty heap for ids below `limit`, at least 1. Memory comes with the first deadline."""
    memset(t, 0, cython.sizeof(TimerHeap))
    if limit == 0:
        raise ValueError("a timer heap needs room for at least one id")
    t.limit = limit
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def timers_destroy(t: cython.pointer[TimerHeap]) -> cython.void:
    free(t.heap)
    free(t.position)
    memset(t, 0, cython.sizeof(TimerHeap))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(t: cython.pointer[TimerHeap], id: uint32_t) -> cython.bint:
    """Room for `id`, which is below the limit."""
    capacity: uint32_t = t.capacity if t.capacity else _FIRST_CAPACITY
    while capacity <= id:
        capacity = capacity * 2 if capacity < t.limit // 2 else t.limit
    if capacity > t.limit:
        capacity = t.limit
    # Each array is kept as soon as it has grown: a failure of the second leaves both usable.
    heap: cython.pointer[TimerEntry] = cython.cast(
        cython.pointer[TimerEntry], realloc(t.heap, cython.cast(cython.size_t, capacity) * cython.sizeof(TimerEntry)))
    if heap == cython.NULL:
        return False
    t.heap = heap
    position: cython.pointer[uint32_t] = cython.cast(
        cython.pointer[uint32_t], realloc(t.position, cython.cast(cython.size_t, capacity) * cython.sizeof(uint32_t)))
    if position == cython.NULL:
        return False
    t.position = position
    memset(position + t.capacity, 0, cython.cast(cython.size_t, capacity - t.capacity) * cython.sizeof(uint32_t))
    t.capacity = capacity
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _put(t: cython.pointer[TimerHeap], place: uint32_t, id: uint32_t, at: int64_t) -> cython.void:
    t.heap[place].id = id
    t.heap[place].at = at
    t.position[id] = place + 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sift(t: cython.pointer[TimerHeap], place: uint32_t, id: uint32_t, at: int64_t) -> cython.void:
    """Put an entry where it belongs, starting from a hole at `place`."""
    parent: uint32_t
    child: uint32_t
    heap: cython.pointer[TimerEntry] = t.heap
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent].at <= at:
            break
        _put(t, place, heap[parent].id, heap[parent].at)
        place = parent
    while True:
        child = 2 * place + 1
        if child >= t.count:
            break
        if child + 1 < t.count and heap[child + 1].at < heap[child].at:
            child += 1
        if heap[child].at >= at:
            break
        _put(t, place, heap[child].id, heap[child].at)
        place = child
    _put(t, place, id, at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def timer_set(t: cython.pointer[TimerHeap], id: uint32_t, at: int64_t) -> cython.bint:
    if id >= t.capacity and (id >= t.limit or not _grow(t, id)):
        return False
    place: uint32_t = t.position[id]
    if place == 0:
        t.count += 1
        place = t.count
    _sift(t, place - 1, id, at)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def timer_clear(t: cython.pointer[TimerHeap], id: uint32_t) -> cython.void:
    if id >= t.capacity or t.position[id] == 0:
        return
    place: uint32_t = t.position[id] - 1
    t.position[id] = 0
    t.count -= 1
    if place != t.count:
        _sift(t, place, t.heap[t.count].id, t.heap[t.count].at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def timer_at(t: cython.pointer[cython.const[TimerHeap]], id: uint32_t) -> int64_t:
    if id >= t.capacity or t.position[id] == 0:
        return cython.cast(int64_t, 0x7FFFFFFFFFFFFFFF)
    return t.heap[t.position[id] - 1].at


@cython.final
@cython.cclass
class Timers:
    """A heap of deadlines that Python owns: ids below `limit`, times in ns."""

    def __cinit__(self, limit: uint32_t):
        timers_create(cython.address(self.heap), limit)

    def __dealloc__(self):
        timers_destroy(cython.address(self.heap))

    def __len__(self):
        return self.heap.count

    def set(self, id: uint32_t, at: int64_t) -> None:
        """Set or move a deadline. Raises OSError when `id` is not below the limit or memory is short."""
        if not timer_set(cython.address(self.heap), id, at):
            raise OSError(errno.ENOSPC, f"no room for timer {id}: the limit is {self.heap.limit}")

    def clear(self, id: uint32_t) -> None:
        """Forget a deadline; nothing happens when there is none."""
        timer_clear(cython.address(self.heap), id)

    def at(self, id: uint32_t) -> int | None:
        """The deadline of an id, None when it has none."""
        at: object = timer_at(cython.address(self.heap), id)
        return None if at == _NEVER else at

    def earliest(self) -> tuple[int, int] | None:
        """(deadline, id) of what is due first, None when nothing is set."""
        if self.heap.count == 0:
            return None
        return timers_next(cython.address(self.heap)), timers_top(cython.address(self.heap))
