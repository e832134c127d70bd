"""The kernel's messages about PCI devices: NETLINK_KOBJECT_UEVENT, read without waiting.

A message is `ACTION@DEVPATH` and then `KEY=VALUE` lines, each ended by a zero octet (kobject_uevent_env in the kernel's
lib/kobject_uevent.c). Only a process with CAP_NET_ADMIN can send to this socket besides the kernel; it is not believed
either, and nothing in a message is taken for granted. What is believed is only a hint: sysfs decides.

A socket of our own, since pyroute2's runs a loop of its own under every call and tells neither sender nor lost messages.
"""

import errno
import os
import re
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

NETLINK_KOBJECT_UEVENT: Final = 15
KERNEL_GROUP: Final = 1
"""The multicast group the kernel sends to; udev's own messages go to 2."""
RECEIVE_BUFFER: Final = 1 << 20
"""Some thousand messages: what a storm may bring while the loop is busy. More is counted, and sysfs is read again."""
LONGEST: Final = 8192
"""The kernel builds messages in 2048 octets (UEVENT_BUFFER_SIZE) behind a path."""
MOST_KEYS: Final = 64
"""UEVENT_NUM_ENVP."""
_SO_RCVBUFFORCE: Final = 33
_CREDENTIALS: Final = struct.Struct("iII")      # struct ucred: pid, uid, gid
_NAME: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
_DRIVER: Final = re.compile(r"[\w.+-]{1,64}", re.ASCII)
_IDS: Final = re.compile(r"([0-9A-F]{1,8}):([0-9A-F]{1,8})", re.ASCII)


class Action(Enum):
    """What has happened to a function. The value is the kernel's word."""

    ADD = "add"
    REMOVE = "remove"
    BIND = "bind"
    UNBIND = "unbind"


_ACTIONS: Final = {action.value: action for action in Action}


class Drop(Enum):
    """Why a message is not an event. The value is its counter's name."""

    SENDER = "sender"               # not from the kernel
    TRUNCATED = "truncated"         # longer than any of the kernel's, or without its end
    HEADER = "header"               # does not begin with an action and a path
    TOO_MANY_KEYS = "too_many_keys"
    KEY = "key"                     # a line that is no KEY=VALUE, or a key twice
    CONTRADICTION = "contradiction"     # its keys say something else than its header
    ADDRESS = "address"             # no PCI address, or not the path's
    DRIVER = "driver"               # a driver's name no driver can have
    SYNTHETIC = "synthetic"         # asked for by somebody (`udevadm trigger`), nothing has happened
    OTHER = "other"                 # not about a PCI function, or an action that is none of ours


@dataclass(frozen=True, slots=True)
class PciEvent:
    """Something has happened to a PCI function."""

    action: Action
    bdf: str
    """As the kernel writes it: "0000:03:00.0"."""
    driver: str | None = None
    """The kernel driver that has it now; None also where the message does not tell."""
    vendor: int | None = None
    device: int | None = None


def parse(octets: bytes) -> PciEvent | Drop:
    """One message as an event, or why it is none; any octets give one of the two."""
    if len(octets) > LONGEST or not octets.endswith(b"\0"):
        return Drop.TRUNCATED
    header, *lines = octets[:-1].split(b"\0", MOST_KEYS + 1)
    action, at, path = header.decode("utf-8", "replace").partition("@")
    if not (action and at and path.startswith("/")):
        return Drop.HEADER
    if len(lines) > MOST_KEYS:
        return Drop.TOO_MANY_KEYS
    keys: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.decode("utf-8", "replace").partition("=")
        if not key or not equals or key in keys:
            return Drop.KEY
        keys[key] = value
    if (keys.get("ACTION"), keys.get("DEVPATH")) != (action, path):
        return Drop.CONTRADICTION
    return _pci_event(keys)


def _pci_event(keys: dict[str, str]) -> PciEvent | Drop:
    action = _ACTIONS.get(keys["ACTION"])
    if keys.get("SUBSYSTEM") != "pci" or action is None:
        return Drop.OTHER
    if "SYNTH_UUID" in keys:
        return Drop.SYNTHETIC
    bdf = keys.get("PCI_SLOT_NAME", "")
    if not _NAME.fullmatch(bdf) or keys["DEVPATH"].rpartition("/")[2] != bdf:
        return Drop.ADDRESS
    driver = keys.get("DRIVER")
    if driver is not None and not _DRIVER.fullmatch(driver):
        return Drop.DRIVER
    ids = _IDS.fullmatch(keys.get("PCI_ID", ""))
    vendor, device = (int(ids[1], 16), int(ids[2], 16)) if ids else (None, None)
    return PciEvent(action, bdf, driver, vendor, device)


class UeventSocket:
    """The kernel's messages, to be waited for with `fileno` and read without waiting."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has none for us: in a network namespace of another user's."""
        self.counts: Counter[str] = Counter()
        """How messages ended: "event", a `Drop`, or "overrun" for each time the kernel had to throw some away."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                     NETLINK_KOBJECT_UEVENT)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind((0, KERNEL_GROUP))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable while messages wait; -1 once closed."""
        return self._socket.fileno()

    def read(self, limit: int = 64) -> tuple[list[PciEvent], bool]:
        """What has come, of at most `limit` messages, and whether some were lost: read sysfs again."""
        events: list[PciEvent] = []
        lost = False
        for _ in range(limit):
            try:
                octets, ancillary, flags, sender = self._socket.recvmsg(LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.counts["overrun"] += 1
                lost = True
                continue
            event = _judge(octets, ancillary, flags, sender)
            if isinstance(event, Drop):
                self.counts[event.value] += 1
            else:
                self.counts["event"] += 1
                events.append(event)
        return events, lost

    def close(self) -> None:
        """Listen no more. May be called twice."""
        self._socket.close()


def _judge(octets: bytes, ancillary: list[tuple[int, int, bytes]], flags: int, sender: tuple[int, int]) -> PciEvent | Drop:
    """Whether a datagram is the kernel's, and then what it says.

    The kernel is port 0, process 0, and sends to its group; a process has a port and a process number that it cannot hide.
    """
    pid = next((_CREDENTIALS.unpack(data)[0] for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size), None)
    if sender != (0, KERNEL_GROUP) or pid != 0:
        return Drop.SENDER
    if flags & socket.MSG_TRUNC:
        return Drop.TRUNCATED
    return parse(octets)


def present(devices: str = "/sys/bus/pci/devices") -> dict[str, str | None]:
    """Every PCI function there is now and its driver, from sysfs: where to start, and what to believe after an overrun."""
    found: dict[str, str | None] = {}
    for bdf in os.listdir(devices):
        driver = None
        with suppress(OSError):     # none, or the function has just left
            driver = os.path.basename(os.readlink(f"{devices}/{bdf}/driver"))
        found[bdf] = driver
    return found
