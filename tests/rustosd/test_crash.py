"""Crash reports: an exception, a signal, a kill; what is in them, how many stay, and that the next start tells."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from rustosd import config, crash, log
from rustosd.crash import BOX_OCTETS, LINES_OCTETS, CrashBox
from rustosd.daemon import Daemon
from rustosd.log_ring import Line
from tests.rustosd.test_daemon import CONFIG, Running, left_behind


def line(number, text="x"):
    return Line(number, "2026-11-28T18:00:00.000000", "info", "rustosd.x", "happened", {"text": text})


def box(directory, keep=3):
    return CrashBox(directory, keep, "0.1.0", "[log]\nlevel = \"info\"\n")


def die(directory, how, before=""):
    """A process with a box, ended by a signal; what the signal says."""
    code = f"""
import os, signal, sys
from pathlib import Path
from rustosd.crash import CrashBox
from tests.rustosd.test_crash import box, line
made = box(Path({str(directory)!r}))
made.open()
for number in range(5000):
    made.line(line(number, "sees the sea"))
made.figures(b'{{"tcp_retransmits": 7}}')
{before}
os.kill(os.getpid(), {how})
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).returncode


@pytest.mark.parametrize(("how", "reason"), [
    (signal.SIGSEGV, "Fatal Python error: Segmentation fault"), (signal.SIGABRT, "Fatal Python error: Aborted"),
    (signal.SIGBUS, "Fatal Python error: Bus error"), (signal.SIGKILL, "killed from outside"),
])
def test_a_signal_leaves_stacks_lines_and_figures_for_the_next_start(tmp_path, how, reason):
    assert die(tmp_path, int(how)) == -how
    (report,) = box(tmp_path).open(catch_signals=False)
    assert reason in report.reason
    text = (tmp_path / report.name).read_text()
    assert ("most recent call first" in text) == (how != signal.SIGKILL)
    assert "happened text=\"sees the sea\"" in text and '"tcp_retransmits": 7' in text and 'level = "info"' in text
    assert (tmp_path / report.name).stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {report.name, f"running-{os.getpid()}.box"}


def test_a_box_that_is_cut_or_cannot_be_written_kills_nobody(tmp_path):
    """A disk that is full or fails is a signal to whoever has mapped a file of it."""
    more = "os.truncate(made.directory / f'running-{os.getpid()}.box', 0); made.line(line(2)); made.figures(b'{}')"
    assert die(tmp_path, int(signal.SIGKILL), more) == -signal.SIGKILL


