"""Linux's own swap where there is none to be had: it is refused with what to do, and nothing is left."""

import asyncio

import pytest
import uvloop

from rustosd.journal import Journal, KernelSwapMade
from rustosd.swap import kernel_nbd
from rustosd.swap.kernel import KernelSwap, KernelSwapRefused
from rustosd.swap.locked import Locked


def test_without_the_driver_it_is_said_what_else_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_nbd, "BLOCK", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="swap of single programs does not: rustosctl run --memory"):
        kernel_nbd.free_device()


def test_one_that_nobody_uses_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_nbd, "BLOCK", tmp_path)
    for number, (size, used) in enumerate((("0", True), ("2048", False), ("0", False))):
        (tmp_path / f"nbd{number}").mkdir()
        (tmp_path / f"nbd{number}" / "size").write_text(f"{size}\n")
        if used:
            (tmp_path / f"nbd{number}" / "pid").write_text("7\n")
    assert kernel_nbd.free_device() == "/dev/nbd2"
    (tmp_path / "nbd2" / "pid").write_text("8\n")
    with pytest.raises(OSError, match="every nbd device is in use"):
        kernel_nbd.free_device()


async def test_what_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    def export(name):
        raise OSError(2, f"there is no export {name}")

    with Journal(tmp_path / "journal") as journal:
        kernel = KernelSwap(export, lambda: journal)
        with pytest.raises(OSError, match="no export swap9"):
            await kernel.on("swap9", -1, True)
        with pytest.raises(KernelSwapRefused, match="not on a disk of ours"):
            await kernel.off()
        await kernel.close()
        assert kernel.state() is None and journal.pending == {}


async def test_a_process_that_cannot_serve_says_why_and_all_is_given_back(tmp_path, monkeypatch):
    begun = []
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)         # whose modules are none of its
    monkeypatch.setattr(kernel_nbd, "free_device", lambda: str(tmp_path / "nbd0"))
    monkeypatch.setattr(Locked, "begin", lambda self, score, whole: begun.append("begin"))
    monkeypatch.setattr(Locked, "end", lambda self: begun.append("end"))
    with Journal(tmp_path / "journal") as journal:
        kernel = KernelSwap(lambda name: (str(tmp_path / "nbd.sock"), 1 << 20), lambda: journal)
        with pytest.raises(OSError, match="no swap on export swap0: no NBD server answers"):
            await kernel.on("swap0", -1, True)
        assert kernel.state() is None and journal.pending == {}
    assert begun == ["begin", "end"]


async def test_what_cannot_be_written_down_is_not_begun(tmp_path, monkeypatch):
    class Full:
        def take(self, entry):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_nbd, "free_device", lambda: str(tmp_path / "nbd0"))
    monkeypatch.setattr(Locked, "begin", lambda *_words, **_more: pytest.fail("the daemon is locked"))
    kernel = KernelSwap(lambda name: ("", 0), Full)
    with pytest.raises(OSError, match="No space left"):
        await kernel.on("swap0", -1, True)
    assert kernel.state() is None


async def test_of_two_who_switch_it_on_at_a_time_one_is_refused(tmp_path, monkeypatch):
    begun = []

    async def begin(self, export, priority, encryption):
        if self._process is not None:
            raise KernelSwapRefused("swap is on already")
        begun.append(export)
        await asyncio.sleep(0.01)
        self._process = self

    monkeypatch.setattr(KernelSwap, "_on", begin)
    kernel = KernelSwap(lambda name: ("", 0), lambda: None)
    answers = await asyncio.gather(*(kernel.on(name, -1, True) for name in ("swap0", "swap1")), return_exceptions=True)
    assert begun == ["swap0"] and isinstance(answers[1], KernelSwapRefused)


def test_a_server_that_has_ended_is_given_back_like_any_other(tmp_path, monkeypatch):
    """On the daemon's own loop, which tells of a closed pipe in its own way."""
    monkeypatch.setattr(Locked, "end", lambda self: None)

    async def end_and_switch_off():
        with Journal(tmp_path / "journal") as journal:
            kernel = KernelSwap(lambda name: ("", 0), lambda: journal)
            kernel._device, kernel._entry = str(tmp_path / "nbd0"), journal.take(KernelSwapMade(str(tmp_path / "nbd0")))
            pipe = asyncio.subprocess.PIPE
            kernel._process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
            kernel._process.kill()
            await kernel._process.wait()
            await kernel.off()
            return kernel.state(), journal.pending

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(end_and_switch_off()) == (None, {})


def test_giving_back_what_was_never_taken_does_nothing(tmp_path):
    kernel_nbd.give_back(str(tmp_path / "nbd0"))
