"""`rustosctl traceroute`: the routers between the stack and a host."""

import os
from typing import Annotated, Final

import typer

from rustosd.cli import calls, shell, tables
from rustosd.cli.calls import Json, checked
from rustosd.control import trace_protocol as p
from rustosd.values import Address

SIGNS: Final = {"host unreachable": "!H", "network unreachable": "!N", "protocol unreachable": "!P",
                "administratively prohibited": "!X", "packet too big": "!F", "parameter problem": "!"}
"""As traceroute(8) has them."""
_FIRST_SEQUENCE: Final = 1


def traceroute(
    host: Annotated[str, typer.Argument(metavar="ADDRESS")],
    icmp: Annotated[bool, typer.Option("--icmp", "-I", help="Echo requests instead of UDP.")] = False,
    first: Annotated[int, typer.Option("-f", "--first", min=1, max=255, help="The hop to begin with.")] = 1,
    most: Annotated[int, typer.Option("-m", "--max-hops", min=1, max=255, help="How far to look.")] = 30,
    probes: Annotated[int, typer.Option("-q", "--probes", min=1, max=p.MOST_PROBES, help="Probes for each hop.")] = 3,
    port: Annotated[int, typer.Option("-p", "--port", min=1, max=62000, help="The first UDP port.")] = p.FIRST_PORT,
    octets: Annotated[int, typer.Option("-s", "--size", min=0, max=65507, help="Octets of data in each probe.")] = 32,
    wait_s: Annotated[float, typer.Option("-w", "--wait", min=0.001, max=60, help="Seconds to wait for answers.")] = 1.0,
    json: Json = False,
) -> int:
    """The routers between the stack and a host. Exit status 1 when it is not reached.

    !H host, !N network, !P protocol unreachable; !X prohibited; !F too big; * no answer.
    """
    address = checked(Address, host)
    identifier = int.from_bytes(os.urandom(2))
    hops: list[p.Hop] = []
    if not json:
        print(f"traceroute to {address}, {most} hops at most, {octets} octets of data", flush=True)
    with calls.daemon() as daemon:
        for distance in range(first, most + 1):
            sent = (distance - first) * probes
            hops.append(daemon.call("trace.hop", p.HopQuery(
                address=address, hop_limit=distance, method="icmp" if icmp else "udp", probes=probes, port=port + sent,
                identifier=identifier, sequence=_FIRST_SEQUENCE + sent, octets=octets, timeout_ms=round(wait_s * 1000) or 1)))
            if not json:
                print(line(hops[-1]), flush=True)
            if any(probe.reached or probe.error for probe in hops[-1].probes):
                break
    reached = any(probe.reached for hop in hops for probe in hop.probes)
    if json:
        tables.print_json("traceroute", {"address": address, "reached": reached, "hops": hops})
    return shell.OK if reached else shell.FAILED


def line(hop: p.Hop) -> str:
    """As traceroute(8) prints it: an address where it is another than before, and the times."""
    words, before = [f"{hop.hop_limit:2}"], None
    for probe in hop.probes:
        if probe.address is None or probe.rtt_us is None:
            words.append("*")
            continue
        if probe.address != before:
            words.append(probe.address)
            before = probe.address
        sign = f" {SIGNS.get(probe.error, f'!({probe.error})')}" if probe.error else ""
        words.append(f"{probe.rtt_us / 1000:.3f} ms{sign}")
    return "  ".join(words)
