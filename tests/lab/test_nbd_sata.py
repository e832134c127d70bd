"""SATA disks that fail, and that are unplugged, while libnbd uses them over the daemon's NBD; all of it in the guest."""

import shutil
import subprocess
import time
from errno import EIO, ENOTCONN

import pytest

from drivers.ahci import registers as r
from tests.lab import inside_nbd, inside_take
from tests.lab.guest import AHCI, BAD_READ, BAD_WRITE, Guest
from tests.lab.packages import LabUnavailable
from tests.models.ahci import Drive, Model
from tests.models.ahci.card import Card
from tests.models.vfio_user_server import Server

CAP = int(r.CAP(NP=1, NCS=31, SAM=1, SNCQ=1, S64A=1, ISS=3))
SECTORS = 65536
CONFIG = """
interface = []
disk = []
[[device]]
bdf = "{bdf}"
"""
EXPORT = """
[[export]]
name = "{name}"
disk = "{disk}"
"""


class Daemon:
    """The daemon in the guest with a controller of its own and exports of some of its disks."""

    def __init__(self, guest, bdf, **exports):
        self.guest = guest
        guest.preload("tests.lab.inside_take", "tests.lab.inside_nbd")
        text = [EXPORT.format(name=name, disk=f"{bdf}/{port}") for name, port in exports.items()]
        self.call = guest.start(inside_take.daemon, CONFIG.format(bdf=bdf) + "".join(text), timeout=900)
        self.pid = self.call.next(300)["pid"]

    def uri(self, name):
        return f"nbd+unix:///{name}?socket=/run/rustosd/nbd.sock"

    def asked(self, name, *words):
        return self.guest.call(inside_nbd.client, self.uri(name), *words)

    def end(self):
        self.guest.run(f"kill -TERM {self.pid}")
        return self.call.finished()


@pytest.fixture(scope="module", autouse=True)
def libnbd():
    if not shutil.which("nbdinfo") or subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True).returncode:
        pytest.skip("needs libnbd for Debian's python3: scripts/test installs python3-libnbd when run as root")


def test_errors_of_a_disk_reach_the_client_and_others_are_not_disturbed(guest):
    guest.run("modprobe vfio-pci && sysctl -q vm.nr_hugepages=24")
    daemon = Daemon(guest, AHCI, disk0=0, flaky=2)
    try:
        good = f"read:{BAD_READ - 1}", f"write:{BAD_WRITE - 1}", "flush"
        bad = f"read:{BAD_READ}", f"write:{BAD_WRITE}", "flush"
        assert daemon.asked("flaky", *bad, *good) == [EIO, EIO, 0, 0, 0, 0]
        guest.fail_flushes(True)
        assert daemon.asked("flaky", "write:9", "flush", "read:9") == [0, EIO, 0]
        assert daemon.asked("disk0", *bad) == [0, 0, 0]
        guest.fail_flushes(False)
        assert daemon.asked("flaky", "write:9", "flush", *good) == [0] * 5
    finally:
        guest.fail_flushes(False)
        finished = daemon.end()
        guest.run("sysctl -q vm.nr_hugepages=0")
    assert finished.status == 0, finished.stderr


@pytest.mark.long
def test_a_disk_unplugged_under_load_ends_its_export_alone_and_comes_back(tmp_path):
    model = Model(*(Drive(sectors=SECTORS, full=True, serial=name) for name in ("LEFT", "RIGHT")), cap=CAP, hot_plug=True)
    model.clock = time.monotonic_ns
    card = Card(model)
    try:
        booted = Guest(models=True)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted as guest, Server(str(tmp_path / "card"), card, sweeps=True) as server:
        guest.run("modprobe vfio-pci && sysctl -q vm.nr_hugepages=24")
        daemon = Daemon(guest, guest.plug_model("slot0", tmp_path / "card"), left=0, right=1)
        assert daemon.asked("left", "write:40000", "flush") == [0, 0]
        left = guest.start(inside_nbd.client, daemon.uri("left"), "load:200", timeout=300)
        right = guest.start(inside_nbd.client, daemon.uri("right"), "load:60", timeout=300)
        until(lambda: all(len(drive.executed) > 100 for drive in model.drives))
        with card.still():
            drive = model.ports[0].link.unplug()
        said = left.result()
        # ENOTCONN is libnbd's own word for what it asked while the connection was closed.
        ended = {int(code) for code in said["ended"]}
        assert not said["there"] and {0, EIO} <= ended <= {0, EIO, ENOTCONN}, said
        with card.still():
            model.ports[0].link.plug(drive)
        served = "until .venv/bin/rustosctl disk exports | grep -q '^left '; do sleep 1; done"
        guest.run(served, timeout=200)
        assert daemon.asked("left", "read:40000", "write:40001", "flush") == [0, 0, 0]
        said = right.result()
        assert said["there"] and set(said["ended"]) == {"0"}, said
        finished = daemon.end()
        assert finished.status == 0, finished.stderr
        guest.close()
        assert (server.violations, card.misuses, model.habits) == ([], [], set())


def until(true, timeout=200):
    limit = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.1)
