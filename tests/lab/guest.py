"""One booted guest: `with Guest() as guest: guest.run("uname -r"); guest.call(function, argument); guest.plug("slot0")`.

The guest sees this machine's root file system, so it runs this interpreter and these sources; what it writes is gone with it.
QEMU runs inside a network namespace of its own whose Linux is the peer at the other end of each card's cable: the card
`e1000e` ends in the TAP interface `e1000e` of `guest.netns`.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.block.ring import Ring
from tests.lab.agent import PORT_NAME, pack, unpack
from tests.lab.emulator import INSTALLED, newer
from tests.lab.image import Image, compile_sources, environment, image, initrd
from tests.lab.packages import CACHE, LabUnavailable
from tests.support.netns import Netns, unavailable

BOOT_S = 600.0
PATIENCE_S = 600.0
"""How long anything may take unless it is said otherwise: much longer than it does, on a machine that is very busy."""
_SLACK_S = 30.0
"""How much longer than a job's own limit the host waits before it calls the guest dead."""
_PROBE_S = 60.0
_PREFIX = "rustosd-lab-"
_IOMMU = ["-device", "intel-iommu,intremap=on,aw-bits=48"]

DISK_OCTETS = 64 << 20
DISKS = ("disk0", "disk1")
FLAKY = "flaky"
"""A third disk, behind QEMU's blkdebug: its sector BAD_READ cannot be read, BAD_WRITE not written; see `Guest.fail_flushes`."""
BAD_READ, BAD_WRITE = 5000, 6000
CD, CD_OCTETS = "cd", 2 << 20
"""A drive with a disc, behind the same controller; see `Guest.change_disc`."""

_BLKDEBUG = "\n".join(f"""
[{rule}]
event = "{event}"
{options}
""" for rule, event, options in (
    ("inject-error", "read_aio", f'iotype = "read"\nsector = "{BAD_READ}"\nerrno = "5"'),
    ("inject-error", "write_aio", f'iotype = "write"\nsector = "{BAD_WRITE}"\nerrno = "5"'),
    ("inject-error", "flush_to_disk", 'state = "2"\niotype = "flush"\nerrno = "5"'),
    ("set-state", "pwritev_zero", 'state = "1"\nnew_state = "2"'),
    ("set-state", "pwritev_zero", 'state = "2"\nnew_state = "1"'),
))


@dataclass(frozen=True)
class Card:
    """A network card of the guest. Its TAP interface and its QEMU device have its `name`."""

    name: str
    model: str
    bus: str
    bdf: str
    mac: str


CARDS = {card.name: card for card in (
    Card("e1000", "e1000", "pcie.0,addr=0x2", "0000:00:02.0", "52:54:00:1a:b0:01"),             # 82540EM
    Card("rtl8139", "rtl8139", "pcie.0,addr=0x3", "0000:00:03.0", "52:54:00:1a:b0:02"),
    Card("e1000e", "e1000e", "port0", "0000:01:00.0", "52:54:00:1a:b0:03"),                     # 82574L
    # Behind a conventional bridge everything is one IOMMU group: this card and the `edu` device beside it.
    Card("e1000-45", "e1000-82545em", "legacy,addr=0x1", "0000:05:01.0", "52:54:00:1a:b0:04"),
)}
AHCI = "0000:00:04.0"
EDU = "0000:05:02.0"
SLOTS = ("slot0", "slot1")
"""Empty hotplug slots, for `Guest.plug`."""


class GuestError(Exception):
    """The guest died, hung, or what ran in it failed; the message shows what it said."""


class GuestTimeout(GuestError):
    """What ran in the guest took too long and was killed."""


@dataclass
class Finished:
    """What a command in the guest left."""

    status: int
    stdout: str
    stderr: str


