"""A daemon core without a device: a stack whose rows are lists, so that control and CLI are tested without root."""

import asyncio
import io
import ipaddress
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

from drivers.disk import DiskInfo, Feature
from drivers.errors import DeviceError
from rustosd import config
from rustosd.audit import AuditLog
from rustosd.config_changes import ABSENT, Change, Item
from rustosd.control.upkeep_protocol import About
from rustosd.crash import CrashBox
from rustosd.faults import Faults, Record
from rustosd.health import Note, Upkeep
from rustosd.log import Logs
from rustosd.nbd.export import Export
from rustosd.nbd.server import Client, Served
from rustosd.pinger import Answer
from rustosd.policy import Destination, Policies, PolicyConfig
from rustosd.processes import End
from rustosd.reconfigure import Outcome, ReloadFailed
from rustosd.scheduling.scheduler import Program, Scheduler
from rustosd.scheduling.settings import Settings
from rustosd.scheduling.waits import BUCKETS, Spent
from rustosd.swap.kernel import State
from rustosd.swap.place import Place
from rustosd.swap.report import Report
from rustosd.swap.watch import Swapped
from tests.rustosd.fake_network import DETAILS, NetworkFakes

VERDICT_HELP = {"delivered": "taken", "ipv4_checksum": "wrong IPv4 header checksum", "no_route": "no route there"}
COUNTER_HELP = {"tcp_retransmits": "TCP segments sent again", "udp_datagrams_sent": "UDP datagrams sent"}


class FakeStack:
    """The Python face of `netstack.stack.Stack`, as far as control, metrics and CLI use it."""

    def __init__(self):
        self.nics = [
            {"index": 0, "name": "lo", "mac": "00:00:00:00:00:00", "up": True, "mtu": 65535, "features": [],
             "rx_frames": 0, "rx_octets": 0, "tx_frames": 0, "tx_octets": 0},
            {"index": 1, "name": "rustos0", "mac": "02:00:5e:10:00:01", "up": True, "mtu": 1500,
             "features": ["rx_checksum", "tso4"],
             "rx_frames": 1200, "rx_octets": 1536, "tx_frames": 7, "tx_octets": 5 << 30},
        ]
        self.address_rows = [{"interface": 1, "name": "rustos0", "address": "10.77.0.2/24", "state": "preferred"},
                             {"interface": 1, "name": "rustos0", "address": "fd77::2/64", "state": "tentative"}]
        self.route_rows = [{"prefix": "10.77.0.0/24", "gateway": None, "interface": 1, "source": None, "metric": 0,
                            "kind": "connected"},
                           {"prefix": "203.0.113.0/24", "gateway": "10.77.0.1", "interface": 1, "source": None,
                            "metric": 0, "kind": "static"}]
        self.neighbor_rows = [{"address": "10.77.0.1", "mac": None, "interface": 1, "state": "incomplete"}]
        self.connection_rows = [
            {"handle": 7 | 2 << 32, "state": "ESTABLISHED", "local_host": "fd77::2", "local_port": 80,
             "remote_host": "fd77::1", "remote_port": 40000, "unread": 0, "unsent": 512, "octets_received": 100,
             "octets_sent": 2048, "retransmits": 1, "srtt_ns": 250_000, "released": False}]
        self.tcp = self.udp = self

    def usage(self):
        return {"connections": len(self.connection_rows), "connections_limit": 65536, "time_wait": 0,
                "buffer_octets": 4096, "buffer_octets_limit": 1 << 29, "block_octets": 1536}

    def states(self):
        return {"SYN_SENT": 0, "ESTABLISHED": len(self.connection_rows)}

    def busiest(self, most=64, lately=False):
        return self.connection_rows[:most]

    def details(self, handle, now):
        for row in self.connection_rows:
            if row["handle"] == handle:
                return DETAILS | row
        raise ValueError(f"no connection {handle}")

    def cut(self, handle):
        self.connection_rows = [row for row in self.connection_rows if row["handle"] != handle]

    def histograms(self):
        return dict.fromkeys(("round_trip", "handshake_active", "handshake_passive"), (3 << 20, [0] * 20 + [2, 1] + [0] * 43))

    def rows(self):
        return [{"local": "10.77.0.2", "local_port": 7, "remote": None, "remote_port": None,
                 "queued_octets": 0, "rx_octets": 9, "tx_octets": 9}]

    def interfaces(self):
        return [row | {"output_queued": 0,
                       "addresses": [a["address"] for a in self.address_rows if a["interface"] == row["index"]]}
                for row in self.nics]

    def addresses(self):
        return self.address_rows

    def add_address(self, index, cidr):
        if any(row["address"] == cidr for row in self.address_rows):
            raise ValueError(f"{self.nics[index]['name']} already has {ipaddress.ip_interface(cidr).ip}")
        self.address_rows.append({"interface": index, "name": self.nics[index]["name"], "address": cidr,
                                  "state": "preferred"})

    def remove_address(self, index, cidr):
        for row in self.address_rows:
            if (row["interface"], row["address"]) == (index, cidr):
                self.address_rows.remove(row)
                return
        raise ValueError(f"{self.nics[index]['name']} has no address {cidr}")

    def routes(self):
        return self.route_rows

    def add_route(self, prefix, gateway=None, interface=None, metric=0):
        if gateway == "198.51.100.1":
            raise OSError(101, f"{gateway} is on no connected link")
        self.route_rows.append({"prefix": prefix, "gateway": gateway, "interface": interface or 1, "source": None,
                                "metric": metric, "kind": "static"})

    def remove_route(self, prefix, interface=-1, metric=None):
        kept = [row for row in self.route_rows if (row["prefix"], row["interface"], row["metric"]) != (
            prefix, interface, metric)]
        removed, self.route_rows = len(self.route_rows) - len(kept), kept
        return removed

    def neighbors(self):
        return self.neighbor_rows

    def set_neighbor(self, index, address, mac):
        self.neighbor_rows.append({"address": address, "mac": mac, "interface": index, "state": "permanent"})

    def remove_neighbor(self, index, address):
        kept = [row for row in self.neighbor_rows if row["address"] != address]
        removed, self.neighbor_rows = len(kept) < len(self.neighbor_rows), kept
        return removed

    def connections(self):
        return self.connection_rows

    def listeners(self):
        return [{"host": None, "port": 80, "backlog": 1024, "half_open": 0, "waiting": 0}]

    def verdicts(self):
        return {"delivered": 1000, "answered": 3, "forwarded": 0, "ipv4_checksum": 4, "tcp_flags": 0}

    def unsent(self):
        return {"delivered": 0, "no_route": 9}

    def counters(self):
        return {"tcp_retransmits": 5, "udp_datagrams_sent": 0}


