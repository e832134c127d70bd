"""The store: a page comes back as it was written, or somebody is told why not."""

import errno
import os
import random
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from mm.swap.aes_gcm import IpsecMb, Libcrypto
from mm.swap.device import FileDevice, RamDevice
from mm.swap.errors import SwapCorrupt, SwapFailed, SwapFull
from mm.swap.pack import Lz4, Zstd
from mm.swap.seal import Checksum
from mm.swap.store import SwapStore
from tests.mm.swap.test_aes_gcm import IPSEC_MB_LACKS

PAGE = 4096
KINDS = [(Libcrypto, None), (Libcrypto, Lz4), (Libcrypto, Zstd), (Checksum, None), (Checksum, Lz4)]
if not IPSEC_MB_LACKS:
    KINDS += [(IpsecMb, None), (IpsecMb, Lz4)]


def page(seed: int) -> bytes:
    """One of many sorts: one word all over, text that packs well, octets that do not, and half of each."""
    some = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        return some.randbytes(8) * 512 if seed % 8 else bytes(PAGE)
    if kind == 1:
        return (f"page {seed}, as people write. ".encode() * 512)[:PAGE]
    octets = some.randbytes(PAGE)
    return octets if kind == 2 else octets[:2048] + bytes(2048)


def pages(*seeds: int) -> bytes:
    return b"".join(map(page, seeds))


def make(kind, octets=1 << 20, device=None, **options) -> SwapStore:
    sealer, packer = kind
    return SwapStore(device or RamDevice(octets), sealer=sealer(), packer=packer and packer(), **options)


def read(store: SwapStore, first: int, count: int) -> bytes:
    memory = bytearray(count * PAGE)
    store.read_into(first, count, memory)
    return bytes(memory)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(each.__name__ for each in kind if each))
def kind(request):
    return request.param


def test_pages_come_back_together_and_one_by_one(kind, tmp_path):
    store = make(kind, device=FileDevice(str(tmp_path / "swap"), 4 << 20))
    written = pages(*range(300))
    first = store.allocate(300)
    store.write(first, written)
    assert read(store, first, 300) == written
    for i in random.Random(1).sample(range(300), 60):
        assert read(store, first + i, 1) == page(i)
    assert read(store, first + 130, 90) == written[130 * PAGE:220 * PAGE]


def test_the_device_learns_nothing_from_what_is_encrypted(kind):
    secret = b"the password is moonlight" + bytes(range(231))
    store = make(kind)
    first = store.allocate(4)
    store.write(first, (secret * 64)[:4 * PAGE])
    found = b"moonlight" in store.device.peek(0, 1 << 20)
    assert found is (kind[0] is Checksum)


def test_what_is_written_twice_is_never_the_same_on_the_device():
    store = make((Libcrypto, None))
    first = store.allocate(2)
    store.write(first, page(2) * 2)
    before = store.device.peek(0, 2 * PAGE)
    assert before[:PAGE] != before[PAGE:]
    store.write(first, page(2) * 2)
    assert store.device.peek(0, PAGE) not in (before[:PAGE], before[PAGE:])


def test_a_page_of_one_word_takes_no_room(kind):
    store = make(kind)
    first = store.allocate(3)
    store.write(first, bytes(PAGE) + b"rustosd!" * 512 + bytes(PAGE))
    assert store.stats().octets_stored == store.stats().writes == 0 and store.stats().pages_same == 3
    assert read(store, first, 3) == bytes(PAGE) + b"rustosd!" * 512 + bytes(PAGE)


def test_a_page_that_differs_in_its_last_octet_is_not_of_one_word(kind):
    store = make(kind)
    first = store.allocate(1)
    odd = bytes(PAGE - 1) + b"x"
    store.write(first, odd)
    assert read(store, first, 1) == odd and store.stats().pages_same == 0


