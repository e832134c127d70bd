"""Programs whose memory is limited: whatever they do to it, they find what they have put there."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from rustosd.process import memory, ptrace, syscalls
from rustosd.process.memory import PAGER, Memory, MemoryRefused, check_rights
from rustosd.process.monitor import Monitor
from tests.mm.test_region import possible
from tests.rustosd.process.paged import BLIND, FAILING, FEW, FULL, LATE, Paged

PROGRAMS = Path(__file__).resolve().parent / "programs"
MIB = 1 << 20


def _refused() -> str:
    try:
        check_rights()
    except MemoryRefused as refused:
        return str(refused)
    return possible()


pytestmark = pytest.mark.skipif(bool(_refused()), reason=f"no paging of programs: {_refused()}")
Start = Callable[..., Paged]
OVER = 2 * MIB      # what comes in at a time, the first stack, and what files bring along


def built(name: str, folder: Path, *flags: str) -> str:
    program = folder / name
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-pthread", *flags, "-o", program, PROGRAMS / f"{name}.c"], check=True)
    return str(program)


@pytest.fixture(scope="session")
def stress(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built("stress", tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def fill(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built("fill", tmp_path_factory.mktemp("programs"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Programs that are ended with the test."""
    started: list[Paged] = []

    def begin(*argv: str, soft: int = 16 * MIB, hard: int = 24 * MIB, **more) -> Paged:
        started.append(Paged(*argv, soft=soft, hard=hard, folder=tmp_path, **more))
        return started[-1]

    yield begin
    for one in started:
        one.end()


def output_of(start: Start, tmp_path: Path, *argv: str, status: int = 0, **more) -> tuple[Paged, str]:
    """Run it to its end, which must be this; what it wrote."""
    with open(tmp_path / "output", "w+") as file:
        limit_s = more.pop("limit_s", 60)
        one = start(*argv, stdout=file.fileno(), **more)
        found = one.run(limit_s)
        file.seek(0)
        text = file.read()
    assert (found, one.lost, one.gave_up) == (status, [], ""), text
    return one, text


