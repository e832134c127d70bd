"""`scripts/lab demo`: the daemon takes a NIC and a disk controller from Linux, serves, and gives both back, step by step.

Everything happens in a guest, with the commands a person would type, and each step is checked. The peer of the NIC is
the Linux in the network namespace at the other end of its cable.
"""

import hashlib
import re
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any, Final

from tests.lab.guest import AHCI, CARDS, Finished, Guest
from tests.lab.packages import ROOT

NIC: Final = CARDS["e1000e"]
V4, V6 = "10.9.7.2", "fd09:7::2"
PEER: Final = ("10.9.7.1/24", "fd09:7::1/64")
TEXT: Final = "Written by rustosd, past the kernel.\n"
COLUMNS: Final = 110
_BINARIES: Final = "/run/demo"
_LOG: Final = "/run/demo/log"
_PID: Final = "/run/demo/pid"
_SOCKET: Final = "/run/rustosd/control.sock"
_JOURNAL: Final = "/run/rustosd/journal.jsonl"
_ANSWER_S: Final = 90.0
_START_S: Final = 300.0
_PROGRESS: Final = re.compile(r"(?:\r\x1b\[K[^\r\n]*)*\r\x1b\[K")
"""What one line shows after the other in the same place, all of it gone in the end."""
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

Say = Callable[[str], None]


class DemoFailed(Exception):
    """A step did not do what it should; the message has the command and its output."""


class Demo:
    """A guest, and where to say what happens."""

    def __init__(self, guest: Guest, say: Say, colour: bool = False) -> None:
        self.guest, self.say, self.colour = guest, say, colour

    def title(self, text: str) -> None:
        """What the next commands are about."""
        self.say(f"\n=== {text}\n")

    def inside(self, command: str, *expected: str, without: str = "", terminal: bool = False, seconds: float = 0) -> None:
        """A command in the guest: it succeeds, says everything that is expected, and not `without`, within so many seconds.

        `terminal`: it has one, so that tables fold.
        """
        line = f"script -qec 'stty cols {COLUMNS}; {command}' /dev/null" if terminal else command
        line = f"export PATH={_BINARIES}:$PATH; {line}"
        self._step(f"guest# {command}", lambda: self.guest.run(line, check=False, timeout=300), expected, without, seconds)

    def outside(self, *command: str, expected: tuple[str, ...] = (), seconds: float = 0) -> None:
        """The same in the network namespace at the other end of the cable."""
        self._step(f"peer#  {' '.join(command)}", lambda: self.guest.netns.run(*command, check=False), expected, "", seconds)

    def _step(self, line: str, act: Callable[[], Any], expected: tuple[str, ...], without: str, seconds: float) -> None:
        self.say(line + "\n")
        limit = time.monotonic() + seconds
        while True:
            done = act()
            said = _PROGRESS.sub("", done.stdout).replace("\r", "") + done.stderr
            said = "\n".join(text.rstrip() for text in said.split("\n"))
            plain = _COLOUR.sub("", said)
            status = done.status if isinstance(done, Finished) else done.returncode
            wrong = _wrong(status, plain, expected, without)
            if not wrong or time.monotonic() >= limit:
                break
            time.sleep(1.0)
        shown = said if self.colour else plain
        self.say(shown if not shown or shown.endswith("\n") else shown + "\n")
        if wrong:
            raise DemoFailed(f"`{line.partition('#')[2].strip()}` {wrong}\n{plain}")


def _wrong(status: int, said: str, expected: tuple[str, ...], without: str) -> str:
    """What is not as it should be, in words; empty when all is."""
    if status:
        return f"ended with status {status}"
    words = " ".join(said.split())      # what is folded, and aligned
    missing = [text for text in expected if text not in said and text not in words]
    if missing:
        return f"does not say {missing[0]!r}"
    return f"still says {without!r}" if without and without in said else ""


