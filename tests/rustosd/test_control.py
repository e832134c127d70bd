"""The control socket: every method answers with its type; hostile clients get an error, bounded memory, or the door."""

import asyncio
import errno
import itertools
import json
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustosd.control import protocol as p
from rustosd.control import sata_protocol
from rustosd.control import server as server_module
from rustosd.control.client import CallFailed, Client, Unreachable
from rustosd.control.names import endpoint
from rustosd.control.operations import Operations
from rustosd.control.server import EVERYTHING, ControlServer, Handed, Peer
from tests.rustosd.fake import FakeCore
from tests.rustosd.fake_devices import OURS


@pytest.fixture
async def server(core, machine, tmp_path):
    operations = Operations(core, root=machine.root)
    made = ControlServer(str(tmp_path / "run" / "control.sock"), operations, max_clients=4)
    await made.start()
    yield made
    await made.stop()


async def connect(server):
    return await asyncio.open_unix_connection(str(server.path), limit=1 << 24)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def ask(server, line: bytes) -> dict:
    reader, writer = await connect(server)
    writer.write(line + b"\n")
    answer = json.loads(await asyncio.wait_for(reader.readline(), 60))
    writer.close()
    return answer


def request(method, params=None, identity=1):
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": params or {}}).encode()


PARAMS = {
    "kernelswap.on": {"export": "swap0"},
    "faults.read": {"id": 1},
    "export.add": {"disk": "0000:00:1f.2/1", "name": "scratch"},
    "export.del": {"name": "vm"},
    "addr.add": {"nic": "rustos0", "address": "10.77.0.3/24"},
    "addr.del": {"nic": "rustos0", "address": "10.77.0.2/24"},
    "route.add": {"destination": "192.0.2.0/24", "gateway": "10.77.0.1"},
    "route.del": {"destination": "203.0.113.0/24"},
    "neigh.add": {"address": "10.77.0.7", "mac": "02:00:00:00:00:07", "nic": "rustos0"},
    "neigh.del": {"address": "10.77.0.1", "nic": "rustos0"},
    "ping.echo": {"address": "10.77.0.1", "identifier": 1, "sequence": 1},
    "device.show": {"bdf": OURS}, "device.give": {"bdf": OURS}, "device.take": {"bdfs": ["00:1f.2"]},
    "device.regs": {"bdf": OURS}, "device.trace": {"bdf": OURS, "seconds": 0.01}, "acpi.show": {"table": "apic"},
    "disk.show": {"disk": "LAB-DISK0"}, "disk.read": {"disk": "LAB-DISK0", "offset": 0, "octets": 1},
    "disk.write": {"disk": "LAB-DISK0", "token": "LAB-DISK0", "offset": 0, "octets": "AAAA"},
    "disk.flush": {"disk": "LAB-DISK0"},
    "disk.bench": {"disk": "LAB-DISK0", "seconds": 0.01},
    "log.set": {"logger": "rustosd.devices", "level": "debug"}, "log.tail": {"limit": 5},
    "crash.show": {"name": "crash-20261128T180000Z-4711.txt"},
    "nic.show": {"name": "rustos0"}, "conn.show": {"id": "7.2"}, "conn.close": {"id": "7.2"},
    "trace.hop": {"address": "203.0.113.9", "hop_limit": 1},
    "process.show": {"pid": 901}, "process.fds": {"pid": 901}, "process.signal": {"pid": 901},
    "process.suspend": {"pid": 901}, "process.resume": {"pid": 901},
    "sched.set": {"pid": 901, "sched_class": "idle"}, "sched.enter": {"pid": 901, "cpu_quota": "1.5", "processors": "0"},
    "process.nice": {"pid": 901, "nice": 5}, "process.wait": {"program": "fetch"},
    **{f"program.{verb}": {"name": "web"} for verb in ("start", "stop", "restart")},
}


