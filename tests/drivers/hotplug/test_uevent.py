"""Messages of the kernel's, of others, and of nobody's."""

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.hotplug import uevent
from drivers.hotplug.uevent import Action, Drop, PciEvent, parse

PATH = "/devices/pci0000:00/0000:00:12.0/0000:02:00.0"
KERNEL = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 0, 0, 0))


def message(action="add", path=PATH, *more, **keys):
    """As Linux 6.1 builds it for a PCI function; `keys` change or (None) leave out."""
    lines = {"ACTION": action, "DEVPATH": path, "SUBSYSTEM": "pci", "PCI_CLASS": "20000", "PCI_ID": "8086:10D3",
             "PCI_SUBSYS_ID": "8086:0000", "PCI_SLOT_NAME": "0000:02:00.0",
             "MODALIAS": "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00", "SEQNUM": "1743"} | keys
    text = [f"{action}@{path}", *(f"{key}={value}" for key, value in lines.items() if value is not None), *more]
    return b"".join(line.encode() + b"\0" for line in text)


@pytest.mark.parametrize(("action", "keys", "event"), [
    ("add", {}, PciEvent(Action.ADD, "0000:02:00.0", None, 0x8086, 0x10D3)),
    ("remove", {}, PciEvent(Action.REMOVE, "0000:02:00.0", None, 0x8086, 0x10D3)),
    ("bind", {"DRIVER": "vfio-pci"}, PciEvent(Action.BIND, "0000:02:00.0", "vfio-pci", 0x8086, 0x10D3)),
    ("unbind", {"PCI_ID": "?"}, PciEvent(Action.UNBIND, "0000:02:00.0")),
])
def test_what_happens_to_a_function_is_an_event(action, keys, event):
    assert parse(message(action, **keys)) == event


@pytest.mark.parametrize(("octets", "drop"), [
    (b"", Drop.TRUNCATED),
    (message()[:-1], Drop.TRUNCATED),
    (message("add", PATH, "X=" + "x" * uevent.LONGEST), Drop.TRUNCATED),
    (b"\0", Drop.HEADER),
    (b"libudev\0\xfe\xed\xca\xfe" + message(), Drop.HEADER),
    (b"add@devices\0", Drop.HEADER),
    (b"@/devices\0", Drop.HEADER),
    (message("add", PATH, *(f"K{n}=" for n in range(56))), Drop.TOO_MANY_KEYS),
    (message("add", PATH, "no equals sign"), Drop.KEY),
    (message("add", PATH, "=value"), Drop.KEY),
    (message("add", PATH, "SUBSYSTEM=net"), Drop.KEY),
    (message(ACTION="remove"), Drop.CONTRADICTION),
    (message(DEVPATH="/devices/elsewhere"), Drop.CONTRADICTION),
    (message(ACTION=None), Drop.CONTRADICTION),
    (message(PCI_SLOT_NAME="../../etc"), Drop.ADDRESS),
    (message(PCI_SLOT_NAME=None), Drop.ADDRESS),
    (message(PCI_SLOT_NAME="0000:03:00.0"), Drop.ADDRESS),
    (message("bind", DRIVER="../e1000"), Drop.DRIVER),
    (message("bind", DRIVER=""), Drop.DRIVER),
    (message("add", SYNTH_UUID="0"), Drop.SYNTHETIC),
    (message("change"), Drop.OTHER),
    (message(SUBSYSTEM="net"), Drop.OTHER),
    (message(SUBSYSTEM=None), Drop.OTHER),
])
def test_what_is_no_event_has_a_named_reason(octets, drop):
    assert parse(octets) is drop


def test_as_many_keys_as_the_kernel_can_send_are_taken():
    assert isinstance(parse(message("add", PATH, *(f"K{n}=" for n in range(55)))), PciEvent)


@given(st.binary(max_size=300) | st.lists(st.sampled_from(
    [b"add@/x", b"add@" + PATH.encode(), b"ACTION=add", b"DEVPATH=/x", b"DEVPATH=" + PATH.encode(), b"SUBSYSTEM=pci", b"", b"=",
     b"PCI_SLOT_NAME=0000:02:00.0", b"PCI_ID=:", b"DRIVER=\xff"]), max_size=80).map(lambda lines: b"\0".join(lines) + b"\0"))
