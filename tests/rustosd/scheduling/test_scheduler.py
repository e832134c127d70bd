"""Programs get their share of real processors, in both ways: by control groups and without.

Shares are told by processor time against processor time, so that whatever else this machine does changes nothing.
"""

import asyncio
import os
import resource
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from rustosd import config
from rustosd.journal import GroupsMade, Journal
from rustosd.process import inventory
from rustosd.scheduling import groups as kernel
from rustosd.scheduling import waits
from rustosd.scheduling.groups import NoGroups
from rustosd.scheduling.scheduler import Scheduler
from rustosd.scheduling.settings import DAEMON_REALTIME, Settings

HOG = "while :; do :; done"
FORKS = "while :; do /bin/true; done"
ONE = max(os.sched_getaffinity(0))
LIMIT_S = 60
MOMENT_NS = 2_000_000
"""The kernel's own, while it freezes a process or moves it, which counts as the process's."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to schedule others")


def wanting(**words) -> config.SchedulerConfig:
    return msgspec.structs.replace(config.default().scheduler, **words)


def need_groups() -> None:
    try:
        kernel.find()
    except NoGroups as error:
        pytest.skip(f"needs control groups that we may make: {error}")


@pytest.fixture(params=["auto", "off"])
def way(request) -> str:
    if request.param == "auto":
        need_groups()
    return request.param


@asynccontextmanager
async def scheduling(tmp_path, **words):
    with Journal(tmp_path / "journal.jsonl") as journal:
        scheduler = Scheduler(wanting(**words))
        scheduler.open(journal)
        try:
            yield scheduler
        finally:
            groups = scheduler.groups
            await scheduler.close()
            assert groups is None or not any(root.exists() for root in groups.roots)
        assert not journal.pending


@contextmanager
def program(script=HOG, **options):
    """A shell with a child that runs this: (supervisor, program)."""
    with subprocess.Popen(["sh", "-c", f"({script}) & echo $!; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, **options) as shell:
        pid = int(shell.stdout.readline())
        try:
            yield shell.pid, pid
        finally:
            for each in (*inventory.below(shell.pid), shell.pid):
                os.kill(each, 9)


def ran_ns(supervisor: int) -> int:
    return sum(waits.spent(pid, pid).run_ns for pid in inventory.below(supervisor))


def share(first: int, second: int, together_s: float = 0.3) -> float:
    """How much more processor time the first gets than the second, once they have had so much together."""
    before, limit = (ran_ns(first), ran_ns(second)), time.monotonic() + LIMIT_S
    while True:
        time.sleep(0.05)
        got = ran_ns(first) - before[0], ran_ns(second) - before[1]
        if sum(got) >= together_s * 1e9:
            return got[0] / max(1, got[1])
        assert time.monotonic() < limit, f"they ran {got} ns only"


async def test_classes_and_priorities_make_shares(tmp_path, way):
    async with scheduling(tmp_path, cgroup=way) as scheduler:
        with program() as (first, hog), program() as (second, other):
            await scheduler.enter(first, hog, Settings(sched_class="interactive", processors=(ONE,)), anything=True)
            await scheduler.enter(second, other, Settings(sched_class="batch", processors=(ONE,)), anything=True)
            assert share(first, second) > 4         # 16 by the weights
            await scheduler.change(first, Settings(sched_class="normal", priority=-5))
            await scheduler.change(second, Settings(sched_class="normal", priority=5))
            assert share(second, first) > 3         # 9.3
            await scheduler.change(first, Settings(sched_class="normal", priority=0))
            await scheduler.change(second, Settings(sched_class="idle", priority=0))
            assert share(first, second) > 10


async def test_a_crowd_in_one_class_takes_no_more_than_its_class(tmp_path):
    need_groups()
    crowd = " & ".join([f"({HOG})"] * 12)
    async with scheduling(tmp_path) as scheduler:
        with program() as (first, hog), program(f"({crowd}) & wait") as (second, other):
            await scheduler.enter(first, hog, Settings(processors=(ONE,)), anything=True)
            await scheduler.enter(second, other, Settings(sched_class="batch", processors=(ONE,)), anything=True)
            assert share(first, second, 0.6) > 1.5      # 4; by nice values it would be a third


async def test_realtime_is_before_all_others_but_the_daemon(tmp_path, way):
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    async with scheduling(tmp_path, cgroup=way) as scheduler:
        with program() as (first, hog), program() as (second, other):
            await scheduler.enter(first, hog, Settings(processors=(ONE,)), anything=True)
            assert (scheduler.ahead.level, os.getpriority(os.PRIO_PROCESS, 0)) == ("weighted", -5)
            before_all = Settings(sched_class="realtime", priority=-9, processors=(ONE,))
            await scheduler.enter(second, other, before_all, anything=True)
            assert os.sched_getscheduler(0) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
            assert os.sched_getparam(0).sched_priority == DAEMON_REALTIME
            assert (os.sched_getscheduler(other), os.sched_getparam(other).sched_priority) == (os.SCHED_RR, 11)
            assert share(second, first) > 2
            with pytest.raises(ValueError, match="no quota against realtime"):
                await scheduler.change(second, Settings(quota_percent=10.0))
            await scheduler.change(second, Settings(sched_class="normal"))
            assert (os.sched_getscheduler(other), scheduler.ahead.level) == (os.SCHED_OTHER, "weighted")
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == (os.SCHED_OTHER, nice)


async def test_a_quota_holds_whatever_else_is_free(tmp_path):
    need_groups()
    async with scheduling(tmp_path) as scheduler:
        with program() as (supervisor, hog):
            made = await scheduler.enter(supervisor, hog, Settings(quota_percent=20.0), anything=False)
            before, limit = ran_ns(supervisor), time.monotonic() + LIMIT_S
            while (held := scheduler.statistics(made))["throttled"] < 5:
                assert time.monotonic() < limit, held
                time.sleep(0.02)
            periods = held["periods"] + 2       # one that began before and one that has not ended
            assert ran_ns(supervisor) - before < 1.5 * periods * 0.2 * kernel.PERIOD_US * 1000
            await scheduler.change(supervisor, Settings(quota_percent=0.0))
            assert scheduler.programs[supervisor].settings.quota_percent == 0


async def test_without_groups_a_quota_is_refused_and_nothing_else(tmp_path):
    async with scheduling(tmp_path, cgroup="off") as scheduler:
        with program() as (supervisor, hog):
            with pytest.raises(ValueError, match='cgroup = "off"'):
                await scheduler.enter(supervisor, hog, Settings(quota_percent=20.0), anything=True)
            assert not scheduler.programs
            await scheduler.enter(supervisor, hog, Settings(), anything=True)
            with pytest.raises(ValueError, match="no quota without control groups"):
                await scheduler.change(supervisor, Settings(sched_class="batch", quota_percent=20.0))
            assert os.sched_getscheduler(hog) == os.SCHED_OTHER


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel weighs no sessions")
async def test_without_groups_a_session_weighs_as_its_program(tmp_path):
    async with scheduling(tmp_path, cgroup="off") as scheduler:
        with program(start_new_session=True) as (supervisor, pid):
            await scheduler.enter(supervisor, pid, Settings(sched_class="batch"), anything=True)
            assert Path(f"/proc/{supervisor}/autogroup").read_text().split()[-2:] == ["nice", "6"]
        with program() as (supervisor, pid):
            before = Path("/proc/self/autogroup").read_text()
            await scheduler.enter(supervisor, pid, Settings(sched_class="batch"), anything=True)
            assert Path("/proc/self/autogroup").read_text() == before       # it is not the program's alone


async def test_processors(tmp_path, way):
    """In a group the program cannot take others by itself, without one it can: ways() tells which it is."""
    widen = f"exec {sys.executable} -c 'import os\nwhile True: os.sched_setaffinity(0, range(64))'"
    async with scheduling(tmp_path, cgroup=way) as scheduler:
        with program(widen if way == "auto" else HOG) as (supervisor, pid):
            await scheduler.enter(supervisor, pid, Settings(processors=(ONE,)), anything=False)
            time.sleep(0.3)
            assert os.sched_getaffinity(pid) == {ONE}
            assert scheduler.ways()["processors"] == {"auto": "cpuset", "off": "affinity"}[way]
            await scheduler.change(supervisor, Settings(processors=()))
            if way == "off":
                assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
            with pytest.raises(ValueError, match="cannot run on processor 8000"):
                await scheduler.change(supervisor, Settings(processors=(8000,)))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
async def test_a_reserved_processor_is_the_daemons_alone(tmp_path, way):
    all_of_them = os.sched_getaffinity(0)
    async with scheduling(tmp_path, cgroup=way, reserved_processors=config.Processors(str(ONE))) as scheduler:
        assert os.sched_getaffinity(0) == {ONE}
        with program() as (supervisor, hog):
            await scheduler.enter(supervisor, hog, Settings(), anything=True)
            assert os.sched_getaffinity(hog) == all_of_them - {ONE}
            with pytest.raises(ValueError, match=f"cannot run on processor {ONE}"):
                await scheduler.change(supervisor, Settings(processors=(ONE,)))
            await scheduler.configure(wanting(cgroup=way))
            assert os.sched_getaffinity(hog) == os.sched_getaffinity(0) == all_of_them
            await scheduler.change(supervisor, Settings(processors=(ONE,)))
            with pytest.raises(ValueError, match=f"cannot run on processor {ONE}"):     # and then it is as it was
                await scheduler.configure(wanting(cgroup=way, reserved_processors=config.Processors(str(ONE))))
            assert os.sched_getaffinity(0) == all_of_them
    assert os.sched_getaffinity(0) == all_of_them


@pytest.mark.parametrize(("reserved", "why"), [("8000", "has no processor 8000"), (",".join(map(str, os.sched_getaffinity(0))),
                                                                                "none is left for programs")])
def test_processors_that_cannot_be_reserved(tmp_path, reserved, why):
    with Journal(tmp_path / "journal.jsonl") as journal, pytest.raises(ValueError, match=why):
        Scheduler(wanting(reserved_processors=config.Processors(reserved))).open(journal)


@pytest.fixture
def crowded():
    """This process has more descriptors open than select(2) can name, as a daemon with many sockets has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(min(hard, 1200) - 100)]
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_suspended_program_runs_no_further_also_what_it_forks(tmp_path, crowded):
    need_groups()
    async with scheduling(tmp_path) as scheduler:
        with program(FORKS) as (supervisor, pid):
            await scheduler.enter(supervisor, pid, Settings(sched_class="interactive"), anything=False)
            assert await scheduler.freeze(supervisor, True)
            there, ran = inventory.below(supervisor), ran_ns(supervisor)
            time.sleep(0.3)
            assert inventory.below(supervisor) == there and ran_ns(supervisor) - ran < MOMENT_NS
            await scheduler.change(supervisor, Settings(sched_class="batch"))       # in its new group too
            ran = ran_ns(supervisor)            # to be moved a task runs to where it freezes anew, which takes a guest longer
            time.sleep(0.3)
            assert inventory.below(supervisor) == there and ran_ns(supervisor) - ran < MOMENT_NS
            os.kill(pid, 9)
            await scheduler.let_die(supervisor, pid)
            assert inventory.describe(pid)["state"] == "zombie"
            assert await scheduler.freeze(supervisor, False)