# Those of drives behind controllers have a real one in test_cli_sata.
@pytest.mark.parametrize("method", [m for m in p.METHODS.values() if m not in sata_protocol.METHODS], ids=lambda m: m.name)
async def test_every_method_answers_with_its_type(server, core, method):
    answer = await ask(server, request(method.name, PARAMS.get(method.name), "seven"))
    assert answer["jsonrpc"] == "2.0" and answer["id"] == "seven" and "error" not in answer
    msgspec.json.decode(json.dumps(answer["result"]), type=method.gives)
    changes_the_stack = method.changes and not method.name.startswith(
        ("export.", "process.", "program.", "sched.", "kernelswap."))
    assert core.kicks == (1 if changes_the_stack else 0)


async def test_a_socket_that_somebody_removed_is_made_again_and_clients_stay(server):
    reader, writer = await connect(server)
    for remove in (server.path.unlink, lambda: shutil.rmtree(server.path.parent)):
        remove()
        assert await server.make_again()
        assert not await server.make_again()
        assert "result" in await ask(server, request("nic.list"))
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    writer.write(request("nic.list") + b"\n")
    assert "result" in json.loads(await reader.readline())
    writer.close()
    await server.stop()
    assert not await server.make_again()
    assert not server.path.parent.exists()


async def test_one_that_a_service_manager_made_is_made_again_too(core, machine, tmp_path):
    path = tmp_path / "control.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    server = ControlServer(str(path), Operations(core, root=machine.root), listening=listening)
    await server.start()
    path.unlink()
    assert await server.make_again()
    assert "result" in await ask(server, request("nic.list"))
    await server.stop()
    assert not path.exists()


async def test_what_stands_in_the_place_of_the_socket_is_left_alone(server):
    server.path.unlink()
    server.path.write_text("theirs")
    assert not await server.make_again()
    await server.stop()
    assert server.path.read_text() == "theirs"


async def test_a_socket_that_cannot_be_made_again_says_why(server, tmp_path):
    shutil.rmtree(server.path.parent)
    server.path.parent.write_text("in the way")
    with pytest.raises(OSError, match="cannot make the control socket"):
        await server.make_again()
    server.path.parent.unlink()
    assert await server.make_again()


async def test_changes_reach_the_stack(server, core):
    await ask(server, request("addr.add", PARAMS["addr.add"]))
    await ask(server, request("route.add", PARAMS["route.add"] | {"metric": 5}))
    await ask(server, request("neigh.add", PARAMS["neigh.add"]))
    assert core.stack.address_rows[-1]["address"] == "10.77.0.3/24"
    assert core.stack.route_rows[-1] == {"prefix": "192.0.2.0/24", "gateway": "10.77.0.1", "interface": 1,
                                         "source": None, "metric": 5, "kind": "static"}
    assert core.stack.neighbor_rows[-1]["mac"] == "02:00:00:00:00:07"


