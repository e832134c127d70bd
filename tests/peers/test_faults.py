"""Programs on the stack that exceptions end: their status, what is told of them, and that nobody else is disturbed."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.peers.conftest import Peer, need
from tests.peers.test_programs import LIMIT_S, command, run

SOURCE = Path(__file__).resolve().parents[1] / "rustosd" / "process" / "programs" / "faults.c"


@pytest.fixture(scope="module")
def more_config() -> str:
    return '[sockets]\ngroup = "nogroup"\n'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("faults") / "faulty"
    subprocess.run(["gcc", "-O1", "-g", "-pthread", "-o", str(made), str(SOURCE)], check=True)
    for folder in (made, *made.parents[:4]):
        folder.chmod(folder.stat().st_mode | 0o055)
    return str(made)


def faults(peer: Peer, *options: str) -> list[dict]:
    return peer.ctl("faults", "list", *options)["faults"]


def test_a_page_fault_is_told_on_the_terminal_in_the_list_in_a_report_and_in_the_audit_log(peer: Peer, program: str) -> None:
    done = run(peer, program, "unmapped")
    words = "page fault (#PF): write to 0x123456, where nothing is mapped"
    assert done.returncode == 128 + signal.SIGSEGV
    assert words in done.stderr and "rustosctl faults" in done.stderr
    row = faults(peer)[0]
    assert (row["program"], row["kind"], row["trap"], row["signal"], row["address"], row["words"], row["user"]) == (
        "faulty", "page-fault", 14, "SIGSEGV", "0x123456", words, "root")
    assert row["pid"] in [each["pid"] for each in faults(peer, "--kind", "page-fault", "--pid", str(row["pid"]))]
    assert faults(peer, "--kind", "breakpoint", "--pid", str(row["pid"])) == []
    text = peer.ctl("faults", "show", str(row["id"]))["fault"]["text"]
    for part in ("raise_it+", "trap 14, error code 0x6", f"{program} unmapped", "=== registers ==="):
        assert part in text
    crash = peer.control.with_name("crash")
    last = json.loads((crash / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["reason"], last["id"], last["uid"], last["outcome"]) == ("fault", row["id"], 0, "terminated")
    assert (crash / last["report"]).stat().st_mode & 0o777 == (crash / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_childs_fault_is_its_own(peer: Peer, program: str) -> None:
    ways = ("divide", "segment thread", "null handler")
    done = run(peer, "sh", "-c", "; ".join(f"{program} {way}; echo $?" for way in ways))
    assert done.stdout.split() == [str(128 + signal.SIGFPE), str(128 + signal.SIGBUS), "42"]
    assert done.returncode == 0
    assert [row["kind"] for row in faults(peer)[:2]] == ["segment-not-present", "divide-error"]


def test_a_signal_that_is_sent_leaves_no_record(peer: Peer, program: str) -> None:
    before = len(faults(peer))
    assert run(peer, program, "sent").returncode == 128 + signal.SIGSEGV
    assert len(faults(peer)) == before


def test_a_program_whose_memory_is_limited_is_told_of_as_well(peer: Peer, program: str) -> None:
    assert run(peer, program, "stack", options=("--memory", "16M")).returncode == 128 + signal.SIGBUS
    row = faults(peer)[0]
    assert (row["kind"], row["trap"]) == ("stack-segment", 12)
    assert "raise_it+" in peer.ctl("faults", "show", str(row["id"]))["fault"]["text"]


def test_a_terminal_that_nobody_reads_holds_up_nothing(peer: Peer, program: str) -> None:
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    before = len(faults(peer))
    assert peer.netns.popen(*command(peer, program, "overflow"), stderr=full).wait(LIMIT_S) == 128 + signal.SIGSEGV
    assert len(faults(peer)) == before + 1
    os.close(full)
    os.close(unread)


def test_untraced_it_ends_the_same_and_may_trace(peer: Peer, program: str) -> None:
    before = len(faults(peer))
    assert run(peer, program, "opcode", options=("--untraced",)).returncode == 128 + signal.SIGILL
    assert len(faults(peer)) == before
    strace = need("strace")
    traced = run(peer, strace, "-f", "-o", os.devnull, "true")
    assert traced.returncode != 0 and "ot permitted" in traced.stderr
    assert run(peer, strace, "-f", "-o", os.devnull, "true", options=("--untraced",)).returncode == 0


def test_metrics_and_health_count_them(peer: Peer, program: str) -> None:
    for _ in range(3):
        run(peer, program, "simd")
    run(peer, program, "divide", "handler")
    notes = {note["code"]: note for note in peer.ctl("status")["status"]["health"]}
    assert notes["program-crashing"]["subject"] == "faulty"
    shown = peer.netns.run("curl", "-sS", "http://10.77.0.2/metrics").stdout
    assert 'rustos_program_faults_total{kind="simd-error",outcome="terminated"} 3.0' in shown
    assert 'rustos_program_faults_total{kind="divide-error",outcome="handled"} 1.0' in shown


def test_a_program_that_somebody_traces_already_runs_all_the_same(peer: Peer, program: str) -> None:
    traced = peer.netns.run(need("strace"), "-f", "-o", os.devnull, *command(peer, program, "opcode"), check=False)
    assert traced.returncode == 128 + signal.SIGILL
    assert "runs untraced" in traced.stderr and "--untraced" in traced.stderr


def test_a_user_who_may_have_sockets_and_nothing_else_leaves_a_record_under_his_name(peer: Peer, program: str) -> None:
    for folder in (peer.control, *peer.control.parents[:3]):
        folder.chmod(folder.stat().st_mode | (0o011 if folder.is_dir() else 0))
    # The right to read is for this test's Python, which may lie in root's home.
    as_nobody = ("--reuid=65534", "--regid=nogroup", "--clear-groups", "--inh-caps=-all,+dac_read_search",
                 "--ambient-caps=+dac_read_search")
    done = peer.netns.run(need("setpriv"), *as_nobody, *command(peer, program, "stack"), check=False)
    assert done.returncode == 128 + signal.SIGBUS, done.stderr
    row = faults(peer)[0]
    assert (row["user"], row["kind"], row["trap"], row["reported"]) == ("nobody", "stack-segment", 12, True)
