"""The service under a real systemd, in a guest of its own: installed, killed, hung, stopped, removed. One story, in order.

From the first kill on with the drop-ins for programs and for Linux's own swap.

The checkout is under /tmp, where a service may not look unless it is told that it may.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import inside_control
from tests.lab.cable import wait_for
from tests.lab.guest import CARDS, Finished, Guest
from tests.lab.packages import ROOT, LabUnavailable
from tests.lab.test_memory import HOLD

pytestmark = pytest.mark.long
BDF = CARDS["e1000e"].bdf
CONFIG = f"""\
interface = []
[[device]]
bdf = "{BDF}"
name = "lan0"
"""
PROGRAMS = f"""\
[[disk]]
name = "swap"
kind = "ram"
size = "32MiB"
[[export]]
name = "swap"
disk = "swap"
[[program]]
name = "web"
command = ["busybox", "httpd", "-f", "-p", "8080", "-h", "/usr/lib"]
restart = "always"
[[program]]
name = "large"
command = ["{sys.executable}", "-S", "/run/hold.py"]
memory = "6M"
memory_max = "10M"
"""
PATIENT = "[Service]\nTimeoutStartSec=900\nTimeoutStopSec=600\n"
"""For a guest on a busy machine, where Python may take a minute to begin. The watchdog's time is the unit's own."""
NEWER = """#!/bin/sh
[ "$1" != --version ] || { echo "systemd 255 (255.4-1)"; exit; }
exec /usr/bin/systemctl "$@"
"""
"""systemctl of a systemd that knows RestartMode=, which Debian 12's does not and ignores."""
DOCS = (ROOT / "docs/swap.md").read_text()
SWAP_DROP_IN = re.sub("^    ", "", re.search(r"^    \[Service\]\n(    .*\n)+", DOCS, re.M)[0], flags=re.M)
CHECKOUT = Path("/tmp/checkout")
DROP_INS = "/etc/systemd/system/rustosd.service.d"


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    if not shutil.which("systemctl"):
        pytest.skip("systemd is not installed")
    try:
        booted = Guest(systemd=True)
    except LabUnavailable as why:
        pytest.skip(str(why))
    with booted:
        booted.run(f"modprobe e1000e && mkdir {CHECKOUT} && mount --bind {ROOT} {CHECKOUT}")
        # What scripts/test has installed need not be installed again, only because the place has another name here.
        booted.run(f"sed -i 's# [^ ]*$# {CHECKOUT}#' {venv()}/stamp-install-test && mkdir {DROP_INS} /run/newer")
        booted.put(f"{DROP_INS}/test.conf", PATIENT.encode())
        booted.put("/run/newer/systemctl", NEWER.encode())
        booted.run("chmod +x /run/newer/systemctl")
        booted.preload("tests.lab.inside_control")
        yield booted


def venv() -> Path:
    """The virtual environment that this runs in, as it is called in the guest."""
    used = Path(sys.prefix)
    return CHECKOUT / used.relative_to(ROOT) if used.is_relative_to(ROOT) else used


def install(machine: Guest, *options: str, before: str = "") -> Finished:
    return machine.run(f"cd {CHECKOUT} && {before} RUSTOSD_VENV={venv()} scripts/install --develop {' '.join(options)}",
                       check=False, timeout=900)


def show(machine: Guest, *properties: str) -> list[str]:
    told = machine.run(f"systemctl show rustosd.service -p {' -p '.join(properties)}").stdout
    known = dict(line.split("=", 1) for line in told.splitlines())
    return [known[name] for name in properties]


def until_restarted(machine: Guest, times: int, limit_s: float = 900) -> None:
    """Wait until it has been started again so often, or once more by the watchdog of a starved guest, and is ready."""
    deadline = time.monotonic() + limit_s
    while True:
        restarts, *state = show(machine, "NRestarts", "ActiveState", "SubState")
        if int(restarts) >= times and state == ["active", "running"]:
            return
        assert time.monotonic() < deadline, (
            f"{restarts} {state}\n{machine.run('journalctl -u rustosd -n 40', check=False).stdout}")
        time.sleep(2)


def ask(machine: Guest, method: str, **params: object) -> Any:
    """As rustosctl does, which takes its time to begin."""
    return machine.call(inside_control.control, method, timeout=300, **params)


def kernel_interface(machine: Guest) -> str:
    return machine.run(f"ls /sys/bus/pci/devices/{BDF}/net").stdout.strip()


def driver(machine: Guest) -> str:
    return machine.run(f"basename $(readlink /sys/bus/pci/devices/{BDF}/driver)").stdout.strip()