def run(guest: Guest, say: Say, colour: bool = False) -> None:
    """All steps. Raises DemoFailed, GuestError; then too the guest's devices are the kernel's again."""
    demo = Demo(guest, say, colour)
    pattern = hashlib.shake_128(b"disk0").digest(8 << 20)
    with guest.disk("disk0").open("r+b") as file:
        file.write(pattern)
    try:
        interface = _prepare(demo)
        _start(demo, interface)
        _take(demo, interface)
        _network(demo)
        _disks(demo, pattern)
        _give(demo, interface)
        _stop(demo)
    except DemoFailed as error:
        log = guest.run(f"tail -n 40 {_LOG}", check=False).stdout
        raise DemoFailed(f"{error}\nThe daemon's log:\n{log}") from None
    finally:
        _clean(guest)


def _prepare(demo: Demo) -> str:
    """Commands by their names, and an interface that Linux uses; its name."""
    guest = demo.guest
    guest.run("modprobe -a vfio-pci e1000e tun ahci sd_mod && sysctl -q vm.nr_hugepages=24")
    guest.run(f"mkdir -p {_BINARIES}")
    paths = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for name, module in (("rustosd", "daemon"), ("rustosctl", "control")):
        # -S and the paths by hand: what Python does at its start to find them takes a second in an emulated guest.
        code = f"import sys; sys.path[:0] = {paths}; sys.argv[0] = '{name}'; from rustosd.cli.{module} import main; main()"
        guest.put(f"{_BINARIES}/{name}", f'#!/bin/sh\nexec {sys.executable} -S -c "{code}" "$@"\n'.encode())
        guest.run(f"chmod +x {_BINARIES}/{name}")
    for address in PEER:
        guest.netns.run("ip", "addr", "add", address, "dev", NIC.name, "nodad")
    interface = guest.run(f"ls /sys/bus/pci/devices/{NIC.bdf}/net").stdout.strip()
    guest.run(f"ip link set {interface} up && ip addr add {V4}/24 dev {interface} && ip addr add {V6}/64 dev {interface} nodad "
              f"&& ip route add 198.51.100.0/24 via {PEER[0].partition('/')[0]} dev {interface}")
    return interface


def _start(demo: Demo, interface: str) -> None:
    demo.title("1. A Linux machine with a NIC in use, and disks")
    demo.inside(f"ip -br addr show dev {interface}", f"{V4}/24")
    demo.inside("cat /proc/partitions", "sda", "sdb", seconds=_ANSWER_S)
    demo.title("2. The daemon starts beside it; so far it has taken nothing")
    demo.inside(f"rustosd run --quiet >{_LOG} 2>&1 & echo $! >{_PID}")
    demo.guest.run(f"while kill -0 $(cat {_PID}) && ! test -S {_SOCKET}; do sleep 0.2; done", check=False, timeout=_START_S)
    demo.inside("rustosctl status", "interfaces 1", seconds=_ANSWER_S)
    demo.inside("rustosctl device list", NIC.bdf, interface, AHCI, "sda", "e1000e", terminal=True)
    demo.inside(f"rustosctl device show {NIC.bdf}", "82574L", "MSI-X", "can be taken yes", f"{interface} {NIC.mac}",
                terminal=True)
    demo.inside("rustosctl acpi", "APIC", "DMAR", "MCFG", "good", without="checksum", terminal=True)


def _take(demo: Demo, interface: str) -> None:
    demo.title("3. Both move from the kernel to the daemon, the NIC with its addresses and routes")
    demo.inside(f"rustosctl device take {NIC.bdf} {AHCI}", f"{NIC.bdf}: taken from e1000e by vfio", f"{V4}/24", f"{V6}/64",
                "routes to 198.51.100.0/24", f"{AHCI}: taken from ahci by vfio; its disks: {AHCI}/0, {AHCI}/1")
    demo.inside("rustosctl device list", "our 4 disks", "ours, by vfio", terminal=True)
    demo.inside("ip -br link", without=interface)
    demo.inside("cat /proc/partitions", without="sda")


