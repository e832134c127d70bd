"""`rustosctl`: look at a running daemon and change it. Noun, then verb; a noun alone lists."""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from rustosd.cli import (
    acpi,
    calls,
    capture,
    details,
    device,
    faults,
    memory,
    process,
    program,
    report,
    sata,
    sched,
    shell,
    swap,
    tables,
    top,
    traceroute,
    upkeep,
)
from rustosd.cli.calls import Json, Settings, call, checked
from rustosd.cli.nc import nc
from rustosd.cli.run import logs as logs_command
from rustosd.cli.run import run as run_command
from rustosd.cli.run import wait as wait_command
from rustosd.control import network_protocol as network
from rustosd.control import protocol as p
from rustosd.control.client import DEFAULT_SOCKET
from rustosd.values import Address, Cidr, InterfaceName, Mac, Prefix

PING_INTERVAL_MIN_S = 0.002

Words = Annotated[list[str] | None, typer.Argument(metavar="[WORD VALUE]...")]

app = typer.Typer(help="Steer a running rustosd: what it is doing, and what it should do.", rich_markup_mode=None,
                  pretty_exceptions_enable=False)


@app.callback()
def _options(
    socket: Annotated[str, typer.Option(envvar="RUSTOSD_SOCKET", help="The daemon's control socket.")] = DEFAULT_SOCKET,
) -> None:
    Settings.socket = socket


def _options_of(words: Sequence[str] | None, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """`via ADDRESS dev NAME` as {"via": Address, "dev": InterfaceName}, in the manner of iproute2."""
    given: dict[str, Any] = {}
    rest = list(words or ())
    while rest:
        word = rest.pop(0)
        if word not in known:
            raise typer.BadParameter(f"unexpected {word!r}; known here: {', '.join(known)}")
        if word in given:
            raise typer.BadParameter(f"{word} is there twice")
        if not rest:
            raise typer.BadParameter(f"{word} needs a value behind it")
        given[word] = checked(known[word], rest.pop(0))
    return given


def _metric(text: str) -> int:
    if not text.isdecimal() or int(text) >= 0xFFFFFFFF:
        raise ValueError(f"{text!r} is no metric, a number from 0 to 4294967294")
    return int(text)


def _noun(name: str, text: str, listing: tables.Listing, method: str) -> typer.Typer:
    """A group of commands whose list is also what the noun alone shows."""
    group = typer.Typer(help=text, rich_markup_mode=None)

    def print_list(as_json: bool) -> None:
        tables.show(listing, call(method), as_json)

    @group.callback(invoke_without_command=True)
    def alone(context: typer.Context, json: Json = False) -> None:
        if context.invoked_subcommand is None:
            print_list(json)

    @group.command("list", help=p.METHODS[method].help)
    def list_(json: Json = False) -> None:
        print_list(json)

    app.add_typer(group, name=name)
    return group


@app.command()
def status(json: Json = False) -> None:
    """The daemon in one look, and what needs attention. Exit status 3 when none is running."""
    now: p.Status = call("daemon.status")
    if json:
        tables.print_json("status", now)
        return
    tables.show_facts((
        ("version", now.version), ("pid", str(now.pid)), ("up", tables.duration(now.uptime_s)),
        ("interfaces", str(now.interfaces)), ("connections", str(now.connections)),
        ("listeners", str(now.listeners)), ("services", tables.plain(now.services)),
        *([("programs", tables.plain(now.programs))] if now.programs else []),
        ("frames in", str(now.rx_frames)), ("frames out", str(now.tx_frames)), ("dropped", str(now.dropped_frames)),
    ))
    upkeep.print_notes(now.health)


nic = _noun("nic", "Interfaces of the stack.", tables.NICS, "nic.list")


def _complete_nic(incomplete: str) -> list[str]:
    return calls.known("nic.list", lambda rows: [row.name for row in rows], incomplete)


@nic.command("show")
def nic_show(name: Annotated[str, typer.Argument(autocompletion=_complete_nic)], json: Json = False) -> None:
    """All about one interface: its device, link, rings, interrupts and counters."""
    answer: network.NicDetails = call("nic.show", network.NicQuery(name=checked(InterfaceName, name)))
    if json:
        tables.print_json("nic", answer)
    else:
        details.show_nic(answer)


addr = _noun("addr", "Addresses of the interfaces.", tables.ADDRESSES, "addr.list")


@addr.command("add")
def addr_add(nic: str, address: Annotated[str, typer.Argument(metavar="ADDRESS/LENGTH")]) -> None:
    """Give an interface an address: rustosctl addr add rustos0 10.77.0.3/24"""
    call("addr.add", p.AddressChange(nic=checked(InterfaceName, nic), address=checked(Cidr, address)))


@addr.command("del")
def addr_del(nic: str, address: Annotated[str, typer.Argument(metavar="ADDRESS/LENGTH")]) -> None:
    """Take an address from an interface."""
    call("addr.del", p.AddressChange(nic=checked(InterfaceName, nic), address=checked(Cidr, address)))


route = _noun("route", "The routing table.", tables.ROUTES, "route.list")


@route.command("add")
def route_add(destination: Annotated[str, typer.Argument(metavar="PREFIX")], words: Words = None) -> None:
    """Add a static route: rustosctl route add 192.0.2.0/24 via 10.77.0.1 [dev NIC] [metric N]"""
    given = _options_of(words, {"via": Address, "dev": InterfaceName, "metric": _metric})
    if "via" not in given and "dev" not in given:
        raise typer.BadParameter("a route needs via ADDRESS or dev NIC")
    call("route.add", p.RouteChange(destination=_destination(destination, given), gateway=given.get("via"),
                                     nic=given.get("dev"), metric=given.get("metric", 0)))


@route.command("del")
def route_del(destination: Annotated[str, typer.Argument(metavar="PREFIX")], words: Words = None) -> None:
    """Remove the static routes to a prefix: rustosctl route del PREFIX [via ADDRESS] [dev NIC] [metric N]"""
    given = _options_of(words, {"via": Address, "dev": InterfaceName, "metric": _metric})
    call("route.del", p.RouteRemoval(destination=_destination(destination, given), gateway=given.get("via"),
                                      nic=given.get("dev"), metric=given.get("metric")))


def _destination(text: str, given: dict[str, Any]) -> Prefix:
    """`default` is of the family of its gateway."""
    if text == "default" and "via" in given and given["via"].version == 6:
        return Prefix("::/0")
    return checked(Prefix, text)


neigh = _noun("neigh", "The ARP and NDP cache.", tables.NEIGHBORS, "neigh.list")


@neigh.command("add")
def neigh_add(address: str, words: Words = None) -> None:
    """Add a permanent neighbor: rustosctl neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev rustos0"""
    given = _options_of(words, {"lladdr": Mac, "dev": InterfaceName})
    _need(given, "lladdr", "dev")
    call("neigh.add", p.NeighborChange(address=checked(Address, address), mac=given["lladdr"], nic=given["dev"]))


@neigh.command("del")
def neigh_del(address: str, words: Words = None) -> None:
    """Forget a neighbor: rustosctl neigh del 10.77.0.9 dev rustos0"""
    given = _options_of(words, {"dev": InterfaceName})
    _need(given, "dev")
    call("neigh.del", p.NeighborRemoval(address=checked(Address, address), nic=given["dev"]))


def _need(given: dict[str, Any], *words: str) -> None:
    for word in words:
        if word not in given:
            raise typer.BadParameter(f"{word} is missing")


conn = typer.Typer(help="TCP connections, listeners and UDP sockets.", rich_markup_mode=None)
app.add_typer(conn, name="conn")
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="List at most so many.")]