def test_any_octets_are_an_event_or_have_a_reason(octets):
    assert isinstance(parse(octets), PciEvent | Drop)


@given(st.integers(0, len(message()) - 1), st.binary(min_size=1, max_size=4))
def test_a_message_changed_anywhere_raises_nothing_and_names_no_other_place(at, octets):
    event = parse(message()[:at] + octets + message()[at + len(octets):])
    if isinstance(event, PciEvent):
        assert uevent._NAME.fullmatch(event.bdf)


@pytest.mark.parametrize(("sender", "ancillary", "flags", "seen"), [
    ((0, 1), [KERNEL], 0, PciEvent(Action.ADD, "0000:02:00.0", None, 0x8086, 0x10D3)),
    ((4711, 1), [KERNEL], 0, Drop.SENDER),
    ((0, 0), [KERNEL], 0, Drop.SENDER),
    ((0, 2), [KERNEL], 0, Drop.SENDER),
    ((0, 1), [], 0, Drop.SENDER),
    ((0, 1), [(*KERNEL[:2], struct.pack("iII", 4711, 0, 0))], 0, Drop.SENDER),
    ((0, 1), [(*KERNEL[:2], b"\0\0")], 0, Drop.SENDER),
    ((0, 1), [KERNEL], socket.MSG_TRUNC, Drop.TRUNCATED),
])
def test_only_the_kernel_is_believed(sender, ancillary, flags, seen):
    assert uevent._judge(message(), ancillary, flags, sender) == seen


def uevents():
    try:
        return uevent.UeventSocket()
    except OSError as error:
        pytest.skip(f"no uevents here: {error}")


def test_nothing_is_read_when_nothing_has_come_and_closing_twice_is_harmless():
    source = uevents()
    assert source.fileno() >= 0
    source.read(100_000)
    assert source.read() == ([], False)
    source.close()
    source.close()
    assert source.fileno() == -1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send to this socket")
def test_what_a_process_sends_is_dropped_even_if_it_looks_like_the_kernels():
    source = uevents()
    source.read(100_000)
    source.counts.clear()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, uevent.NETLINK_KOBJECT_UEVENT) as forger:
        port, _ = source._socket.getsockname()
        forger.sendto(message(), (port, 0))
        try:
            forger.sendto(message(), (0, uevent.KERNEL_GROUP))
            sent = 2
        except (PermissionError, ConnectionRefusedError):
            sent = 1
    assert source.read() == ([], False)
    assert 1 <= source.counts["sender"] <= sent
    source.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send to this socket")
def test_lost_messages_are_told_and_the_rest_is_read():
    source = uevents()
    source._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, uevent.NETLINK_KOBJECT_UEVENT) as sender:
        sender.setblocking(False)
        sender.bind((0, 0))
        # Multicast does not wait for room, a message to one port does: so to the group, in which we are.
        try:
            for _ in range(200):
                sender.sendto(message(), (0, uevent.KERNEL_GROUP))
        except (PermissionError, ConnectionRefusedError, OSError) as error:
            pytest.skip(f"this kernel lets nobody else send to the group: {error}")
    lost = source.read(1000)[1]
    if not source.counts["sender"] and not lost:
        pytest.skip("this kernel passes on what processes send to nobody")
    assert lost and source.counts["overrun"]
    assert source.read() == ([], False)
    source.close()


def test_what_is_there_is_read_from_sysfs(tmp_path):
    (tmp_path / "drivers" / "e1000e").mkdir(parents=True)
    (tmp_path / "devices" / "0000:02:00.0").mkdir(parents=True)
    (tmp_path / "devices" / "0000:03:00.0").mkdir()
    (tmp_path / "devices" / "0000:03:00.0" / "driver").symlink_to(tmp_path / "drivers" / "e1000e")
    assert uevent.present(str(tmp_path / "devices")) == {"0000:02:00.0": None, "0000:03:00.0": "e1000e"}
