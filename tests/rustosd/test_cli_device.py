"""`rustosctl device` and `rustosctl acpi`: what they show of a made-up machine, what they refuse, a terminal.

`golden/` has what each command prints; look at the difference, then at the new output, before you replace a file there.
"""

import json
import os
import re
import subprocess
import threading
import time

import pytest

from drivers.errors import DeviceError
from drivers.pci.uses import HostUses
from rustosd.control import device_operations
from rustosd.hostnet import HostNetworkError
from tests.drivers.test_acpi import RSDT, XSDT, rsdp
from tests.rustosd.fake_devices import AHCI, LEGACY, NIC, OUR_AHCI, OURS
from tests.rustosd.goldens import reads_as_promised
from tests.rustosd.terminal import on_a_terminal, rustosctl_command

SHOWN = {
    "device-list": ("device",), "device-list-all": ("device", "list", "--all"), "device-show-ours": ("device", "show", OURS),
    "device-show-mounted": ("device", "show", AHCI), "device-show-shared": ("device", "show", LEGACY),
    "device-regs": ("device", "regs", OURS), "device-regs-config": ("device", "regs", AHCI),
    "device-regs-some": ("device", "regs", "01:00.0", "-r", "ctrl,RAL*"),
    "acpi": ("acpi",), "acpi-apic": ("acpi", "apic"), "acpi-facp": ("acpi", "FACP"), "acpi-dmar": ("acpi", "DMAR"),
    "acpi-mcfg": ("acpi", "MCFG"), "acpi-ssdt": ("acpi", "SSDT"),
}


@pytest.fixture(autouse=True)
def default_route(monkeypatch):
    """The default route of the made-up machine is over its first interface."""
    monkeypatch.setattr(device_operations, "HostUses", lambda root: HostUses(root, default_routes=lambda: [1]))


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, machine, name):
    reads_as_promised(rustosctl, name, SHOWN[name], settle=lambda out: out.replace(str(machine.root), ""))


def test_a_noun_alone_is_its_list(rustosctl):
    assert rustosctl("device") == rustosctl("device", "list")
    assert rustosctl("device", "-a", "--json") == rustosctl("device", "list", "-a", "--json")


def test_without_devices_of_its_own_a_daemon_shows_all_and_takes_none(rustosctl, core):
    core.devices = None
    rows = json.loads(rustosctl("device", "--json")[1])["devices"]
    assert len(rows) == 6 and not any(row["held"] for row in rows)
    assert rustosctl("device", "show", OURS)[0] == 0 and rustosctl("device", "regs", OURS)[0] == 0
    for words in (("take", AHCI), ("give", OURS)):
        status, out, err = rustosctl("device", *words)
        assert (status, out) == (1, "") and "this daemon drives no PCI devices" in err


def test_a_device_that_is_gone_stays_on_the_list_until_it_is_given(rustosctl, core, machine):
    held = core.devices.held[OURS]
    held.state, held.reason, held.driver, held.device = "gone", "it was unplugged", None, None
    (machine.root / f"sys/bus/pci/devices/{OURS}").unlink()
    (row,) = (row for row in json.loads(rustosctl("device", "--json")[1])["devices"] if row["bdf"] == OURS)
    assert row["held"]["state"] == "gone" and row["driver"] is None and not row["takeable"]
    assert "gone: it was unplugged" in rustosctl("device")[1]
    assert "has no registers to read" in rustosctl("device", "regs", OURS, "--trace", "1")[2]
    core.devices.machine = None
    assert rustosctl("device", "give", OURS) == (0, f"{OURS}: forgotten; it is not on the bus any more\n", "")


def test_take_says_from_whom_and_what_came_with_it(rustosctl, core):
    core.stack.address_rows.append({"interface": 1, "name": "rustos0", "address": "fe80::1/64", "state": "preferred"})
    assert rustosctl("device", "take", NIC, "--force") == (0, (
        f"{NIC}: taken from e1000 by vfio; it is the interface rustos0 with 10.77.0.2/24, fd77::2/64, routes to "
        f"203.0.113.0/24\n{NIC}: not taken over: the route to 10.0.0.0/8: it is in table 77\n"), "")
    assert core.devices.taken == [([NIC], True, "vfio")] and core.kicks == 1
    status, out, _ = rustosctl("device", "take", "00:1f.2", AHCI, "--json")
    assert status == 0 and json.loads(out)["taken"] == [
        {"bdf": AHCI, "kind": "ahci", "backend": "vfio", "before": "ahci", "interface": None, "addresses": [], "routes": [],
         "disks": [], "left_out": []}]
    assert core.devices.taken[1:] == [([AHCI], False, "vfio")]


