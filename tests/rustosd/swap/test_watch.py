"""What the daemon knows of everybody's swap: rates, sums that never fall, and what needs attention."""

import msgspec
import pytest

from mm.swap.device import RamDevice
from mm.swap.errors import SwapFailed
from mm.swap.store import SwapStore
from rustosd.swap.report import Report, report
from rustosd.swap.watch import SwapWatch

PAGE = 4096


class Supervisor:
    """A group whose supervisor answers with what a store says, or with an error."""

    def __init__(self, pid, store=None):
        self.pid, self.name, self.store = pid, f"program{pid}", store

    async def ask(self, op):
        assert op == "swap"
        if self.store is None:
            raise OSError(71, "not a question")
        return {"swap": report(self.store, faults=7)}


class Processes:
    def __init__(self, *groups):
        self.there = list(groups)

    def groups(self):
        return self.there


@pytest.fixture
def store():
    return SwapStore(RamDevice(64 * PAGE))


def fill(store, pages):
    first = store.allocate(pages)
    store.write(first, bytes(range(256)) * 16 * pages)
    return first


def values(watch):
    return {family.name: family.samples[0].value for family in watch.metrics()}


async def test_rows_have_the_figures_of_the_store_and_rates_since_somebody_looked(store):
    now = [100.0]
    watch = SwapWatch(Processes(Supervisor(1, store), Supervisor(2)), lambda: now[0])
    fill(store, 10)
    row, = await watch.look()
    assert (row.group, row.program, row.out_octets_per_s) == (1, "program1", 0.0)
    assert row.report.used_octets == row.report.stored_octets == row.report.out_octets == 10 * PAGE
    assert (row.report.octets, row.report.faults, row.report.device) == (64 * PAGE, 7, "memory")
    now[0] = 102.0
    store.read_into(fill(store, 20), 4, bytearray(4 * PAGE))
    row, = await watch.look()
    assert (row.out_octets_per_s, row.in_octets_per_s) == (10 * PAGE, 2 * PAGE)


async def test_what_ended_programs_counted_stays_counted(store):
    processes = Processes(Supervisor(1, store))
    watch = SwapWatch(processes)
    fill(store, 10)
    await watch.look()
    assert values(watch)["rustos_swap_out_octets"] == 10 * PAGE
    assert values(watch)["rustos_swap_used_octets"] == 10 * PAGE
    processes.there = []
    await watch.look()
    assert values(watch)["rustos_swap_out_octets"] == 10 * PAGE
    assert values(watch)["rustos_swap_used_octets"] == 0


async def test_who_does_not_answer_just_now_is_not_counted_twice(store):
    supervisor = Supervisor(1, store)
    watch = SwapWatch(Processes(supervisor))
    fill(store, 10)
    for answers in (store, None, store):
        supervisor.store = answers
        await watch.look()
        assert values(watch)["rustos_swap_out_octets"] == values(watch)["rustos_swap_used_octets"] == 10 * PAGE


@pytest.mark.parametrize("nonsense", [{"octets": 0}, {"used_octets": -1}, {"faults": 1 << 70}, {"device": "\x1b[2J"},
                                      {"device": "x" * 5000}, {"compression": "<b>"}])
async def test_who_reports_nonsense_is_left_out(store, nonsense):
    class Liar(Supervisor):
        async def ask(self, op):
            return {"swap": (await super().ask(op))["swap"] | nonsense}

    watch = SwapWatch(Processes(Liar(1, store), Supervisor(2, store)))
    assert [row.group for row in await watch.look()] == [2] and list(watch.troubles()) == []


async def test_what_needs_attention_is_told(store):
    watch = SwapWatch(Processes(Supervisor(1, store)))
    first = fill(store, 58)
    store.device.flip(0, 1)
    store.device.fail(5, writes=False, at=PAGE, octets=PAGE)
    for slot in (first, first + 1):
        with pytest.raises(SwapFailed):
            store.read_into(slot, 1, bytearray(PAGE))
    await watch.look()
    assert [(who, code) for who, code, _ in watch.troubles()] == [
        ("program1", "swap-corrupt"), ("program1", "swap-failing"), ("program1", "swap-nearly-full")]


def test_a_report_is_json_and_back(store):
    fill(store, 3)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(report(store))), Report).used_octets == 3 * PAGE
