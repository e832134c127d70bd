"""Cards that are plugged, unplugged, pulled and that fail, under the running daemon; Linux is the peer on every cable."""

import errno
import hashlib
import itertools
import time

import pytest

from tests.lab import inside_hotplug as inside
from tests.lab.cable import PATIENCE_S, pattern, wait_for
from tests.lab.guest import AHCI, CARDS, Guest, GuestError
from tests.lab.packages import LabUnavailable

CARD = CARDS["e1000"]
"""The one that stays."""
SLOT, BDF = "slot0", "0000:02:00.0"
MAC = "52:54:00:1a:b0:10"
OURS, PEER = "10.8.0.2", "10.8.0.1"
STAYS, STAYS_PEER = "10.9.0.2", "10.9.0.1"
BYTES = 24_000_000


def device(bdf, address, more=""):
    return f'[[device]]\nbdf = "{bdf}"\noptional = true\nadopt = false\naddress = ["{address}/24"]\n{more}\n'


RULES = device(CARD.bdf, STAYS, 'name = "stays"') + device(BDF, OURS, 'name = "plugged"')


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    guest.preload("tests.lab.inside_hotplug")
    guest.run("sysctl -q vm.nr_hugepages=24")
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")


class Served:
    """The daemon in the guest, its log, and the peer in whose cables it talks."""

    def __init__(self, guest, rules=RULES):
        self.guest = guest
        self.drivers = {bdf: driver_of(guest, bdf) for bdf in (CARD.bdf, AHCI)}
        self.log = []
        self.plugged = False
        for name, address in ((CARD.name, STAYS_PEER), (SLOT, PEER)):
            self.peer("ip", "addr", "replace", f"{address}/24", "dev", name)
        self.call = guest.start(inside.serve, rules, timeout=1800)
        try:
            self.wait("started")
        except BaseException:
            self.clean()
            raise

    def peer(self, *command, **options):
        return self.guest.netns.run(*command, **options)

    def wait(self, event, **facts):
        """The next thing it says that is this event with these facts; what it says before is kept in `log`."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            try:
                said = self.call.next(max(0.1, limit - time.monotonic()))
            except GuestError as error:
                error.add_note(f"waited for {event} {facts}; the daemon's last words: {self.log[-12:]}")
                raise
            self.log.append(said)
            if said["event"] == event and facts.items() <= said.items():
                return said

    def said(self, event, **facts):
        """What it has said so far."""
        return [each for each in self.log if each["event"] == event and facts.items() <= each.items()]

    def signal(self, name):
        self.guest.run(f"kill -{name} $(cat /run/rustosd-lab-hotplug/journal.lock)")

    def holdings(self):
        self.signal("USR1")
        return self.wait("holdings")

    def _plugged(self):
        """False while the last card is there: it is gone once the guest has switched the slot off."""
        try:
            self.guest.plug(SLOT, mac=MAC)
        except GuestError as error:
            if "Duplicate device ID" not in str(error):
                raise
            return False
        return True

    def plug(self):
        """Plug the card; when it runs. How long that took from the kernel's first word, in ms."""
        wait_for(self._plugged, "room in the slot")
        self.plugged = True
        added = self.wait("uevent", action="add", device=BDF)
        taken = self.wait("device_taken", device=BDF)
        assert taken["nic"] == "plugged"
        return taken["at_ms"] - added["at_ms"]

    def unplug(self):
        """Ask for it back; when it is gone. How long the daemon took to let go, in ms."""
        self.guest.unplug(SLOT)
        released = self.wait("released", device=BDF)
        self.wait("uevent", action="remove", device=BDF)
        self.plugged = False
        return released["took_ms"]

    def answers(self, host):
        """Ping until it answers."""
        wait_for(lambda: self.pings(host), f"an answer of {host}")

    def pings(self, host):
        return not self.peer("ping", "-q", "-c", "1", "-W", "1", host, check=False).returncode

    def download(self, host, size=BYTES, rate="2M"):
        """A transfer that takes its time; `finish` it."""
        curl = f"curl -sSf -m {5 * PATIENCE_S} --limit-rate {rate} http://{host}/bytes/{size}"
        return self.guest.netns.popen("sh", "-c", f"{curl} | sha256sum", stdout=-1, text=True)

    def end(self):
        """Its counters."""
        self.signal("TERM")
        return self.call.result()

    def clean(self):
        if self.call._end is None:
            self.call.kill()
            self.call.finished()
            self.guest.run("rm -rf /run/rustosd-lab-hotplug")
        for name in (CARD.name, SLOT):
            self.peer("ip", "addr", "flush", "dev", name)
        if self.plugged:
            self.guest.unplug(SLOT)
        self.guest.run(f"while [ -e /sys/bus/pci/devices/{BDF} ]; do sleep 0.1; done", timeout=PATIENCE_S)
        for bdf, driver in self.drivers.items():
            if driver_of(self.guest, bdf) != driver:
                self.guest.call(inside.give_back, bdf, driver or None)