def test_give_says_who_has_it_now_and_what_came_along(rustosctl, core, monkeypatch):
    assert rustosctl("device", "give", OURS) == (0, f"{OURS}: given back to e1000e as eth1\n", "")
    assert OURS not in core.devices.held and core.kicks == 1

    async def give(bdf):
        core.devices.held.clear()       # the whole group goes together
    rustosctl("device", "take", LEGACY)
    monkeypatch.setattr(core.devices, "give", give)
    status, out, err = rustosctl("device", "give", OUR_AHCI, LEGACY)
    assert (status, err) == (0, "") and [line.split(": ")[0] for line in out.splitlines()] == [OUR_AHCI, LEGACY]


@pytest.mark.parametrize("error", [HostNetworkError("no interface came"), DeviceError(OURS, "it hangs"),
                                   OSError(5, "I/O error")], ids=lambda error: type(error).__name__)
def test_what_keeps_it_from_being_given_is_said(rustosctl, core, monkeypatch, error):
    async def give(bdf):
        raise error
    monkeypatch.setattr(core.devices, "give", give)
    status, out, err = rustosctl("device", "give", OURS)
    assert (status, out) == (1, "") and err == f"rustosctl: {getattr(error, 'strerror', None) or error}\n"


@pytest.mark.parametrize(("words", "status", "message"), [
    (("device", "take"), 2, "Missing argument"),
    (("device", "take", "eth0"), 2, "'eth0' is no PCI address: write it as 0000:03:00.0"),
    (("device", "take", "0000:03:20.0"), 2, "is no PCI address"),
    (("device", "take", "../../etc"), 2, "is no PCI address"),
    (("device", "take", "0000:00:02.0\n"), 1, "eth0 carries the default route"),
    (("device", "take", AHCI, "--backend", "magic"), 2, "'magic' is not one of 'vfio', 'uio'"),
    (("device", "take", AHCI, "--backend", "uio"), 1, "uio needs huge pages: sysctl vm.nr_hugepages=64"),
    (("device", "take", NIC), 1, f"{NIC}: eth0 carries the default route: give the host another way out first, or name the "
                                 "device with --force"),
    (("device", "take", OURS), 1, "it is ours already"),
    (("device", "take", *(f"0000:{bus:02x}:00.0" for bus in range(65))), 2, "at most 64 devices at once"),
    (("device", "give", NIC), 1, f"{NIC} is not ours; ours: {OURS}, {OUR_AHCI}"),
    (("device", "show", "0000:09:00.0"), 1, "there is no such PCI device: `rustosctl device list` shows those there are"),
    (("device", "show", "x" * 500), 2, "is no PCI address"),
    (("device", "regs", "0000:09:00.0"), 1, "there is no such PCI device"),
    (("device", "regs", OURS, "-r", "STATSU"), 1, "there is no register STATSU; did you mean STATUS?"),
    (("device", "regs", OURS, "-r", "[" * 60), 1, "there is no register [["),
    (("device", "regs", OURS, "-r", "x" * 65), 1, "Expected `str` of length <= 64"),
    (("device", "regs", OURS, "--trace", "0"), 2, "Invalid value for '--trace'"),
    (("device", "regs", OURS, "--trace", "61"), 2, "Invalid value for '--trace'"),
    (("device", "regs", OURS, "--trace", "1", "--config"), 2, "a trace is of the device's own registers"),
    (("device", "regs", AHCI, "--trace", "1"), 1, f"take it first: rustosctl device take {AHCI}"),
    (("device", "nonsense"), 2, "No such command 'nonsense'"),
    (("acpi", "NONE"), 1, "there is no ACPI table NONE; there is APIC, DMAR, FACP, MCFG, SSDT"),
    (("acpi", "../../passwd"), 1, "there is no ACPI table ../../passwd"),
    (("acpi", "x" * 65), 1, "Expected `str` of length <= 64"),
    (("acpi", "XSDT"), 1, "run the daemon as root"),
])
def test_what_is_wrong_is_one_line_and_a_status(rustosctl, words, status, message):
    got, out, err = rustosctl(*words)
    assert (got, out) == (status, "")
    assert message in err and err.count("\n") == 1 and err.startswith("rustosctl: ")


def test_no_daemon_is_status_3(tmp_path):
    for words in (("device",), ("device", "take", NIC), ("acpi",)):
        done = subprocess.run(rustosctl_command("--socket", str(tmp_path / "none"), *words), capture_output=True, text=True)
        assert done.returncode == 3 and "start one with `rustosd run`" in done.stderr


def test_a_dump_reads_nothing_that_reading_changes_and_only_what_was_asked(rustosctl, core):
    bar = core.devices.held[OURS].driver.bar
    assert rustosctl("device", "regs", OURS)[0] == 0
    assert 0xC0 not in bar.reads
    bar.reads.clear()
    assert rustosctl("device", "regs", OURS, "-r", "STATUS")[0] == 0
    assert bar.reads == [0x08]


