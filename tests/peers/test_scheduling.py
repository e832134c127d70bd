"""Programs of every class beside each other and beside the daemon, whose frames go on moving; and nothing is left of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustosd.scheduling import groups as kernel
from rustosd.scheduling import waits
from rustosd.scheduling.groups import NoGroups
from rustosd.scheduling.settings import CLASSES
from tests.peers.conftest import CONTROL, DAEMON, V4, Peer, need
from tests.support.netns import unavailable

HOG = "while :; do :; done"
ECHO = ("import socket\nwith socket.create_server(('', 4000)) as s:\n    c, _ = s.accept()\n"
        "    while d := c.recv(100): c.sendall(d.upper())")
LIMIT_S = 60


class Scheduled(Peer):
    """One that sees the control groups; `ip netns exec` hides them behind a /sys of its own."""

    begins_with = ("nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt")

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, "-c", CONTROL, "--socket", str(self.control), *argv]

    def start(self, *options: str, argv: tuple[str, ...] = ("sh", "-c", HOG)) -> subprocess.Popen:
        return self.netns.popen(*self.command("run", *options, "--", *argv), stderr=subprocess.PIPE, text=True)

    def programs(self) -> dict[str, dict]:
        """By class."""
        return {row["sched_class"]: row for row in self.ctl("sched", "list")["programs"]}

    def wait_for(self, count: int) -> None:
        limit = time.monotonic() + LIMIT_S
        while len(self.ctl("sched", "list")["programs"]) != count:
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    def groups(self) -> list[Path]:
        return [root / f"rustosd-{self.process.pid}" for root in kernel.find().homes.values()]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Scheduled]:
    if why := unavailable():
        pytest.skip(why)
    need("nsenter")
    try:
        kernel.find()
    except NoGroups as error:
        pytest.skip(f"needs control groups that we may make: {error}")
    running = Scheduled(tmp_path)
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()


def end(*programs: subprocess.Popen) -> None:
    for program in programs:
        program.terminate()
        program.communicate(timeout=30)


def test_with_busy_programs_of_every_class_frames_go_on(peer: Scheduled) -> None:
    crowd = " & ".join([f"({HOG})"] * len(os.sched_getaffinity(0)))
    def start(name: str) -> subprocess.Popen:
        return peer.start("--class", name, argv=("sh", "-c", f"{crowd} & wait"))

    hogs = [start(name) for name in CLASSES if name != "realtime"]
    peer.wait_for(len(hogs))
    before_all = start("realtime")      # no longer than need be: it leaves the rest of the machine next to nothing
    peer.wait_for(len(CLASSES))
    before = waits.spent(peer.process.pid, peer.process.pid)
    said = peer.netns.run("ping", "-c", "100", "-i", "0.01", "-W", "5", V4).stdout
    fetched = peer.netns.run("curl", "-sf", "-o", "/dev/null", "-w", "%{size_download}", f"http://{V4}/bytes/30000000").stdout
    daemon = waits.spent(peer.process.pid, peer.process.pid).minus(before)
    assert (re.search(r"(\d+) received", said)[1], fetched) == ("100", "30000000")
    level = peer.ctl("sched", "show")["scheduling"]["daemon"]["level"]
    end(before_all)
    assert level == "realtime"
    normal = peer.programs()["normal"]
    assert daemon.wait_ns / daemon.slices < normal["wait_s"] * 1e9 / normal["slices"] / 10       # a turn waits for less
    end(*hogs)
    peer.wait_for(0)
    assert peer.ctl("sched", "show")["scheduling"]["daemon"]["level"] == "as started"
    limit = time.monotonic() + LIMIT_S
    while not all(peer.metrics()[f'rustos_sched_run_seconds_total{{class="{name}"}}'] > 0 for name in ("realtime", "normal")):
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_what_is_asked_for_is_had_and_shown(peer: Scheduled) -> None:
    hog = peer.start("--class", "batch", "--priority", "2", "--cpus", "0", "--cpu-quota", "50%")
    peer.wait_for(1)
    row = peer.programs()["batch"]
    assert (row["priority"], row["processors"], row["cpu_quota_percent"]) == (2, "0", 50.0)
    details = peer.ctl("process", "show", str(row["pid"]))["process"]
    assert (details["policy"], details["affinity"], details["scheduling"]["group"]) == ("batch", [0], row["group"])
    peer.netns.run(*peer.command("sched", "set", str(row["pid"]), "--class", "idle", "--cpu-quota", "none"))
    row = peer.programs()["idle"]
    assert (row["priority"], row["cpu_quota_percent"], row["group"]) == (2, 0.0, f"idle/{hog.pid}")
    end(hog)
    refused = peer.start("--class", "realtime", "--cpu-quota", "50%")
    assert "no quota against realtime" in refused.communicate(timeout=LIMIT_S)[1] and refused.returncode == 1
    peer.close()
    assert not any(group.exists() for group in peer.groups())


def test_a_suspended_program_keeps_its_connections(peer: Scheduled) -> None:
    program = peer.start(argv=(sys.executable, "-c", ECHO))
    peer.wait_for(1)
    pid = str(peer.programs()["normal"]["pid"])

    def talk(words: list[str]) -> str:
        """In the namespace: connect, say each word, and say what came back, with the program suspended before the second."""
        def ctl(*argv: str) -> None:
            subprocess.run(peer.command(*argv), check=True, timeout=LIMIT_S)
        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                client = socket.create_connection((V4, 4000), timeout=LIMIT_S)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < limit
                time.sleep(0.05)
        with client:
            client.sendall(words[0].encode())
            heard = client.recv(100).decode()
            ctl("suspend", pid)
            client.sendall(words[1].encode())
            client.settimeout(0.5)
            try:
                heard += client.recv(100).decode()
            except TimeoutError:
                heard += "|"
            ctl("resume", pid)
            client.settimeout(LIMIT_S)
            return heard + client.recv(100).decode()

    assert peer.netns.call(talk, ["one", "two"], timeout=2 * LIMIT_S) == "ONE|TWO"
    assert program.wait(LIMIT_S) == 0


def test_of_a_killed_daemon_recover_leaves_nothing(peer: Scheduled) -> None:
    """Not even a frozen program: it goes on, without its sockets."""
    hog = peer.start("--class", "batch")
    peer.wait_for(1)
    pid = peer.programs()["batch"]["pid"]
    peer.netns.run(*peer.command("suspend", str(pid)))
    peer.process.kill()
    peer.process.wait()
    groups = peer.groups()
    assert all(group.exists() for group in groups)
    config = str(peer.log.with_name("rustosd.toml"))
    said = peer.netns.run(*peer.begins_with, sys.executable, "-c", DAEMON, "recover", "--config", config).stdout
    assert said.split()[0] == said.split()[2] and not any(group.exists() for group in groups)
    before, limit = waits.spent(pid, pid).run_ns, time.monotonic() + LIMIT_S
    while waits.spent(pid, pid).run_ns == before:
        assert time.monotonic() < limit
        time.sleep(0.05)
    hog.send_signal(signal.SIGTERM)
    hog.communicate(timeout=30)


def test_where_there_are_no_groups_nice_values_do(tmp_path: Path) -> None:
    if why := unavailable():
        pytest.skip(why)
    plain = Peer(tmp_path, '[scheduler]\ncgroup = "off"\n')
    try:
        plain.wait_until_up()
        run = [sys.executable, "-c", CONTROL, "--socket", str(plain.control), "run"]
        nice = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))"
        done = plain.netns.run(*run, "--class", "batch", "--priority", "1", "--", sys.executable, "-c", nice)
        assert done.stdout.split() == [str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)), str(os.SCHED_BATCH)]
        done = plain.netns.run(*run, "--cpu-quota", "50%", "--", "true", check=False)
        assert done.returncode == 1 and 'cgroup = "off"' in done.stderr
        assert plain.ctl("sched", "show")["scheduling"]["quota_by"] == "none"
    finally:
        plain.close()
