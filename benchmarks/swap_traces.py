"""Which pages a program uses, and policies that choose what leaves memory: how often is what is used there?

The policies see what a pager sees, faults alone. Two see more and are only to compare with: LRU sees every use, OPT the future.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from mm.swap.policy import Replacement

MEMORY = 2000           # pages
Trace = Sequence[int]


def zipf(count: int, skew: float, some: random.Random) -> Callable[[], int]:
    """Draws one of so many pages, a few of them often; neighbours are not alike."""
    sums = list(itertools.accumulate(1 / rank ** skew for rank in range(1, count + 1)))
    order = list(range(count))
    some.shuffle(order)
    return lambda: order[bisect.bisect(sums, some.random() * sums[-1])]


def traces(uses: int) -> dict[str, Trace]:
    """By name; the same at every call."""
    some = random.Random(1)
    skewed = zipf(4 * MEMORY, 0.9, some)
    return {
        "sequential, beside what is in use": _sequential(uses, some),
        "loop over 1.2 times memory": [i % (MEMORY * 6 // 5) for i in range(uses)],
        "loop over 2 times memory": [i % (2 * MEMORY) for i in range(uses)],
        "zipf over 4 times memory": [skewed() for _ in range(uses)],
        "uniform over 2 times memory": [some.randrange(2 * MEMORY) for _ in range(uses)],
        "key-value store with snapshots": _store(uses, some),
        "growing heap with a collector": _heap(uses, some),
        "phases": _phases(uses, some),
    }


def _sequential(uses: int, some: random.Random) -> Trace:
    hot, cold = zipf(MEMORY // 2, 0.6, some), itertools.count(10 * MEMORY)
    return [hot() if some.random() < 0.5 else next(cold) for _ in range(uses)]


def _store(uses: int, some: random.Random) -> Trace:
    """An index that every key's use touches as well; now and then a snapshot goes over everything."""
    key, found = zipf(4 * MEMORY, 0.8, some), []
    for turn in itertools.count():
        page = key()
        found += [100 * MEMORY + page * 7919 % (MEMORY // 4), page]
        if turn % (10 * MEMORY) < 4 * MEMORY:
            found.append(turn % (10 * MEMORY))
        if len(found) >= uses:
            return found[:uses]


def _heap(uses: int, some: random.Random) -> Trace:
    """What is new is in use; the collector goes over all of it."""
    old, top, found = zipf(MEMORY, 0.7, some), MEMORY // 2, []
    while len(found) < uses:
        for _ in range(200):
            new = top - 1 - int(some.expovariate(1 / 40)) % top
            found.append(old() % top if some.random() < 0.6 else new)
        top = min(top + some.choice((4, 8, -2)), 3 * MEMORY)
        if some.random() < 0.01:
            found.extend(range(top))
    return found[:uses]


def _phases(uses: int, some: random.Random) -> Trace:
    found: list[int] = []
    for phase in range(10):
        draw = zipf(MEMORY * 11 // 10, 0.5, some)
        found += [phase % 4 * 2 * MEMORY + draw() for _ in range(uses // 10)]
    return found


def address_order(trace: Trace) -> int:
    """Hits of a hand that goes over the addresses."""
    there: list[int] = []
    known: set[int] = set()
    hand = hits = 0
    for page in trace:
        if page in known:
            hits += 1
            continue
        if len(there) >= MEMORY:
            hand = there.pop(bisect.bisect(there, hand) % len(there))
            known.remove(hand)
        bisect.insort(there, page)
        known.add(page)
    return hits


def oldest_first(trace: Trace) -> int:
    """Hits of FIFO."""
    there: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in trace:
        if page in there:
            hits += 1
            continue
        if len(there) >= MEMORY:
            there.popitem(last=False)
        there[page] = None
    return hits


def victim_cache(trace: Trace) -> int:
    """Hits of a FIFO whose last quarter is unmapped but still there, so that its use is seen; each such use is a fault, too."""
    first: OrderedDict[int, None] = OrderedDict()
    victims: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in trace:
        if page in first:
            hits += 1
            continue
        if page in victims:
            hits += 1
            del victims[page]
        first[page] = None
        if len(first) > MEMORY * 3 // 4:
            victims[first.popitem(last=False)[0]] = None
            if len(victims) > MEMORY // 4:
                victims.popitem(last=False)
    return hits


def two_queues(trace: Trace) -> int:
    """Hits of 2Q, whose main queue learns of no use."""
    first: OrderedDict[int, None] = OrderedDict()
    main: OrderedDict[int, None] = OrderedDict()
    gone: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in trace:
        if page in first or page in main:
            hits += 1
            continue
        came_back = page in gone
        gone.pop(page, None)
        if len(first) + len(main) >= MEMORY:
            if len(first) > MEMORY // 4 or not main:
                gone[first.popitem(last=False)[0]] = None
            else:
                main.popitem(last=False)
            if len(gone) > MEMORY:
                gone.popitem(last=False)
        (main if came_back else first)[page] = None
    return hits


def ours(trace: Trace) -> int:
    """Hits of `mm.swap.policy`."""
    policy, hits = Replacement(), 0
    for page in trace:
        if page in policy:
            hits += 1
            continue
        if len(policy) >= MEMORY:
            policy.choose(1)
        policy.arrive(page)
    return hits


def least_recently_used(trace: Trace) -> int:
    """Hits of LRU, which sees every use."""
    there: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in trace:
        if page in there:
            hits += 1
            there.move_to_end(page)
            continue
        if len(there) >= MEMORY:
            there.popitem(last=False)
        there[page] = None
    return hits


def optimal(trace: Trace) -> int:
    """Hits of Belady's OPT, which sees the future."""
    later, last = [0] * len(trace), {}
    for i in range(len(trace) - 1, -1, -1):
        later[i] = last.get(trace[i], len(trace))
        last[trace[i]] = i
    there: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = 0
    for i, page in enumerate(trace):
        hits += page in there
        if page not in there and len(there) >= MEMORY:
            while True:
                when, other = heapq.heappop(heap)
                if there.get(other) == -when:
                    break
            del there[other]
        there[page] = later[i]
        heapq.heappush(heap, (-later[i], page))
    return hits


POLICIES: dict[str, Callable[[Trace], int]] = {
    "address order": address_order, "oldest first": oldest_first, "victim cache": victim_cache, "2Q": two_queues, "ours": ours,
    "LRU": least_recently_used, "OPT": optimal,
}


def hit_rates(uses: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The share of uses that find their page in memory: (trace, by policy)."""
    for name, trace in traces(uses).items():
        yield name, {policy: hits(trace) / len(trace) for policy, hits in POLICIES.items()}
