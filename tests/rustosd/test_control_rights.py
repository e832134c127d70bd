"""Who may do what on the control socket, by the kernel's word: root, groups for reading, changing and sockets, strangers."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile

import pytest
import structlog

from rustosd import config
from rustosd.control import protocol as p
from rustosd.control.groups import Groups, groups_of
from rustosd.control.operations import Operations
from rustosd.control.server import EVERYTHING, ControlServer, Peer

READERS, CHANGERS, PROGRAMS, OTHERS = 23450, 23451, 23452, 23453
ASK = """
import contextlib, json, os, socket, sys
path, groups, *methods = sys.argv[1:]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(path)
except PermissionError:
    sys.exit("closed")
lines = sock.makefile("rwb")
for method in methods:
    name, _, params = method.partition(" ")
    with contextlib.suppress(BrokenPipeError):
        request = {"jsonrpc": "2.0", "id": 1, "method": name, "params": json.loads(params or "{}")}
        lines.write(json.dumps(request).encode() + b"\\n")
        lines.flush()
    answer = json.loads(lines.readline() or b'{"error": {"message": "closed"}}')
    print(answer.get("error", {}).get("message", "done"))
"""
LOOK, CHANGE, SEND = "daemon.status", 'addr.del {"nic": "rustos0", "address": "10.77.0.2/24"}', (
    'ping.echo {"address": "10.77.0.1", "identifier": 1, "sequence": 1}')
DISK = 'disk.read {"disk": "LAB-DISK0", "offset": 0, "octets": 1}'
SOCKETS = "socket.session"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


async def as_member(server, groups, *methods):
    """What somebody in these groups is told; a method that was carried out is "done"."""
    child = await asyncio.create_subprocess_exec(
        "/usr/bin/env", "python3", "-c", ASK, str(server.path), ",".join(map(str, groups)), *methods,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await asyncio.wait_for(child.communicate(), 30)
    return out.decode().splitlines() or [err.decode().strip()]


@pytest.fixture
async def server(core, machine):
    """At a place that everybody may enter, which pytest's is not."""
    place = tempfile.mkdtemp(prefix="rustosd-rights-")
    os.chmod(place, 0o755)
    made = ControlServer(f"{place}/run/control.sock", Operations(core, root=machine.root),
                         groups=Groups(READERS, CHANGERS, PROGRAMS))
    await made.start()
    yield made
    await made.stop()
    shutil.rmtree(place)


@needs_root
@pytest.mark.parametrize(("group", "may"), [
    (READERS, {LOOK}), (CHANGERS, {LOOK, CHANGE, SEND, DISK}), (PROGRAMS, {SOCKETS}), (OTHERS, set()),
])
async def test_a_group_may_what_it_is_for_and_nothing_else(server, core, group, may):
    for method in (LOOK, CHANGE, SEND, DISK, SOCKETS):
        (answer,) = await as_member(server, [group], method)
        assert (answer == "done") == (method in may), (method, answer)
        if method not in may:
            assert "not permitted: be root, or in the group that" in answer
    assert any(row["address"] == "10.77.0.2/24" for row in core.stack.address_rows) == (CHANGE not in may)


@needs_root
async def test_somebody_in_two_groups_has_both_rights(server):
    assert await as_member(server, [READERS, PROGRAMS], LOOK, SOCKETS) == ["done", "done"]


@needs_root
async def test_the_file_lets_in_whom_the_rights_let_in(server):
    def of_file():
        found = os.stat(server.path)
        return found.st_gid, stat.S_IMODE(found.st_mode)
    assert of_file()[1] == 0o666        # several groups: the kernel's word decides at the door
    server.admit(Groups(change=CHANGERS), 4)
    assert of_file() == (CHANGERS, 0o660)
    assert await as_member(server, [READERS], LOOK) == ["closed"]
    assert await as_member(server, [CHANGERS], LOOK, CHANGE) == ["done", "done"]
    server.admit(Groups(read=READERS, change=READERS), 4)
    assert of_file() == (READERS, 0o660)
    server.admit(Groups(), 4)
    assert of_file() == (os.getegid(), 0o600)
    assert await as_member(server, [CHANGERS], LOOK) == ["closed"]


@needs_root
async def test_a_change_is_on_record_with_who_did_it(server):
    with structlog.testing.capture_logs() as logs:
        assert await as_member(server, [CHANGERS], CHANGE) == ["done"]
    assert [(line["event"], line["method"], line["by"]) for line in logs] == [
        ("configuration_changed", "addr.del", "uid 65534")]


def test_every_method_says_which_right_it_needs():
    rights = {method.name: method.right for method in p.METHODS.values()}
    assert {name for name, right in rights.items() if right == "sockets"} == {
        "socket.session", "process.attach", "sched.enter", "swap.take"}
    for name, right in rights.items():
        if right == "sockets":
            continue
        verb = name.partition(".")[2]
        if verb in ("add", "del", "take", "give", "write", "flush", "reload", "set", "clear", "close", "signal", "nice", "read",
                    "echo", "bench", "start", "hop"):
            assert right == "change", name
        if verb in ("list", "show", "status", "levels", "check", "tail", "about"):
            assert right == "read", name


