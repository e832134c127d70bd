"""Programs of the configuration: started in order, looked after, changed by a reload, stopped in reverse order."""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.conftest import CONTROL, V4, Peer, need
from tests.peers.test_programs import control, wait_for
from tests.rustosd.process import test_memory as memory
from tests.support.netns import unavailable

SERVER = '["/usr/bin/python3", "-u", "-m", "http.server", "8080", "-d", "/usr/share"]'
PROGRAMS = f"""
[[policy]]
name = "high"
bind = ["8000-8999"]
[[program]]
name = "late"                       # written before what it waits for
command = ["sleep", "4001"]
after = ["web"]
[[program]]
name = "web"
command = {SERVER}
user = "nobody"
policy = "high"
after = ["rustos0"]
restart = "always"
restart_delay_s = 0.1
[[program]]
name = "failing"
command = ["sh", "-c", "echo sorry; exit 3"]
enabled = false
restart_delay_s = 0
restart_limit = 3
[[program]]
name = "missing"
command = ["/no/such/program"]
restart = "no"
[[program]]
name = "never"
command = ["true"]
after = ["missing"]
[[program]]
name = "once"
command = ["sh", "-c", "echo $HOME $X; pwd"]
directory = "/usr"
environment = {{ X = "7" }}
sched_class = "batch"
[[program]]
name = "slow"
command = ["sleep", "4003"]
sched_class = "idle"
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUSTOSD_PROGRAM_LOGS", str(tmp_path / "logs"))
    return tmp_path / "logs"


@pytest.fixture
def peer(tmp_path: Path, logs: Path) -> Iterator[Peer]:
    """A daemon of its own for each: what they do to it is not undone."""
    if why := unavailable():
        pytest.skip(why)
    need("ping")
    running = Peer(tmp_path, PROGRAMS)
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()


def rows(peer: Peer) -> dict[str, dict]:
    return {row["name"]: row for row in peer.ctl("program")["programs"]}


def wait_state(peer: Peer, name: str, state: str) -> dict:
    return wait_for(lambda: (row := rows(peer)[name])["state"] == state and row, f"{name} is not {state}")


def events(peer: Peer) -> list[tuple[str, str]]:
    """(event, program) of the daemon's log."""
    lines = [json.loads(line) for line in peer.log.read_text().splitlines() if line.startswith("{")]
    return [(line["event"], line["program"]) for line in lines if "program" in line]


def test_they_start_in_order_are_shown_everywhere_and_stop_in_reverse(peer: Peer, logs: Path) -> None:
    wait_state(peer, "late", "running")
    seen = rows(peer)
    assert {name: row["state"] for name, row in seen.items()} == {
        "late": "running", "web": "running", "failing": "off", "missing": "failed", "never": "waiting", "once": "ended",
        "slow": "running"}
    assert (seen["web"]["user"], seen["web"]["policy"], seen["once"]["status"]) == ("nobody", "high", 0)
    assert seen["missing"]["status"] == 127 and "No such file" in seen["missing"]["detail"]
    assert seen["never"]["detail"] == "program missing is failed"
    assert os.sched_getscheduler(seen["slow"]["pid"]) == os.SCHED_IDLE
    order = [name for event, name in events(peer) if event == "program_started"]
    assert order.index("web") < order.index("late")
    assert peer.netns.run("curl", "-sSo", "/dev/null", f"http://{V4}:8080/").returncode == 0
    (row,) = [row for row in peer.ctl("ps")["processes"] if row["program"] == "web"]
    assert (row["pid"], row["user"]) == (seen["web"]["pid"], "nobody")
    status = peer.ctl("status")["status"]
    assert "web running" in status["programs"]
    assert [note["subject"] for note in status["health"] if note["code"] == "program-failed"] == ["missing"]
    assert peer.metrics()['rustos_program_up{program="web"}'] == 1
    assert (logs / "once.log").read_text().splitlines()[1:3] == ["/root 7", "/usr"]
    pids = [seen[name]["pid"] for name in ("web", "late")]
    peer.process.send_signal(signal.SIGTERM)
    assert peer.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    stopped = {name: re.findall(r"--- (\S+) ended with status 143", (logs / f"{name}.log").read_text())
               for name in ("web", "late")}
    assert stopped["late"] <= stopped["web"] and all(stopped.values())


def test_what_ends_is_started_again_until_it_ends_too_often(peer: Peer) -> None:
    pid = wait_state(peer, "web", "running")["pid"]
    os.kill(pid, signal.SIGKILL)
    again = wait_for(lambda: (row := rows(peer)["web"])["pid"] not in (None, pid) and row, "it was not started again")
    assert (again["starts"], again["status"]) == (2, 128 + signal.SIGKILL)
    control(peer, "program", "start", "failing")
    given_up = wait_state(peer, "failing", "failed")
    assert (given_up["starts"], given_up["status"]) == (4, 3)
    assert given_up["detail"].startswith("it ended 4 times within 60 s; at last: it ended with status 3")
    notes = {note["subject"]: note for note in peer.ctl("status")["status"]["health"]}
    assert notes["failing"]["severity"] == "error" and "rustosctl logs" in notes["failing"]["advice"]
    control(peer, "program", "start", "failing")        # somebody thinks it is mended
    assert wait_for(lambda: rows(peer)["failing"]["starts"] == 8, "it was not tried again")