def test_a_trace_shows_what_the_driver_does_meanwhile(rustosctl, core):
    registers = core.devices.held[OURS].driver.registers
    ended = threading.Event()

    def drive():
        while not ended.is_set():
            if registers.trace is not None and not registers.trace.total:
                registers.CTRL.modify(RST=1)
                for _ in range(3):
                    registers.STATUS.read()
            time.sleep(0.001)

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        status, out, _ = rustosctl("device", "regs", OURS, "--trace", "0.2")
        document = json.loads(rustosctl("device", "regs", OURS, "--trace", "0.2", "-r", "status", "--json")[1])["trace"]
    finally:
        ended.set()
        driver.join()
    assert status == 0 and registers.trace is None
    rows = [re.sub(r"^ *[0-9.]+ ms", "", line).split() for line in out.splitlines()]
    assert rows[2:] == [["read", "0x0", "CTRL", "0x40", "1", "SLU"],
                        ["write", "0x0", "CTRL", "0x4000040", "1", "SLU", "RST"],
                        ["read", "0x8", "STATUS", "0x80000002", "3", "LU", "?0x80000000"], ["3", "accesses"]]
    assert [row["name"] for row in document["accesses"]] == ["STATUS"] and document["lost"] == 0


def test_two_traces_of_one_device_do_not_mix(rustosctl, core):
    core.devices.held[OURS].driver.registers.record()
    status, _, err = rustosctl("device", "regs", OURS, "--trace", "0.01")
    assert status == 1 and "somebody traces" in err


def test_the_root_tables_come_out_of_physical_memory(rustosctl, machine):
    memory = bytearray(1 << 20)
    memory[0xF5000:0xF5000 + 36] = rsdp(2, rsdt=0x2000, xsdt=0x1000)
    memory[0x1000:0x1000 + len(XSDT)] = XSDT
    memory[0x2000:0x2000 + len(RSDT)] = RSDT[:-1] + b"\x77"
    machine.write("dev/mem", bytes(memory))
    rows = json.loads(rustosctl("acpi", "--json")[1])["tables"]
    assert [row["name"] for row in rows] == ["RSDP", "XSDT", "RSDT", "APIC", "DMAR", "FACP", "MCFG", "SSDT"]
    assert rows[0]["octets"] == 36 and rows[1]["problem"] is None and rows[2]["problem"].startswith("checksum")
    details = json.loads(rustosctl("acpi", "rsdp", "--json")[1])["table"]
    assert details["facts"] == {"oem_id": "RUSTOS", "revision": 2, "rsdt": "0x2000", "xsdt": "0x1000"}
    assert json.loads(rustosctl("acpi", "XSDT", "--json")[1])["table"]["sections"]["tables"] == [
        {"address": "0x3000"}, {"address": "0x100000000"}]


@pytest.mark.parametrize("damage", [b"", bytes(64), b"RSD PTR " + bytes(28)])
def test_damaged_roots_are_no_trouble(rustosctl, machine, damage):
    machine.write("dev/mem", bytes(0xE0000) + damage)
    assert rustosctl("acpi")[0] == 0
    status, _, err = rustosctl("acpi", "RSDP")
    assert status == 1 and "neither EFI nor the BIOS area" in err
    machine.write("sys/firmware/efi/systab", "ACPI20=0xe0000")
    assert rustosctl("acpi")[0] == 0
    assert rustosctl("acpi", "RSDP")[0] == 1


@pytest.mark.parametrize("columns", [20, 60, 80, 100, 250])
@pytest.mark.parametrize("words", [("device",), ("device", "show", LEGACY), ("device", "regs", OURS), ("acpi",),
                                   ("acpi", "DMAR")], ids=" ".join)
def test_a_narrow_terminal_cuts_nothing(socket_path, words, columns):
    plain = subprocess.run(rustosctl_command("--socket", socket_path, *words), capture_output=True, text=True).stdout
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, columns, *words))
    assert sorted(shown.split()) == sorted(plain.split())


def test_the_list_fits_80_columns(socket_path):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, 80, "device"))
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("words", "expected"), [
    ("device show 0000:0", {NIC, OURS, AHCI, OUR_AHCI, LEGACY, "0000:05:02.0"}),
    ("device give ''", {OURS, OUR_AHCI}), ("acpi D", {"DMAR"}), ("disk show LAB", {"LAB-DISK0", "LAB-DISK1"}),
])
def test_names_are_completed(socket_path, words, expected):
    environment = os.environ | {"RUSTOSD_SOCKET": socket_path, "_RUSTOSCTL_COMPLETE": "complete_zsh",
                                "_TYPER_COMPLETE_ARGS": f"rustosctl {words}"}
    done = subprocess.run(rustosctl_command(), capture_output=True, text=True, env=environment)
    offered = set(re.findall(r'"([^"]+)"', done.stdout.replace("\\", "")))
    assert offered == expected


def test_completion_without_a_daemon_is_silent(tmp_path):
    environment = os.environ | {"RUSTOSD_SOCKET": str(tmp_path / "none"), "_RUSTOSCTL_COMPLETE": "complete_zsh",
                                "_TYPER_COMPLETE_ARGS": "rustosctl device show "}
    done = subprocess.run(rustosctl_command(), capture_output=True, text=True, env=environment)
    assert done.stderr == "" and "0000" not in done.stdout