def test_those_who_may_change_may_look():
    groups = Groups(read=1, change=2, sockets=3)
    assert [groups.rights({number}) for number in (1, 2, 3, 4)] == [
        {"read"}, {"read", "change"}, {"sockets"}, frozenset()]
    assert Groups(read=1, change=1, sockets=1).rights({1}) == EVERYTHING
    assert Groups().rights({0, 1, None}) == frozenset()


async def test_without_a_right_nothing_is_decoded_or_done(core):
    server = ControlServer("/nowhere", Operations(core))
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "addr.del", "params": "rubbish"}).encode()
    reply = await server.answer(line, Peer(1, 1000, frozenset({"read"})))
    assert reply.error.code == p.FORBIDDEN and core.kicks == 0


def test_groups_are_looked_up_and_missing_ones_are_named():
    assert groups_of(config.parse('[control]\nread_group = "root"', "x")) == Groups(read=0)
    for key, section in (("read_group", "control"), ("change_group", "control"), ("group", "sockets")):
        with pytest.raises(ValueError, match=rf"{key} = \.\.\. under \[{section}\] names; make it: groupadd nobodys-own"):
            groups_of(config.parse(f'[{section}]\n{key} = "nobodys-own"', "x"))
    assert groups_of(config.parse('[sockets]\nenabled = false\ngroup = "nobodys-own"', "x")) == Groups()


# Hostile clients of a server in a process of its own, whose memory is measured


SERVER = """
import asyncio, resource, sys
from rustosd.control.operations import Operations
from rustosd.control.server import ControlServer
from tests.rustosd.fake import FakeCore

async def main():
    core = FakeCore()
    core.stack.connection_rows = core.stack.connection_rows * 2000
    server = ControlServer(sys.argv[1], Operations(core), max_clients=64)
    await server.start()
    print("up", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
asyncio.run(main())
"""
CLIENTS = 1000
PATIENCE_S = 6              # half a thousand at once on a busy machine
MEMORY_OCTETS = 48 << 20
"""64 clients with a line of 64 KiB and a reply each, thrice over, and what an allocator keeps."""


class HostileWorld:
    """The server, and clients that want it to hold much for them."""

    def __init__(self, path):
        self.path = path
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"up\n"

    def resident(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def connect(self, sock):
        """Asked again while the server's backlog is full: event loops take the kernel's EAGAIN for a connection under way."""
        while True:
            try:
                return sock.connect(self.path)
            except BlockingIOError:
                await asyncio.sleep(0.01)

    async def client(self, octets):
        """One that sends this, ends no line, and reads nothing before it could send; what it is told in the end."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            told = b""
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self.connect(sock), PATIENCE_S)
                with contextlib.suppress(OSError, TimeoutError):     # why it does not take it is to be read
                    await asyncio.wait_for(loop.sock_sendall(sock, octets), PATIENCE_S)
                while b"\n" not in told and (more := await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), PATIENCE_S)):
                    told += more
            return told.decode()


@pytest.fixture
def hostile(tmp_path):
    world = HostileWorld(str(tmp_path / "control.sock"))
    yield world
    world.process.stdin.close()
    assert world.process.wait(20) == 0


def call(method, params="{}"):
    return f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}\n'.encode()


@pytest.mark.parametrize(("what", "octets"), [
    ("silent", b""), ("half a message", b'{"jsonrpc":"2.0","method":"' + b"x" * 60_000),
    ("oversize", b"x" * 300_000), ("deep", b"[" * 65_000 + b"\n"),
    ("deep parameters", call("addr.add", "[" * 30_000 + "]" * 30_000)),
    ("wrong types", call("addr.add", '{"nic":[1],"address":{"a":1}}')), ("large answers nobody reads", 50 * call("conn.list")),
])
async def test_a_thousand_hostile_clients_cost_a_bounded_amount(hostile, what, octets):
    before, files = hostile.resident(), hostile.descriptors()
    told = []
    for _ in range(2):
        told += await asyncio.gather(*(hostile.client(octets) for _ in range(CLIENTS // 2)))
    refused = sum("are connected already" in answer for answer in told)
    print(what, refused, "refused", (hostile.resident() - before) >> 10, "KiB more")
    assert hostile.resident() - before < MEMORY_OCTETS, what
    if what in ("silent", "half a message"):
        assert refused > CLIENTS // 2 - 100
    assert not [answer for answer in told if "Traceback" in answer]
    for _ in range(100):        # and then it serves as before, with nothing left of them
        answer = await hostile.client(call("daemon.status"))
        if '"result"' in answer and hostile.descriptors() <= files + 1:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError((answer, hostile.descriptors(), files))
