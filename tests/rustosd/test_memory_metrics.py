"""The metrics of programs' memory: by program of the configuration, and never falling."""

import pytest

from rustosd.memory_metrics import MemoryWatch


class Supervisor:
    """A group that answers with some totals; with an error, if they are None."""

    def __init__(self, pid, **totals):
        self.pid, self.totals = pid, totals

    async def ask(self, op):
        assert op == "memory_totals"
        if self.totals is None:
            raise OSError(61, "the memory of these programs is not limited")
        return {"totals": self.totals}


class Daemon:
    """The process table and the programs of the configuration in one: by name, their supervisors' numbers."""

    def __init__(self, *groups, **runners):
        self.there, self.runners = list(groups), runners

    def groups(self):
        return list(self.there)

    def supervised_by(self, pid):
        return next((name for name, supervisor in self.runners.items() if supervisor == pid), "")


def values(watch):
    return {(family.name, sample.labels["program"]): sample.value for family in watch.metrics() for sample in family.samples}


async def test_programs_of_the_configuration_have_their_own_and_all_others_are_one():
    unlimited = Supervisor(9)
    unlimited.totals = None
    daemon = Daemon(Supervisor(1, resident_octets=10, faults=3), Supervisor(2, resident_octets=5, faults=1),
                    Supervisor(3, resident_octets=7, faults=4, ahead_pages=8), unlimited, web=1, cron=9)
    watch = MemoryWatch(daemon, daemon)
    assert values(watch)["rustos_memory_faults", "-"] == 0      # an alert can name it from the start
    await watch.gather()
    seen = values(watch)
    assert (seen["rustos_memory_resident_octets", "web"], seen["rustos_memory_resident_octets", "-"]) == (10, 12)
    assert (seen["rustos_memory_faults", "web"], seen["rustos_memory_faults", "-"]) == (3, 5)
    assert {label for _, label in seen} == {"web", "-"}


async def test_counters_go_on_when_a_program_starts_again_and_end_with_its_table():
    first = Supervisor(1, swapped_octets=6, out_octets=100)
    daemon = Daemon(first, web=1)
    watch = MemoryWatch(daemon, daemon)
    await watch.gather()
    first.totals = {"swapped_octets": 8, "out_octets": 150}
    await watch.gather()
    daemon.there = []
    await watch.gather()
    assert (values(watch)["rustos_memory_out_octets", "web"], values(watch)["rustos_memory_swapped_octets", "web"]) == (150, 0)
    daemon.there = [Supervisor(1, swapped_octets=1, out_octets=20)]     # even with the number of the former one
    await watch.gather()
    assert (values(watch)["rustos_memory_out_octets", "web"], values(watch)["rustos_memory_swapped_octets", "web"]) == (170, 1)
    daemon.runners.clear()
    await watch.gather()
    assert ("rustos_memory_out_octets", "web") not in values(watch)


@pytest.mark.parametrize("then", [None, {"faults": 2}, {"faults": -5}, {"faults": "many"}, {"faults": 1 << 70}, {"faults": 7}])
async def test_nothing_that_a_supervisor_says_makes_a_counter_fall_or_count_twice(then):
    one = Supervisor(1, faults=7)
    daemon = Daemon(one)
    watch = MemoryWatch(daemon, daemon)
    await watch.gather()
    one.totals = then
    await watch.gather()
    assert values(watch)["rustos_memory_faults", "-"] == 7
