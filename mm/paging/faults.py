"""Answers page faults: what is in swap is copied in, with its neighbours when they are used in order; what is new is zero.

`serve` is a thread's whole life, without the GIL. It holds the lock while it answers one fault, also when it reads from swap.
"""

import os
import threading

import cython
from cython.cimports.libc.errno import EAGAIN, EEXIST, EINTR, EMFILE, ENOENT, ENOMEM, ESRCH, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, realloc
from cython.cimports.libc.string import memset
from cython.cimports.mm.awake import LULL_MS
from cython.cimports.mm.hw import now_ns
from cython.cimports.mm.paging.assistant import SHARED_PAGES, sem_destroy, sem_init, sem_post, sem_wait
from cython.cimports.mm.paging.space import (
    RUN_PAGES,
    Space,
    forget_slot,
    in_batch,
    in_swap_alone,
    read_slots,
    space_fork,
    space_free,
)
from cython.cimports.mm.paging.table import (
    CHUNK_PAGES,
    Chunk,
    bit,
    chunk_of,
    set_bit,
    slot_of,
)
from cython.cimports.mm.paging.userfault import (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    PAGE,
    PAGE_BITS,
    UFFD_EVENT_FORK,
    UFFD_EVENT_PAGEFAULT,
    UFFD_EVENT_REMAP,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
    Message,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    pread,
    read,
    uffd_copy,
    uffd_protect,
    uffd_wake,
    uffd_zero,
    write,
)
from cython.cimports.mm.paging.writers import guess_sample, guess_seen, guess_written
from cython.cimports.mm.swap.policy import policy_arrive, policy_is_in_memory, policy_touch
from cython.cimports.mm.swap.store import Failure
from cython.cimports.mm.swap.sys import (
    aligned_alloc,
    explicit_bzero,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.libc.signal import SIGKILL
from cython.cimports.posix.signal import kill
from cython.cimports.posix.unistd import close

from mm.awake import or_none
from mm.paging.assistant import Assistant

if not cython.compiled:
    raise ImportError("mm.paging.faults must be compiled: python setup.py build_ext --inplace")

ZERO_PAGES = cython.declare(uint32_t, RUN_PAGES)
WAIT_FOR_ROOM_NS = cython.declare(int64_t, 2_000_000_000)
DRY_NS = cython.declare(int64_t, 100_000_000)       # without any room being made: then a page is lent
LENT_MOST = cython.declare(uint32_t, 8)
_RETRY_MS = cython.declare(cython.int, 1)
_LOOK_ON_NS = cython.declare(int64_t, 15_000)       # for the next fault, when they come so fast: to be woken takes as long
_WAKE = cython.declare(uint64_t, 0xFFFFFFFF)
_EBADMSG = cython.declare(cython.int, 74)


@cython.cclass
class FaultServer:
    """Spaces, and the thread that answers for them."""

    def __cinit__(self):
        pthread_mutex_init(cython.address(self.lock), cython.NULL)
        sem_init(cython.address(self.serving), 0, 0)
        self.epoll = self.wake = self.told = -1

    def __init__(self, store: SwapStore):
        event: epoll_event
        self.store = store
        self.spaces_most = SPACES_MOST
        self.spaces = cython.cast(cython.pointer[cython.pointer[Space]], calloc(SPACES_MOST, cython.sizeof(cython.p_void)))
        self.buffer = cython.cast(cython.pointer[uint8_t], aligned_alloc(PAGE, RUN_PAGES * PAGE))
        self.zeros = cython.cast(cython.pointer[uint8_t], aligned_alloc(PAGE, ZERO_PAGES * PAGE))
        if cython.NULL in (self.spaces, self.buffer, self.zeros):
            raise MemoryError
        memset(self.buffer, 0, RUN_PAGES * PAGE)        # now, not in the middle of a fault
        memset(self.zeros, 0, ZERO_PAGES * PAGE)
        self.wake, self.told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll = _epoll()
        self.looks_on = len(os.sched_getaffinity(0)) > 1
        event.events, event.data.u64 = EPOLLIN, _WAKE
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.wake, cython.address(event)) < 0:
            raise OSError("epoll_ctl")

    def __dealloc__(self):
        i: uint32_t
        if self.spaces != cython.NULL and self.store is not None:
            for i in range(self.highest):
                if self.spaces[i] != cython.NULL:
                    space_free(self.spaces[i], self.store)
        free(self.spaces)
        if self.buffer != cython.NULL:
            explicit_bzero(self.buffer, RUN_PAGES * PAGE)
        free(self.buffer)
        free(self.zeros)
        free(self.deferred)
        for fd in (self.epoll, self.wake, self.told):
            if fd >= 0:
                close(fd)
        sem_destroy(cython.address(self.serving))
        pthread_mutex_destroy(cython.address(self.lock))

    def serve(self) -> None:
        """Answer faults until `stop`."""
        assistant: Assistant = Assistant(self.store)
        thread = threading.Thread(target=assistant.work, name="faults-2", daemon=True)
        if self.looks_on:
            thread.start()
            assistant.await_work()
            self.assistant = assistant
        with cython.nogil:
            sem_post(cython.address(self.serving))
            self._serve()
        self.assistant = None
        if self.looks_on:
            assistant.stop()
            thread.join()

    def await_service(self) -> None:
        """Until `serve` has begun, once: whoever faults with the GIL before waits for ever."""
        with cython.nogil:
            sem_wait(cython.address(self.serving))

    def stop(self) -> None:
        """End `serve`. What is touched then waits for ever: do away with the memory first."""
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.lock))
            self.stopping = True
            pthread_mutex_unlock(cython.address(self.lock))
            self._tell(self.wake)

    def keep_awake(self) -> None:
        """The processors, from now on while faults come often, where that is ours to ask for; before `serve`."""
        self.awake = or_none()

    @property
    def told_fd(self) -> int:
        """Readable when something failed, forked, or waits for room: an eventfd."""
        return self.told

    # spaces; with the lock

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _enter(self, space: cython.pointer[Space]) -> cython.int:
        """Answer for one more. An errno: there are too many, and it is the caller's still."""
        event: epoll_event
        index: uint32_t = 0
        while index < self.spaces_most and self.spaces[index] != cython.NULL:
            index += 1
        if index == self.spaces_most:
            return EMFILE
        self.next_generation += 1
        space.index, space.generation = index, self.next_generation
        event.events, event.data.u64 = EPOLLIN, index
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, space.fd, cython.address(event)) < 0:
            return ENOMEM
        self.spaces[index] = space
        self.highest = max(self.highest, index + 1)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _remove(self, space: cython.pointer[Space]) -> cython.void:
        event: epoll_event
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, space.fd, cython.address(event))
        self.spaces[space.index] = cython.NULL
        space_free(space, self.store)

    # the thread

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _serve(self) -> cython.void:
        events: epoll_event[64]
        value: uint64_t
        count: cython.int
        i: cython.int
        answered_ns: int64_t = 0
        pause_ns: int64_t
        gap_ns: int64_t = _LOOK_ON_NS           # between an answer and the next fault, about
        running: cython.bint = True
        while running:
            count = 0
            if gap_ns < _LOOK_ON_NS and self.looks_on and self.deferred_count == 0:
                while count == 0 and now_ns() - answered_ns < _LOOK_ON_NS:
                    count = epoll_wait(self.epoll, events, 64, 0)
            if count == 0:
                count = epoll_wait(self.epoll, events, 64, self._look_up_ms())
            pause_ns = now_ns() - answered_ns
            gap_ns = (3 * gap_ns + min(pause_ns, 4 * _LOOK_ON_NS)) // 4
            if self.awake is not None:
                self.awake.paused(pause_ns)
            pthread_mutex_lock(cython.address(self.lock))
            for i in range(count):
                if events[i].data.u64 == _WAKE:
                    read(self.wake, cython.address(value), 8)
                elif self.spaces[events[i].data.u64] != cython.NULL:
                    self._take(self.spaces[events[i].data.u64])
            if self.deferred_count:
                self._retry()
            running = not self.stopping
            pthread_mutex_unlock(cython.address(self.lock))
            answered_ns = now_ns()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look_up_ms(self) -> cython.int:
        """When to do so if nothing comes; -1: never."""
        if self.deferred_count:
            return _RETRY_MS
        return LULL_MS if self.awake is not None and self.awake.holds else -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, space: cython.pointer[Space]) -> cython.void:
        """Some of what the kernel has to say about a space.

        It tells of faults first, also of those behind a fork: then a page that we bring in is not the child's, which needs its
        slot, so forks and moves come first here.
        """
        messages: Message[MESSAGES]
        got: int64_t = read(space.fd, messages, cython.sizeof(messages))
        count: int64_t = got // cython.cast(int64_t, cython.sizeof(Message))
        i: int64_t
        event: epoll_event
        error: cython.int = errno if got < 0 else 0
        if error and error != EAGAIN and error != EINTR:        # there is no descriptor for what was forked
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, space.fd, cython.address(event))
            self._lose_track(space, error)
            return
        for i in range(count):
            if messages[i].event == UFFD_EVENT_FORK:
                self._forked(space, cython.cast(cython.int, cython.cast(uint32_t, messages[i].flags)))
            elif messages[i].event == UFFD_EVENT_REMAP:
                if space.move_count < MOVES_MOST:
                    space.moves[space.move_count] = messages[i].address
                space.move_count += 1
        for i in range(count):
            if messages[i].event == UFFD_EVENT_PAGEFAULT:
                self._fault(space, messages[i].address, messages[i].flags, messages[i].thread, cython.NULL)
        if space.limit:
            self._balance(space)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _forked(self, space: cython.pointer[Space], fd: cython.int) -> cython.void:
        """The space of a child that has not run yet. Whoever looks after processes claims it."""
        child: cython.pointer[Space] = space_fork(space, fd, self.store)
        error: cython.int = ENOMEM if child == cython.NULL else self._enter(child)
        if error == 0:
            self._tell(self.told)
            return
        if child != cython.NULL:
            space_free(child, self.store)
        else:
            close(fd)
        self._lose_track(space, error)                  # for the child there is zero now where it had something in swap

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _lose_track(self, space: cython.pointer[Space], error: cython.int) -> cython.void:
        """It cannot go on, nor can what was forked from it and has no space: whoever looks after it is told."""
        space.broken = True
        if not self._note_lost(space, 0, error, -1, 0) and space.pid > 0:
            kill(space.pid, SIGKILL)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fault(self, space: cython.pointer[Space], address: uint64_t, flags: uint64_t, thread: uint32_t,
               again: cython.pointer[Deferred]) -> cython.void:
        """Answer one. `again`: it was deferred already."""
        page: uint64_t = address >> PAGE_BITS
        written: cython.bint = flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) != 0
        grows: cython.bint = not flags & UFFD_PAGEFAULT_FLAG_WP or slot_of(cython.address(space.table), page) == 0
        waited_ns: int64_t
        error: cython.int
        self.asking = thread
        if space.broken:                                # its owner is about to be ended
            if self._is_ours(thread):
                self._end_now(space, space.pid, page)
            return
        if space.batch_runs and in_batch(space, page) and thread != self.evictor:
            space.parked = True                         # the end of the batch wakes it
            return
        if not grows or self.hard_limit == 0 or space.pid <= 0:
            pass                                        # it takes no room, or none of that which is limited
        elif self.resident < self.hard_limit:
            self.lent = 0
        elif not space.starting and not self._is_ours(thread):
            waited_ns = now_ns() - max(again.since_ns, self.made_room_ns) if again != cython.NULL else 0
            if waited_ns > WAIT_FOR_ROOM_NS:
                self._fail(space, page, ENOMEM, -1)
                return
            if waited_ns < DRY_NS or self.lent >= LENT_MOST:
                self._defer(space, address, flags, thread, again, True)
                return
            self.lent += 1                              # who makes room may be the one who waits for this
            space.next_page = space.next_zero = 0       # and for nothing more
            space.window = 1
        if flags & UFFD_PAGEFAULT_FLAG_WP:
            error = self._unprotect(space, page)
        elif slot_of(cython.address(space.table), page):
            error = self._bring(space, page, written)
        else:
            error = self._bring_zero(space, page, written)
        if error == EAGAIN or error == ENOMEM:
            self._defer(space, address, flags, thread, again, False)
        elif error == EEXIST or error == ENOENT:
            uffd_wake(space.fd, page << PAGE_BITS, PAGE)        # it is there, or the mapping is not: it sees for itself
        elif error and error != ESRCH:
            self._fail(space, page, error, -1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bring_zero(self, space: cython.pointer[Space], page: uint64_t, written: cython.bint) -> cython.int:
        """A page that has nothing in it yet, and the next ones when they come in order. 0, or an errno."""
        count: uint32_t = 1
        most: uint32_t
        done: uint64_t = 0
        error: cython.int = 0
        i: uint64_t
        space.counts.zero_faults += 1
        most = space.zero_window = min(space.zero_window * 2, ZERO_PAGES) if page == space.next_zero else 1
        if space.move_count:
            most = 1                                    # the pages behind may have slots that are not known there yet
        if space.limit:
            most = min(most, cython.cast(uint32_t, max(space.limit // 16, cython.cast(uint64_t, 1))))
        while (count < most and slot_of(cython.address(space.table), page + count) == 0
               and not (space.batch_runs and in_batch(space, page + count))):
            count += 1
        while True:
            if written or space.pid == 0:
                error = uffd_copy(space.fd, page << PAGE_BITS, self.zeros, count << PAGE_BITS, False, cython.address(done))
            else:
                error = uffd_zero(space.fd, page << PAGE_BITS, count << PAGE_BITS, cython.address(done))
                if done:                                # a page of its own comes with the first write: that is to be seen
                    uffd_protect(space.fd, page << PAGE_BITS, done, True)
            if error != ENOENT or count == 1:
                break
            count = 1                                   # the mapping ends before
        done >>= PAGE_BITS
        if written or space.pid == 0:
            for i in range(done):
                policy_arrive(cython.address(space.policy), page + i, i == 0)
            if space.pid:
                self.resident += done
            else:
                space.resident += done
        space.next_zero = page + max(done, cython.cast(uint64_t, 1))
        return 0 if done else error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _cluster(self, space: cython.pointer[Space], page: uint64_t) -> uint32_t:
        """How many pages to bring in: in order, more and more; else this one alone."""
        most: uint32_t
        if page == space.next_page:
            space.window = min(space.window * 2, cython.cast(uint32_t, RUN_PAGES))
            space.counts.ahead_used += space.last_ahead
        else:
            space.window = max(space.window // 4, 1)
        most = space.window
        if space.limit:
            most = min(most, cython.cast(uint32_t, max(space.limit // 8, cython.cast(uint64_t, 1))))
        return 1 + in_swap_alone(space, page + 1, most - 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bring(self, space: cython.pointer[Space], page: uint64_t, written: cython.bint) -> cython.int:
        """A page from swap, with those behind it that are likely to be next. 0, or an errno."""
        count: uint32_t = self._cluster(space, page)
        here: uint32_t = count // 2 if count >= SHARED_PAGES and self.assistant is not None else count
        there: uint32_t = 0
        done: uint64_t
        error: cython.int = 0
        writable: cython.bint = written or self.spare or guess_written(cython.address(space.guess))
        space.counts.faults += 1
        if here < count:
            self.assistant.begin(space, page + here, count - here, self.buffer + (here << PAGE_BITS), not self.spare)
        done = self._bring_here(space, page, here, writable, cython.address(error))
        if here < count:
            there = self.assistant.end()
            self._arrived(space, page + here, there, not self.spare, False)
        if done == here:
            done += there
        if done:
            space.counts.pages_in += done
            space.last_ahead = cython.cast(uint32_t, done - 1)
            space.counts.pages_ahead += space.last_ahead
            space.next_page = page + done
            return 0
        return error

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bring_here(self, space: cython.pointer[Space], page: uint64_t, wanted: uint32_t, writable: cython.bint,
                    error: cython.pointer[cython.int]) -> uint64_t:
        """The page that is asked for and those behind it, from swap. How many are there, or else an errno."""
        failure: Failure
        done: uint64_t
        count: uint32_t = read_slots(space, page, wanted, self.buffer, self.store, cython.address(failure))
        if count == 0 and wanted > 1:                   # the page that is asked for may be whole
            count = read_slots(space, page, 1, self.buffer, self.store, cython.address(failure))
        if count == 0:
            self._fail(space, page, _EBADMSG if failure.corrupt else failure.error,
                       slot_of(cython.address(space.table), page) - 1)
            return 0
        if not writable:
            guess_sample(cython.address(space.guess), page)
            return self._install(space, page, count, self.buffer, True, True, error)
        done = self._install(space, page, 1, self.buffer, False, True, error)
        if done and count > 1:
            done += self._install(space, page + 1, count - 1, self.buffer + PAGE, not self.spare, False, error)
        return done

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _install(self, space: cython.pointer[Space], page: uint64_t, count: uint32_t,
                 data: cython.pointer[cython.const[uint8_t]], keep: cython.bint, asked: cython.bint,
                 error: cython.pointer[cython.int]) -> uint64_t:
        """Copy pages in, and keep their slots until they are written, or give them back. How many it was.

        `asked`: the first is what the fault is about.
        """
        done: uint64_t = 0
        error[0] = uffd_copy(space.fd, page << PAGE_BITS, data, cython.cast(uint64_t, count) << PAGE_BITS, keep,
                             cython.address(done))
        if error[0] == ENOENT and count > 1:            # the mapping ends before
            error[0] = uffd_copy(space.fd, page << PAGE_BITS, data, PAGE, keep, cython.address(done))
        done >>= PAGE_BITS
        self._arrived(space, page, done, keep, asked)
        return done

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _arrived(self, space: cython.pointer[Space], page: uint64_t, count: uint64_t, keep: cython.bint,
                 asked: cython.bint) -> cython.void:
        """Pages are in memory: see `_install`."""
        i: uint64_t
        chunk: cython.pointer[Chunk]
        for i in range(count):
            if keep:
                chunk = chunk_of(cython.address(space.table), page + i)
                set_bit(chunk.present, page + i)
            else:
                forget_slot(space, page + i, self.store)
            policy_arrive(cython.address(space.policy), page + i, asked and i == 0)
        if count:
            space.copied_at_ns = now_ns()
            if space.pid:
                self.resident += count
            else:
                space.resident += count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _unprotect(self, space: cython.pointer[Space], page: uint64_t) -> cython.int:
        """A page that is protected is written: it is not what its slot has any more. 0, or an errno."""
        count: uint32_t = 1
        error: cython.int
        i: uint32_t
        chunk: cython.pointer[Chunk]
        space.counts.write_faults += 1
        guess_seen(cython.address(space.guess), page)
        chunk = chunk_of(cython.address(space.table), page)
        if (chunk != cython.NULL and chunk.slots[page & (CHUNK_PAGES - 1)] and not bit(chunk.present, page)
                and not self._is_there(space, page)):
            return EEXIST                               # it has left since it was touched: the slot is all there is of it
        if page == space.next_write:                    # in order: the next ones as well
            while count < ZERO_PAGES:
                chunk = chunk_of(cython.address(space.table), page + count)
                if (chunk == cython.NULL or not bit(chunk.present, page + count)
                        or (space.batch_runs and in_batch(space, page + count))):
                    break
                count += 1
        error = uffd_protect(space.fd, page << PAGE_BITS, cython.cast(uint64_t, count) << PAGE_BITS, False)
        if error != EAGAIN:                             # also of a range that ends in another mapping some are unprotected now
            for i in range(count):
                forget_slot(space, page + i, self.store)
        if error == ENOENT and count > 1:
            count = 1
            error = uffd_protect(space.fd, page << PAGE_BITS, PAGE, False)
        if error:
            return error
        if space.pid > 0 and not policy_is_in_memory(cython.address(space.policy), page):      # a zero page until now, it seems
            policy_arrive(cython.address(space.policy), page, True)
            self.resident += 1
        policy_touch(cython.address(space.policy), page)
        space.next_write = page + count
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_there(self, space: cython.pointer[Space], page: uint64_t) -> cython.bint:
        """Whether a page is in memory that we did not bring in: a fork's child may have some that its parent has lost.

        Of a child that nobody has claimed yet nothing has left, so what it found protected is there. It must not be asked to
        look again: Linux writes its thread id to its memory (set_child_tid) before the stop at which it is claimed.
        """
        entry: uint64_t = 0
        if space.pid < 0:
            return True
        return (space.pagemap >= 0 and pread(space.pagemap, cython.address(entry), 8, page * 8) == 8
                and entry >> 63 != 0)

    # what has to wait

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _defer(self, space: cython.pointer[Space], address: uint64_t, flags: uint64_t, thread: uint32_t,
               again: cython.pointer[Deferred], room: cython.bint) -> cython.void:
        """Answer it later: the address space is changing, or there is no room."""
        size: uint32_t
        grown: cython.pointer[Deferred]
        one: cython.pointer[Deferred]
        if self.deferred_count == self.deferred_size:
            size = self.deferred_size * 2 if self.deferred_size else 64
            grown = cython.NULL
            if size <= DEFERRED_MOST:
                grown = cython.cast(cython.pointer[Deferred], realloc(self.deferred, size * cython.sizeof(Deferred)))
            if grown == cython.NULL:
                uffd_wake(space.fd, address >> PAGE_BITS << PAGE_BITS, PAGE)    # it asks again
                return
            self.deferred, self.deferred_size = grown, size
        if room and (again == cython.NULL or not again.counted):
            space.counts.waited += 1
        one = cython.address(self.deferred[self.deferred_count])
        if again == cython.NULL:
            one.since_ns, one.counted = now_ns(), room
        else:
            one.since_ns, one.counted = again.since_ns, again.counted or room
        one.index, one.generation, one.address, one.flags, one.thread = (
            space.index, space.generation, address, flags, thread)
        self.deferred_count += 1
        if room and not self.waits_for_room:
            self.waits_for_room = True
            self._tell(self.told)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _retry(self) -> cython.void:
        one: Deferred
        count: uint32_t = self.deferred_count
        i: uint32_t
        space: cython.pointer[Space]
        self.waits_for_room = False
        for i in range(count):
            one = self.deferred[i]
            space = self.spaces[one.index]
            if space != cython.NULL and space.generation == one.generation:
                self._fault(space, one.address, one.flags, one.thread, cython.address(one))
        for i in range(self.deferred_count - count):
            self.deferred[i] = self.deferred[count + i]
        self.deferred_count -= count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fail(self, space: cython.pointer[Space], page: uint64_t, error: cython.int, slot: int64_t) -> cython.void:
        """A page cannot be had: whoever looks after the space is told, and ends who waits for it."""
        pid: cython.int = space.pid if space.pid >= 0 else cython.cast(cython.int, self.asking)    # all that it has: one thread
        if pid > 0 and (space.pid < 0 or self._is_ours(self.asking)):
            # Nor is there anybody to be told of a child that is unclaimed.
            self._end_now(space, pid, page)
            self._note_lost(space, page, error, slot, 0)
        elif not self._note_lost(space, page, error, slot, self.asking):
            uffd_wake(space.fd, page << PAGE_BITS, PAGE)        # it asks again

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end_now(self, space: cython.pointer[Space], pid: cython.int, page: uint64_t) -> cython.void:
        """We must not wait for a page of a program: so it has to end, and never sees what we are given in place of it."""
        done: uint64_t
        kill(pid, SIGKILL)
        uffd_zero(space.fd, page << PAGE_BITS, PAGE, cython.address(done))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _note_lost(self, space: cython.pointer[Space], page: uint64_t, error: cython.int, slot: int64_t,
                   thread: uint32_t) -> cython.bint:
        """For whoever looks after spaces. False: there is no room to note it."""
        one: cython.pointer[LostPage]
        if self.lost_count == LOST_MOST:
            return False
        one = cython.address(self.lost_pages[self.lost_count])
        one.index, one.page, one.error, one.slot, one.thread = space.index, page, error, slot, thread
        self.lost_count += 1
        self._tell(self.told)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.inline
    @cython.exceptval(check=False)
    def _is_ours(self, thread: uint32_t) -> cython.bint:
        """Whether it is a thread without which nothing gets better."""
        return thread != 0 and (thread == self.exempt or thread == self.evictor)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tell(self, eventfd: cython.int) -> cython.void:
        one: uint64_t = 1
        write(eventfd, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _balance(self, space: cython.pointer[Space]) -> cython.void:
        """Keep memory of our own within its limit; see `mm.paging.pager`."""


@cython.cfunc
def _epoll() -> cython.int:
    """A descriptor that nothing else closes."""
    import select
    with select.epoll() as made:
        return os.dup(made.fileno())