@pytest.fixture(scope="module")
def installed(machine: Guest) -> Finished:
    """Installed over a configuration, as an upgrade is, and started, while Linux uses the card; what the installer said."""
    name = kernel_interface(machine)
    machine.run(f"ip link set {name} up && ip address add 10.7.0.2/24 dev {name} && mkdir /etc/rustosd")
    machine.put("/etc/rustosd/rustosd.toml", CONFIG.encode())
    said = install(machine, "--now", before="PATH=/run/newer:$PATH")
    assert said.status == 0, said.stderr + machine.run("journalctl -u rustosd -n 60", check=False).stdout
    return said


def test_it_is_ready_once_its_interface_is_up_and_has_the_cards_address(machine, installed):
    assert "it runs: rustosctl status" in installed.stderr
    assert machine.get("/etc/rustosd/rustosd.toml") == CONFIG.encode()
    assert "WatchdogSec=20" in machine.get("/etc/systemd/system/rustosd.service").decode()
    assert machine.get(f"{DROP_INS}/restart-mode.conf") == b"[Service]\nRestartMode=direct\n"
    assert driver(machine) == "vfio-pci"
    assert show(machine, "ActiveState", "SubState") == ["active", "running"]
    (status,) = show(machine, "StatusText")
    assert "10.7.0.2" in status and "lan0" in status
    log = machine.run("journalctl -u rustosd -o cat --no-pager").stdout
    assert log.index('"event": "started"') < log.index("Started rustosd.service")


def test_the_control_socket_is_systemds_and_for_its_group(machine, installed):
    assert machine.run("stat -c '%U %G %a' /run/rustosd /run/rustosd/control.sock").stdout.splitlines() == [
        "root root 755", "root rustosd 660"]
    assert "lan0" in machine.run("rustosctl nic list", timeout=600).stdout


def test_a_reload_takes_what_changed_and_a_wrong_file_fails_it(machine, installed):
    (before,) = show(machine, "MainPID")
    machine.put("/etc/rustosd/rustosd.toml", f"{CONFIG}[service.echo]\nport = 7007\n".encode())
    machine.run("systemctl reload rustosd.service", timeout=600)
    assert "echo/7007" in machine.run("rustosctl status", timeout=600).stdout
    machine.put("/etc/rustosd/rustosd.toml", f"{CONFIG}[service.echo]\nprot = 7\n".encode())
    assert machine.run("systemctl reload rustosd.service", check=False, timeout=600).status != 0
    urgent = machine.run("journalctl -u rustosd -p err -o cat --no-pager", timeout=300).stdout      # by our priorities
    assert "reload_failed" in urgent and "did you mean port?" in urgent and '"started"' not in urgent
    machine.put("/etc/rustosd/rustosd.toml", CONFIG.encode())
    machine.run("systemctl reload rustosd.service", timeout=600)
    assert show(machine, "MainPID", "ActiveState") == [before, "active"]
    assert machine.run("stat -c %a /var/lib/rustosd").stdout.strip() == "700"


def test_manual_pages_and_completion_are_installed(machine, installed):
    file = "/usr/local/share/bash-completion/completions/rustosctl"
    shown = machine.run(f"man -w rustosctl rustosd && bash -c 'source {file} && complete -p rustosctl'", timeout=300).stdout
    assert "/man8/rustosd.8" in shown and "complete -o default" in shown


def test_linux_at_the_other_end_reaches_it(machine, installed):
    machine.netns.run("ip", "address", "replace", "10.7.0.1/24", "dev", "e1000e")
    machine.netns.run("ping", "-c", "3", "-l", "3", "-i", "20", "10.7.0.2")


def test_a_killed_daemon_gives_back_and_starts_again_with_its_programs(machine, installed):
    before, restarts = show(machine, "MainPID", "NRestarts")
    machine.run(f"install -m 644 {CHECKOUT}/systemd/programs.conf {DROP_INS}/ && modprobe nbd")
    machine.put(f"{DROP_INS}/swap.conf", SWAP_DROP_IN.encode())
    machine.put("/run/hold.py", HOLD.encode())
    machine.put("/etc/rustosd/rustosd.toml", f"{CONFIG}{PROGRAMS}".encode())
    machine.run("systemctl daemon-reload")
    machine.run("systemctl kill --kill-who=main --signal=KILL rustosd.service")
    until_restarted(machine, int(restarts) + 1)
    assert show(machine, "MainPID") != [before]
    said = machine.run("journalctl -u rustosd --no-pager", timeout=300).stdout
    assert "1 of 1 given back" in said, said
    assert any(row["address"].startswith("10.7.0.2") for row in ask(machine, "addr.list"))


