"""Programs with a memory limit on Debian's kernel, their swap on SATA disks of ours that go away meanwhile."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import inside_control, inside_hotplug, inside_take
from tests.lab.cable import wait_for
from tests.lab.guest import AHCI, Guest
from tests.lab.packages import LabUnavailable
from tests.lab.test_nbd_sata import CAP
from tests.models.ahci import Drive, Model
from tests.models.ahci.card import Card
from tests.models.vfio_user_server import Server
from tests.rustosd.process.test_memory import PROGRAMS

pytestmark = pytest.mark.long
CONFIG = """
interface = []
[[device]]
bdf = "{bdf}"
[nbd]
port = 0
[[export]]
name = "first"
disk = "{bdf}/{first}"
[[export]]
name = "second"
disk = "{bdf}/{second}"
"""
SWAP = "[swap]\nsize = \"24MiB\"\n"
FILE = Path("/run/memory.toml")
STRESS = "/run/stress"
CTL = f"{sys.executable} -c 'from rustosd.cli.control import main; main()'"
LIMITED = f"{CTL} run --memory 6M --memory-max 10M --"
PAGES = 4096
HOLD = f"""
import os, time
block = bytearray({PAGES} * 4096)
def fill(turn):
    for page in range({PAGES}):
        block[page * 4096] = (page + turn) % 251 + 1
def check(turn):
    return all(block[page * 4096] == (page + turn) % 251 + 1 for page in range({PAGES}))
turn = 0
fill(turn)
print("ready", flush=True)
while not os.path.exists("/run/enough"):
    if not check(turn):
        print("wrong")
        break
    turn += 1
    fill(turn)
    time.sleep(0.5)
print("whole" if check(turn) else "wrong")
"""
"""Writes and reads 16 MiB now and then, until /run/enough is there."""


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """For any guest of the same processor."""
    made = tmp_path_factory.mktemp("programs") / "stress"
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", made, PROGRAMS / "stress.c"], check=True)
    return made.read_bytes()


class Served:
    """The daemon with a controller, two of whose disks are exports."""

    def __init__(self, guest: Guest, bdf: str, stress: bytes, **disks: int) -> None:
        self.guest, self.bdf, self.config = guest, bdf, CONFIG.format(bdf=bdf, **disks)
        guest.preload("tests.lab.inside_take", "tests.lab.inside_control", "tests.lab.inside_hotplug")
        guest.run("sysctl -q vm.nr_hugepages=24; modprobe vfio-pci; rm -f /run/enough")
        guest.put(STRESS, stress)
        guest.put("/run/hold.py", HOLD.encode())
        guest.run(f"chmod 755 {STRESS}")
        text = self.write("first")
        self.call = guest.start(inside_take.daemon, text, FILE, timeout=900)
        try:
            self.pid = self.call.next(300)["pid"]
        except BaseException:
            self.clean()
            raise

    def write(self, export: str) -> str:
        """Programs that start from the next reload on have their swap there; "": in files."""
        place = f'export = "{export}"' if export else 'path = "/run/swap"'
        text = f"{self.config}{SWAP}{place}\n"
        self.guest.put(str(FILE), text.encode())
        return text

    def swap_on(self, export: str) -> None:
        self.write(export)
        told = self.ask("config.reload")
        assert told["done"] and {change["taken"] for change in told["changes"]} == {"later"}, told

    def ask(self, method: str, **params):
        return self.guest.call(inside_control.control, method, timeout=300, **params)

    def hold(self, name: str) -> None:
        """Start a program whose memory is in swap for the most part."""
        self.guest.put(f"/run/{name}.out", b"")
        self.guest.run(f"((echo $BASHPID >/run/{name}.pid; exec {LIMITED} {sys.executable} -S /run/hold.py); "
                       f"echo $? >/run/{name}.rc) >/run/{name}.out 2>&1 &")
        wait_for(lambda: b"ready" in self.guest.get(f"/run/{name}.out"), f"the first word of {name}", every_s=0.5)
        supervisor = int(self.guest.get(f"/run/{name}.pid"))
        wait_for(lambda: any(row["group"] == supervisor and row["spaces"] and row["spaces"][0]["swapped_octets"] > PAGES * 2048
                             for row in self.ask("memory.list")), f"half of {name} in swap", every_s=0.5)

    def ended(self, name: str) -> tuple[int, str]:
        """A program's exit status and what it wrote, once it has ended."""
        self.guest.run(f"until test -s /run/{name}.rc; do sleep 0.1; done", timeout=300)
        return int(self.guest.get(f"/run/{name}.rc")), self.guest.get(f"/run/{name}.out").decode()

    def end(self) -> None:
        self.guest.run(f"kill -TERM {self.pid}", check=False)
        finished = self.call.finished()
        assert finished.status == 0, finished.stderr

    def clean(self) -> None:
        self.guest.run("touch /run/enough")
        self.call.kill()
        self.call.finished()
        self.guest.call(inside_take.recover, timeout=300)
        self.guest.run(f"rm -rf /run/swap /run/hold.* /run/left.* /run/right.* {STRESS} {FILE}; sysctl -q vm.nr_hugepages=0")