def test_where_it_is_started_are_no_modules_of_the_pager(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    output_of(start, tmp_path, "/bin/true")


def test_a_program_below_its_limit_is_not_slowed_by_faults(start: Start, tmp_path: Path) -> None:
    one, text = output_of(start, tmp_path, "/bin/echo", "hello")
    assert text == "hello\n"
    assert one.swap_total("out_octets") == 0


@pytest.mark.parametrize(("threads", "fork"), [(1, False), (3, False), (2, True)], ids=["one", "threads", "forks"])
def test_what_programs_do_to_their_memory_never_changes_what_is_in_it(start: Start, stress: str, tmp_path: Path, threads: int,
                                                                      fork: bool) -> None:
    one, text = output_of(start, tmp_path, stress, str(threads), "3", "40", *(["fork"] if fork else []))
    assert re.search(r"wrong 0$", text.strip())
    assert one.swap_total("out_octets") > 8 * MIB
    assert one.unclaimed_slots() == 0


def test_a_child_that_stops_before_its_parent_tells_of_it_waits_for_that(start: Start, stress: str, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    take = Monitor.take

    def tidying(monitor: Monitor, tid: int, status: int) -> None:
        take(monitor, tid, status)
        monitor.tidy()

    monkeypatch.setattr(Monitor, "take", tidying)
    one, text = output_of(start, tmp_path, stress, "2", "5", "40", "often")
    assert re.search(r"forks [1-9].* wrong 0$", text.strip())
    assert one.unclaimed_slots() == 0


TWO_CHILDREN = """
import os, random, time
first = os.fork()
if first == 0:
    os._exit(0)
chance = random.Random(5)
block = [chance.randbytes(4096) for _ in range(6000)]
sums = [hash(octets) for octets in block]
second = os.fork()
if second == 0:
    time.sleep(0.5)
    os._exit(0 if all(hash(octets) == total for octets, total in zip(block, sums)) else 1)
assert os.waitpid(first, 0)[1] == 0
assert os.waitpid(second, 0)[1] == 0
print("whole")
"""


@pytest.mark.parametrize("pager", [PAGER, BLIND], ids=["by-marks", "by-what-is-brought-in"])
def test_a_child_that_was_forked_before_anything_was_swapped_gets_no_other_childs_space(
        start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pager: Sequence[str]) -> None:
    begin, held = Memory._started, []

    def when_both_are_there(memory: Memory, child: int) -> bool:
        held.append(child)
        for pid in held if len(held) == 2 else ():
            if not begin(memory, pid):
                ptrace.go_on(pid)
        return True

    monkeypatch.setattr(Memory, "_started", when_both_are_there)
    one, text = output_of(start, tmp_path, sys.executable, "-c", TWO_CHILDREN, pager=pager)
    assert text == "whole\n"
    assert one.unclaimed_slots() == 0


DAEMON = """
import mmap, os, random, time
reading, writing = os.pipe()
if os.fork() == 0:
    chance = random.Random(7)
    block = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = [chance.randbytes(4096) for _ in range(64)]
    for page in range(6144):
        block[page * 4096:page * 4096 + 4096] = pages[page % 64]
    if os.fork() == 0:
        half = 12 << 20
        block.madvise(mmap.MADV_DONTNEED, 0, half)
        time.sleep(0.3)
        ok = not any(block[:half]) and all(
            block[page * 4096:page * 4096 + 4096] == pages[page % 64] for page in range(3072, 6144))
        os.write(writing, b"whole" if ok else b"wrong")
    os._exit(0)
os.close(writing)
print(os.read(reading, 9).decode())
"""


def test_a_child_whose_parent_ends_before_it_starts_keeps_what_was_swapped(start: Start, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end, held, ended = Memory._started, Memory._exited, [], []

    def not_the_second(memory: Memory, child: int) -> bool:
        held.append(child)
        return (len(held) == 2 and held[0] not in ended) or begin(memory, child)

    def the_second_now(memory: Memory, pid: int, status: int) -> None:
        end(memory, pid, status)
        ended.append(pid)
        if pid == held[0] and len(held) == 2 and not begin(memory, held[1]):
            ptrace.go_on(held[1])

    monkeypatch.setattr(Memory, "_started", not_the_second)
    monkeypatch.setattr(Memory, "_exited", the_second_now)
    one, text = output_of(start, tmp_path, sys.executable, "-c", DAEMON)
    assert text == "whole\n"
    assert one.unclaimed_slots() == 0


ORPHAN = DAEMON.replace("time.sleep(0.3)", 'more = [bytearray(b"x" * (300 << 10)) for _ in range(160)]')


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who forks second is killed before he tells of it, and his child is found once his end is known."""
    forked, end, tidy, forks, ended = Monitor._forked, Memory._exited, Monitor.tidy, [], []

    def kills(monitor: Monitor, tid: int, number: int) -> None:
        forks.append(tid)
        if len(forks) == 2:
            os.kill(tid, signal.SIGKILL)
        else:
            forked(monitor, tid, number)

    def ends(memory: Memory, pid: int, status: int) -> None:
        end(memory, pid, status)
        ended.append(pid)

    monkeypatch.setattr(Monitor, "_forked", kills)
    monkeypatch.setattr(Memory, "_exited", ends)
    monkeypatch.setattr(Monitor, "tidy", lambda monitor: tidy(monitor) if forks[1:] and forks[1] in ended else None)


@pytest.mark.usefixtures("cut_short")
def test_a_child_whose_parent_is_killed_in_the_fork_has_what_was_swapped_and_is_limited(start: Start, tmp_path: Path) -> None:
    one, text = output_of(start, tmp_path, sys.executable, "-c", ORPHAN)
    assert text == "whole\n"
    assert one.peak_octets() <= 24 * MIB + OVER
    assert one.unclaimed_slots() == 0


@pytest.mark.usefixtures("cut_short")
def test_a_child_of_which_nothing_tells_whose_it_is_is_killed_and_that_is_said(
        start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memory, "_COMES_WITHIN_S", -1)
    one, text = output_of(start, tmp_path, sys.executable, "-c", ORPHAN)
    assert text == "\n"
    assert re.search(r"process \d+ was killed: whoever forked it was killed in the middle of that", capfd.readouterr().err)
    assert one.unclaimed_slots() == 0


FORKS_MANY = """
import os, sys
reading, writing = os.pipe()
pages = int(sys.argv[1]) * 256
block = bytearray(pages * 4096)
for page in range(pages):
    block[page * 4096] = page % 251 + 1
children = []
for _ in range(6):
    if (child := os.fork()) == 0:
        os.close(writing)
        whole = all(block[page * 4096] == page % 251 + 1 for page in range(pages))
        os.write(1, b"whole " if whole else b"wrong ")
        os.read(reading, 1)
        os._exit(0)
    children.append(child)
os.close(writing)
print(sorted(os.waitpid(child, 0)[1] for child in children))
"""


def test_who_is_more_than_the_pager_can_look_after_is_killed_and_that_is_said(
        start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, text = output_of(start, tmp_path, sys.executable, "-c", FORKS_MANY, "1", soft=256 * MIB, hard=512 * MIB, pager=FEW)
    assert text == f"whole whole [0, 0{', 9' * 4}]\n"
    told = capfd.readouterr().err
    assert len(re.findall(r"process \d+ was killed: its memory cannot be limited: its group has 3 processes", told)) == 4


def test_nobody_has_zero_for_what_is_in_swap_when_the_pager_can_look_after_no_more(
        start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "output", "w") as file:
        one = start(sys.executable, "-c", FORKS_MANY, "24", stdout=file.fileno(), pager=FEW)
        assert one.run() == -signal.SIGKILL
        one.until(lambda: not one.turn())
    assert "wrong" not in (tmp_path / "output").read_text()
    told = capfd.readouterr().err
    for who, what in ((one.pid, "the memory of what it forks"), (r"\d+", "its memory")):
        assert re.search(rf"process {who} was killed: {what} cannot be limited: .* can look after no more", told), told
    assert one.unclaimed_slots() == 0


FORKS_MEANWHILE = """
import ctypes, mmap, os, sys, threading, time
octets = 24 << 20
libc = ctypes.CDLL(None)
block = mmap.mmap(-1, octets, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(octets >> 12):
    block[page << 12] = 1
at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(block)))
discarding = threading.Thread(target=libc.madvise, args=(at, octets, mmap.MADV_DONTNEED))
discarding.start()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.001)
child = os.fork()
if child == 0:
    os._exit(any(block[page << 12] for page in range(octets >> 12)))
discarding.join()
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_waits_until_the_pager_knows_what_another_thread_has_discarded(start: Start, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    ends, held = Memory._call_ends, []

    def not_yet(self: Memory, tid: int) -> None:
        if self._calls[tid].number == syscalls.MADVISE and not held:
            held.append(tid)
            (tmp_path / "discarded").touch()
        else:
            ends(self, tid)

    def goes_on() -> bool:
        """When the fork is over, or waits."""
        if held[:1] != [0] and held and (one.monitor.life["forks"] + one.monitor.life["clones"] or any(
                space.held for space in one.memory._by_key.values())):
            ends(one.memory, held[0])
            held[0] = 0
        return one.status is not None

    monkeypatch.setattr(Memory, "_call_ends", not_yet)
    with open(tmp_path / "output", "w+") as file:
        one = start(sys.executable, "-c", FORKS_MEANWHILE, str(tmp_path / "discarded"), stdout=file.fileno())
        one.until(goes_on)
        file.seek(0)
        assert file.read() == "0\n"
    assert one.swap_total("out_octets") > 4 * MIB
    assert one.unclaimed_slots() == 0


def _waits_in(pid: int) -> list[str]:
    """The numbers of the system calls that the threads of a process wait in; "-1": for memory."""
    threads = Path(f"/proc/{pid}/task")
    return sorted((threads / thread / "syscall").read_text().split()[0] for thread in os.listdir(threads))


def test_a_fork_behind_which_a_page_comes_in_leaves_the_child_its_own(start: Start, tmp_path: Path) -> None:
    """The pager stands still until it has both to read, the fork and the fault."""
    one = start(built("forks", tmp_path), "24")
    pager, life, both, met = one.memory.pager_pid, one.monitor.life, ["-1", str(syscalls.CLONE)], 0
    one.until(lambda: life["exits"] > 3)
    while met < 8:
        os.kill(pager, signal.SIGSTOP)
        goes_on = threading.Timer(0.1, os.kill, (pager, signal.SIGCONT))        # the supervisor may need it
        goes_on.start()
        one.until(lambda goes_on=goes_on: _waits_in(one.pid) == both or not goes_on.is_alive())
        met += goes_on.is_alive()
        goes_on.cancel()
        os.kill(pager, signal.SIGCONT)
        one.until(lambda exits=life["exits"]: life["exits"] > exits + 1 or one.status is not None)
        assert one.status is None


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 4, 8])
def test_the_same_for_minutes(start: Start, stress: str, tmp_path: Path, threads: int) -> None:
    one, text = output_of(start, tmp_path, stress, str(threads), "120", "64", "fork", limit_s=280)
    assert re.search(r"wrong 0$", text.strip())
    assert one.unclaimed_slots() == 0


