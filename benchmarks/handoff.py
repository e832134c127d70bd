"""Sockets handed out to another process against the same server inside the daemon's process."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks import hosts
from benchmarks.lab import Lab
from benchmarks.report import Report, Row, paired

IN_PROCESS = "in-process"
GOAL = 0.7

# name of the client's function, title, unit, whether the goal is for it
MEASURES = (
    ("stream_in", "stream in, handed out", "Mb/s", True),
    ("stream_out", "stream out, handed out", "Mb/s", True),
    ("octet_echo", "round trip of 1 octet, handed out", "us", False),
    ("connects", "connections, handed out", "1/s", False),
    ("udp_echo", "UDP echo, handed out", "1/s", False),
)


def measure(lab: Lab, seconds: float, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Both servers in turn. The three processes of the second share two processors where there are no more."""
    say("starting rustosd, and rustosd with its server in another process")
    inside, outside = hosts.ours(lab, IN_PROCESS), hosts.handed_out(lab, "handed out")
    for name, title, unit, has_goal in MEASURES:
        say(title)
        figures: dict[str, list[float]] = {outside.label: [], inside.label: []}
        for _ in range(rounds):
            for host in (outside, inside):
                figures[host.label].append(hosts.ask(lab, host, name, seconds))
        ratio = paired(figures[outside.label], figures[inside.label])
        report.rows.append(Row(title, unit, statistics.median(figures[outside.label]), IN_PROCESS,
                               statistics.median(figures[inside.label]), ratio, f">= {GOAL}" if has_goal else "",
                               ratio >= GOAL if has_goal else None, figures))
