"""Linux swaps to a disk that our own AHCI driver drives, and has its memory back in every way out."""

import time

import pytest

from tests.lab import inside_control, inside_take
from tests.lab.guest import AHCI
from tests.lab.test_take import TAKE

EXPORT = f'[nbd]\nport = 0\n[[export]]\nname = "swap0"\ndisk = "{AHCI}/1"\n'
GROUP = "/sys/fs/cgroup/squeezed"
FILE = "/dev/shm/squeezed"
LIMIT, OCTETS = 16 << 20, 32_000_000


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    guest.preload("tests.lab.inside_take", "tests.lab.inside_control")
    guest.run("modprobe nbd nbds_max=2 && echo +memory > /sys/fs/cgroup/cgroup.subtree_control && "
              f"mkdir -p {GROUP} && echo {LIMIT} > {GROUP}/memory.max")
    yield
    guest.run(f"rm -f {FILE}; rmdir {GROUP}; modprobe -r nbd")


@pytest.fixture
def daemon(guest):
    """Drives the disks and exports one; killed if the test has left it."""
    call = guest.start(inside_take.daemon, TAKE.format(f'bdf = "{AHCI}"\n{EXPORT}'), timeout=900)
    hello = call.next(300)
    yield call, hello["pid"]
    guest.run(f"kill -KILL {hello['pid']}", check=False)
    call.finished()
    guest.call(inside_take.recover, timeout=300)


def swaps(guest):
    return guest.run("tail -n +2 /proc/swaps").stdout.split()


def nbd_is_free(guest):
    return guest.run("cat /sys/block/nbd0/size; ls /sys/block/nbd0/pid 2>/dev/null", check=False).stdout.split() == ["0"]


def test_what_does_not_fit_goes_to_our_disk_and_comes_back_as_it_was(guest, daemon):
    call, pid = daemon
    state = guest.call(inside_control.control, "kernelswap.on", export="swap0", priority=7, timeout=300)
    assert isinstance(state, dict), state
    assert (state["device"], state["export"], state["priority"]) == ("/dev/nbd0", "swap0", 7), state
    assert swaps(guest)[0] == "/dev/nbd0"
    locked = guest.run(f"grep VmLck /proc/{state['server']}/status; "
                       f"cat /proc/{state['server']}/oom_score_adj /proc/{pid}/oom_score_adj")
    assert int(locked.stdout.split()[1]) > 0 and locked.stdout.split()[3:] == ["-1000", "-900"]
    assert "is on already" in guest.call(inside_control.control, "kernelswap.on", export="swap0", timeout=300)
    sums = guest.run(f"echo $$ > {GROUP}/cgroup.procs && head -c {OCTETS} /dev/urandom | tee {FILE} | sha256sum && "
                     f"sha256sum < {FILE}", timeout=600).stdout.splitlines()
    assert sums[0] == sums[1]
    assert int(guest.run(f"cat {GROUP}/memory.swap.current").stdout) > OCTETS - LIMIT - (4 << 20)
    assert guest.call(inside_control.control, "kernelswap.show", timeout=300)["used_octets"] > OCTETS - LIMIT - (4 << 20)
    guest.run(f"echo max > {GROUP}/memory.max")
    assert guest.call(inside_control.control, "kernelswap.off", timeout=600) == {}
    assert swaps(guest) == [] and nbd_is_free(guest)
    assert guest.run(f"sha256sum < {FILE}", timeout=120).stdout.splitlines()[0] == sums[0]
    assert guest.run(f"cat /proc/{pid}/oom_score_adj").stdout.strip() == "0"
    guest.run(f"rm {FILE} && echo {LIMIT} > {GROUP}/memory.max")
    guest.run(f"kill {pid}")
    assert call.finished().status == 0


@pytest.mark.long
def test_a_daemon_that_stops_takes_swap_back_first(guest, daemon):
    call, pid = daemon
    guest.call(inside_control.control, "kernelswap.on", export="swap0", encryption=False, timeout=300)
    assert len(swaps(guest)) == 5
    guest.run(f"kill {pid}")
    assert call.finished().status == 0
    assert swaps(guest) == [] and nbd_is_free(guest)


def test_a_daemon_that_is_killed_leaves_no_swap(guest, daemon):
    call, pid = daemon
    guest.call(inside_control.control, "kernelswap.on", export="swap0", timeout=300)
    guest.run(f"kill -KILL {pid}")
    call.finished()
    limit = time.monotonic() + 120
    while swaps(guest) and time.monotonic() < limit:
        time.sleep(0.5)
    pending, failed, _ = guest.call(inside_take.recover, timeout=300)
    assert pending >= 2 and failed == []
    assert swaps(guest) == [] and nbd_is_free(guest)


@pytest.mark.long
def test_a_server_that_is_killed_is_noticed_when_swap_is_to_end(guest, daemon):
    call, pid = daemon
    state = guest.call(inside_control.control, "kernelswap.on", export="swap0", timeout=300)
    guest.run(f"kill -KILL {state['server']}")
    assert guest.call(inside_control.control, "kernelswap.off", timeout=300) == {}
    assert swaps(guest) == [] and nbd_is_free(guest)
    guest.run(f"kill {pid}")
    assert call.finished().status == 0