GROW = """
import os, sys
pages = int(sys.argv[1]) * 256
block = bytearray(pages * 4096)
for page in range(pages):
    block[page * 4096:page * 4096 + 8] = page.to_bytes(8, "little")
most = 0
for turn in range(2):
    for page in range(pages):
        assert block[page * 4096:page * 4096 + 8] == page.to_bytes(8, "little"), page
print("whole")
"""


def test_four_times_the_limit_is_there_in_the_end_and_the_limit_is_kept(start: Start, tmp_path: Path) -> None:
    one, text = output_of(start, tmp_path, sys.executable, "-c", GROW, "96", soft=24 * MIB, hard=32 * MIB)
    assert text == "whole\n"
    assert one.peak_octets() <= 32 * MIB + OVER


FILL = """
import mmap, sys
mebibytes = int(sys.argv[1])
if sys.argv[2] == "pieces":
    blocks = [bytearray(b"x" * (300 << 10)) for _ in range(mebibytes * 1024 // 300)]
else:
    block = mmap.mmap(-1, mebibytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(mebibytes):
        block.write(b"x" * (1 << 20))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0]))
"""


@pytest.mark.parametrize("how", ["steps", "pieces"])
def test_however_fast_memory_is_filled_the_hard_limit_holds(start: Start, tmp_path: Path, how: str) -> None:
    _, text = output_of(start, tmp_path, sys.executable, "-c", FILL, "160", how, soft=32 * MIB, hard=40 * MIB)
    assert int(text) << 10 <= 40 * MIB + OVER       # as the kernel saw it