def test_packed_pages_take_what_they_need_and_that_is_what_is_told():
    store = make((Libcrypto, Lz4))
    first = store.allocate(8)
    store.write(first, pages(1, 5, 9, 13, 2, 6, 10, 14))     # four pack to a unit each, four do not at all
    stats = store.stats()
    assert stats.octets_stored == stats.octets_written == 4 * 512 + 4 * PAGE
    assert stats.pages_packed == 4 and stats.ratio == 8 * PAGE / stats.octets_stored
    store.release(first, 8)
    assert store.stats().octets_stored == 0


def test_more_pages_than_the_device_has_fit_when_they_pack_and_full_is_said_when_not():
    store = make((Checksum, Lz4), octets=64 * PAGE)
    first = store.allocate(200)
    store.write(first, pages(*[1] * 200))
    assert read(store, first + 150, 1) == page(1)
    other = store.allocate(56)
    with pytest.raises(SwapFull, match="memory is full"):
        store.write(other, pages(*range(2, 226, 4)))
    assert store.stats().full == 1 and store.stats().octets_stored == 200 * 512
    with pytest.raises(SwapFailed):
        read(store, other, 1)
    store.release(first, 200)
    store.write(other, pages(*range(2, 226, 4)))        # the same again, now that there is room
    assert read(store, other, 56) == pages(*range(2, 226, 4))


def test_nothing_is_left_of_a_page_that_was_changed(kind):
    store = make(kind)
    first = store.allocate(1)
    store.write(first, page(2))
    store.device.flip(store.place_of(first)[0] + 99, 1)
    memory = bytearray(b"x" * PAGE)
    with pytest.raises(SwapCorrupt):
        store.read_into(first, 1, memory)
    assert memory == bytes(PAGE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_octet_that_changes_is_noticed(kind, seed):
    store = make(kind)
    first = store.allocate(3)
    store.write(first, pages(2, seed, 6))
    at, octets = store.place_of(first + 1)
    at_all = random.Random(seed).sample(range(octets), min(octets, 200))
    noticed = 0
    for offset in at_all:
        store.device.flip(at + offset, 1 << offset % 8)
        try:
            assert read(store, first + 1, 1) == page(seed)          # behind the end of what is packed nobody reads
        except SwapCorrupt as error:
            noticed += 1
            assert (error.first, error.count, error.device, error.errno) == (first + 1, 1, "memory", errno.EBADMSG)
        assert read(store, first, 1) == page(2) and read(store, first + 2, 1) == page(6)
        store.device.flip(at + offset, 1 << offset % 8)
    assert noticed == store.stats().corrupt == store.stats().read_again
    assert noticed == len(at_all) or (kind[1] is not None and noticed)
    assert read(store, first, 3) == pages(2, seed, 6)


def test_a_page_in_the_place_of_another_is_noticed(kind):
    store = make(kind)
    first = store.allocate(2)
    store.write(first, pages(2, 6))
    a, b = (store.place_of(first + i)[0] for i in (0, 1))
    for i in range(PAGE):
        both = store.device.peek(a + i, 1)[0] ^ store.device.peek(b + i, 1)[0]
        store.device.flip(a + i, both)
        store.device.flip(b + i, both)
    for slot in (first, first + 1):
        with pytest.raises(SwapCorrupt, match=f"slot {slot}: the page is not what was written"):
            read(store, slot, 1)


def test_what_was_there_before_is_noticed_when_a_write_was_lost(kind):
    store = make(kind)
    first = store.allocate(1)
    store.write(first, page(2))
    at, octets = store.place_of(first)
    old = store.device.peek(at, octets)
    store.write(first, page(6))
    at = store.place_of(first)[0]
    for i, octet in enumerate(store.device.peek(at, octets)):
        store.device.flip(at + i, octet ^ old[i])
    with pytest.raises(SwapCorrupt):
        read(store, first, 1)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENODEV, errno.ETIMEDOUT])
