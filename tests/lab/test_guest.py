"""The lab keeps its promises: output, exit status, exceptions, time limits, a peer on every cable, nothing left behind."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lab import inside_lab
from tests.lab.__main__ import command as run_command
from tests.lab.guest import AHCI, CARDS, DISK_OCTETS, EDU, GuestError, GuestTimeout, sweep
from tests.support.netns import Netns


def test_a_command_gives_its_output_and_its_exit_status(guest):
    finished = guest.run("echo out; echo err >&2; exit 3", check=False)
    assert (finished.status, finished.stdout, finished.stderr) == (3, "out\n", "err\n")
    with pytest.raises(GuestError, match="exit status 3"):
        guest.run("exit 3")
    assert guest.run("no-such-program", "argument", check=False).status == 127
    assert guest.run("head -c 300000 /dev/zero").stdout == "\0" * 300000


def test_scripts_lab_passes_on_output_and_exit_status(guest, capfd):
    assert run_command(guest, ["echo out; echo err >&2; exit 3"], 60) == 3
    assert capfd.readouterr() == ("out\n", "err\n")
    assert run_command(guest, ["kill -9 $$"], 60) == 128 + 9


def test_a_function_runs_on_the_guests_kernel_and_returns_raises_and_tells(guest):
    kernel, name, interpreter = guest.call(inside_lab.where)
    assert (name, interpreter) == ("lab", sys.executable)
    assert kernel != os.uname().release
    with pytest.raises(LookupError, match="like so"):
        guest.call(inside_lab.refuse, "like so")
    counting = guest.start(inside_lab.count, 3)
    assert [counting.next() for _ in range(3)] == [0, 1, 2]
    assert counting.result() == 3
    with pytest.raises(GuestError, match="ended"):
        counting.next()


def test_what_takes_too_long_is_killed_and_the_guest_goes_on(guest):
    with pytest.raises(GuestTimeout, match="sleep"):
        guest.run("sleep 1000", timeout=0.5)
    slow = guest.start(inside_lab.sleep, 1000, timeout=0.5)
    assert guest.run("echo meanwhile").stdout == "meanwhile\n"
    with pytest.raises(GuestTimeout):
        slow.result()
    assert guest.run("pgrep sleep", check=False).status == 1


def test_a_call_begins_with_three_descriptors_and_its_way_to_answer(guest):
    descriptors = guest.call(inside_lab.descriptors)
    assert len(descriptors) == 5        # 0 1 2, the channel, and the listing itself
    assert guest.call(inside_lab.descriptors) == descriptors


def test_files_travel_whole_both_ways_and_the_hosts_stay_as_they_are(guest, tmp_path):
    octets = os.urandom(200_000)
    guest.put(str(tmp_path / "file") if guest.run("mkdir", "-p", str(tmp_path)) else "", octets)
    assert guest.get(str(tmp_path / "file")) == octets
    assert not (tmp_path / "file").exists()
    with pytest.raises(GuestError, match="No such file"):
        guest.get("/nowhere")


def test_the_devices_are_where_the_table_says(guest):
    for card in CARDS.values():
        assert guest.run(f"cat /sys/bus/pci/devices/{card.bdf}/class").stdout == "0x020000\n", card
    assert guest.run(f"cat /sys/bus/pci/devices/{AHCI}/class").stdout == "0x010601\n"
    assert guest.run(f"cat /sys/bus/pci/devices/{EDU}/vendor").stdout == "0x1234\n"
    assert guest.disk("disk0").stat().st_size == DISK_OCTETS


def test_linux_on_the_other_end_of_the_cable_answers(guest):
    card = CARDS["e1000"]
    guest.netns.run("ip", "addr", "add", "192.0.2.1/24", "dev", card.name)
    name = guest.run(f"ls /sys/bus/pci/devices/{card.bdf}/net").stdout.strip()
    try:
        guest.run(f"ip link set {name} up && ip addr add 192.0.2.2/24 dev {name}")
        guest.run("until ping -c 1 -W 1 192.0.2.1; do sleep 0.2; done")
    finally:
        guest.run(f"ip addr flush dev {name}; ip link set {name} down")
        guest.netns.run("ip", "addr", "flush", "dev", card.name)


def test_a_plugged_card_appears_and_goes(guest):
    guest.plug("slot0", mac="52:54:00:1a:b0:10")
    guest.run("until test -e /sys/bus/pci/devices/0000:02:00.0; do sleep 0.05; done")
    guest.unplug("slot0")
    guest.run("while test -e /sys/bus/pci/devices/0000:02:00.0; do sleep 0.05; done")


def test_what_a_killed_lab_leaves_is_swept_by_the_next():
    with subprocess.Popen(["true"]) as died:
        died.wait()
    left = Path(tempfile.gettempdir()) / f"rustosd-lab-{died.pid}-x"
    left.mkdir()
    subprocess.run(["ip", "netns", "add", f"rustosd-test-{died.pid}-0"], check=True)
    with Netns() as ours:
        sweep()
        assert ours.path.exists()
    assert not left.exists()
    assert not Path(f"/run/netns/rustosd-test-{died.pid}-0").exists()