class FakeNic:
    """A NIC with a driver that counts."""

    name = "0000:00:03.0"

    def __init__(self, **statistics):
        self.counts = {"rx_frames": 1, "rx_octets": 1, "tx_frames": 1, "tx_octets": 1, "rx_dropped": 0, "tx_dropped": 0}
        self.counts |= statistics

    def statistics(self):
        return self.counts


class FakePump:
    """The figures of a `rustosd.pump.Pump` with one NIC, interface 1."""

    def __init__(self):
        self.nics = {1: FakeNic(rx_dropped=3, rx_dropped_too_short=2, rx_dropped_EIO=1, hw_symbol_errors=4)}
        self.counts = {"wakeups": 5, "errors": 0, "tx_refused": 0, "yields": 0}
        self.counts |= dict.fromkeys(("rx_bursts", "rx_frames", "tx_bursts", "tx_frames"), 0)

    def statistics(self):
        return self.counts

    def histograms(self):
        bursts = (70, [1, 1, 0, 1, 0, 0, 1] + [0] * 58)
        return {"rx_burst": bursts, "tx_burst": bursts, "turn": (5000, [0] * 12 + [1] + [0] * 52)}


CHANGES = [Change(("interface", Item("rustos0"), "address"), ("10.77.0.2/24",), ("10.77.0.2/24", "10.77.0.5/24")),
           Change(("service", "http", "port"), 80, 8080),
           Change(("stack", "receive_buffer_octets"), 1 << 20, 65536),
           Change(("stack", "max_routes"), 4096, 100),
           Change(("route", Item("192.0.2.0/24 via 10.77.0.1 metric 0")), ABSENT, "present")]


