"""What is measured between hosts, in rounds that go through all of them in turn, and what each ought to reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import hosts
from benchmarks.hosts import Host
from benchmarks.lab import BenchError, Lab
from benchmarks.report import Report, Row, paired

OURS = "rustosd"
OURS_PLAIN = "rustosd, plain TAP"
OURS_LOADED = "rustosd, loaded"
LINUX = "Linux"
LINUX_OFFLOADED = "Linux, offloads on"
PYTCP = "pmd-pytcp"
IDLE = 10_000
PINGS = 10_000
IDLE_GOAL = 4096
NOTHING = 0.95
"""A ratio from here on is within what two runs of one and the same program differ by on a quiet machine."""


@dataclass(frozen=True)
class Plan:
    """How long to look and how often."""

    seconds: float
    rounds: int
    pytcp: bool = True          # ask the published stack too
    idle: int = IDLE
    pings: int = PINGS


@dataclass(frozen=True)
class Measure:
    """A figure every host gives by itself; `goal` is the ratio to Linux that ours must reach, 0 where there is none."""

    name: str
    title: str
    unit: str
    goal: float
    others: tuple[str, ...]     # hosts asked beside ours and Linux


MEASURES = (
    Measure("stream-in", "one TCP stream into the stack", "Mb/s", 0.5, (OURS_PLAIN, LINUX_OFFLOADED, PYTCP)),
    Measure("stream-out", "one TCP stream out of it", "Mb/s", 0.5, (OURS_PLAIN, LINUX_OFFLOADED, PYTCP)),
    Measure("udp-echo", "UDP echo of 64 octets", "1/s", 0.5, (PYTCP,)),
    Measure("tcp-echo", "TCP echo of 64 octets", "1/s", 0.0, (PYTCP,)),
    Measure("ping", "ping flood, average", "us", 0.0, (PYTCP,)),
    Measure("connects", "connections made and closed", "1/s", 0.25, (PYTCP,)),
)
NAMES = (*(measure.name for measure in MEASURES), "handoff", "memory", "idle-cost", "hot-paths")


def compare(lab: Lab, names: Sequence[str], plan: Plan, report: Report, say: Callable[[str], None]) -> None:
    """Run the measures of MEASURES that are named; adds their rows."""
    measures = [measure for measure in MEASURES if measure.name in names]
    if not measures:
        return
    wanted = {OURS, LINUX, *(label for measure in measures for label in measure.others)}
    if not plan.pytcp:
        wanted.discard(PYTCP)
    running = _start(lab, wanted, report, say)
    for measure in measures:
        labels = [label for label in (OURS, LINUX, *measure.others) if label in running]
        say(f"{measure.title}: {', '.join(labels)}")
        figures = _rounds(lab, measure.name, [running[label] for label in labels], plan, report)
        report.rows += _rows(measure, figures)


def _start(lab: Lab, wanted: set[str], report: Report, say: Callable[[str], None]) -> dict[str, Host]:
    """The hosts by label; the published stack is a note when it does not come."""
    makers: dict[str, Callable[[], Host]] = {
        OURS: lambda: hosts.ours(lab, OURS),
        OURS_PLAIN: lambda: hosts.ours(lab, OURS_PLAIN, offload=False),
        LINUX: lambda: hosts.linux(lab, LINUX, offload=False),
        LINUX_OFFLOADED: lambda: hosts.linux(lab, LINUX_OFFLOADED, offload=True),
        PYTCP: lambda: hosts.pytcp(lab, PYTCP),
    }
    running = {}
    for label, make in makers.items():
        if label in wanted:
            say(f"starting {label}")
            try:
                running[label] = make()
            except BenchError as error:
                if label != PYTCP:
                    raise
                report.notes.append(f"without {PYTCP}: {str(error).splitlines()[0]}")
    return running


def _rounds(lab: Lab, name: str, among: Sequence[Host], plan: Plan, report: Report) -> dict[str, list[float]]:
    """Each host's figures, taken in turn: A B C, A B C. A host that fails at this measure is a note."""
    figures: dict[str, list[float]] = {host.label: [] for host in among}
    for _ in range(plan.rounds):
        for host in among:
            if host.label not in figures:
                continue
            try:
                figures[host.label].append(_one(lab, name, host, plan))
            except BenchError as error:
                if host.label != PYTCP:
                    raise
                del figures[host.label]
                report.notes.append(f"{PYTCP} fails at {name}: {str(error).splitlines()[-1]}")
    return figures


