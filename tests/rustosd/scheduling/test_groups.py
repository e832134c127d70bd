"""Where control groups can be made, and that nothing of them stays: kernels of both versions by their files."""

import os
import subprocess
from pathlib import Path

import pytest

from rustosd.devices.kernel import undo
from rustosd.journal import GroupsMade
from rustosd.scheduling import groups as kernel
from rustosd.scheduling.groups import Groups, NoGroups


def mounted(tmp_path, kind, options, mode="rw", root="/"):
    return f"31 23 0:28 {root} {tmp_path} {mode},relatime - {kind} cgroup rw,{options}\n"


def second_version(directory, controllers="cpuset cpu memory", enabled="", *, real_root=False):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text(enabled)
    if not real_root:
        (directory / "cgroup.type").write_text("domain")
    return directory


def test_version_1_by_its_controllers(tmp_path):
    mounts = ""
    for name in ("cpu", "cpuset", "freezer", "memory"):
        (tmp_path / name / "shell").mkdir(parents=True)
        mounts += mounted(tmp_path / name, "cgroup", name)
    place = kernel.find(own="4:cpu:/shell\n3:cpuset:/shell\n2:freezer:/shell\n1:memory:/\n0::/\n", mounts=mounts)
    assert place.version == 1 and set(place.homes) == {"cpu", "cpuset", "freezer"}
    assert place.homes["cpu"] == tmp_path / "cpu/shell"


def test_version_1_seen_through_a_part_that_is_mounted(tmp_path):
    (tmp_path / "cpu" / "shell").mkdir(parents=True)
    mounts = mounted(tmp_path / "cpu", "cgroup", "cpu", root="/docker/7")
    assert kernel.find(own="4:cpu:/docker/7/shell\n", mounts=mounts).homes["cpu"] == tmp_path / "cpu/shell"
    with pytest.raises(NoGroups):
        kernel.find(own="4:cpu:/elsewhere\n", mounts=mounts)


def test_version_2_at_its_root(tmp_path):
    second_version(tmp_path, real_root=True)
    place = kernel.find(own="0::/\n", mounts=mounted(tmp_path, "cgroup2", ""))
    assert (place.version, place.above_us, place.homes["cpu"]) == (2, False, tmp_path)


def test_version_2_that_was_delegated(tmp_path):
    home = second_version(tmp_path / "rustosd.service")
    try:
        os.setxattr(home, "trusted.delegate", b"1")
    except OSError:
        pytest.skip("needs root and a file system with attributes")
    place = kernel.find(own="0::/rustosd.service\n", mounts=mounted(tmp_path, "cgroup2", ""))
    assert (place.version, place.above_us) == (2, True)
    assert Groups(place, "rustosd-1").new == ("cpu", "cpuset")


@pytest.mark.parametrize(("prepare", "why"), [
    (lambda path: second_version(path, "memory pids", real_root=True), "no cpu controller"),
    (lambda path: None, "is no group"),
])
def test_version_2_that_cannot_be_used(tmp_path, prepare, why):
    prepare(tmp_path)
    with pytest.raises(NoGroups, match=why):
        kernel.find(own="0::/\n", mounts=mounted(tmp_path, "cgroup2", ""))


@pytest.mark.parametrize(("mounts", "wanted", "why"), [
    ("", "auto", "no cgroup file system"), ("", "off", "switched off"), ("", "/no/such", "mkdir makes one")])
def test_none_at_all(mounts, wanted, why):
    with pytest.raises(NoGroups, match=why):
        kernel.find(wanted, own="0::/\n", mounts=mounts)


def test_a_read_only_file_system_is_none(tmp_path):
    second_version(tmp_path, real_root=True)
    with pytest.raises(NoGroups):
        kernel.find(own="0::/\n", mounts=mounted(tmp_path, "cgroup2", "", mode="ro"))


def test_version_2_is_told_in_its_words(tmp_path):
    home = second_version(tmp_path, real_root=True)
    groups = Groups(kernel.find(str(home)), "rustosd-1")
    leaf = second_version(home / "rustosd-1/batch/7")
    for directory in (home / "rustosd-1", home / "rustosd-1/batch"):
        second_version(directory)
    groups.make_all(1)
    groups.make("batch/7")
    groups.set_weight("batch/7", 12.6)
    groups.set_quota("batch/7", 150)
    groups.set_processors("batch/7", {3, 1})
    groups.move("batch/7", 4711)
    groups.set_idle("batch")
    said = {name: (leaf / name).read_text() for name in ("cpu.weight", "cpu.max", "cpuset.cpus", "cgroup.procs")}
    assert said == {"cpu.weight": "13", "cpu.max": "150000 100000", "cpuset.cpus": "1,3", "cgroup.procs": "4711"}
    assert (home / "rustosd-1/batch/cpu.idle").read_text() == "1"
    assert (leaf.parent / "cgroup.subtree_control").read_text() == "+cpuset"        # the last of two writes
    assert (leaf / "cgroup.subtree_control").read_text() == ""
    groups.set_quota("batch/7", 0)
    assert (leaf / "cpu.max").read_text() == "max 100000"


@pytest.fixture
def real() -> Groups:
    """In this machine's kernel."""
    try:
        groups = Groups(kernel.find(), f"rustosd-test-{os.getpid()}")
        groups.make_all(os.getpid())
    except (NoGroups, OSError) as error:
        pytest.skip(f"needs a kernel that lets us make control groups: {error}")
    yield groups
    kernel.remove_all(groups.roots, groups.new)


def test_the_kernel_takes_all_of_it_and_keeps_nothing(real):
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        homes = kernel.homes_of(sleeper.pid, real.place)
        real.make("normal/1")
        real.set_weight("normal/1", 100)
        real.set_quota("normal/1", 50)
        real.move("normal/1", sleeper.pid)
        assert real.processes("normal/1") == [sleeper.pid]
        real.freeze("normal/1", True)
        real.remove("normal/1", homes)          # thaws it, and it lives on where it was
        assert kernel.homes_of(sleeper.pid, real.place) == homes and not (real.roots[0] / "normal/1").exists()
        sleeper.kill()


def test_what_a_killed_daemon_left_is_taken_away(real):
    """Also from a frozen group with a process in it."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        real.make("batch/1")
        real.move("batch/1", sleeper.pid)
        real.freeze("batch/1", True)
        undo(GroupsMade(tuple(map(str, real.roots)), real.new))
        assert not any(root.exists() for root in real.roots)
        assert kernel.homes_of(sleeper.pid, real.place) == real.place.homes
        sleeper.kill()
        assert sleeper.wait(10) == -9           # so it is not frozen


def test_nothing_to_take_away():
    undo(GroupsMade((str(Path("/sys/fs/cgroup/cpu/rustosd-none")),)))