@pytest.fixture
def served(guest, stress):
    """On a controller of QEMU's."""
    one = Served(guest, AHCI, stress, first=1, second=0)
    yield one
    one.clean()


def ends_with_a_reason(served: Served, name: str, why: str) -> None:
    """A program whose swap has gone: SIGBUS, or SIGKILL if it was a system call that needed the page; on record in any case."""
    status, told = served.ended(name)
    assert status in (128 + 7, 128 + 9) and "wrong" not in told, told
    record = served.ask("faults.list", kind="swap-fault", limit=1)[0]
    assert why in record["words"], record
    assert record["program"].startswith("python"), record


def test_memory_is_what_programs_made_it_and_who_loses_his_disk_ends_alone(served):
    for seconds in (5, 20, 80):         # a starved guest may not get as far as its limit
        said = served.guest.run(f"{LIMITED} {STRESS} 2 {seconds} 16 fork", timeout=300)
        assert re.search(r"wrong 0$", said.stdout.strip()), said.stdout + said.stderr
        first, = (row for row in served.ask("export.list")["exports"] if row["name"] == "first")
        if first["written_octets"] > 1 << 20 and first["read_octets"] > 1 << 20:
            break
    else:
        pytest.fail(f"{said.stdout}: {first}")
    assert not first["errors"], first

    served.hold("left")
    served.swap_on("")
    served.hold("right")
    served.guest.call(inside_hotplug.unbind, AHCI)
    ends_with_a_reason(served, "left", "first")
    served.guest.run("touch /run/enough")
    assert served.ended("right") == (0, "ready\nwhole\n")
    served.end()


def test_a_drive_that_is_unplugged_under_a_pager_ends_the_programs_that_are_swapped_to_it_alone(tmp_path, stress):
    model = Model(*(Drive(sectors=65536, full=True, serial=name) for name in ("LEFT", "RIGHT")), cap=CAP, hot_plug=True)
    model.clock = time.monotonic_ns
    card = Card(model)
    try:
        booted = Guest(models=True)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted as guest, Server(str(tmp_path / "card"), card, sweeps=True) as server:
        served = Served(guest, guest.plug_model("slot0", tmp_path / "card"), stress, first=0, second=1)
        served.hold("left")
        served.swap_on("second")
        served.hold("right")
        with card.still():
            model.ports[0].link.unplug()
        ends_with_a_reason(served, "left", "first")
        guest.run("touch /run/enough")
        assert served.ended("right") == (0, "ready\nwhole\n")
        served.end()
        guest.close()
        assert (server.violations, card.misuses, model.habits) == ([], [], set())