def test_an_error_of_the_device_names_the_slots_and_later_all_is_well(kind, error):
    store = make(kind)
    first = store.allocate(6)
    store.write(first, pages(2, 6, 10))
    store.device.fail(error, writes=False)
    with pytest.raises(SwapFailed, match=f"memory: cannot read slots {first} to {first + 2}: {os.strerror(error)}") as caught:
        read(store, first, 3)
    assert caught.value.errno == error
    store.device.fail(error, reads=False)
    with pytest.raises(SwapFailed, match="cannot write"):
        store.write(first + 3, pages(14, 18, 22))
    store.device.fail(0)
    assert read(store, first, 3) == pages(2, 6, 10)
    with pytest.raises(SwapFailed, match="Input/output error"):
        read(store, first + 3, 1)
    store.write(first + 3, pages(14, 18, 22))
    assert read(store, first, 6) == pages(2, 6, 10, 14, 18, 22)
    assert store.stats().failed == 2
    store.release(first, 6)
    assert store.stats().octets_stored == 0 and store.held() == []


@pytest.mark.parametrize("torn", [0, 1, 512, PAGE, 2 * PAGE + 100])
def test_a_torn_write_is_an_error_and_never_read_as_a_page(kind, torn):
    store = make(kind)
    first = store.allocate(3)
    store.write(first, pages(2, 6, 10))
    store.device.fail(errno.EIO, reads=False, torn=torn)
    with pytest.raises(SwapFailed):
        store.write(first, pages(14, 18, 22))
    store.device.fail(0)
    for slot in range(first, first + 3):
        with pytest.raises(SwapFailed):
            read(store, slot, 1)


def test_a_fault_of_the_way_is_read_again(kind):
    store = make(kind)
    first = store.allocate(2)
    store.write(first, pages(2, 1))
    for slot, seed in ((first, 2), (first + 1, 1)):
        store.device.misread(store.place_of(slot)[0] + 7, 4, times=1)
        assert read(store, slot, 1) == page(seed)
    assert (store.stats().read_again, store.stats().corrupt) == (2, 0)


@pytest.mark.parametrize("act", [lambda s: s.write(3, bytes(PAGE)), lambda s: s.write(0, bytes(PAGE + 1)),
                                 lambda s: s.write(0, b""), lambda s: s.write(1, bytes(2 * PAGE)),
                                 lambda s: s.read_into(0, 1, bytearray(2 * PAGE)),
                                 lambda s: s.read_into(-1, 1, bytearray(PAGE)),
                                 lambda s: s.read_into(3, 1, bytearray(PAGE)), lambda s: s.release(3), lambda s: s.share(3),
                                 lambda s: s.release(1, 2), lambda s: s.place_of(99)])
def test_what_makes_no_sense_is_refused(act):
    store = make((Libcrypto, None))
    store.allocate(2)
    with pytest.raises(ValueError):
        act(store)
    assert store.stats().slots_used == 2


def test_a_slot_that_was_never_written_cannot_be_read():
    store = make((Libcrypto, None))
    first = store.allocate(1)
    with pytest.raises(SwapFailed, match="nothing was ever written there"):
        read(store, first, 1)


def test_what_children_share_stays_until_the_last_has_left(kind):
    store = make(kind)
    first = store.allocate(2)
    store.write(first, pages(2, 1))
    store.share(first, 2)
    assert store.release(first, 2) == 0
    assert read(store, first, 2) == pages(2, 1)
    assert store.release(first, 2) == 2 and store.stats().octets_stored == 0


def test_a_hole_goes_back_to_the_file_system_and_its_neighbours_stay(kind, tmp_path):
    device = FileDevice(str(tmp_path / "swap"), 16 << 20)
    store = make(kind, device=device)
    first = store.allocate(2048)
    store.write(first, pages(*range(2, 8194, 4)))       # all of octets that do not pack
    before = device.allocated()
    store.release(first + 100, 1600)
    assert store.trim() >= 1500 * PAGE and store.trim() == 0
    assert device.allocated() <= before - 1500 * PAGE
    assert read(store, first, 100) == pages(*range(2, 402, 4))
    assert read(store, first + 1700, 348) == pages(*range(6802, 8194, 4))
    again = store.allocate(1600)
    store.write(again, pages(*[3] * 1600))
    store.trim()
    assert read(store, again, 1600) == pages(*[3] * 1600)