@pytest.mark.parametrize("how", ["whole", "pieces", "crumbs", "heap", "thread", "protection", "read", "populate", "brk",
                                 "static"])
def test_the_hard_limit_holds_when_the_pager_looks_late(start: Start, fill: str, tmp_path: Path, how: str) -> None:
    if how == "static":
        fill = built("fill", tmp_path, f"-DSTATIC={48 * MIB}")
    one, text = output_of(start, tmp_path, fill, how, "48", soft=16 * MIB, hard=20 * MIB, pager=LATE)
    assert int(text) <= 20 * MIB + OVER             # as the kernel saw it
    assert one.swap_total("out_octets") > 24 * MIB


def test_many_that_grow_at_once_keep_the_limit_together(start: Start, fill: str, tmp_path: Path) -> None:
    one, _ = output_of(start, tmp_path, fill, "many", "64", soft=16 * MIB, hard=20 * MIB, pager=LATE)
    assert one.peak_octets() <= 20 * MIB + OVER + 8 * (256 << 10)      # at a time in each


def test_copies_that_writes_make_after_a_fork_wait_for_nobody_and_are_no_more_than_was_forked(
        start: Start, fill: str, tmp_path: Path) -> None:
    """Nothing can be swapped out here, so who waited would be ended."""
    _, text = output_of(start, tmp_path, fill, "copy", "12", soft=8 * MIB, hard=16 * MIB, pager=FAILING,
                        place={"fails": "write-error"})
    forked_with, copied, _ = map(int, text.split())
    assert 12 * MIB <= copied <= forked_with + (8 << 12)        # what is lent


def test_who_needs_new_memory_after_a_fork_waits_until_all_are_within_the_limit(
        start: Start, fill: str, tmp_path: Path) -> None:
    _, text = output_of(start, tmp_path, fill, "copy-more", "12", soft=8 * MIB, hard=16 * MIB)
    _, both, _ = map(int, text.split())
    assert both <= 16 * MIB + OVER