def test_a_full_disk_is_no_trouble(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = box(tmp_path)
    made.open(catch_signals=False)
    there = tmp_path / f"running-{os.getpid()}.box"
    assert there.stat().st_blocks * 512 >= BOX_OCTETS       # so that it can be written when the disk is full
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        made.line(line(1))
        made.figures(b"{}")
        made.configured("new")
    made.line(line(2))
    assert b"happened" in there.read_bytes()
    made.close()


def test_a_clean_end_leaves_nothing(tmp_path):
    made = box(tmp_path / "new")
    assert made.open(catch_signals=False) == []
    made.line(line(1))
    made.close()
    made.close()
    made.line(line(2))      # a thread that is late
    assert not (tmp_path / "new").exists()


def test_a_living_daemons_box_is_left_alone(tmp_path):
    first, second = box(tmp_path), box(tmp_path)
    first.open(catch_signals=False)
    os.rename(tmp_path / f"running-{os.getpid()}.box", tmp_path / "running-1.box")       # as if of another process
    assert second.open(catch_signals=False) == []
    assert (tmp_path / "running-1.box").exists()
    second.close()
    first.close()


def test_a_box_of_rubbish_is_no_trouble(tmp_path):
    (tmp_path / "running-1.box").write_bytes(b"\xff" * BOX_OCTETS)
    (tmp_path / "running-2.box").write_bytes(b"short")
    (tmp_path / "running-3.box").mkdir()
    made = box(tmp_path)
    made.open(catch_signals=False)
    assert not (tmp_path / "running-2.box").exists()


def test_the_ring_of_lines_keeps_the_last(tmp_path):
    die(tmp_path, int(signal.SIGKILL), "for number in range(9000): made.line(line(number))")
    (report,) = box(tmp_path).open(catch_signals=False)
    text = (tmp_path / report.name).read_text()
    assert len(text) < LINES_OCTETS + 20_000 and "sees the sea" not in text and text.count("happened") > 1000


def test_so_many_stay_and_can_be_shown_and_removed(tmp_path):
    made = box(tmp_path)
    made.open(catch_signals=False)
    for day in range(1, 6):
        crash_at = f"2026-11-0{day}T00:00:00Z"
        (tmp_path / f"crash-2026110{day}T000000Z-7.txt").write_text(f"reason: number {day}\nat: {crash_at}\n")
    made.report(ValueError("the last"), [line(1)], b"{}")
    rows = made.reports()
    assert [row.reason for row in rows] == ["ValueError: the last", "number 5", "number 4"]
    assert made.text(rows[1].name).startswith("reason: number 5")
    for name in ("../../etc/passwd", "crash-x.txt"):
        with pytest.raises(ValueError, match="see: rustosctl crash list"):
            made.text(name)
        with pytest.raises(ValueError, match="see: rustosctl crash list"):
            made.remove(name)
    assert made.remove(rows[1].name) == 1 and made.remove() == 2 and made.reports() == []


def test_a_directory_that_cannot_be_used_is_said_and_no_more(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    made = box(tmp_path / "file" / "crash")
    log.configure("info", "json")
    assert made.open() == []
    assert "name another with directory = ... under [crash]" in capsys.readouterr().err
    made.line(line(1))
    made.figures(b"{}")
    assert made.report(ValueError("x"), [], b"{}") is None
    assert made.reports() == []


def test_an_exception_that_nobody_caught_becomes_a_report(tmp_path, monkeypatch):
    """With the stacks of tasks and threads, and without the secrets of the configuration."""
    device = "[[device]]\nbdf = '0000:ff:1f.7'\noptional = true\n"
    settings = config.parse(f"interface = []\n{CONFIG.format(directory=tmp_path)}{device}", "x")

    async def scenario():
        daemon = Daemon(settings, logs=log.configure("info", "json", open(os.devnull, "w")))       # noqa: SIM115

        def fail(*_):
            raise RuntimeError("the pump has burst")

        async def waits():
            await asyncio.sleep(60)

        waiting = asyncio.create_task(waits(), name="a task that waits")
        monkeypatch.setattr(daemon, "_links_up", fail)
        monkeypatch.setattr(Daemon, "_report_ready", fail)
        with pytest.raises(RuntimeError):
            await daemon.run(announce=False)
        waiting.cancel()
        return daemon.crashes.reports()

    (report,) = asyncio.run(scenario())
    shown = (tmp_path / "crash" / report.name).read_text()
    assert report.reason == "RuntimeError: the pump has burst"
    assert "in fail" in shown and "Thread MainThread" in shown and "a task that waits" in shown and "asyncio.sleep(60)" in shown
    assert "started" in shown and '"usage"' in shown and f'socket = "{tmp_path}' in shown


def test_a_start_that_is_refused_is_no_crash(tmp_path):
    settings = config.parse("interface = []\n[[device]]\nbdf = '0000:ff:1f.7'\n" + CONFIG.format(directory=tmp_path), "x")

    async def scenario():
        daemon = Daemon(settings, logs=log.configure("error", "json", open(os.devnull, "w")))      # noqa: SIM115
        with pytest.raises(Exception, match=r"0000:ff:1f\.7"):
            await daemon.run(announce=False)

    asyncio.run(scenario())
    assert not (tmp_path / "crash").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a network namespace")
def test_the_next_start_tells_of_a_daemon_that_died(netns, tmp_path):
    daemon = Running(netns, tmp_path).wait_ready()
    daemon.process.send_signal(signal.SIGSEGV)
    assert daemon.process.wait(20) == -signal.SIGSEGV
    daemon.output.close()
    again = Running(netns, tmp_path).wait_ready()
    assert "former_run_died" in again.said() and "Segmentation fault" in again.said()
    notes = {note["code"]: note for note in again.rows("status")["health"]}
    (row,) = again.rows("crash")
    assert notes["former-run-died"]["subject"] == row["name"]
    text = again.ctl("crash", "show", row["name"]).stdout
    assert "rustosd.daemon started" in text and "most recent call first" in text and '"rustos0"' in text
    assert again.ctl("crash", "clear").stdout == "1 report removed\n"
    deadline = time.monotonic() + 10
    while again.rows("status")["health"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert again.stop() == 0
    assert left_behind(again) == ([], ["crash", "output", "run", "rustosd.toml"])     # run was there before: not its own


def test_the_parts_of_a_box_do_not_overlap():
    assert crash._LINES_AT + 8 + LINES_OCTETS == BOX_OCTETS and crash._FIGURES_AT + 8 + crash.FIGURES_OCTETS == crash._LINES_AT
