"""Our AHCI driver in the guest, through the kernel's vfio-pci and an IOMMU, on the model that libata has judged."""

import errno
import random
import time

import pytest

from drivers.ahci import registers as r
from tests.lab import inside_model as inside
from tests.lab.guest import Guest
from tests.lab.packages import LabUnavailable
from tests.models.ahci import Drive, Model
from tests.models.ahci.card import Card
from tests.models.ahci.commands import UNC
from tests.models.vfio_user_server import Server

pytestmark = pytest.mark.long
CAP = int(r.CAP(NP=1, NCS=31, SAM=1, SNCQ=1, S64A=1, SCLO=1, SALP=1, SSC=1, PSC=1, ISS=3))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The guest, the card and its address."""
    model = Model(Drive(full=True, serial="MODEL"), cap=CAP, hot_plug=True)
    model.clock = time.monotonic_ns
    card = Card(model)
    socket = tmp_path_factory.mktemp("sockets") / "card"
    try:
        booted = Guest(models=True)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted as guest, Server(str(socket), card, sweeps=True) as server:
        guest.run("modprobe vfio-pci")
        guest.preload("tests.lab.inside_model")
        yield guest, card, guest.plug_model("slot0", socket)
        guest.close()
        assert (server.violations, card.misuses, model.habits) == ([], [], set())


RUNS = [(kinds, fate) for kinds in (("msi",), ("intx",), ()) for fate in (None, UNC)] + [
    (("msi",), fate) for fate in ("link", "bus", "hang")]


@pytest.mark.parametrize(("kinds", "fate"), RUNS, ids=lambda v: str(v) if not isinstance(v, tuple) else "".join(v) or "polled")
def test_it_works_and_recovers_by_vfio_pci(bench, kinds, fate):
    guest, card, bdf = bench
    drive, octets = card.model.drives[0], random.Random(1).randbytes(inside.COMMANDS * inside.PAGE)
    fates = iter([fate])
    drive.erase()
    drive.fail[80] = lambda c: None if c.write else next(fates, None)
    seen = guest.call(inside.exercise, bdf, kinds, octets, 5_000_000_000)
    assert (seen["kind"], seen["serial"]) == ((kinds or ("polled",))[0], "MODEL")
    assert seen["written"] == [0] * inside.COMMANDS and seen["flushed"] == [0]
    assert b"".join(drive.durable[lba] for lba in range(256)) == octets
    results, first = seen["first"]
    ends = {UNC: errno.ENODATA, "hang": errno.ETIMEDOUT}.get(fate, 0)
    assert results == [ends if n == 10 else 0 for n in range(inside.COMMANDS)]
    pages = [octets[at:at + inside.PAGE] for at in range(0, len(octets), inside.PAGE)]
    got = [first[at:at + inside.PAGE] for at in range(0, len(octets), inside.PAGE)]
    assert [n for n in range(inside.COMMANDS) if got[n] != pages[n]] == ([10] if ends else [])
    assert seen["again"] == ([0] * inside.COMMANDS, octets)
    assert seen["statistics"]["resets"] == (fate in ("link", "bus", "hang"))