@conn.callback(invoke_without_command=True)
def conn_alone(context: typer.Context, limit: Limit = 10_000, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        conn_list(limit, json)


@conn.command("list")
def conn_list(limit: Limit = 10_000, json: Json = False) -> None:
    """Connections, listeners and UDP sockets."""
    answer: p.Connections = call("conn.list", p.ConnectionQuery(limit=limit))
    tables.show(tables.CONNECTIONS, answer.connections, json, answer.total)


def _complete_connection(incomplete: str) -> list[str]:
    return calls.known("conn.list", lambda answer: [row.id for row in answer.connections if row.id], incomplete,
                       p.ConnectionQuery())


ConnectionId = Annotated[str, typer.Argument(metavar="ID", help="As `conn list` shows it: 7.2",
                                             autocompletion=_complete_connection)]


def _connection_id(text: str) -> str:
    if not re.match(network.CONNECTION_ID, text):
        raise ValueError(f"{text!r} is no connection's ID, which is two numbers: 7.2; see: rustosctl conn list")
    return text


@conn.command("show")
def conn_show(identity: ConnectionId, json: Json = False) -> None:
    """All about one TCP connection: windows, times, options, buffers, and whose it is."""
    answer: network.ConnectionDetails = call("conn.show", network.ConnectionQuery(id=checked(_connection_id, identity)))
    if json:
        tables.print_json("connection", answer)
    else:
        details.show_connection(answer)


@conn.command("close")
def conn_close(
    identity: ConnectionId,
    reset: Annotated[bool, typer.Option("--reset", help="At once, and the peer sees a reset.")] = False,
) -> None:
    """End a TCP connection: what was written still goes out, then FIN. Its program sees the end of it."""
    call("conn.close", network.ConnectionEnd(id=checked(_connection_id, identity), reset=reset))


All = Annotated[bool, typer.Option("--all", "-a", help="Also those that never happened.")]


@app.command()
def drops(every: All = False, json: Json = False) -> None:
    """Why frames were dropped."""
    rows: list[p.Drop] = call("drops.list")
    shown = [row for row in rows if every or row.frames]
    tables.show(tables.DROPS, sorted(shown, key=lambda row: -row.frames), json)


@app.command()
def counters(every: All = False, json: Json = False) -> None:
    """What the stack counts."""
    rows: list[p.Count] = call("counters.list")
    tables.show(tables.COUNTERS, [row for row in rows if every or row.count], json)


@app.command()
def ping(
    host: Annotated[str, typer.Argument(metavar="ADDRESS")],
    count: Annotated[int | None, typer.Option("-c", min=1, help="Stop after so many; else at Ctrl-C.")] = None,
    interval_s: Annotated[float, typer.Option("-i", min=PING_INTERVAL_MIN_S, help="Seconds between two.")] = 1.0,
    size: Annotated[int, typer.Option("-s", min=0, max=65507, help="Octets of data in each.")] = 56,
    timeout_s: Annotated[float, typer.Option("-W", min=0.001, max=60, help="Seconds to wait for an answer.")] = 1.0,
    json: Json = False,
) -> int:
    """Send echo requests from the stack. Exit status 1 when nothing answered."""
    address = checked(Address, host)
    if json and count is None:
        count = 4
    identifier = int.from_bytes(os.urandom(2))
    results: list[p.Echo] = []
    say = (lambda text: None) if json else (lambda text: print(text, flush=True))
    say(f"PING {address}: {size} octets of data")
    try:
        with calls.daemon() as daemon:
            while count is None or len(results) < count:
                begun = time.monotonic()
                results.append(daemon.call("ping.echo", p.EchoRequest(
                    address=address, identifier=identifier, sequence=(len(results) + 1) & 0xFFFF, octets=size,
                    timeout_ms=round(timeout_s * 1000) or 1)))
                say(_echo_line(results[-1]))
                if count is None or len(results) < count:
                    time.sleep(max(0.0, begun + interval_s - time.monotonic()))
    except KeyboardInterrupt:
        say("")
    answered = [echo.rtt_us for echo in results if echo.rtt_us is not None]
    if json:
        tables.print_json("ping", {"address": address, "sent": len(results), "received": len(answered),
                                   "echoes": results})
    else:
        say(_summary(address, len(results), answered))
        sys.stdout.flush()
    return shell.OK if answered else shell.FAILED


def _echo_line(echo: p.Echo) -> str:
    if echo.error is not None:
        return f"seq={echo.sequence}: {echo.error}"
    if echo.rtt_us is None:
        return f"seq={echo.sequence}: no answer from {echo.address}"
    return (f"{echo.octets + 8} octets from {echo.address}: seq={echo.sequence} ttl={echo.hop_limit} "
            f"time={echo.rtt_us / 1000:.3f} ms")


def _summary(address: str, sent: int, answered_us: Sequence[float]) -> str:
    lost = 100 * (sent - len(answered_us)) / sent if sent else 0
    lines = [f"--- {address} ---", f"{sent} sent, {len(answered_us)} received, {lost:.0f}% lost"]
    if answered_us:
        low, mean, high = min(answered_us), sum(answered_us) / len(answered_us), max(answered_us)
        lines.append(f"round trip min/avg/max = {low / 1000:.3f}/{mean / 1000:.3f}/{high / 1000:.3f} ms")
    return "\n".join(lines)


app.command("capture")(capture.capture)
app.command("top")(top.top)
app.command("traceroute")(traceroute.traceroute)
app.add_typer(device.app, name="device")
app.add_typer(sata.app, name="disk")
app.command("acpi")(acpi.acpi)
app.command("reload")(upkeep.reload)
app.add_typer(upkeep.config, name="config")
app.add_typer(upkeep.log, name="log")
app.add_typer(upkeep.crash, name="crash")
app.command("report")(report.report)
app.command()(nc)
app.command("run")(run_command)
app.command("wait")(wait_command)
app.command("logs")(logs_command)
app.add_typer(process.app, name="process")
app.add_typer(faults.app, name="faults")
app.add_typer(program.app, name="program")
app.add_typer(sched.app, name="sched")
app.add_typer(memory.app, name="memory")
app.add_typer(swap.app, name="swap")
for command in (process.ps, process.policy, process.kill, process.suspend, process.resume, process.nice):
    app.command(command.__name__)(command)


def main() -> None:
    """The entry point of the `rustosctl` command."""
    sys.exit(shell.run(app, "rustosctl"))