async def test_who_may_have_what(tmp_path):
    async with scheduling(tmp_path) as scheduler:
        with program() as (supervisor, hog):
            for wanted in (Settings(sched_class="realtime"), Settings(priority=1)):
                with pytest.raises(PermissionError, match="change_group"):
                    await scheduler.enter(supervisor, hog, wanted, anything=False)
            for wrong in ((os.getpid(), hog), (supervisor, 1)):
                with pytest.raises(ValueError, match="no child"):
                    await scheduler.enter(*wrong, Settings(priority=0), anything=True)
                assert await scheduler.enter(*wrong, Settings(), anything=True) is None     # nobody has asked
            assert not scheduler.programs


async def test_the_end_of_a_supervisor_takes_its_group(tmp_path):
    need_groups()
    async with scheduling(tmp_path) as scheduler:
        with program() as (supervisor, hog):
            made = await scheduler.enter(supervisor, hog, Settings(), anything=True)
            group = scheduler.groups.roots[0] / made.name
            assert group.exists()
        async with asyncio.timeout(LIMIT_S):
            while scheduler.programs or group.exists():
                await asyncio.sleep(0.01)
        assert scheduler.ahead.level == "as started"


async def test_what_classes_spent_is_added_up(tmp_path):
    class Told:
        def __init__(self):
            self.spent = waits.Spent(500, 50, 5)

        async def figures(self):
            return {supervisor: (self.spent, [5] + [0] * (waits.BUCKETS - 1)), 1: (self.spent, [0] * waits.BUCKETS)}

    async with scheduling(tmp_path, cgroup="off") as scheduler:
        with program() as (supervisor, hog):
            await scheduler.enter(supervisor, hog, Settings(sched_class="batch"), anything=True)
            told = Told()
            await scheduler.gather(told)
            await scheduler.gather(told)
            assert scheduler.spent["batch"] == (500, 50, 5) and scheduler.waits["batch"][0] == 5
            told.spent = waits.Spent(100, 50, 5)        # a counter that falls: not believed
            await scheduler.gather(told)
            assert scheduler.spent["batch"] == (500, 50, 5) and scheduler.spent["normal"] == (0, 0, 0)


async def test_a_journal_knows_of_groups_before_they_are(tmp_path):
    need_groups()
    async with scheduling(tmp_path) as scheduler:
        with program() as (supervisor, hog):
            await scheduler.enter(supervisor, hog, Settings(), anything=True)
            entries = list(scheduler._journal.pending.values())
            assert entries == [GroupsMade(tuple(map(str, scheduler.groups.roots)), scheduler.groups.new)]