def _one(lab: Lab, name: str, host: Host, plan: Plan) -> float:
    if name == "ping":
        return hosts.ping_flood(lab, host, plan.pings if host.label != PYTCP else plan.pings // 10)
    return hosts.ask(lab, host, name.replace("-", "_"), plan.seconds)


def _rows(measure: Measure, figures: Mapping[str, list[float]]) -> list[Row]:
    """Ours against each peer; then our plain TAP against the first."""
    pairs = [(OURS, peer, measure.title) for peer in figures if peer not in (OURS, OURS_PLAIN)]
    if OURS_PLAIN in figures:
        pairs.insert(1, (OURS_PLAIN, LINUX, f"{measure.title}, plain TAP"))
    return [_row(measure, title, one, peer, figures) for one, peer, title in pairs]


def _row(measure: Measure, title: str, one: str, peer: str, figures: Mapping[str, list[float]]) -> Row:
    ours, theirs = statistics.median(figures[one]), statistics.median(figures[peer])
    ratio = paired(figures[one], figures[peer])
    goal, met = "", None
    if (one, peer) == (OURS, LINUX):
        if measure.name == "ping":
            goal, met = "< 2 x Linux + 20 us", ours < 2 * theirs + 20
        elif measure.goal:
            goal, met = f">= {measure.goal}", ratio >= measure.goal
    return Row(title, measure.unit, ours, peer, theirs, ratio, goal, met, {k: figures[k] for k in (one, peer)})


def memory(lab: Lab, plan: Plan, report: Report, say: Callable[[str], None]) -> None:
    """What an idle connection adds to the server's resident memory, with its asyncio objects."""
    say(f"memory of {plan.idle:,} idle connections: {OURS}, {LINUX}")
    per_connection = []
    for host in (hosts.ours(lab, OURS), hosts.linux(lab, LINUX, offload=False)):
        hosts.ask(lab, host, "connects", 0.2)       # what the first connections allocate is no cost of an idle one
        before = host.server.rss()
        client = hosts.hold_idle(lab, host, plan.idle)
        per_connection.append((host.server.rss() - before) / plan.idle)
        client.stop()
        host.server.stop()
    ours, theirs = per_connection
    report.rows.append(Row("memory per idle connection", "octets", ours, "Linux, without the kernel's", theirs,
                           ours / theirs if theirs else None, f"<= {IDLE_GOAL}", ours <= IDLE_GOAL))


def idle_cost(lab: Lab, plan: Plan, report: Report, say: Callable[[str], None]) -> None:
    """What idle connections cost an active one: two of our stacks, one of them loaded, in turn."""
    say(f"cost of {plan.idle:,} idle connections")
    alone, loaded = hosts.ours(lab, OURS), hosts.ours(lab, OURS_LOADED)
    client = hosts.hold_idle(lab, loaded, plan.idle)
    for name, title, unit in (("tcp-echo", "TCP echo beside 10,000 idle connections", "1/s"),
                              ("stream-in", "stream in beside them", "Mb/s"),
                              ("stream-out", "stream out beside them", "Mb/s")):
        figures = _rounds(lab, name, (loaded, alone), plan, report)
        ratio = paired(figures[OURS_LOADED], figures[OURS])
        report.rows.append(Row(title.replace("10,000", f"{plan.idle:,}"), unit, statistics.median(figures[OURS_LOADED]),
                               "rustosd without them", statistics.median(figures[OURS]), ratio, f">= {NOTHING}",
                               ratio >= NOTHING, figures))
    for child in (client, alone.server, loaded.server):
        child.stop()