def driver_of(guest, bdf):
    return guest.run(f"basename $(readlink /sys/bus/pci/devices/{bdf}/driver)", check=False).stdout.strip()


def finish(transfer, size=BYTES):
    """See that it has arrived whole."""
    assert transfer.communicate(timeout=5 * PATIENCE_S)[0].split()[0] == hashlib.sha256(pattern(size)).hexdigest()


@pytest.fixture
def served(guest):
    one = Served(guest)
    yield one
    one.clean()


def test_a_plugged_card_is_taken_and_carries_on_when_it_is_plugged_again(served):
    served.answers(STAYS)
    other = served.download(STAYS)
    took_ms = [served.plug()]
    served.answers(OURS)
    transfer = served.download(OURS)
    time.sleep(3)
    released_ms = [served.unplug()]
    assert not served.pings(OURS)
    took_ms.append(served.plug())
    finish(transfer)
    finish(other)
    released_ms.append(served.unplug())
    print(f"from plug to running {took_ms} ms, let go in {released_ms} ms")
    assert max(took_ms) < 60_000 and max(released_ms) < 10_000      # on any machine; on an idle one 800 and 30
    holdings = served.holdings()
    assert holdings["held"] == {CARD.bdf: ("running", "stays", 1), BDF: ("gone", "plugged", 0)}
    end = served.end()
    assert end["pump"]["errors"] == 0
    assert end["samples"]["rustos_hotplug_changes_total", "appeared"] == 2
    assert end["samples"]["rustos_hotplug_changes_total", "vanished"] == 2


@pytest.mark.long
def test_connections_that_have_another_path_take_it(guest):
    served = Served(guest, RULES + f'[[route]]\nto = "10.8.0.0/24"\nvia = "{STAYS_PEER}"\ninterface = "stays"\nmetric = 100\n')
    try:
        served.plug()
        served.answers(OURS)
        transfer = served.download(OURS, 12_000_000)
        time.sleep(2)
        served.unplug()
        served.peer("ip", "route", "add", f"{OURS}/32", "via", STAYS, "dev", CARD.name)
        finish(transfer, 12_000_000)
        assert served.end()["pump"]["errors"] == 0
    finally:
        served.peer("ip", "route", "flush", f"{OURS}/32")
        served.clean()


def test_a_card_that_is_pulled_ends_with_an_error_and_everything_else_goes_on(served):
    served.plug()
    served.answers(OURS)
    transfer, other = served.download(OURS), served.download(STAYS)
    time.sleep(2)
    port = served.guest.call(inside.port_of, BDF)
    served.guest.call(inside.power, port, False)
    gone = served.wait("device_gone", device=BDF)
    print(f"pulled: {gone['reason']}")
    assert gone["nic"] == "plugged"
    assert not served.pings(OURS)
    # The kernel finds out, and a card is put into the slot.
    served.guest.run(f"echo 1 > /sys/bus/pci/devices/{BDF}/remove")
    served.guest.call(inside.power, port, True)
    served.guest.run("echo 1 > /sys/bus/pci/rescan")
    served.plugged = True
    served.wait("device_taken", device=BDF)
    finish(transfer)
    finish(other)
    served.unplug()
    assert served.end()["pump"]["errors"] == 0


@pytest.mark.long
def test_whoever_unbinds_a_card_that_is_ours_does_not_wait_long(served):
    served.plug()
    served.answers(OURS)
    took_ms = served.guest.call(inside.unbind, BDF)
    gone = served.wait("device_gone", device=BDF)
    print(f"unbound within {took_ms:.1f} ms")
    assert "the kernel has asked for it back" in gone["reason"] and f"rustosctl device give {BDF}" in gone["reason"]
    assert took_ms < 10_000         # the kernel asks again every ten seconds
    served.answers(STAYS)
    served.guest.unplug(SLOT)
    served.wait("uevent", action="remove", device=BDF)
    served.plug()
    served.answers(OURS)
    served.unplug()


