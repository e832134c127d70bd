"""Debian's kernel with control groups of version 2 takes what tests/rustosd/scheduling asks of it, at the root and below it."""

import sys

import pytest

from tests.lab.packages import ROOT

FILES = "tests/rustosd/scheduling/test_groups.py tests/rustosd/scheduling/test_scheduler.py"
TESTS = "kernel_takes_all or killed_daemon_left or quota_holds or runs_no_further"
IN_A_GROUP = ("mkdir /sys/fs/cgroup/box && echo '+cpu +cpuset' >/sys/fs/cgroup/cgroup.subtree_control && "
              "echo $$ >/sys/fs/cgroup/box/cgroup.procs")


@pytest.mark.long
@pytest.mark.parametrize("where", [pytest.param("true", id="root"), pytest.param(IN_A_GROUP, id="below")])
def test_groups_of_version_2(guest, where):
    command = f"{sys.executable} -m pytest -q -p no:cacheprovider {FILES} -k '{TESTS}'"
    said = guest.run(f"{where} && cd {ROOT} && exec {command}", timeout=600).stdout
    assert "4 passed" in said and "skipped" not in said, said
    assert guest.run("find /sys/fs/cgroup -name 'rustosd*'; cat /sys/fs/cgroup/box/cgroup.subtree_control || true",
                     check=False).stdout.strip() == ""
    guest.run("rmdir /sys/fs/cgroup/box; echo '-cpu -cpuset' >/sys/fs/cgroup/cgroup.subtree_control", check=False)