CRASH = "reason: Fatal Python error: Segmentation fault\nat: 2026-11-28T18:00:00Z\n\n=== stacks ===\nCurrent thread ...\n"
NOTES = [Note("link-down", "error", "rustos0", "rustos0 has no link.", "Check cable and switch port."),
         Note("time-wait-full", "note", "", "12 connections left TIME-WAIT early to make room.", "Harmless as a rule.")]


class FakeReconfigurer:
    """A `Reconfigurer` whose file says CHANGES, or is as wrong as `failure` says."""

    path = Path("/etc/rustosd/rustosd.toml")

    def __init__(self, core):
        self.core = core
        self.waiting = []
        self.failure = ""

    async def reload(self, check=False):
        if self.failure:
            raise ReloadFailed(self.failure)
        outcome = Outcome(changes=list(CHANGES), done=not check)
        if not check:
            self.core.kick()
            self.waiting = outcome.of("restart")
        return outcome


class FakeEngine:
    """What an export has counted."""

    def statistics(self):
        return {"requests": {"read": 1200, "write": 7}, "errors": {"EIO": 2, "EINVAL": 1}, "read_octets": 4915200,
                "written_octets": 28672}

    def pending(self, index):
        return index


class FakeExports:
    """`rustosd.nbd.exports.Exports`: one export with a client, of a disk of 64 GiB; another disk can be exported."""

    def __init__(self):
        self.server = SimpleNamespace(served={})
        self._add("vm", "0000:00:1f.2/0", True, "the first")
        self.server.served["vm"].clients[3] = Client("stack", "stack", True, 1_800_000_000.5)

    async def add(self, *arguments):
        return self._add(*arguments)

    def _add(self, name, disk, read_only=False, description="", tls_only=False):
        if not disk.startswith("0000:00:1f.2/"):
            raise DeviceError(disk, "there is no such disk")
        info = DiskInfo(disk, "LAB", "LAB-DISK0", "1.0", 1 << 27, 512, 4096, 32, Feature.FUA, 65536, 1)
        export = Export(name, SimpleNamespace(info=info), read_only, description, tls_only)
        self.server.served[name] = Served(export, FakeEngine())
        return export

    async def remove(self, name):
        if self.server.served.pop(name, None) is None:
            raise LookupError(f"there is no export {name}; there is {', '.join(self.server.served) or 'none'}")

    def rows(self):
        yield from self.server.served.values()


PROCESS = {"parent": 900, "state": "sleeping", "name": "curl", "command": "curl http://10.77.0.1/", "user": "www-data",
           "nice": 0, "threads": 1, "rss_octets": 6_291_456, "swap_octets": 1_048_576, "cpu_s": 0.25, "age_s": 3.0,
           "sockets": 1, "program": "fetch", "wait_s": 1.5, "slices": 1200, "started": 2}
DESCRIPTOR = {"fd": 3, "target": "socket:[77]", "protocol": "tcp", "state": "connected", "local": ["10.77.0.2", 49152],
              "remote": ["fd77::1", 80]}


class FakeGroup:
    """A supervisor whose programs have a limit."""

    pid, name = 900, "fetch"

    async def ask(self, op):
        assert op == "memory"
        space = {"pid": 901, "resident_octets": 50 << 20, "swapped_octets": 190 << 20, "faults": 40_000, "zero_faults": 12_000,
                 "write_faults": 900, "again": 21_000, "waited": 7, "in_octets": 512 << 20, "out_octets": 768 << 20,
                 "clean_octets": 300 << 20, "ahead_pages": 1000, "ahead_used": 750}
        return {"memory": {"limit_octets": 64 << 20, "most_octets": 80 << 20, "lowered_octets": 48 << 20,
                           "resident_octets": 50 << 20, "peak_octets": 81 << 20,
                           "failure": "file /var/lib/rustosd/swap/900.swap: No space left on device", "spaces": [space]}}


