"""The service under a real systemd, in a guest of its own: installed, killed, hung, stopped, removed. One story, in order.

The checkout is under /tmp, where a service may not look unless it is told that it may.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest import CARDS, Finished, Guest
from tests.lab.packages import ROOT, LabUnavailable

BDF = CARDS["e1000e"].bdf
CONFIG = f"""\
interface = []
[[device]]
bdf = "{BDF}"
name = "lan0"
"""
PATIENT = "[Service]\nTimeoutStartSec=900\nTimeoutStopSec=600\n"
"""For a guest on a busy machine, where Python may take a minute to begin. The watchdog's time is the unit's own."""
NEWER = """#!/bin/sh
[ "$1" != --version ] || { echo "systemd 255 (255.4-1)"; exit; }
exec /usr/bin/systemctl "$@"
"""
"""systemctl of a systemd that knows RestartMode=, which Debian 12's does not and ignores."""
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
    """Wait until it has been started again so often, and is ready."""
    deadline = time.monotonic() + limit_s
    while (seen := show(machine, "NRestarts", "ActiveState", "SubState")) != [str(times), "active", "running"]:
        assert time.monotonic() < deadline, f"{seen}\n{machine.run('journalctl -u rustosd -n 40', check=False).stdout}"
        time.sleep(0.5)


def kernel_interface(machine: Guest) -> str:
    return machine.run(f"ls /sys/bus/pci/devices/{BDF}/net").stdout.strip()


def driver(machine: Guest) -> str:
    return machine.run(f"basename $(readlink /sys/bus/pci/devices/{BDF}/driver)").stdout.strip()


def test_installing_starts_nothing_by_itself_and_writes_a_configuration(machine):
    said = install(machine, before="PATH=/run/newer:$PATH")
    assert said.status == 0 and "systemctl enable --now" in said.stderr, said.stderr
    assert "WatchdogSec=20" in machine.get("/etc/systemd/system/rustosd.service").decode()
    assert b"[[interface]]" in machine.get("/etc/rustosd/rustosd.toml")
    assert machine.get(f"{DROP_INS}/restart-mode.conf") == b"[Service]\nRestartMode=direct\n"
    assert machine.run("systemctl is-active rustosd.service", check=False).stdout.strip() == "inactive"
    assert machine.run("getent group rustosd; stat -c '%U %a' /run/rustosd").stdout.splitlines()[1:] == ["root 755"]


def test_it_is_ready_once_its_interface_is_up_and_has_the_cards_address(machine):
    name = kernel_interface(machine)
    machine.run(f"ip link set {name} up && ip address add 10.7.0.2/24 dev {name}")
    machine.put("/etc/rustosd/rustosd.toml", CONFIG.encode())
    said = install(machine, "--now")        # an upgrade, as far as it can tell
    assert said.status == 0, said.stderr + machine.run("journalctl -u rustosd -n 60", check=False).stdout
    assert machine.get("/etc/rustosd/rustosd.toml") == CONFIG.encode()
    assert driver(machine) == "vfio-pci"
    assert show(machine, "ActiveState", "SubState") == ["active", "running"]
    (status,) = show(machine, "StatusText")
    assert "10.7.0.2" in status and "lan0" in status
    log = machine.run("journalctl -u rustosd -o cat --no-pager").stdout
    assert log.index('"event": "started"') < log.index("Started rustosd.service")


def test_the_control_socket_is_systemds_and_for_its_group(machine):
    assert machine.run("stat -c '%U %G %a' /run/rustosd/control.sock").stdout.split() == ["root", "rustosd", "660"]
    assert "lan0" in machine.run("rustosctl nic list", timeout=600).stdout


def test_a_reload_takes_what_changed_and_a_wrong_file_fails_it(machine):
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


def test_manual_pages_and_completion_are_installed(machine):
    file = "/usr/local/share/bash-completion/completions/rustosctl"
    shown = machine.run(f"man -w rustosctl rustosd && bash -c 'source {file} && complete -p rustosctl'", timeout=300).stdout
    assert "/man8/rustosd.8" in shown and "complete -o default" in shown


def test_linux_at_the_other_end_reaches_it(machine):
    assert machine.netns is not None
    machine.netns.run("ip", "address", "replace", "10.7.0.1/24", "dev", "e1000e")
    machine.netns.run("ping", "-c", "3", "-i", "0.2", "-W", "10", "10.7.0.2")


def test_a_killed_daemon_gives_back_and_starts_again(machine):
    (before,) = show(machine, "MainPID")
    machine.run("systemctl kill --kill-who=main --signal=KILL rustosd.service")
    until_restarted(machine, 1)
    assert show(machine, "MainPID") != [before]
    said = machine.run("journalctl -u rustosd --no-pager", timeout=300).stdout
    assert "1 of 1 given back" in said, said
    assert "10.7.0.2" in machine.run("rustosctl addr list", timeout=600).stdout


def test_a_hung_daemon_is_killed_by_the_watchdog_and_starts_again(machine):
    (pid,) = show(machine, "MainPID")
    machine.run(f"kill -STOP {pid}")
    until_restarted(machine, 2)
    assert "watchdog" in machine.run("journalctl -u rustosd --no-pager", timeout=300).stdout.lower()


def test_stopping_gives_the_card_back_with_its_address(machine):
    machine.run("systemctl stop rustosd.service", timeout=600)
    assert driver(machine) == "e1000e"
    assert "10.7.0.2/24" in machine.run(f"ip address show dev {kernel_interface(machine)}").stdout
    assert show(machine, "Result", "ActiveState") == ["success", "inactive"]


def test_a_wrong_configuration_is_told_once_and_not_tried_again(machine):
    machine.put("/etc/rustosd/rustosd.toml", b"[stack]\nmax_conections = 5\n")
    assert machine.run("systemctl start rustosd.service", check=False, timeout=600).status != 0
    assert "max_connections" in machine.run("journalctl -u rustosd -n 10 --no-pager").stdout
    assert show(machine, "ActiveState", "ExecMainStatus") == ["failed", "2"]
    assert "nothing was changed" in install(machine).stderr


def test_uninstalling_leaves_only_the_configuration(machine):
    machine.run("scripts/uninstall", timeout=600)
    left = machine.run("find /etc/systemd /etc/sysusers.d /etc/tmpfiles.d /usr/local /run/rustosd "
                       "-name '*rustosd*' -o -name rustosctl", check=False).stdout
    assert left == ""
    assert machine.run("ls /etc/rustosd").stdout.split() == ["rustosd.toml"]
    machine.run("scripts/uninstall --purge && test ! -e /etc/rustosd", timeout=600)
