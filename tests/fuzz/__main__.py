"""`python -m tests.fuzz`: fuzz the stack; see docs/fuzzing.md."""

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz import sanitize, trace
from tests.fuzz.check import cross_check, require
from tests.fuzz.world import Operation, allocated

CORPUS = Path(__file__).parent / "corpus"       # what once went wrong
HANG_S = 60                 # an episode that takes longer hangs
MINIMIZE_S = 120            # for making a finding small
WARM_UP = 5                 # episodes until caches have their size
LEAK = 1 << 17              # octets the heap may grow after that


# --- the worker: episodes in one process, a line of JSON about each -------------------------------------------------------

def work(options: argparse.Namespace) -> None:
    """Run episodes until enough frames or seconds have passed. Any finding ends the process with a status that is not 0."""
    end = time.monotonic() + options.seconds if options.seconds else None
    frames = heap = 0
    number = options.first
    while (frames < options.frames if options.frames else True) and (end is None or time.monotonic() < end):
        say({"episode": number})
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        world, mutated = trace.run_episode(options.seed, number)
        for frame in world.sample:
            cross_check(frame)
        say({"frames": world.received, "mutated": mutated, "transmitted": world.transmitted,
             "verdicts": world.stack.verdicts(), "unsent": world.stack.unsent(), "counters": world.stack.counters()})
        frames += world.received
        del world
        gc.collect()
        number += 1
        if number - options.first == WARM_UP:
            heap = allocated()
        elif number - options.first > WARM_UP:
            require(allocated() < heap + LEAK, "leak", f"{allocated() - heap} octets since episode {WARM_UP}")


def say(row: dict) -> None:
    print(json.dumps(row), flush=True)


# --- the parent: starts the worker, makes findings small ------------------------------------------------------------------

def signature(errors: str) -> str:
    """What went wrong, in a line that stays the same while the input shrinks."""
    for pattern in (r"runtime error: (.*)", r"SUMMARY: (.*)", r"Violation: \('([\w-]+)'", r"^(Timeout) \(",
                    r"^(Fatal Python error: .*)"):
        if found := re.search(pattern, errors, re.MULTILINE):
            return re.sub(r"0x[0-9a-f]+", "ADDRESS", found[1])
    lines = errors.strip().splitlines()
    return lines[-1].partition(":")[0] if lines else "died without a word"


def attempt(setting: dict, operations: list[Operation]) -> str:
    """Let operations happen in a forked process, which they may kill; "" or the signature of what went wrong."""
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(errors.fileno(), 2)
                faulthandler.dump_traceback_later(HANG_S, exit=True)
                trace.carry_out(setting, operations)
                status = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return signature(errors.read()) if status else ""


def shrink(path: Path, into: Path, what: str) -> None:
    """Write the least of a trace that still goes wrong in the same way, as far as MINIMIZE_S allow."""
    setting, operations = trace.load(path)
    end = time.monotonic() + MINIMIZE_S
    small = trace.minimize(operations, lambda left: time.monotonic() < end and attempt(setting, left) == what)
    trace.save(into, setting, small)