def test_requests_to_disks_that_are_asked_back_end_with_an_error_that_says_so(guest):
    served = Served(guest, RULES + f'[[device]]\nbdf = "{AHCI}"\n')
    try:
        served.wait("disk_read")
        took_ms = guest.call(inside.unbind, AHCI)
        released, failed = served.wait("released", device=AHCI), served.wait("disk_error")
        print(f"a busy controller was let go in {released['took_ms']:.0f} ms, unbound in {took_ms:.0f} ms: {failed['message']}")
        assert served.said("device_gone", device=AHCI)
        assert (failed["kind"], failed["errno"]) == ("DiskError", errno.ENODEV)
        assert "gone" in failed["message"]
        served.answers(STAYS)
        assert served.end()["pump"]["errors"] == 0
        assert driver_of(guest, AHCI) == served.drivers[AHCI]
    finally:
        served.clean()


def test_what_the_iommu_stops_is_told_with_its_device_and_counted(served):
    served.signal("USR2")
    fault = served.wait("iommu_fault", device=CARD.bdf)
    assert (fault["access"], fault["level"]) == ("read", "error")
    assert int(fault["address"], 16) >> 16 == inside.UNMAPPED >> 16
    assert "access is not set" in fault["reason"]
    served.answers(STAYS)
    assert served.end()["samples"]["rustos_device_iommu_faults_total", CARD.bdf] >= 1


@pytest.mark.long
def test_a_card_with_a_pcie_error_is_reset_and_carries_on(served):
    served.plug()
    served.answers(OURS)
    transfer = served.download(OURS, 8_000_000)
    time.sleep(1)
    # On the port above, for QEMU's 82574 cannot report errors: the kernel tells all that is below.
    served.guest.monitor("human-monitor-command", **{"command-line": f"pcie_aer_inject_error {SLOT} POISON_TLP"})
    error = served.wait("pcie_error", device=BDF)
    assert error["total"] == 1
    served.wait("device_reset", device=BDF)
    finish(transfer, 8_000_000)
    served.unplug()
    assert served.end()["samples"]["rustos_device_pcie_errors_total", BDF] == 1


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.long)])
def test_plugging_and_unplugging_leaves_nothing_behind(served, rounds):
    took_ms, released_ms, seen = [], [], []
    for _ in range(rounds):
        took_ms.append(served.plug())
        released_ms.append(served.unplug())
        seen.append(served.holdings())
    first, last = seen[5], seen[-1]
    print(f"{rounds} rounds: running after {min(took_ms):.0f} to {max(took_ms):.0f} ms, let go in {min(released_ms):.0f} to "
          f"{max(released_ms):.0f} ms; RSS {[each['rss_kib'] for each in seen]} KiB; {last}")
    for what in ("fds", "maps", "threads", "tasks", "interfaces", "held"):
        assert last[what] == first[what], what
    assert last["all_maps"] <= first["all_maps"] + 8
    assert last["objects"] <= first["objects"] + 1000
    # Now and then the allocator takes 2 MiB at a time; a leak comes in each round.
    steps = [after["rss_kib"] - before["rss_kib"] for before, after in itertools.pairwise(seen[5:])]
    assert sum(step for step in steps if abs(step) < 512) <= 1024 and sum(steps) <= 4096
    served.end()


@pytest.mark.long
def test_native_hotplug_asks_later_and_a_card_that_is_switched_off_is_let_go_at_once():
    """PCIe's own slots: the attention button gives five seconds to think, and power that goes is a surprise removal."""
    try:
        native = Guest(acpi_hotplug=False, cpus=1)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with native:
        native.run("modprobe vfio-pci && modprobe e1000e && modprobe e1000 && sysctl -q vm.nr_hugepages=24")
        native.preload("tests.lab.inside_hotplug")
        served = Served(native)
        served.plug()
        served.answers(OURS)
        transfer = served.download(OURS)
        served.unplug()
        served.plug()
        finish(transfer)
        native.call(inside.pull, native.call(inside.port_of, BDF))
        served.wait("device_gone", device=BDF)
        served.wait("uevent", action="remove", device=BDF)
        served.answers(STAYS)
        assert served.end()["pump"]["errors"] == 0