class Call:
    """A job that runs in the guest."""

    def __init__(self, guest: "Guest", number: int, what: str, timeout: float) -> None:
        self._guest, self._number, self._what = guest, number, what
        self._limit = time.monotonic() + timeout + _SLACK_S
        self._said: deque[Any] = deque()
        self._end: dict | None = None
        self._answer: dict = {}
        self._output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self.on_output: Callable[[str, bytes], None] | None = None

    def next(self, timeout: float = PATIENCE_S) -> Any:
        """The next value the function told with `agent.tell`. Raises GuestError when it ended instead."""
        limit = time.monotonic() + timeout
        while not self._said and self._end is None:
            self._guest._dispatch(limit, f"{self._what} said nothing for {timeout} s")
        if self._said:
            return self._said.popleft()
        self.result()
        raise GuestError(f"{self._what} ended without saying anything more")

    def kill(self) -> None:
        """Send it SIGKILL, and all of its session."""
        self._guest._send({"id": 0, "kill": self._number})

    def finished(self) -> Finished:
        """Wait for its end. Raises GuestTimeout, GuestError."""
        while self._end is None:
            self._guest._dispatch(self._limit, f"{self._what} did not end and could not be killed")
        out, err = (b"".join(self._output[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        if "failed" in self._end:
            raise GuestError(f"{self._what}: {self._end['failed']}")
        if self._end.get("timeout"):
            raise GuestTimeout(f"{self._what}: out of time\n{out}{err}")
        return Finished(self._end["done"], out, err)

    def result(self) -> Any:
        """Wait for the function's end; return or raise what it does. Raises GuestTimeout, GuestError."""
        finished = self.finished()
        if "value" in self._answer:
            return unpack(self._answer["value"])
        trace = self._answer.get("trace", f"exit status {finished.status}")
        if self._answer.get("raised"):
            error = unpack(self._answer["raised"])
            error.add_note(f"in the guest:\n{trace}{finished.stdout}{finished.stderr}")
            raise error
        raise GuestError(f"{self._what}: {trace}\n{finished.stdout}{finished.stderr}")

    def _take(self, message: dict) -> None:
        if "says" in message:
            self._said.append(unpack(message["says"]))
        elif "value" in message or "raised" in message:
            self._answer = message
        for name in ("stdout", "stderr"):
            if name in message:
                octets = message[name].encode(errors="surrogateescape")
                self._output[name].append(octets)
                if self.on_output:
                    self.on_output(name, octets)
        if "done" in message or "failed" in message:
            self._end = message


class Guest:
    """A running guest, booted when the constructor returns. A context manager; close it on every path.

    `append` goes to the kernel's command line; `iommu` False leaves the IOMMU out; `acpi_hotplug` False has slots signal
    by PCIe's own means; `systemd` makes systemd the first process; `kernel` is another than `image.image()`. `terminal`
    connects this process's terminal with the guest's /dev/hvc0. With `models` it runs on a newer QEMU
    and has no cards and no disks, but `plug_model` puts vfio-user servers into its slots.
    """

    def __init__(self, *, cpus: int = 2, memory_mib: int = 1024, iommu: bool = True, acpi_hotplug: bool = True,
                 systemd: bool = False, append: str = "", terminal: bool = False, kernel: Image | None = None,
                 models: bool = False, extra: Sequence[str] = ()) -> None:
        """`extra` are more options for QEMU. Raises LabUnavailable, and GuestError when it does not come up."""
        if why := unavailable():
            raise LabUnavailable(why)
        kernel = kernel or image()
        emulator = newer() if models else INSTALLED
        compile_sources()
        sweep()
        self._process: subprocess.Popen | None = None
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._cables: set[str] = set()
        self._flushes_fail = False
        self._buffer = b""
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.netns: Netns | None = None
        self._agent, agent = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        try:
            self.netns = Netns()
            for name in [*CARDS, *SLOTS]:
                self.netns.run("ip", "tuntap", "add", "dev", name, "mode", "tap")
                self.netns.run("ip", "link", "set", name, "up")
            (self.directory / "blkdebug").write_text(_BLKDEBUG)
            for name, size in [*((name, DISK_OCTETS) for name in [*DISKS, FLAKY]), (CD, CD_OCTETS)]:
                with self.disk(name).open("wb") as file:
                    file.truncate(size)
            options = _machine(kernel, initrd(kernel, self.directory), cpus, memory_mib)
            if iommu:
                # Before the devices whose DMA it translates. A device outside of QEMU has to be told of every mapping.
                options += [*_IOMMU[:-1], f"{_IOMMU[-1]},caching-mode=on"] if models else _IOMMU
                append = f"intel_iommu=on iommu=pt {append}"
            options += [*_root(), *(_for_models(memory_mib) if models else _devices(self.directory))]
            options += extra
            if systemd:
                # What a first boot does to this machine's files, which are not the guest's, only costs time.
                append = "lab.systemd systemd.firstboot=no systemd.condition-needs-update=0 systemd.show_status=0 " + append
            if not acpi_hotplug:
                options += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
            if terminal:
                options += ["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]
            # A busy host may starve the guest just while its kernel tries out the timer: it shall not, and panic.
            # Nobody attacks it, and what defends it costs a tenth of its time.
            options += ["-append", f"console=ttyS0 quiet panic=-1 no_timer_check mitigations=off {append}",
                        "-serial", f"file:{self.directory}/console", "-D", f"{self.directory}/trace",
                        "-chardev", f"socket,id=agent,fd={agent.fileno()}",
                        "-device", f"virtserialport,chardev=agent,name={PORT_NAME}",
                        "-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"]
            # It shall not outlive us, however we end, and never be in others' way.
            self._process = self.netns.popen(
                "setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", *emulator.command, "-accel", _accelerator(kernel),
                *options, pass_fds=(agent.fileno(), monitor.fileno()), env={**environment(), **emulator.environment},
                stdin=None if terminal else subprocess.DEVNULL)
            agent.close()
            monitor.close()
            self._start()
        except BaseException:
            agent.close()
            monitor.close()
            self.close()
            raise

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE_S,
            on_output: Callable[[str, bytes], None] | None = None) -> Finished:
        """Run a shell line (one argument) or a program with its arguments in the guest, to its end.

        Raises GuestTimeout after `timeout` seconds, GuestError with the output when `check` and it fails.
        """
        verb = {"run": command[0] if len(command) == 1 else list(command), "timeout": timeout}
        call = self._begin(verb, " ".join(command), timeout)
        call.on_output = on_output
        finished = call.finished()
        if check and finished.status:
            raise GuestError(f"{' '.join(command)}: exit status {finished.status}\n{finished.stdout}{finished.stderr}")
        return finished

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = PATIENCE_S, **named: Any) -> Any:
        """Call a module's function in the guest, in a process of its own; return or raise what it does.

        Its module must be cheap to import there: not a test module, since Python is some twenty times slower.
        """
        return self.start(function, *arguments, timeout=timeout, **named).result()

    def start(self, function: Callable[..., Any], *arguments: Any, timeout: float = PATIENCE_S, **named: Any) -> Call:
        """The same without waiting; the function can `tell`, the host `next`."""
        path = f"{function.__module__}:{function.__qualname__}"
        return self._begin({"call": path, "arguments": pack((arguments, named)), "timeout": timeout}, path, timeout)

    def preload(self, *modules: str) -> None:
        """Import modules once, so that calls need not."""
        self._begin({"preload": modules}, "preload", PATIENCE_S).finished()

    def put(self, path: str, octets: bytes) -> None:
        """Write a file in the guest."""
        self._begin({"put": path, "octets": b64encode(octets).decode()}, f"put {path}", PATIENCE_S).finished()

    def get(self, path: str) -> bytes:
        """A file of the guest's."""
        call = self._begin({"get": path}, f"get {path}", PATIENCE_S)
        call.finished()
        return b64decode(call._end["octets"])

    def disk(self, name: str) -> Path:
        """The raw file behind a scratch disk, `DISK_OCTETS` long."""
        return self.directory / f"{name}.raw"

    def kernel_disk(self, bdf: str) -> str:
        """The block device of a controller's first disk, once the kernel has found it: "/dev/sda". Raises GuestTimeout."""
        look = f"ls -d /sys/bus/pci/devices/{bdf}/ata*/host*/target*/*/block/* 2>&- | head -1"
        wait = f'until found=$({look}) && test -b "/dev/${{found##*/}}"; do sleep 0.1; done'
        return self.run(f'{wait}; echo "/dev/${{found##*/}}"', timeout=30).stdout.strip()

    def fail_flushes(self, fail: bool) -> None:
        """Let FLAKY's flushes fail from now on, or pass again. They pass at first."""
        if fail != self._flushes_fail:
            # Zeros written from outside are the one event that the guest itself never causes: it toggles blkdebug's state.
            self.monitor("human-monitor-command", **{"command-line": f'qemu-io {FLAKY} "write -z 0 512"'})
            self._flushes_fail = fail

    def change_disc(self, disc: Path | None) -> None:
        """Take the disc out of CD, and put this one in."""
        self.monitor("eject", id=f"{CD}-disk", force=True)
        if disc is not None:
            self.monitor("blockdev-change-medium", id=f"{CD}-disk", filename=str(disc), format="raw",
                         **{"read-only-mode": "read-only"})

    def throttle(self, disk: str, octets_per_s: int) -> None:
        """Let a disk move no more than so many octets a second; 0: as many as it can."""
        self.monitor("block_set_io_throttle", id=f"{disk}-disk", bps=octets_per_s, bps_rd=0, bps_wr=0, iops=0, iops_rd=0,
                     iops_wr=0)

    def plug(self, slot: str, model: str = "e1000e", **properties: str) -> None:
        """Put a card into an empty slot; its cable ends in the TAP interface of the slot's name."""
        if slot not in self._cables:
            self.monitor("netdev_add", type="tap", id=f"{slot}-cable", ifname=slot, script="no", downscript="no")
            self._cables.add(slot)
        self.monitor("device_add", driver=model, id=f"{slot}-card", bus=slot, netdev=f"{slot}-cable",
                     **{"romfile": "", **properties})

    def plug_model(self, slot: str, path: Path) -> str:
        """Put the device that a vfio-user server is into an empty slot; its address in the guest, once the kernel has it.

        Not there at boot, since firmware drives disks too, slowly, and not as Linux does.
        """
        self.monitor("device_add", driver="vfio-user-pci", id=f"{slot}-card", bus=slot,
                     socket={"type": "unix", "path": str(path)})
        bridge = f"0000:00:{0x11 + SLOTS.index(slot):02x}.0"
        wait = f"until ls -d /sys/bus/pci/devices/{bridge}/0000:* 2>&-; do sleep 0.1; done"
        return Path(self.run(wait, timeout=30).stdout.strip()).name

    def unplug(self, slot: str) -> None:
        """Press the attention button of a slot: the guest is asked to let go."""
        self.monitor("device_del", id=f"{slot}-card")

    def monitor(self, command: str, **arguments: Any) -> Any:
        """One QMP command and its return value; events are skipped. Raises GuestError when QEMU refuses it."""
        self._monitor.settimeout(PATIENCE_S)
        self._monitor_file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._monitor_file.flush()
        try:
            while line := self._monitor_file.readline():
                message = json.loads(line)
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise GuestError(f"QEMU refuses {command} {arguments}: {message['error']['desc']}")
        except ConnectionResetError:
            pass        # as good an end as any
        raise GuestError(self._obituary(f"QEMU ended during {command}"))

    @contextmanager
    def traced(self, *events: str) -> Iterator[list[str]]:
        """QEMU's trace of these events ("memory_region_ops_write") meanwhile, as lines, once the block is left."""
        lines: list[str] = []
        log = self.directory / "trace"
        begin = log.stat().st_size if log.exists() else 0
        for event in events:
            self.monitor("trace-event-set-state", name=event, enable=True)
        try:
            yield lines
        finally:
            for event in events:
                self.monitor("trace-event-set-state", name=event, enable=False)
            lines += log.read_bytes()[begin:].decode(errors="replace").splitlines()

    def console(self) -> str:
        """What the kernel said on the serial console."""
        try:
            return (self.directory / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def pull_plug(self) -> None:
        """It loses its power; what is around it stays until `close`."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Pull the plug and remove what was made for it. May be called twice."""
        self._agent.close()
        self._monitor.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        if self.netns:
            self.netns.delete()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        """Wait for the monitor's greeting and for the agent."""
        self._monitor_file = self._monitor.makefile("rwb")
        self._monitor.settimeout(PATIENCE_S)
        try:
            if not self._monitor_file.readline():
                raise GuestError(self._obituary("QEMU did not start"))
        except TimeoutError:
            raise GuestError(f"QEMU did not start within {PATIENCE_S:.0f} s") from None
        self.monitor("qmp_capabilities")
        self.ready_uptime_s = 0.0
        limit = time.monotonic() + BOOT_S
        while not self.ready_uptime_s:
            self._dispatch(limit, f"the guest did not come up within {BOOT_S:.0f} s")

    def _begin(self, verb: dict, what: str, timeout: float) -> Call:
        number = next(self._numbers)
        call = self._calls[number] = Call(self, number, what, timeout)
        self._send({"id": number, **verb})
        return call

    def _send(self, message: dict) -> None:
        try:
            self._agent.settimeout(PATIENCE_S)
            self._agent.sendall(json.dumps(message).encode() + b"\n")
        except (OSError, TimeoutError) as error:
            raise GuestError(self._obituary(f"the guest takes no more requests: {error}")) from None

    def _dispatch(self, limit: float, what: str) -> None:
        """Take in what the agent says next; GuestError with `what` once `limit` is over."""
        self._agent.settimeout(max(0.001, limit - time.monotonic()))
        try:
            octets = self._agent.recv(1 << 16)
        except TimeoutError:
            raise GuestError(self._obituary(what)) from None
        except OSError:
            octets = b""
        if not octets:
            raise GuestError(self._obituary("the guest is gone"))
        *lines, self._buffer = (self._buffer + octets).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self.ready_uptime_s = message["ready"]
            elif call := self._calls.get(message["id"]):
                call._take(message)
                if call._end is not None:
                    del self._calls[message["id"]]

    def _obituary(self, what: str) -> str:
        return f"{what}. The last words of its console:\n{self.console()[-3000:]}"


def _machine(kernel: Image, ramdisk: Path, cpus: int, memory_mib: int) -> list[str]:
    return ["-M", "q35,kernel-irqchip=split", "-cpu", "max", "-smp", str(cpus), "-m", str(memory_mib), "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-kernel", str(kernel.kernel), "-initrd", str(ramdisk)]


def _root() -> list[str]:
    return ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot,addr=0x18", "-device", "virtio-rng-pci,addr=0x19",
            "-device", "virtio-serial-pci,addr=0x1a"]


def _asynchronous() -> str:
    """How QEMU reads its files: io_uring costs it no change of threads, where this machine has and allows it."""
    fd = os.eventfd(0)
    try:
        Ring(8, fd).close()
    except OSError:
        return "threads"
    finally:
        os.close(fd)
    return "io_uring"


def _devices(directory: Path) -> list[str]:
    """The cards, the disks, the slots. Port 3's conventional bridge makes one IOMMU group of what is behind it."""
    options = _slots("port0", *SLOTS, "port3")
    options += ["-device", "pcie-pci-bridge,id=legacy,bus=port3", "-device", "edu,bus=legacy,addr=0x2,dma_mask=0xffffffffff"]
    for card in CARDS.values():
        options += ["-netdev", f"tap,id={card.name},ifname={card.name},script=no,downscript=no",
                    "-device", f"{card.model},id={card.name},netdev={card.name},mac={card.mac},bus={card.bus},romfile="]
    options += ["-device", "ich9-ahci,id=ahci,bus=pcie.0,addr=0x4"]
    reading = _asynchronous()
    for port, name in enumerate([*DISKS, FLAKY]):
        # Flushes end in QEMU where the host may do without them, but shall reach blkdebug.
        path, cache = f"{directory}/{name}.raw", "unsafe"
        if name == FLAKY:
            path, cache = f"blkdebug:{directory}/blkdebug:{path}", "writeback"
        # What is trimmed becomes a hole in the host's file.
        options += ["-drive", f"if=none,id={name},file={path},format=raw,cache={cache},discard=unmap,aio={reading}",
                    "-device", f"ide-hd,id={name}-disk,drive={name},bus=ahci.{port},serial=LAB-{name.upper()},"
                    "rerror=report,werror=report"]
    options += ["-drive", f"if=none,id={CD},file={directory}/{CD}.raw,format=raw,media=cdrom,readonly=on",
                "-device", f"ide-cd,id={CD}-disk,drive={CD},bus=ahci.3,serial=LAB-CD"]
    return options


def _for_models(memory_mib: int) -> list[str]:
    """Empty slots, and memory that the servers of devices may map."""
    memory = f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"
    return ["-machine", "sata=off,memory-backend=memory", "-object", memory, *_slots(*SLOTS)]


def _slots(*names: str) -> list[str]:
    return [word for chassis, name in enumerate(names, 1)
            for word in ("-device", f"pcie-root-port,id={name},chassis={chassis},slot={chassis},addr={0x10 + chassis:#x}")]


def _accelerator(kernel: Image) -> str:
    """KVM where a guest was seen to boot under it, else emulation. The answer is kept for this host kernel."""
    emulation = "tcg,thread=multi"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulation
    answer = CACHE / f"accelerator-{os.uname().release}"
    if not answer.exists():
        with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as scratch:
            argv = ["qemu-system-x86_64", "-accel", "kvm", *_machine(kernel, initrd(kernel, Path(scratch)), 1, 512),
                    *_IOMMU, "-append", "lab.probe quiet panic=-1 no_timer_check"]
            try:
                boots = not subprocess.run(argv, timeout=_PROBE_S, stdin=subprocess.DEVNULL, capture_output=True,
                                           env=environment(), check=False).returncode
            except subprocess.TimeoutExpired:
                boots = False
        answer.write_text("kvm" if boots else emulation)
    return answer.read_text()


def sweep() -> None:
    """Remove what lab processes left that were killed before they could."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _alive(directory.name.removeprefix(_PREFIX)):
            shutil.rmtree(directory, ignore_errors=True)
    for namespace in Path("/run/netns").glob("rustosd-test-*"):
        if not _alive(namespace.name.removeprefix("rustosd-test-")):
            subprocess.run(["ip", "netns", "delete", namespace.name], env=environment(), check=False)


def _alive(name: str) -> bool:
    """Whether the process runs whose id `name` begins with."""
    return Path("/proc", name.partition("-")[0]).exists()