class FakeProcesses:
    """The daemon and one program, as its supervisor tells of it."""

    async def rows(self):
        return [{**PROCESS, "pid": 0, "parent": 0, "group": 0, "name": "rustosd", "sockets": 0, "program": ""},
                {**PROCESS, "pid": 901, "group": 900}]

    async def ask(self, pid, op, **fields):
        if pid != 901:
            raise OSError(3, f"no program on the stack has the number {pid}; see: rustosctl ps")
        if op == "descriptors":
            return 900, {"descriptors": [DESCRIPTOR], "total": 1}
        if op == "show":
            return 900, {"process": {**PROCESS, "pid": 901}, "executable": "/usr/bin/curl", "directory": "/", "session": 1,
                         "affinity": [0, 1], "policy": "batch", "sched_priority": 0, "peak_rss_octets": 7_340_032,
                         "context_switches": 12, "limits": {"Max open files": "1024"}, "calls": {"connect": 1},
                         "refused": {}, "traced": True, "life": {"forks": 2, "execs": 3, "exits": 1},
                         "ended": ["902 sh: SIGSEGV", "903 true: exit status 0"],
                         "exceptions": {"page-fault terminated": 1, "page-fault handled": 7}}
        return 900, {}

    def name_of(self, group):
        return "fetch"

    def groups(self):
        return [FakeGroup()]

    async def wait(self, who, seconds):
        return End(901, "fetch", 7) if who in ("901", "fetch") else None

    def attach(self, pid, uid):
        ours, theirs = socket.socketpair()
        ours.close()
        return theirs


def fake_faults(directory):
    """Two programs that were ended; the report of one is there."""
    faults = Faults(AuditLog(directory / "audit.jsonl", 1 << 20, 1), directory, 3)
    known = {"at": "2026-11-28T18:00:00Z", "uid": 0, "supervisor": 900}
    words = "page fault (#PF): write to 0x123456, where nothing is mapped"
    report = directory / "program-20261128T180000Z-1.txt"
    report.write_text(f"supervisor: 900, of user 0\nreason: {words}\n")
    faults._records += [
        Record(id=1, pid=901, thread=901, program="redis-server", kind="page-fault", signal=11, trap=14, error_code="0x6",
               address="0x123456", words=words, report=report.name, **known),
        Record(id=2, pid=902, thread=903, program="cc1", kind="invalid-opcode", signal=4, trap=6, error_code="0x0",
               address=None, words="invalid opcode (#UD): not an instruction of this processor", report=None, **known)]
    return faults


class FakePrograms:
    """One program that runs, and one that was given up."""

    def rows(self):
        row = {"user": "root", "since_s": 3700.0, "starts": 1, "status": None, "detail": "", "command": ["nginx"],
               "after": ["rustos0"], "restart": "always", "policy": None}
        return [{**row, "name": "web", "state": "running", "pid": 901},
                {**row, "name": "cron", "state": "failed", "pid": None, "starts": 6, "status": 1, "user": "www-data",
                 "detail": "it ended 6 times within 60 s; at last: it ended with status 1"}]

    def find(self, name):
        if name not in ("web", "cron"):
            raise LookupError(f"there is no program {name}; there is web, cron: [[program]]")
        return self

    def stop(self):
        return asyncio.sleep(0)

    async def begin(self, name):
        self.find(name)

    restart = begin


class FakeScheduler(Scheduler):
    """One program, of the supervisor 900; the kernel is told nothing."""

    def __init__(self, settings):
        super().__init__(settings)
        self._place, self.why_no_groups = None, "this is a test"
        wanted = Settings(sched_class="batch", priority=2, processors=(0, 1), quota_percent=50.0)
        spent = Spent(3_250_000_000, 1_500_000_000, 1200)
        self.programs[900] = Program(900, 901, wanted, {}, 0, name="batch/900", seen=(spent, [0] * BUCKETS))
        self.spent["batch"], self.waits["batch"] = spent, [0] * 20 + [1100, 100] + [0] * (BUCKETS - 22)

    async def gather(self, figures):
        pass

    async def enter(self, supervisor, first, wanted, *, anything):
        pass

    async def change(self, supervisor, wanted):
        self.programs[supervisor].settings = wanted.over(self.programs[supervisor].settings)

    async def freeze(self, supervisor, wanted):
        self.programs[supervisor].suspended = wanted
        return True

    def statistics(self, program):
        return {"periods": 80, "throttled": 31, "throttled_us": 1_700_000}


SWAP_REPORT = Report(
    device="file /var/lib/rustosd/swap/900.swap", encryption=True, compression="lz4", octets=4 << 30, used_octets=256 << 20,
    stored_octets=96 << 20, same_octets=32 << 20, table_octets=38 << 20, in_octets=512 << 20, out_octets=768 << 20,
    read_octets=200 << 20, written_octets=300 << 20, corrupt=1, read_again=2, failed=3, full=0, faults=40_000,
    ahead_pages=1000, ahead_used=750)


