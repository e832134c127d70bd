"""The command line of the measurements; `scripts/bench --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from benchmarks import handoff, hot_paths, measures, nbd, programs, swap
from benchmarks.lab import BenchError, Lab, signals_unwind
from benchmarks.report import Report

_TOOLS = {"ip": "iproute2", "ethtool": "ethtool", "ping": "iputils-ping", "taskset": "util-linux", "sysctl": "procps"}
BUSY = 0.5


def main() -> int:
    """Measure, print, and return 0 whatever the figures say: this reports, it is no test."""
    options = _options()
    names = options.only or measures.NAMES
    plan = measures.Plan(0.5, 3) if options.quick else measures.Plan(2.0, 5)
    plan = measures.Plan(options.seconds or plan.seconds, options.rounds or plan.rounds, not options.no_pytcp)
    report = Report()
    if (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
        report.notes.append(f"the machine was busy with other things (load {load:.1f}); latencies suffer most from that")
    try:
        if options.swap:
            with signals_unwind():
                return swap.main(plan.rounds, options.json, _say)
        if options.lab:
            _need_lab()
            from benchmarks import in_guest  # with the tests' libraries, which nothing else here needs
            with signals_unwind():
                in_guest.measure(plan.seconds, plan.rounds, report, _say)
        elif options.nbd:
            nbd.measure(plan.seconds, plan.rounds, report, _say)
        elif options.programs:
            _need_lab()
            with signals_unwind(), Lab(None) as lab:
                programs.measure(lab, plan.seconds, plan.rounds, report, _say)
        elif set(names) - {"hot-paths"}:
            _need_lab()
            with signals_unwind(), Lab(None if options.free else _cpus()) as lab:
                measures.compare(lab, names, plan, report, _say)
                if "handoff" in names:
                    handoff.measure(lab, plan.seconds, plan.rounds, report, _say)
                if "memory" in names:
                    measures.memory(lab, plan, report, _say)
                if "idle-cost" in names:
                    measures.idle_cost(lab, plan, report, _say)
        if "hot-paths" in names and not (options.lab or options.nbd or options.programs):
            hot_paths.measure(report, plan.rounds, _say)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(report.json())
    else:
        report.show()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compare the stack with Linux and with pmd-pytcp on this machine, in one run.",
        epilog=f"Measures: {', '.join(measures.NAMES)}. What they mean: docs/performance.md")
    parser.add_argument("--only", metavar="MEASURE", action="append", choices=measures.NAMES,
                        help="this measure alone; may be given several times")
    parser.add_argument("--lab", action="store_true",
                        help="instead: our drivers against Linux's, in a QEMU guest with real device models")
    parser.add_argument("--nbd", action="store_true", help="instead: our NBD server against nbdkit and qemu-nbd")
    parser.add_argument("--programs", action="store_true", help="instead: unmodified programs on the stack against Linux")
    parser.add_argument("--swap", action="store_true", help="instead: swap's stores, its policy, and programs under a limit")
    parser.add_argument("--seconds", type=_seconds, help="how long each look takes (default 2)")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N", help="how many looks (default 5)")
    parser.add_argument("--quick", action="store_true", help="half a second, three rounds: a first impression")
    parser.add_argument("--free", action="store_true", help="let the kernel place server and client, not one CPU each")
    parser.add_argument("--no-pytcp", action="store_true", help="leave out pmd-pytcp, and do not install it")
    parser.add_argument("--json", action="store_true", help="print JSON, with the figures of every round")
    options = parser.parse_args()
    if (options.lab or options.nbd or options.programs or options.swap) and options.only:
        parser.error("--lab, --nbd, --programs and --swap measure other things: without --only")
    return options


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) <= 600:
        raise ValueError
    return value


def _need_lab() -> None:
    if os.geteuid():
        raise BenchError("needs root, for network namespaces and TAP devices (--only hot-paths does not)")
    if missing := [package for tool, package in _TOOLS.items() if not shutil.which(tool)]:
        raise BenchError(f"missing: {', '.join(missing)}. As root: apt-get install {' '.join(missing)}")


def _cpus() -> tuple[int, int] | None:
    """One processor to serve and another to ask; None on a machine that has but one."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[1], cpus[0]) if len(cpus) > 1 else None


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
