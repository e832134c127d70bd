"""Our drivers and stack against Linux's, in one QEMU guest and one run: each card model is there twice, one each.

The peer is iperf3 on this machine's Linux, at the other end of each card's cable. Processors, devices' emulation and the
peer are the same for both; what differs is who drives the card. Linux has its DMA untranslated (iommu=pt), ours goes
through the IOMMU, as it would in earnest.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.lab import BenchError
from benchmarks.report import Report, Row, paired
from tests.lab import inside_e1000 as inside
from tests.lab.guest import CARDS, Call, Guest

HUGE_PAGES = 24
SETTLE_S = 0.5
IDLE_S = 10.0
TWIN_BDF = "0000:02:00.0"       # behind slot0
TWIN_MAC = "52:54:00:1a:b0:20"
MODELS = (("e1000", "82540EM"), ("e1000e", "82574L"))
DIRECTIONS = (("in", ()), ("out", ("-R",)))


@dataclass
class Host:
    """One of the two at the end of a cable: its address, and the process if it is ours."""

    address: str
    call: Call | None = None
    pid: int = 0


def measure(guest: Guest, seconds: float, rounds: int, report: Report, say: Callable[[str], None]) -> None:
    """Add a row for each goal. The guest's cards are with their kernel drivers, before and after."""
    guest.preload("tests.lab.inside_e1000")
    guest.run(f"sysctl -q vm.nr_hugepages={HUGE_PAGES}")
    for name, chip in MODELS:
        with _linux(guest, name) as linux, contextlib.ExitStack() as stack:
            say(f"{chip}: one TCP stream at a time, rustosd and Linux in turn")
            ours = stack.enter_context(_ours(guest, name))
            figures = _rounds(guest, {"rustosd": ours, "Linux": linux}, seconds, rounds)
            for direction, _ in DIRECTIONS:
                report.rows.append(_versus(f"{chip}, one TCP stream {direction}", figures, direction))
                report.notes.append(_noise(f"{chip}, stream {direction}", figures, direction))
            share = _idle_share(guest, ours.pid)
            report.rows.append(Row(f"{chip}, idle daemon", "% of a CPU", share, goal="< 1", met=share < 1))
            stack.close()
            say(f"{chip}: the same by polling")
            with _ours(guest, name, polling=True) as polling:
                polled = _rounds(guest, {"polling": polling}, seconds, rounds)
            for direction, _ in DIRECTIONS:
                report.rows.append(_interrupts(f"{chip}, stream {direction} by interrupt", figures, polled, direction))
    guest.run("sysctl -q vm.nr_hugepages=0")


@contextlib.contextmanager
def _ours(guest: Guest, name: str, *, polling: bool = False) -> Iterator[Host]:
    """The card with our driver, stack and services."""
    card = CARDS[name]
    call = guest.start(inside.serve, card.bdf, ["msix", "intx"], ["10.9.1.2/24"], timeout=3600, polling=polling)
    guest.netns.run("ip", "address", "add", "10.9.1.1/24", "dev", name)
    try:
        hello = call.next(120)
        host = Host("10.9.1.2", call, hello["pid"])
        _answers(guest, host)
        yield host
        guest.run(f"kill -TERM {host.pid}")
        call.result()
    finally:
        call.kill()
        guest.netns.run("ip", "address", "flush", "dev", name)


@contextlib.contextmanager
def _linux(guest: Guest, model: str) -> Iterator[Host]:
    """Another card of the model in an empty slot, with the kernel's driver, stack and iperf3's server."""
    slot = "slot0"
    guest.plug(slot, model, mac=TWIN_MAC)
    server = None
    try:
        guest.run(f"until test -e /sys/bus/pci/devices/{TWIN_BDF}/net; do sleep 0.1; done", timeout=60)
        name = guest.run(f"ls /sys/bus/pci/devices/{TWIN_BDF}/net").stdout.strip()
        guest.run(f"ip link set {name} up && ip address add 10.9.2.2/24 dev {name}")
        guest.netns.run("ip", "address", "add", "10.9.2.1/24", "dev", slot)
        server = guest.start(inside.command, ["iperf3", "-s"], timeout=3600)
        host = Host("10.9.2.2")
        _answers(guest, host)
        yield host
    finally:
        if server:
            server.kill()
        guest.netns.run("ip", "address", "flush", "dev", slot)
        guest.unplug(slot)
        guest.run(f"while test -e /sys/bus/pci/devices/{TWIN_BDF}; do sleep 0.1; done", timeout=60)