class Fuzzer:
    """Runs workers and looks into what kills them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.environment = sanitize.environment() if options.sanitize else dict(os.environ)
        self.totals: Counter = Counter()
        self.verdicts: Counter = Counter()
        self.unsent: Counter = Counter()
        self.counters: Counter = Counter()
        self.episode = 0

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.fuzz", *arguments]

    def replay(self, path: Path) -> str:
        """Replay a trace in a process of its own; "" or the signature of what went wrong."""
        done = subprocess.run(self.python("--replay-here", str(path)), env=self.environment, cwd=sanitize.ROOT,
                              capture_output=True, text=True)
        return signature(done.stderr) if done.returncode else ""

    def run(self) -> str:
        """Fuzz; "" or the signature of the finding, whose input is in `self.found`."""
        for path in sorted([*CORPUS.glob("*.jsonl"), *self.options.corpus.glob("*.jsonl")]):
            if what := self.replay(path):
                self.found = path
                return what
        arguments = ["--worker", "--frames", str(self.options.frames), "--seconds", str(self.options.seconds),
                     "--seed", self.options.seed]
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(self.python(*arguments), env=self.environment, cwd=sanitize.ROOT, text=True,
                                  stdout=subprocess.PIPE, stderr=errors) as worker:
                for line in worker.stdout:
                    self.take(json.loads(line))
            if worker.returncode == 0:
                return ""
            errors.seek(0)
            text = errors.read()
        print(text[-6000:], file=sys.stderr)
        return self.look_into(signature(text))

    def take(self, row: dict) -> None:
        """A line of the worker's."""
        if "episode" in row:
            self.episode = row["episode"]
            return
        for name in ("frames", "mutated", "transmitted"):
            self.totals[name] += row[name]
        self.verdicts.update(row["verdicts"])
        self.unsent.update(row["unsent"])
        self.counters.update(row["counters"])

    def look_into(self, what: str) -> str:
        """Write down the episode that went wrong and make it small."""
        self.options.corpus.mkdir(parents=True, exist_ok=True)
        path = self.options.corpus / f"episode-{self.options.seed}-{self.episode}.jsonl"
        subprocess.run(self.python("--record", str(path), "--seed", self.options.seed, "--first", str(self.episode)),
                       env=self.environment, cwd=sanitize.ROOT, capture_output=True)
        self.found = path
        if self.replay(path) != what:
            return f"{what} (and the episode alone does not show it)"
        name = hashlib.sha256(what.encode()).hexdigest()[:8]
        self.found = self.options.corpus / f"finding-{re.sub(r'[^a-z]+', '-', what.lower())[:40].strip('-')}-{name}.jsonl"
        subprocess.run(self.python("--shrink", str(path), "--into", str(self.found), "--what", what),
                       env=self.environment, cwd=sanitize.ROOT, check=True)
        path.unlink()
        return what

    def report(self, seconds: float) -> None:
        """What was reached, in a few lines."""
        totals, seen = self.totals, [name for name, n in self.verdicts.items() if n]
        print(f"{totals['frames']} frames received, {totals['mutated']} of them mutated, {totals['transmitted']} sent and "
              f"checked, {self.episode + 1} episodes, {seconds:.0f} s, {totals['frames'] / max(seconds, 1):.0f} frames/s")
        print("verdicts: " + ", ".join(f"{name} {n}" for name, n in self.verdicts.most_common() if n))
        never = [name for name in self.verdicts if name not in seen and name not in self.unsent_only()]
        print("never ended as: " + (", ".join(never) or "-"))
        print("unsent: " + ", ".join(f"{name} {n}" for name, n in self.unsent.most_common() if n))
        print("counters: " + ", ".join(f"{name} {n}" for name, n in self.counters.most_common() if n))

    def unsent_only(self) -> set:
        return {name for name, n in self.unsent.items() if n}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Feed the stack mutated frames and random calls, and check it after each.")
    parser.add_argument("--frames", type=int, default=0, help="stop after so many received frames")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long (60 when no limit is given)")
    parser.add_argument("--seed", default="0", help="the same seed makes the same run")
    parser.add_argument("--sanitize", action="store_true", help="run on a build with ASan and UBSan")
    parser.add_argument("--corpus", type=Path, default=sanitize.ROOT / "build" / "fuzz", metavar="DIR",
                        help="traces to replay first, and where a finding is written (build/fuzz)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="replay one trace and do nothing else")
    # what the parent asks of processes of its own
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--what", default="", help=argparse.SUPPRESS)
    for hidden in ("--replay-here", "--record", "--shrink", "--into"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.frames and not options.seconds:
        options.seconds = 60.0
    return options


def main() -> int:
    options = parse()
    faulthandler.enable()
    if options.worker:
        work(options)
        return 0
    if options.replay_here:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        trace.replay(options.replay_here)
        return 0
    if options.shrink:
        shrink(options.shrink, options.into, options.what)
        return 0
    if options.record:
        with options.record.open("w") as file:
            trace.run_episode(options.seed, options.first, record=file)
        return 0
    fuzzer, begin = Fuzzer(options), time.monotonic()
    if options.replay:
        what = fuzzer.replay(options.replay)
        print(what or "nothing goes wrong")
        return 1 if what else 0
    what = fuzzer.run()
    fuzzer.report(time.monotonic() - begin)
    if what:
        print(f"FINDING: {what}\n  replay it: python -m tests.fuzz {'--sanitize ' * options.sanitize}--replay {fuzzer.found}")
        return 1
    print("no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
