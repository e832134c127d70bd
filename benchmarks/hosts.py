"""The hosts that are compared: each serves the same ports in namespaces of its own, to a Linux client."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab import ROOT, BenchError, Child, Lab

ADDRESS = "10.77.0.2"
_SERVER_CIDR = f"{ADDRESS}/24"
_CLIENT_CIDR = "10.77.0.1/24"
_MAC = "02:00:00:00:00:77"
_PYTCP = "pmd-pytcp"
_PYTCP_VENV = ROOT / "build" / "bench-pytcp"
_PATIENCE_S = 20


@dataclass
class Host:
    """A running server: how it is called in the table, where its clients live, and its process."""

    label: str
    namespace: str
    server: Child


def ours(lab: Lab, label: str, *, offload: bool = True) -> Host:
    """Our stack behind a TAP, whose kernel side is in the clients' namespace."""
    namespace = lab.namespace()
    server = lab.server(namespace, sys.executable, "-m", "benchmarks.server", "tap", "rustos0", _MAC,
                        "offload" if offload else "plain", _SERVER_CIDR, _CLIENT_CIDR)
    return _up(lab, Host(label, namespace, server))


def handed_out(lab: Lab, label: str) -> Host:
    """Our stack behind a TAP again, and the server in a process of its own, on sockets the stack hands out."""
    namespace = lab.namespace()
    path = str(lab.directory() / "control.sock")
    stack = lab.server(namespace, sys.executable, "-m", "benchmarks.server", "tap", "rustos0", _MAC, "offload",
                       _SERVER_CIDR, _CLIENT_CIDR, path)
    stack.line(_PATIENCE_S)
    return _up(lab, Host(label, namespace, lab.program(namespace, "env", f"RUSTOSD_SOCKET={path}", sys.executable,
                                                       "-m", "benchmarks.server", "handoff")))


def linux(lab: Lab, label: str, *, offload: bool) -> Host:
    """Linux in a namespace of its own, a veth pair away from its clients."""
    near, far = lab.namespace(), lab.namespace()
    lab.inside(near, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", far)
    for namespace, cidr in ((near, _CLIENT_CIDR), (far, _SERVER_CIDR)):
        if not offload:
            off = [word for feature in ("tso", "gso", "gro", "tx", "rx") for word in (feature, "off")]
            lab.inside(namespace, "ethtool", "-K", "veth0", *off)
        lab.inside(namespace, "ip", "address", "add", cidr, "dev", "veth0")
        lab.inside(namespace, "ip", "link", "set", "veth0", "up")
    return _up(lab, Host(label, near, lab.server(far, sys.executable, "-m", "benchmarks.server", "kernel")))


def pytcp(lab: Lab, label: str) -> Host:
    """The published Python stack behind a TAP. Raises BenchError when it cannot be installed or does not come up."""
    python = _pytcp_python()
    namespace = lab.namespace()
    lab.inside(namespace, "ip", "tuntap", "add", "tap7", "mode", "tap")
    lab.inside(namespace, "ip", "address", "add", _CLIENT_CIDR, "dev", "tap7")
    lab.inside(namespace, "ip", "link", "set", "tap7", "up")
    program = str(Path(__file__).with_name("pytcp_server.py"))
    return _up(lab, Host(label, namespace, lab.server(namespace, str(python), program, "tap7", _MAC, _SERVER_CIDR)))


def _pytcp_python() -> Path:
    """The interpreter that has pmd-pytcp, in a virtual environment made for it when there is none yet."""
    python = _PYTCP_VENV / "bin" / "python"
    installed = [str(python), "-c", "import pmd_pytcp"]
    if python.exists() and subprocess.run(installed, capture_output=True, check=False).returncode == 0:
        return python
    for command in ([sys.executable, "-m", "venv", "--clear", str(_PYTCP_VENV)],
                    [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", _PYTCP]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise BenchError(f"{_PYTCP} does not install: {last[0]}")
    return python


def _up(lab: Lab, host: Host) -> Host:
    """Wait until the host serves."""
    host.server.line(_PATIENCE_S)
    ask(lab, host, "ready", _PATIENCE_S)
    return host


def ask(lab: Lab, host: Host, measure: str, amount: float) -> float:
    """One client program's answer; see client.py."""
    printed = lab.client(host.namespace, sys.executable, "-m", "benchmarks.client", measure, ADDRESS, str(amount),
                         timeout=amount + 2 * _PATIENCE_S)
    return float(printed)


def ping_flood(lab: Lab, host: Host, count: int) -> float:
    """The average round trip of a ping flood, us. Raises BenchError when an answer is missing."""
    printed = lab.client(host.namespace, "ping", "-q", "-f", "-c", str(count), ADDRESS, timeout=60)
    if f" {count} received" not in printed:
        raise BenchError(f"{host.label}: answers are missing: {printed.strip().splitlines()[-2]}")
    return float(printed.rsplit("=", 1)[1].split("/")[1]) * 1000


def hold_idle(lab: Lab, host: Host, count: int) -> Child:
    """Open so many connections to the host; they stay until the client is stopped."""
    client = lab.background(host.namespace, sys.executable, "-m", "benchmarks.client", "idle", ADDRESS, str(count))
    if (said := client.line(60 + count / 100)) != "open":
        raise BenchError(f"the idle client said {said!r}")
    return client