def _answers(guest: Guest, host: Host) -> None:
    limit = time.monotonic() + 60
    while guest.netns.run("ping", "-q", "-c", "1", "-W", "1", host.address, check=False).returncode:
        if time.monotonic() > limit:
            raise BenchError(f"{host.address} in the guest does not answer")


def _rounds(guest: Guest, among: dict[str, Host], seconds: float, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Mb/s that arrived, by host and direction, taken in turn."""
    figures: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for direction, options in DIRECTIONS:
            for label, host in among.items():
                figures.setdefault((label, direction), []).append(_stream(guest, host, seconds, options))
    return figures


def _stream(guest: Guest, host: Host, seconds: float, options: tuple[str, ...]) -> float:
    done = guest.netns.run("iperf3", "-c", host.address, "--json", "-O", "1", "-t", str(max(1, round(seconds))), *options,
                           check=False, timeout=seconds + 60)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise BenchError(f"iperf3 to {host.address}: {answer['error']}")
    return answer["end"]["sum_received"]["bits_per_second"] / 1e6


def _versus(title: str, figures: dict[tuple[str, str], list[float]], direction: str) -> Row:
    ours, theirs = figures["rustosd", direction], figures["Linux", direction]
    ratio = paired(ours, theirs)
    return Row(title, "Mb/s", statistics.median(ours), "Linux's driver and stack", statistics.median(theirs), ratio, ">= 1",
               ratio >= 1, {"rustosd": ours, "Linux": theirs})


def _noise(title: str, figures: dict[tuple[str, str], list[float]], direction: str) -> str:
    """How far the rounds lie apart: on a machine with other things to do, more than the two sides do."""
    pairs = list(zip(figures["rustosd", direction], figures["Linux", direction], strict=True))
    ratios = ", ".join(f"{ours / theirs:.2f}" for ours, theirs in pairs)
    best = max(ours for ours, _ in pairs) / max(theirs for _, theirs in pairs)
    return f"{title}: the ratio of each round {ratios}; of the best rounds {best:.2f}"


def _interrupts(title: str, figures: dict[tuple[str, str], list[float]], polled: dict[tuple[str, str], list[float]],
                direction: str) -> Row:
    """By interrupt against polling: the time a given number of octets takes, so more is worse."""
    ours, theirs = figures["rustosd", direction], polled["polling", direction]
    slower = statistics.median(theirs) / statistics.median(ours)
    return Row(title, "Mb/s", statistics.median(ours), "rustosd, polling", statistics.median(theirs),
               1 / slower, ">= 1 / 1.3", slower <= 1.3, {"rustosd": ours, "polling": theirs})


def _idle_share(guest: Guest, pid: int) -> float:
    """Per cent of one processor's time that a process takes while nothing happens."""
    time.sleep(SETTLE_S)
    before, start = _on_cpu_ns(guest, pid)
    time.sleep(IDLE_S)
    after, end = _on_cpu_ns(guest, pid)
    return 100 * (after - before) / (end - start)


def _on_cpu_ns(guest: Guest, pid: int) -> tuple[int, int]:
    """All its threads' time on a processor, and the guest's clock, ns."""
    text = guest.run(f"cat /proc/{pid}/task/*/schedstat; cut -d' ' -f1 /proc/uptime").stdout.split("\n")
    *tasks, uptime = [line for line in text if line]
    return sum(int(line.split()[0]) for line in tasks), round(float(uptime) * 1e9)