def programs(machine: Guest) -> dict[str, dict]:
    return {row["name"]: row for row in ask(machine, "program.list")}


def running(machine: Guest, **since: int) -> dict[str, dict]:
    """The programs, once all run, these as other processes than these."""
    found: dict[str, dict] = {}

    def all_run() -> bool:
        found.update(programs(machine))
        return all(row["state"] == "running" for row in found.values()) and all(
            found[name]["pid"] != pid for name, pid in since.items())

    try:
        wait_for(all_run, "running programs", every_s=1)
    except AssertionError as error:
        error.add_note(f"{found}\n{machine.run('tail /var/log/rustosd/*.log', check=False).stdout}")
        raise
    return found


def test_a_program_of_the_configuration_serves_and_is_started_again_when_it_ends(machine):
    pid = running(machine)["web"]["pid"]
    assert "NAME=" in machine.netns.run("curl", "-sSf", "-m", "60", "http://10.7.0.2:8080/os-release").stdout
    machine.run(f"kill -KILL {pid}")
    assert running(machine, web=pid)["web"]["starts"] == 2


def test_a_program_with_a_memory_limit_has_what_it_put_there(machine):
    wait_for(lambda: ask(machine, "memory.list")[0]["spaces"][0]["swapped_octets"] > 4 << 20, "memory in swap", every_s=1)
    machine.run("touch /run/enough")
    wait_for(lambda: programs(machine)["large"]["state"] == "ended", "the program's end", every_s=1)
    assert machine.run("grep -v ^--- /var/log/rustosd/large.log").stdout == "ready\nwhole\n"


def test_linux_has_its_swap_on_a_disk_of_the_services(machine):
    on = ask(machine, "kernelswap.on", export="swap")
    assert isinstance(on, dict), on
    assert machine.run("tail -n +2 /proc/swaps").stdout.split()[0] == on["device"]
    assert ask(machine, "kernelswap.off") == {}
    assert machine.run("tail -n +2 /proc/swaps").stdout == ""


def test_a_hung_daemon_is_killed_by_the_watchdog_and_starts_again(machine, installed):
    pid, restarts = show(machine, "MainPID", "NRestarts")
    machine.run(f"kill -STOP {pid}")
    until_restarted(machine, int(restarts) + 1)
    assert "watchdog" in machine.run("journalctl -u rustosd --no-pager", timeout=300).stdout.lower()


def test_stopping_gives_the_card_back_with_its_address_and_ends_the_programs(machine):
    web = programs(machine)["web"]["pid"]
    machine.run("systemctl stop rustosd.service", timeout=600)
    assert machine.run(f"ls -d /proc/{web}", check=False).status
    assert driver(machine) == "e1000e"
    assert "10.7.0.2/24" in machine.run(f"ip address show dev {kernel_interface(machine)}").stdout
    assert show(machine, "Result", "ActiveState") == ["success", "inactive"]


def test_a_wrong_configuration_is_told_once_and_not_tried_again(machine, installed):
    machine.run("systemctl stop rustosd.service", timeout=600)
    machine.put("/etc/rustosd/rustosd.toml", b"[stack]\nmax_conections = 5\n")
    assert machine.run("systemctl start rustosd.service", check=False, timeout=600).status != 0
    assert "max_connections" in machine.run("journalctl -u rustosd -n 10 --no-pager").stdout
    assert show(machine, "ActiveState", "ExecMainStatus") == ["failed", "2"]
    assert "nothing was changed" in install(machine).stderr


def test_uninstalling_leaves_only_the_configuration(machine, installed):
    machine.run("scripts/uninstall", timeout=600)
    left = machine.run("find /etc/systemd /etc/sysusers.d /etc/tmpfiles.d /usr/local /run/rustosd "
                       "-name '*rustosd*' -o -name rustosctl", check=False).stdout
    assert left == ""
    assert show(machine, "LoadState", "ActiveState") == ["not-found", "inactive"]       # it had failed
    assert machine.run("ls /etc/rustosd").stdout.split() == ["rustosd.toml"]
    machine.run("scripts/uninstall --purge && test ! -e /etc/rustosd", timeout=600)


def test_installing_starts_nothing_by_itself_and_writes_a_configuration(machine):
    said = install(machine)
    assert said.status == 0 and "systemctl enable --now" in said.stderr, said.stderr
    assert b"[[interface]]" in machine.get("/etc/rustosd/rustosd.toml")
    assert machine.run("systemctl is-active rustosd.service", check=False).stdout.strip() == "inactive"
    machine.run("scripts/uninstall --purge", timeout=600)