class FakeSwap:
    """`SwapWatch`, `Places` and `KernelSwap` of `rustosd.swap`: one program, a place for another, and Linux's swap on."""

    on_now = State("/dev/nbd0", "swap0", 1 << 30, 200 << 20, -2, True, 4712)

    def state(self):
        return self.on_now

    async def on(self, export, priority, encryption):
        return self.on_now._replace(export=export, priority=priority, encryption=encryption, used_octets=0)

    async def off(self):
        self.on_now = None

    async def look(self):
        return [Swapped(900, "fetch", SWAP_REPORT, 1_048_576.0, 2_621_440.0)]

    def take(self, pid):
        ours, theirs = socket.socketpair()
        ours.close()
        return Place(kind="export", name="swap0", octets=1 << 30, begin=1 << 30, socket="/run/rustosd/nbd.sock"), theirs


class FakeCore(NetworkFakes):
    """A `Core`: 10.77.0.1 answers pings, 10.77.0.9 does not, 10.77.0.8 is unreachable, others have no route."""

    verdict_help = VERDICT_HELP
    counter_help = COUNTER_HELP
    devices = None

    def __init__(self):
        super().__init__()
        self.stack = FakeStack()
        self.pump = FakePump()
        self.processes = FakeProcesses()
        self.programs = FakePrograms()
        self.scheduler = FakeScheduler(config.default().scheduler)
        self.policies = Policies([PolicyConfig(name="web", users=("0",), connect=(Destination("tcp 10.77.0.0/24 80,443"),),
                                               bind=())])
        self.policies.denied["web", "connect"] = 3
        self.swap_watch = self.swap_places = self.kernel_swap = FakeSwap()
        self.running_services = []
        self.kicks = 0
        self.pings = []
        self.config = config.default()
        self.logs = Logs(io.StringIO())
        self.directory = tempfile.TemporaryDirectory()
        self.crashes = CrashBox(Path(self.directory.name), 3, "0.1.0", "")
        self.faults = fake_faults(Path(self.directory.name))
        (self.crashes.directory / "crash-20261128T180000Z-4711.txt").write_text(CRASH)
        self.reconfigurer = FakeReconfigurer(self)
        self.health_notes = []
        self.exports = FakeExports()

    @property
    def storage(self):
        held = self.devices.held.values() if self.devices else ()
        return [disk for each in held for disk in each.disks.values()]

    def kick(self):
        self.kicks += 1

    def nic_facts(self, name):
        return {"kind": "tap", "rx_dropped": 2} if name == "rustos0" else {}

    def notes(self):
        return self.health_notes

    def upkeep(self):
        return Upkeep()

    def about(self):
        return About(version="0.1.0", python="CPython 3.11.7", kernel="Linux 6.1.0", machine="x86_64",
                     packages={"msgspec": "0.20.0"}, pid=4711, started_by="systemd", uptime_s=0.0,
                     config_file="/etc/rustosd/rustosd.toml", processors=2, resident_octets=50 << 20, memory_octets=1 << 33,
                     descriptors=40, threads=3)

    def disk_states(self):
        return []

    def port_states(self):
        return []

    def gone_devices(self):
        return []

    def disk_troubles(self):
        return []

    def socket_usage(self):
        return {"sockets": 3, "sockets_limit": 4096}

    def swap_troubles(self):
        return []

    def services(self):
        return ["echo/7", "http/80"]

    def nbd_uris(self):
        return ["nbd://10.77.0.2/", "nbd+unix:///?socket=/run/rustosd/nbd.sock"]

    def open_session(self, pid, subject):
        ours, theirs = socket.socketpair()
        ours.close()
        return theirs

    async def ping(self, address, identifier, sequence, octets, timeout_s):
        self.pings.append((address, identifier, sequence, octets, timeout_s))
        if address == "10.77.0.1":
            return Answer(address, 0.00025, 64, None)
        if address == "10.77.0.8":
            return Answer("10.77.0.2", 0.1, 64, "host unreachable")
        if address == "10.77.0.9":
            return None
        raise OSError(101, f"no route to {address}")
