"""The machine loses its power while an NBD client works on a SATA disk that we drive: what was flushed is there afterwards.

The client is libnbd on this machine; its requests go through a card and an AHCI controller that are both ours in the guest. The
disk's medium is a file behind nbdkit, with a cache that only a flush empties: killed with the guest, it takes along what was
not flushed. RUSTOSD_CUTS says how often (ten times); `tests/lossless` has the same with processes for machines, in seconds.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.lab import inside_take as inside
from tests.lab.guest import AHCI, CARDS, Guest
from tests.lab.packages import LabUnavailable
from tests.lossless.loads import Nbdkit, load

SECTORS = 8192
CARD = CARDS["e1000e"]
HOST, PEER = "10.11.0.2", "10.11.0.1"
PORT = 5                        # of the controller, its last: the guest has drives of its own on the first ones
CUTS = int(os.environ.get("RUSTOSD_CUTS", "10"))
CONFIG = f"""
interface = []
disk = []
[[device]]
bdf = "{CARD.bdf}"
name = "lan0"
address = ["{HOST}/24"]
[[device]]
bdf = "{AHCI}"
[[export]]
name = "disk"
disk = "{AHCI}/{PORT}"
"""
WITHOUT = ("fua", "zero_fua")
"""QEMU's AHCI does not know FUA in queued writes: such a write is in the disk's cache like any other."""
URI = f"nbd://{HOST}/disk"


def booted(store: Nbdkit) -> Guest:
    """A guest with the store as a SATA disk, and our daemon serving it."""
    store.start()
    drive = f"if=none,id=cut,format=raw,cache=writeback,file=nbd+unix:///?socket={store.socket}"
    guest = Guest(extra=["-drive", drive, "-device", f"ide-hd,drive=cut,bus=ahci.{PORT},serial=LAB-CUT"])
    try:
        guest.run("modprobe vfio-pci && modprobe e1000e && sysctl -q vm.nr_hugepages=24")
        guest.netns.run("ip", "addr", "add", f"{PEER}/24", "dev", CARD.name)
        guest.start(inside.daemon, CONFIG, timeout=900).next(300)
    except BaseException:
        guest.close()
        raise
    return guest


def cut_often(store: Nbdkit, cuts: int) -> None:
    pause = random.Random(1)
    forgotten = done = 0
    with load(SECTORS) as made:
        for number in range(cuts + 1):
            with booted(store) as guest:
                made.enter(guest.netns)
                if number:
                    verified = made.verify(URI, cut=True, patience_s=120)
                    assert verified.wrong == [], f"cut {number}"
                    forgotten += verified.forgotten
                if number < cuts:
                    made.connect(URI, patience_s=120)
                    made.run(200, without=WITHOUT)
                    made.connect(URI)
                    made.begin_before_cut(number, WITHOUT, seconds=8, slack_s=1)
                    time.sleep(pause.uniform(2, 7))
                    store.cut()
                    guest.pull_plug()
                    ran = made.ended()          # who is cut off hears nothing: what was under way stays open
                    assert ran.wrong == [], f"cut {number}"
                    done += ran.done
                made.enter(None)                # whoever is in the guest's namespace ends with it
    assert done > 20 * cuts and forgotten > 0, "nothing was at stake"


@pytest.fixture
def store(tmp_path: Path):
    made = Nbdkit(tmp_path, 64 << 20)
    yield made
    made.cut()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_was_flushed_survives_losses_of_power(store: Nbdkit) -> None:
    try:
        cut_often(store, CUTS)
    except LabUnavailable as why:
        pytest.skip(str(why))