def test_stop_start_restart(peer: Peer) -> None:
    pid = wait_state(peer, "web", "running")["pid"]
    control(peer, "program", "stop", "web")
    assert rows(peer)["web"]["state"] == "stopped" and not Path(f"/proc/{pid}").exists()
    control(peer, "program", "stop", "web")             # it is
    control(peer, "program", "start", "web")
    pid = wait_state(peer, "web", "running")["pid"]
    control(peer, "program", "start", "web")
    assert rows(peer)["web"]["pid"] == pid
    control(peer, "program", "restart", "web")
    assert wait_state(peer, "web", "running")["pid"] != pid
    assert "there is late, web" in control(peer, "program", "stop", "nothing", status=1)


def test_a_reload_adds_changes_and_removes(peer: Peer) -> None:
    wait_state(peer, "late", "running")
    before = rows(peer)
    config = peer.control.with_name("rustosd.toml")
    text = config.read_text().replace("8080", "8081").replace('name = "once"', 'name = "another"')
    config.write_text(text + "[[program]]\nname = \"more\"\ncommand = [\"sleep\", \"4002\"]\n")
    peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "reload")
    wait_state(peer, "more", "running")
    web = wait_for(lambda: (row := rows(peer)["web"])["state"] == "running" and row["pid"] != before["web"]["pid"] and row,
                   "it was not started anew")
    assert "8081" in web["command"]
    after = rows(peer)
    assert "once" not in after and "another" in after and after["late"]["pid"] == before["late"]["pid"]
    config.write_text(text.replace('"high"\nafter', '"none"\nafter'))
    failed = peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "reload", check=False)
    assert "there is no policy none" in failed.stderr and rows(peer)["web"]["pid"] == web["pid"]


def test_they_end_with_a_daemon_that_is_killed(peer: Peer) -> None:
    pids = [wait_state(peer, name, "running")["pid"] for name in ("web", "late")]
    peer.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "they live on without the daemon")
    wait_for(lambda: "rustosd.process.service" not in in_namespace(peer), "a supervisor lives on without the daemon")


@pytest.fixture
def limited(tmp_path: Path, logs: Path) -> Iterator[Peer]:
    """A daemon with a program that has four times the memory that it may."""
    if why := unavailable():
        pytest.skip(why)
    script = tmp_path / "hold.py"
    script.write_text(memory.HOLD)
    running = Peer(tmp_path, f"""
[swap]
path = "{tmp_path}"
size = "1GiB"
[[program]]
name = "holder"
command = ["{sys.executable}", "{script}", "alone"]
memory = "12M"
memory_max = "20M"
""")
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()


@memory.pytestmark
def test_one_with_a_memory_limit_is_in_swap_in_part_and_everywhere_it_is_told(limited: Peer) -> None:
    pid = wait_state(limited, "holder", "running")["pid"]

    def swapped() -> dict | None:
        """Its memory, once most of it has left."""
        told = limited.ctl("memory")["memory"]
        return told[0] if told and told[0]["spaces"] and told[0]["spaces"][0]["swapped_octets"] > 24 * memory.MIB else None

    told = wait_for(swapped, "nothing of it has left")
    assert (told["program"], told["limit_octets"], told["most_octets"]) == ("holder", 12 * memory.MIB, 20 * memory.MIB)
    assert [space["pid"] for space in told["spaces"]] == [pid] and told["resident_octets"] < 24 * memory.MIB
    (row,) = [row for row in limited.ctl("ps")["processes"] if row["program"] == "holder"]
    shown = limited.ctl("process", "show", str(pid))["process"]["process"]
    assert (row["pid"], shown["pid"]) == (pid, pid)
    assert row["swap_octets"] > 24 * memory.MIB and shown["swap_octets"] > 24 * memory.MIB
    metric = 'rustos_memory_{}{{program="holder"}}'
    figures = wait_for(lambda: (seen := limited.metrics()).get(metric.format("faults_total")) and seen, "no fault is counted")
    assert figures[metric.format("out_octets_total")] > 24 * memory.MIB and figures[metric.format("swapped_octets")] > 0
    assert figures['rustos_memory_out_octets_total{program="-"}'] == 0
    control(limited, "program", "stop", "holder")
    assert limited.ctl("memory")["memory"] == [] and not Path(f"/proc/{pid}").exists()


def in_namespace(peer: Peer) -> str:
    """The command lines of all that runs in the daemon's namespace."""
    words = []
    for pid in peer.netns.run("ip", "netns", "pids", peer.netns.name).stdout.split():
        with contextlib.suppress(OSError):
            words.append(Path(f"/proc/{pid}/cmdline").read_text())
    return "\n".join(words)