@pytest.mark.parametrize(("line", "code"), [
    (b"x", p.PARSE_ERROR), (b'{"jsonrpc":"2.0"', p.PARSE_ERROR), (b"\xff\xfe", p.PARSE_ERROR),
    (b"[]", p.INVALID_REQUEST), (b"3", p.INVALID_REQUEST), (b'{"method":"nic.list","id":1}', p.INVALID_REQUEST),
    (b'{"jsonrpc":"1.0","method":"nic.list","id":1}', p.INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","method":7,"id":1}', p.INVALID_REQUEST),
    (request("nic.lst"), p.METHOD_NOT_FOUND), (request("__init__"), p.METHOD_NOT_FOUND),
    (request("nic.list", {"x": 1}), p.INVALID_PARAMS), (request("addr.add", {"nic": "rustos0"}), p.INVALID_PARAMS),
    (request("addr.add", {"nic": "rustos0", "address": "10.77.0.3"}), p.INVALID_PARAMS),
    (request("addr.add", {"nic": 3, "address": "10.77.0.3/24"}), p.INVALID_PARAMS),
    (request("addr.add", [1, 2]), p.INVALID_PARAMS), (request("conn.list", {"limit": 0}), p.INVALID_PARAMS),
    (request("ping.echo", {"address": "10.77.0.1", "identifier": 70000, "sequence": 1}), p.INVALID_PARAMS),
    (request("addr.add", {"nic": "eth9", "address": "10.77.0.3/24"}), p.FAILED),
    (request("addr.add", {"nic": "rustos0", "address": "10.77.0.2/24"}), p.FAILED),
    (request("route.add", {"destination": "192.0.2.0/24"}), p.FAILED),
    (request("route.add", {"destination": "192.0.2.0/24", "gateway": "fd77::1"}), p.FAILED),
    (request("route.add", {"destination": "192.0.2.0/24", "gateway": "198.51.100.1"}), p.FAILED),
    (request("route.del", {"destination": "198.51.100.0/24"}), p.FAILED),
    (request("route.del", {"destination": "10.77.0.0/24"}), p.FAILED),
    (request("route.del", {"destination": "203.0.113.0/24", "gateway": "10.77.0.9"}), p.FAILED),
    (request("neigh.del", {"address": "10.77.0.200", "nic": "rustos0"}), p.FAILED),
    (b"[" * 50_000, p.INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","method":"nic.list","id":1,"params":' + b"[" * 20_000 + b"]" * 20_000 + b"}", None),
])
async def test_what_is_wrong_gets_its_error_and_changes_nothing(server, core, line, code):
    before = json.dumps([core.stack.address_rows, core.stack.route_rows, core.stack.neighbor_rows])
    answer = await ask(server, line)
    assert answer["error"]["code"] == code or (code is None and answer["error"]["code"] in (-32700, -32600, -32602))
    assert answer["error"]["message"] and "Traceback" not in answer["error"]["message"]
    assert json.dumps([core.stack.address_rows, core.stack.route_rows, core.stack.neighbor_rows]) == before
    assert core.kicks == 0
    assert "result" in await ask(server, request("daemon.status"))


async def test_a_notification_is_carried_out_and_not_answered(server, core):
    reader, writer = await connect(server)
    line = json.dumps({"jsonrpc": "2.0", "method": "addr.add", "params": PARAMS["addr.add"]}).encode()
    writer.write(line + b"\n\n" + request("daemon.status", identity=2) + b"\n")
    assert json.loads(await reader.readline())["id"] == 2
    assert core.kicks == 1
    writer.close()


async def test_requests_of_one_client_are_answered_in_order(server):
    reader, writer = await connect(server)
    writer.write(b"".join(request("nic.list", identity=i) + b"\n" for i in range(100)))
    assert [json.loads(await reader.readline())["id"] for _ in range(100)] == list(range(100))
    writer.close()


async def test_a_line_without_end_is_refused(server):
    reader, writer = await connect(server)
    writer.write(b"x" * (p.MAX_REQUEST_OCTETS * 3))
    answer = json.loads(await reader.readline())
    assert answer["error"]["code"] == p.INVALID_REQUEST and "octets" in answer["error"]["message"]
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        writer.write(b"more\n")
        await reader.readexactly(1)
    writer.close()


async def test_half_a_message_leaves_nothing_behind(server):
    _, writer = await connect(server)
    writer.write(b'{"jsonrpc":"2.0",')
    await asyncio.sleep(0.02)
    assert len(server.clients) == 1
    writer.close()
    await until(lambda: not server.clients)


async def test_clients_beyond_the_bound_are_turned_away_roots_later_than_others(server, monkeypatch):
    member = Peer(1, 12345, frozenset({"read"}))
    held = [await connect(server) for _ in range(server.max_clients)]
    await until(lambda: len(server.clients) == server.max_clients)
    with monkeypatch.context() as patched:
        patched.setattr(ControlServer, "_peer_of", lambda server, writer: member)
        reader, writer = await connect(server)
        assert json.loads(await reader.readline())["error"]["code"] == p.BUSY
        writer.close()
        await until(lambda: len(server.clients) == server.max_clients)
    held += [await connect(server) for _ in range(server_module.ROOTS_OWN_CLIENTS)]
    await until(lambda: len(server.clients) == len(held))
    reader, writer = await connect(server)
    assert json.loads(await reader.readline())["error"]["code"] == p.BUSY
    assert await reader.read() == b""
    for _, each in [*held, (reader, writer)]:
        each.close()
    await until(lambda: not server.clients)
    assert "result" in await ask(server, request("nic.list"))


async def test_without_a_descriptor_left_clients_are_told_or_dropped_and_the_next_is_served(server, monkeypatch, caplog):
    def none_left(_fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    reader, writer = await connect(server)
    writer.write(request("nic.list") + b"\n")
    assert "result" in json.loads(await reader.readline())
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", none_left)
        assert "Too many open files" in (await ask(server, request("nic.list")))["error"]["message"]
        writer.write(request("socket.session") + b"\n")            # is answered with a descriptor
        assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    await until(lambda: not server.clients)
    assert "result" in await ask(server, request("nic.list"))
    assert not caplog.records


async def test_a_client_that_does_not_read_is_dropped(server, core, monkeypatch):
    monkeypatch.setattr(server_module, "REPLY_TIMEOUT_S", 0.1)
    core.stack.connection_rows = core.stack.connection_rows * 50_000
    _, writer = await connect(server)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(server.path))
        deaf.sendall(request("conn.list", {"limit": 50_000}) + b"\n")
        await until(lambda: len(server.clients) == 2)
        await until(lambda: len(server.clients) == 1)
    writer.close()


async def test_strangers_are_shown_the_door(server, monkeypatch):
    monkeypatch.setattr(server_module.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(ControlServer, "_peer_of", lambda server, writer: Peer(1, 12345, frozenset()))
    reader, writer = await connect(server)
    assert json.loads(await reader.readline())["error"]["code"] == p.FORBIDDEN
    assert await reader.read() == b""
    writer.close()


async def test_the_kernel_says_who_we_are(server):
    assert "result" in await ask(server, request("daemon.status"))
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_another_user_is_refused_by_the_kernels_word(server):
    os.chmod(server.path, 0o666)
    for directory in itertools.takewhile(lambda parent: parent != Path(tempfile.gettempdir()), server.path.parents):
        os.chmod(directory, os.stat(directory).st_mode | 0o011)
    code = ("import os,socket,sys; os.setuid(65534); s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "print(s.makefile().readline())")
    child = await asyncio.create_subprocess_exec("/usr/bin/env", "python3", "-c", code, str(server.path),
                                                 stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    assert json.loads(output)["error"]["code"] == p.FORBIDDEN


async def test_stop_leaves_nothing(core, tmp_path):
    server = ControlServer(str(tmp_path / "run" / "control.sock"), Operations(core))
    await server.start()
    reader, writer = await connect(server)
    await until(lambda: server.clients)
    await server.stop()
    assert list(tmp_path.iterdir()) == [] and not server.clients
    assert await reader.read() == b""
    writer.close()
    await server.stop()


async def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_kept(core, tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first = ControlServer(str(path), Operations(core))
    await first.start()
    with pytest.raises(OSError, match="another daemon serves"):
        await ControlServer(str(path), Operations(core)).start()
    assert "result" in await ask(first, request("nic.list"))
    await first.stop()
    path.write_text("mine")
    with pytest.raises(OSError, match="is there and no socket"):
        await ControlServer(str(path), Operations(core)).start()
    assert path.read_text() == "mine"


async def test_a_socket_made_by_a_service_manager_is_served_and_left_where_it_is(core, tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        server = ControlServer(str(path), Operations(core), listening=made.dup())
        await server.start()
        assert "result" in await ask(server, request("nic.list"))
        await server.stop()
        assert path.is_socket()
        again = ControlServer(str(path), Operations(core), listening=made.dup())
        await again.start()
        assert "result" in await ask(again, request("nic.list"))
        await again.stop()


async def test_a_directory_that_cannot_be_made_says_what_to_do(core, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"choose another with socket = \.\.\. under \[control\]"):
        await ControlServer(str(tmp_path / "file" / "x.sock"), Operations(core)).start()


async def test_a_crash_inside_is_told_without_its_details(server, core):
    core.stack.interfaces = lambda: 1 / 0
    answer = await ask(server, request("nic.list"))
    assert answer["error"]["code"] == p.INTERNAL_ERROR and "division" not in answer["error"]["message"]


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                                      max_size=3), max_leaves=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(line=st.binary(max_size=60) | st.builds(
    lambda method, params, identity: json.dumps(
        {"jsonrpc": "2.0", "method": method, "params": params, "id": identity}).encode(),
    st.sampled_from(sorted(p.METHODS)) | st.text(max_size=8), json_values, json_values))
def test_any_line_is_answered_or_is_a_notification(line):
    server = ControlServer("/nowhere", Operations(FakeCore()))
    reply = asyncio.run(server.answer(line, Peer(1, 0, EVERYTHING)))
    if isinstance(reply, Handed):
        reply.end.close()
    elif reply is not None:
        assert (reply.result is msgspec.UNSET) != (reply.error is msgspec.UNSET)


def test_every_method_has_its_function_and_every_function_its_method():
    made = {name for name in dir(Operations) if not name.startswith("_")}
    assert made == {method.handler for method in p.METHODS.values()}


async def test_the_client_sees_types_and_errors(server):
    def talk():
        with Client(str(server.path)) as client:
            status = client.call("daemon.status")
            nics = client.call("nic.list")
            with pytest.raises(CallFailed, match="there is no interface eth9; there is lo, rustos0"):
                client.call("addr.add", p.AddressChange(nic="eth9", address="10.0.0.1/8"))
            return status, nics
    status, nics = await asyncio.to_thread(talk)
    assert isinstance(status, p.Status) and status.pid == os.getpid() and status.dropped_frames == 13
    assert [nic.name for nic in nics] == ["lo", "rustos0"] and nics[1].offload and nics[1].rx_dropped == 2


def test_all_of_it_works_on_the_loop_the_daemon_uses(core, tmp_path):
    async def scenario():
        server = ControlServer(str(tmp_path / "run" / "control.sock"), Operations(core), max_clients=1)
        await server.start()
        assert "result" in await ask(server, request("daemon.status"))
        await until(lambda: not server.clients)
        await test_a_line_without_end_is_refused(server)
        reader, writer = await connect(server)
        await server.stop()
        assert await reader.read() == b""
        writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_a_client_without_a_daemon_says_what_to_do(tmp_path):
    with pytest.raises(Unreachable, match="start one with `rustosd run`"):
        Client(str(tmp_path / "none.sock"))


def test_endpoints_read_like_urls():
    assert [endpoint("10.77.0.2", 80), endpoint("fd77::2", 80), endpoint(None, 80)] == [
        "10.77.0.2:80", "[fd77::2]:80", "*:80"]


def test_the_connection_list_is_cut_and_says_of_how_many(core):
    core.stack.connection_rows = core.stack.connection_rows * 10
    operations = Operations(core)
    for limit, shown in ((1, 1), (2, 2), (5, 5), (12, 12), (100, 12)):
        answer = operations.conn_list(p.ConnectionQuery(limit=limit))
        assert (answer.total, len(answer.connections)) == (12, shown)
    assert [row.protocol for row in answer.connections[:3]] == ["tcp", "udp", "tcp"]
    assert answer.connections[2].id == "7.2" and answer.connections[2].rtt_us == 250.0
