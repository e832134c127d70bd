"""A short run of the fuzzer on each build, and the traces of what it once found. docs/fuzzing.md has the long ones."""

import subprocess
import sys

import pytest

from tests.fuzz import sanitize, trace
from tests.fuzz.__main__ import CORPUS
from tests.fuzz.check import Violation, cross_check
from tests.fuzz.frames import repair
from tests.fuzz.world import World

FRAMES, SANITIZED_FRAMES = 400_000, 200_000     # counted, not timed: the same run on every machine


def fuzz(*arguments):
    return subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], cwd=sanitize.ROOT, capture_output=True, text=True)


def test_ordinary_build_has_no_finding(tmp_path):
    done = fuzz("--frames", str(FRAMES), "--seconds", "0", "--corpus", str(tmp_path), "--seed", "suite")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "no finding" in done.stdout


@pytest.mark.skipif(sanitize.runtime() is None, reason="gcc's libasan is not installed (Debian: package gcc)")
@pytest.mark.timeout(900)       # the first time it builds for a minute or two
def test_sanitized_build_has_no_finding(tmp_path):
    done = fuzz("--sanitize", "--frames", str(SANITIZED_FRAMES), "--seconds", "0",
                "--corpus", str(tmp_path), "--seed", "sanitized")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "no finding" in done.stdout


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_what_was_found_stays_mended(path):
    trace.replay(path)


def test_same_seed_makes_the_same_run(tmp_path):
    records = []
    for name in ("a", "b"):
        with (tmp_path / name).open("w") as file:
            world, mutated = trace.run_episode("again", 0, 500, record=file)
        records.append(((tmp_path / name).read_text(), mutated, world.transmitted, world.stack.verdicts()))
    assert records[0] == records[1]
    replayed = trace.replay(tmp_path / "a")
    assert replayed.stack.verdicts() == records[0][3]


def test_frames_sent_are_what_scapy_would_send():
    sampled = 0
    for number in range(4):
        world, _ = trace.run_episode("scapy", number, 1000)
        for frame in world.sample:
            cross_check(frame)
            sampled += 1
    assert sampled


def test_violation_is_found_and_made_small(tmp_path, monkeypatch):
    """A stack that miscounts is caught, and the one frame that shows it is left over."""
    honest = World.receive

    def miscounting(self, interface, frames):
        honest(self, interface, frames)
        if any(frame[12:14] == b"\x08\x06" for frame, *_ in frames):
            self.ended += 1
            self._check_ended()

    monkeypatch.setattr(World, "receive", miscounting)
    record = tmp_path / "episode.jsonl"
    with record.open("w") as file, pytest.raises(Violation, match="ended-once"):
        trace.run_episode("broken", 0, record=file)
    setting, operations = trace.load(record)

    def fails(left):
        try:
            trace.carry_out(setting, left)
        except Violation:
            return True
        return False

    small = trace.minimize(operations, fails)
    assert [operation[0] for operation in small] == ["receive"]
    assert len(small[0][2]) == 1


def test_repair_makes_valid_frames_of_valid_frames():
    """What is not damaged stays as it is, so that repair cannot hide or make a fault of its own."""
    import random

    from tests.fuzz.peers import Peers
    from tests.fuzz.plan import setting_of

    rng = random.Random(1)
    peers = Peers(World(setting_of(rng)), rng)
    steady = random.Random(0)
    steady.random = lambda: 0.5         # repair everything, leave nothing out
    for _, frame in peers.frames(500):
        if len(frame) < 14 or frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
            continue
        again = bytearray(frame)
        repair(again, steady)
        assert len(again) == len(frame)
        once = bytes(again)
        repair(again, steady)
        assert bytes(again) == once