def test_programs_that_are_not_root_are_limited_as_well(start: Start, stress: str, tmp_path: Path) -> None:
    for folder in (Path(stress), *Path(stress).parents[:4]):
        folder.chmod(folder.stat().st_mode | 0o055)
    one, text = output_of(start, tmp_path, "setpriv", "--reuid=65534", "--clear-groups", stress, "2", "3", "40", "fork")
    assert re.search(r"wrong 0$", text.strip())
    assert one.memory.unpaged == ""
    assert one.swap_total("out_octets") > 8 * MIB


def test_a_program_that_may_have_no_more_descriptors_is_limited_as_well(start: Start, tmp_path: Path) -> None:
    script = f"exec 3</dev/null; ulimit -n 4; exec {built('stress', tmp_path, '-static')} 1 2 40"
    one, text = output_of(start, tmp_path, "/bin/sh", "-c", script)
    assert re.search(r"wrong 0$", text.strip())
    assert one.memory.unpaged == "" and one.swap_total("out_octets") > 8 * MIB


FORKS = """
import os, sys, random
chance = random.Random(3)
block = [chance.randbytes(4096) for _ in range(6000)]
sums = [hash(octets) for octets in block]
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        ok = all(hash(octets) == total for octets, total in zip(block, sums))
        block = [octets[::-1] for octets in block]
        ok = ok and all(hash(octets[::-1]) == total for octets, total in zip(block, sums))
        os._exit(0 if ok else 1)
    children.append(pid)
    for place in range(number, 6000, 5):
        block[place] = chance.randbytes(4096)
        sums[place] = hash(block[place])
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert all(hash(octets) == total for octets, total in zip(block, sums))
print("whole")
"""


def test_python_allocates_and_forks(start: Start, tmp_path: Path) -> None:
    one, text = output_of(start, tmp_path, sys.executable, "-c", FORKS)
    assert text == "whole\n"
    assert one.unclaimed_slots() == 0


def test_programs_that_start_programs(start: Start, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 10 ]; do i=$((i+1)); echo $i | cat | sed s/^/x/; done; exec sh -c 'echo end; wait'"
    one, text = output_of(start, tmp_path, "/bin/sh", "-c", script)
    assert text == "".join(f"x{number}\n" for number in range(1, 11)) + "end\n"
    assert one.memory.attendants == {one.memory.pager_pid}


def test_a_child_is_made_ready_where_there_is_no_room(start: Start, tmp_path: Path) -> None:
    _, text = output_of(start, tmp_path, sys.executable, "-c", TWO_CHILDREN, pager=FULL)
    assert text == "whole\n"