def test_several_threads_at_once_do_not_mix_their_pages(kind):
    store = make(kind, octets=32 << 20)
    wrong = []

    def work(seed):
        some = random.Random(seed)
        for round_ in range(40):
            count = some.randrange(1, 60)
            try:
                first, count = store.allocate_run(count)
            except SwapFull:
                continue
            seeds = [seed * 10_000 + round_ * 100 + i for i in range(count)]
            store.write(first, pages(*seeds))
            if read(store, first, count) != pages(*seeds):
                wrong.append((seed, round_))
            store.release(first, count)
            store.trim(1 << 20)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and store.held() == [] and store.stats().octets_stored == 0


class Store(RuleBasedStateMachine):
    """Against a dict of what is in every slot, on a device that is too small and fails now and then."""

    held = Bundle("held")

    @initialize(kind=st.sampled_from(KINDS), count=st.integers(8, 80))
    def begin(self, kind, count):
        self.store = make(kind, octets=count * PAGE)
        self.content, self.users = {}, {}

    @rule(target=held, want=st.integers(1, 40), seed=st.integers(0, 1000), fails=st.sampled_from([0, 0, 0, errno.EIO]))
    def write(self, want, seed, fails):
        try:
            first, got = self.store.allocate_run(min(want, self.store.slots.count))
        except SwapFull:
            assert len(self.users) == self.store.slots.count
            return multiple()
        self.users |= dict.fromkeys(range(first, first + got), 1)
        self._write(first, got, seed, fails)
        return first, got

    @rule(run=held, seed=st.integers(0, 1000), fails=st.sampled_from([0, 0, 0, errno.EIO]))
    def write_again(self, run, seed, fails):
        if all(slot in self.users for slot in range(run[0], sum(run))):
            self._write(*run, seed, fails)

    def _write(self, first, count, seed, fails):
        new = {first + i: seed + i for i in range(count)}
        self.store.device.fail(fails)
        try:
            self.store.write(first, pages(*new.values()))
            self.content |= new
        except (SwapFailed, SwapFull):
            self.content |= dict.fromkeys(new)
        self.store.device.fail(0)

    @rule(run=held)
    def share(self, run):
        if all(slot in self.users for slot in range(run[0], sum(run))):
            self.store.share(*run)
            for slot in range(run[0], sum(run)):
                self.users[slot] += 1

    @rule(run=held, skip=st.integers(0, 20))
    def release(self, run, skip):
        slots = list(range(run[0] + min(skip, run[1] - 1), sum(run)))
        if all(slot in self.users for slot in slots):
            self.store.release(slots[0], len(slots))
            for slot in slots:
                self.users[slot] -= 1
                if not self.users[slot]:
                    del self.users[slot], self.content[slot]

    @rule()
    def trim(self):
        self.store.trim()

    @rule(run=held)
    def read(self, run):
        slots = range(run[0], sum(run))
        if all(slot in self.users for slot in slots):
            if None in (seeds := [self.content[slot] for slot in slots]):
                with pytest.raises(SwapFailed):
                    read(self.store, *run)
            else:
                assert read(self.store, *run) == pages(*seeds)

    @invariant()
    def what_is_told_is_so(self):
        if hasattr(self, "store"):
            stats = self.store.stats()
            assert stats.slots_used == len(self.users)
            places = sorted(self.store.place_of(slot) for slot in self.content)
            assert stats.octets_stored == sum(octets for _, octets in places) <= stats.device_octets
            ends = [at + octets for at, octets in places if octets]
            assert all(end <= at for end, (at, _) in zip(ends, [p for p in places if p[1]][1:], strict=False))


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=80, deadline=None)