def _network(demo: Demo) -> None:
    demo.title("4. The host at the other end of the cable talks with our stack")
    demo.outside("ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", V4, expected=("3 packets transmitted, 3 received",),
                 seconds=_ANSWER_S)
    demo.outside("ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", V6, expected=("3 packets transmitted, 3 received",),
                 seconds=_ANSWER_S)
    demo.outside("sh", "-c", f"curl -sSf -m 30 http://{V4}/bytes/1000000 | sha256sum", expected=(_digest(_served(1_000_000)),))
    demo.inside("rustosctl nic list", V4, "up", terminal=True)
    demo.inside(f"rustosctl device regs {NIC.bdf} --registers CTRL,STATUS,RCTL,TCTL", "4 registers", terminal=True)


def _disks(demo: Demo, pattern: bytes) -> None:
    demo.title("5. The disks, raw; the host compares with the files behind them")
    demo.inside("rustosctl disk list", f"{AHCI}/0", "LAB-DISK0", "LAB-DISK1", "64.0 MiB", terminal=True)
    demo.inside("rustosctl disk read LAB-DISK0 --length 64", terminal=True)
    demo.inside("rustosctl disk read LAB-DISK0 --offset 1000 --length 4M | sha256sum", _digest(pattern[1000:1000 + (4 << 20)]))
    demo.inside(f"printf '{TEXT[:-1]}\\n' | rustosctl disk write LAB-DISK1 --offset 1M --yes", "and flushed")
    with demo.guest.disk("disk1").open("rb") as file:
        file.seek(1 << 20)
        if (found := file.read(len(TEXT)).decode(errors="replace")) != TEXT:
            raise DemoFailed(f"the file behind the disk has {found!r}")
    demo.say(f"The file behind LAB-DISK1 has at 1 MiB: {TEXT}")
    demo.inside("rustosctl disk bench LAB-DISK0 --seconds 3 --depth 32", "requests/s", terminal=True)


def _give(demo: Demo, interface: str) -> None:
    demo.title("6. Both go back to the kernel")
    demo.inside(f"rustosctl device give {NIC.bdf} {AHCI}", f"{NIC.bdf}: given back to e1000e as {interface}",
                f"{AHCI}: given back to ahci")
    demo.inside(f"ip -br addr show dev {interface}", f"{V4}/24", f"{V6}/64")
    demo.inside(f"ip route show dev {interface}", "198.51.100.0/24 via")
    demo.inside("cat /proc/partitions", "sda", "sdb", seconds=_ANSWER_S)
    demo.outside("ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", V4, expected=("3 packets transmitted, 3 received",),
                 seconds=_ANSWER_S)


def _stop(demo: Demo) -> None:
    demo.title("7. The daemon stops and leaves no trace")
    demo.inside(f"kill $(cat {_PID})")
    demo.inside("ip -br link", without="rustos0", seconds=_ANSWER_S)
    demo.inside("ls -F /run", without="rustosd/", seconds=_ANSWER_S)


def _clean(guest: Guest) -> None:
    """Whatever went wrong: no daemon, the devices with the kernel, the interface as it was."""
    guest.run(f"test -e {_PID} && kill -9 $(cat {_PID}); test -e {_JOURNAL} && {_BINARIES}/rustosd recover; "
              f"rm -rf {_BINARIES}; sysctl -q vm.nr_hugepages=0", check=False, timeout=_START_S)
    guest.run(f"dev=$(ls /sys/bus/pci/devices/{NIC.bdf}/net) && ip addr flush dev $dev && ip link set $dev down", check=False)
    guest.netns.run("ip", "addr", "flush", "dev", NIC.name, check=False)


def _served(length: int) -> bytes:
    """What /bytes/N answers with."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def _digest(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()