@pytest.mark.parametrize("mebibytes", [8, pytest.param(64, marks=pytest.mark.long)])
def test_sort_of_a_file_four_times_the_limit(start: Start, tmp_path: Path, mebibytes: int) -> None:
    limit = mebibytes // 4 * MIB
    file = tmp_path / "lines"
    with open(file, "wb") as lines:
        for _ in range(mebibytes):
            lines.write(b"".join(b"%s\n" % os.urandom(31).hex().encode() for _ in range(MIB // 63)))
    environment = ["env", "LC_ALL=C"]
    one, _ = output_of(start, tmp_path, *environment, "sort", "-S", f"{5 * mebibytes // 8}M", "--parallel=2", str(file),
                          "-o", str(tmp_path / "sorted"), soft=limit, hard=limit + 4 * MIB, limit_s=280)
    subprocess.run([*environment, "sort", "-c", tmp_path / "sorted"], check=True)
    assert (tmp_path / "sorted").stat().st_size == file.stat().st_size
    assert one.swap_total("out_octets") > mebibytes * MIB // 4


HOLD = """
import os, sys, time
block = bytearray(48 << 20)
for page in range(48 << 8):
    block[page * 4096] = page % 251 + 1
print("ready", flush=True)
if sys.argv[1] == "fork" and os.fork() == 0:
    time.sleep(600)
while True:
    assert all(block[page * 4096] == page % 251 + 1 for page in range(48 << 8))
"""


def _ready(one: Paged, output: Path) -> None:
    one.until(lambda: "ready" in output.read_text())


def test_a_pager_that_is_killed_takes_its_programs_with_it_and_says_so(start: Start, tmp_path: Path) -> None:
    with open(tmp_path / "output", "w") as file:
        one = start(sys.executable, "-c", HOLD, "fork", stdout=file.fileno())
        _ready(one, tmp_path / "output")
        os.kill(one.memory.pager_pid, signal.SIGKILL)
        assert one.run() == -signal.SIGKILL
    assert "the pager of this program has ended" in one.gave_up
    one.until(lambda: not one.turn())       # nothing is left


@pytest.mark.parametrize("program", [HOLD, "print('ready', flush=True); import time; time.sleep(600)"], ids=["at-work", "idle"])
def test_a_helper_that_is_killed_ends_its_program_and_that_is_said(start: Start, tmp_path: Path, program: str,
                                                                   capfd: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "output", "w") as file:
        one = start(sys.executable, "-c", program, "alone", stdout=file.fileno())
        _ready(one, tmp_path / "output")
        helper, = one.memory.attendants - {one.memory.pager_pid}
        os.kill(helper, signal.SIGKILL)
        assert one.run() == -signal.SIGKILL
    assert f"process {one.pid} was killed: the task that drops pages in its memory was killed" in capfd.readouterr().err
    assert one.memory.attendants == {one.memory.pager_pid}


DISCARDS = """
import mmap
block = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block.write(b"x" * len(block))
print("ready", flush=True)
while True:
    block.madvise(mmap.MADV_DONTNEED, 0, 4096)
"""


def test_a_helper_that_is_killed_while_a_thread_waits_for_it_ends_its_program(start: Start, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    done = Memory._done

    def helper_dies(self: Memory, token: int, copied: bool) -> None:
        if self._calls[token].number == syscalls.MADVISE:
            self._calls[token].space.helper.ended = copied = True
        done(self, token, copied)

    monkeypatch.setattr(Memory, "_done", helper_dies)
    one = start(sys.executable, "-c", DISCARDS)
    assert one.run() == -signal.SIGKILL


@pytest.mark.parametrize(("how", "why"), [("corrupt", "is not what was written"), ("read-error", "Input/output error")])
def test_swap_that_fails_ends_the_process_that_needs_the_page_and_no_other(start: Start, tmp_path: Path, how: str,
                                                                           why: str) -> None:
    script = f"{sys.executable} -c '{HOLD}' alone; echo ended $?; cat /proc/self/comm"
    with open(tmp_path / "output", "w+") as file:
        one = start("/bin/sh", "-c", script, stdout=file.fileno(), pager=FAILING, place={"fails": how})
        assert one.run() == 0
        file.seek(0)
        # by SIGBUS; by SIGKILL if it was a system call that needed the page
        assert re.fullmatch(r"(ready\n)?ended (135|137)\ncat\n", file.read())
    fault, = one.lost
    assert (fault.kind, fault.info.number) == ("swap-fault", signal.SIGBUS)
    assert why in fault.words


def test_swap_that_is_full_ends_who_needs_more(start: Start, tmp_path: Path) -> None:
    one = start(sys.executable, "-c", GROW, "96", octets=8 * MIB)
    assert one.run() in (-signal.SIGBUS, -signal.SIGKILL)
    assert "memory limit is reached and nothing more can be swapped out" in one.lost[0].words


def test_a_device_that_cannot_be_written_loses_nothing_while_there_is_room(start: Start, tmp_path: Path) -> None:
    _, text = output_of(start, tmp_path, sys.executable, "-c", GROW, "20", soft=16 * MIB, hard=80 * MIB, pager=FAILING,
                        place={"fails": "write-error"})
    assert text == "whole\n"


def test_a_supervisor_that_is_killed_takes_all_of_them_with_it(tmp_path: Path) -> None:
    code = (f"import sys, json, pathlib; sys.path.insert(0, {str(Path.cwd())!r})\n"
            "from tests.rustosd.process.paged import Paged\n"
            f"one = Paged(sys.executable, '-c', {HOLD!r}, 'fork', soft=16 << 20, hard=24 << 20, "
            f"folder=pathlib.Path({str(tmp_path)!r}))\n"
            "print(json.dumps([one.pid, one.memory.pager_pid]), flush=True)\none.run()\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    program, pager = json.loads(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
              for pid in (program, pager)):
        assert time.monotonic() < limit
        time.sleep(0.05)
