"""Many programs, greedy ones, dead ones and hostile ones: each is bounded, and none leaves anything behind."""

import array
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rustosd.client import Daemon, Socket, StreamSocket
from rustosd.client.session import Door
from tests.peers.conftest import V4
from tests.rustosd.handoff.conftest import PATIENCE_S, inside

LINUX = "10.77.0.1"
RECEIVE_BUFFER = 1 << 20        # of the default configuration


def until(condition, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return found


def descriptors(peer):
    return len(os.listdir(f"/proc/{peer.process.pid}/fd"))


def alive(peer, port):
    """Our connections with a port of the peer that are not in TIME-WAIT."""
    return [row for row in peer.ctl("conn", "list")["connections"]
            if (row["remote"] or "").endswith(f":{port}") and row["state"] != "time_wait"]


@pytest.fixture
def start(environment):
    """Start a client program and wait for its first word."""
    running = []

    def begin(*arguments):
        process = subprocess.Popen([sys.executable, "-m", "tests.rustosd.handoff.programs", *map(str, arguments)],
                                   env=environment, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def linux(peer):
    """A listening socket of Linux."""
    with inside(peer.netns.path, lambda: socket.create_server((LINUX, 0))) as listener:
        listener.settimeout(20)
        yield listener


@pytest.fixture
def nothing_left(peer):
    """The daemon has as many descriptors afterwards as before."""
    before = descriptors(peer)
    yield
    until(lambda: descriptors(peer) <= before + 4)      # idle sessions of this process


def test_a_client_that_is_killed_in_a_transfer_leaves_nothing(peer, start, linux, nothing_left):
    process = start("transfer", *linux.getsockname())
    accepted, _ = linux.accept()
    assert process.stdout.readline() == "sending\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    accepted.settimeout(20)
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while part := accepted.recv(1 << 20):
            received += len(part)
    assert received > 0
    accepted.close()
    until(lambda: not alive(peer, linux.getsockname()[1]))


def test_a_client_that_is_killed_with_octets_unread_resets_its_peer(peer, start, linux, nothing_left):
    process = start("stall", *linux.getsockname())
    accepted, _ = linux.accept()
    assert process.stdout.readline()
    accepted.sendall(b"never read")
    until(lambda: alive(peer, linux.getsockname()[1])[0]["rx_octets"] == 10)
    process.kill()
    accepted.settimeout(20)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    accepted.close()


def test_a_client_that_stalls_closes_the_window_and_holds_bounded_memory(peer, start, linux, nothing_left):
    process = start("stall", *linux.getsockname())
    accepted, _ = linux.accept()
    assert process.stdout.readline()
    before = peer.resident_octets()
    accepted.setblocking(False)
    quiet, sent = 0, 0
    while quiet < 20:
        try:
            sent += accepted.send(bytes(1 << 20))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.02)
    (row,) = alive(peer, linux.getsockname()[1])
    assert 0 < row["unread_octets"] <= RECEIVE_BUFFER + 65536
    assert row["rx_octets"] < 8 << 20
    assert peer.resident_octets() - before < 8 << 20
    process.kill()
    until(lambda: not alive(peer, linux.getsockname()[1]))
    accepted.close()


def test_hundreds_of_connections_by_several_processes(peer, start, nothing_left):
    processes = [start("echo", V4, 7, 100, 20_000) for _ in range(5)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["100\n"] * 5


def test_a_process_has_no_more_sockets_than_allowed(peer, daemon, nothing_left):
    held = []
    try:
        with pytest.raises(OSError, match="max_sockets_per_process") as caught:
            for _ in range(1100):
                held.append(Socket(socket.AF_INET, socket.SOCK_DGRAM, daemon=daemon))
        assert caught.value.errno == errno.EMFILE
        assert 1000 < len(held) <= 1024
    finally:
        for sock in held:
            sock.close()
    until(lambda: works(daemon))


def works(daemon):
    with contextlib.suppress(OSError), Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon):
        return True
    return False


def test_a_full_backlog_leaves_further_connections_unanswered(peer, daemon, nothing_left):
    listener = Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon)
    listener.bind(("", 0))
    listener.listen(3)
    made = []

    def connect(patience_s=PATIENCE_S):
        sock = inside(peer.netns.path, lambda: socket.socket())
        sock.settimeout(patience_s)
        code = sock.connect_ex((V4, listener.getsockname()[1]))
        if code:
            sock.close()        # or it would go on trying, and take the place of the next
        else:
            made.append(sock)
        return code

    assert [connect() for _ in range(3)] == [0, 0, 0]
    assert connect(1) != 0
    accepted, _ = listener.accept()
    until(lambda: connect(1) == 0)
    for sock in (*made, accepted, listener):
        sock.close()


def test_sockets_outlive_the_session_they_were_asked_for_on(peer, nothing_left):
    daemon = Daemon(str(peer.control))
    sock = Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon)
    sock.connect((V4, 7))
    daemon.close()
    sock.sendall(b"still there")
    assert sock.recv(100) == b"still there"
    sock.close()


def test_a_child_process_goes_on_with_the_sockets_of_its_parent(peer, daemon, nothing_left):
    with Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon) as sock:
        sock.connect((V4, 7))
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                sock.sendall(b"from the child")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon) as other:
                    other.connect((V4, 7))
                status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert sock.recv(100) == b"from the child"      # and its end was not ours


# hostile ones, on the session and on the control socket

@pytest.fixture
def session(peer):
    with contextlib.closing(Door(str(peer.control)).open()) as made:
        yield made


@pytest.mark.parametrize("packet", [
    b"x", b"{}", b"[]", b"\xff\xfe", b'{"op":"open"}', b'{"op":"open","type":"raw","family":4}',
    b'{"op":"open","type":"stream","family":5}', b'{"op":"fly"}', b'{"op":"names","id":"x"}',
    b'{"op":"bind","id":"0123456789abcdef","host":"%s","port":1}' % (b"1" * 100),
    b'{"op":"bind","id":"0123456789abcdef","host":"","port":70000}', b"[" * 4000, b"x" * 5000,
    b'{"op":"names","id":"0123456789abcdef"}',
], ids=range(14))
def test_what_is_no_request_is_refused_and_the_session_goes_on(session, packet):
    session._end.send(packet)
    assert session.receive()["errno"] in (errno.EPROTO, errno.EMSGSIZE, errno.ENOTCONN)
    session.send({"op": "open", "type": "stream", "family": 4})
    answer = session.receive()
    assert len(answer["id"]) == 16
    os.close(answer.fd)


@pytest.mark.parametrize(("operation", "code"), [
    ({"op": "bind", "host": "no address", "port": 0}, errno.EINVAL),
    ({"op": "connect", "host": "300.1.1.1", "port": 1}, errno.EINVAL),
    ({"op": "connect", "host": V4, "port": 0}, errno.EINVAL),
    ({"op": "connect", "host": "fd77::1", "port": 1}, errno.EAFNOSUPPORT),
    ({"op": "connect", "host": "198.51.100.1", "port": 1, "chaff": 1 << 29}, 0),
    ({"op": "facts"}, errno.ENOTCONN), ({"op": "listen", "backlog": -5}, 0), ({"op": "listen", "backlog": 1 << 62}, 0),
    ({"op": "set", "option": "receive_buffer", "value": 1}, 0), ({"op": "set", "option": "x", "value": 1}, errno.EPROTO),
])
def test_operations_that_cannot_be_done_say_so(session, operation, code):
    session.send({"op": "open", "type": "stream", "family": 4})
    answer = session.receive()
    session.send(operation | {"id": answer["id"]})
    assert session.receive().get("errno", 0) == code
    os.close(answer.fd)


def test_descriptors_that_clients_send_are_closed(peer, session, nothing_left):
    with open("/dev/null") as null:
        many = array.array("i", [null.fileno()] * 253)
        for _ in range(20):
            session._end.sendmsg([b'{"op":"open"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
            assert session.receive()["errno"] == errno.EPROTO
        with contextlib.closing(Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=Daemon(str(peer.control)))) as sock:
            sock.connect((V4, 7))
            for k in range(20):
                socket.socket.sendmsg(sock, [b"data %2d" % k], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
            octets = b""
            while len(octets) < 140:
                octets += sock.recv(1000)
            assert octets == b"".join(b"data %2d" % k for k in range(20))


def test_a_client_that_does_not_read_its_answers_loses_its_session(peer, session):
    session._end.setblocking(False)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(200_000):
            with contextlib.suppress(BlockingIOError):
                session._end.send(b'{"op":"open","type":"stream","family":4}')
    session._end.close()
    until(lambda: works(Daemon(str(peer.control))))


def test_nonsense_on_the_sockets_themselves_harms_nobody_else(peer, daemon, nothing_left):
    listener = Socket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon)
    listener.bind(("", 0))
    listener.listen()
    for _ in range(10):
        os.write(listener.fileno(), bytes(1000))        # takes what was never given
    datagrams = Socket(socket.AF_INET, socket.SOCK_DGRAM, daemon=daemon)
    datagrams.bind(("", 0))
    for octets in (b"short", bytes(20), bytes(16) + b"\0\0\0\0", b"\xff" * 30, bytes(65548), bytes(100_000)):
        with contextlib.suppress(OSError):
            os.write(datagrams.fileno(), octets)
    codes = set()
    datagrams.settimeout(1)
    while True:
        try:
            datagrams.recv(100)
        except TimeoutError:
            break
        except OSError as error:
            codes.add(error.errno)
    datagrams.settimeout(PATIENCE_S)
    assert codes <= {errno.EINVAL, errno.EDESTADDRREQ, errno.EMSGSIZE, errno.EAFNOSUPPORT, errno.ENETUNREACH}
    datagrams.sendto(b"works still", (V4, 7))
    assert datagrams.recv(100) == b"works still"
    sock = StreamSocket(socket.AF_INET, socket.SOCK_STREAM, daemon=daemon)
    sock.connect(("127.0.0.1", listener.getsockname()[1]))
    listener.accept()[0].close()
    for one in (listener, datagrams, sock):
        one.close()


def test_half_a_request_on_the_control_socket_costs_nothing(peer, nothing_left):
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as half:
            half.connect(str(peer.control))
            half.send(b'{"jsonrpc":"2.0","id":1,"method":"socket.sess')
    for _ in range(100):
        Door(str(peer.control))._socket.close()         # does not wait for its session
    until(lambda: works(Daemon(str(peer.control))))


# who may

AS_ANOTHER_USER = """
import os
from rustosd.client import Socket
from rustosd.control.client import Client
os.setgroups({groups})
os.setgid(12345)
os.setuid(12345)
for use in (Socket, lambda: Client(os.environ["RUSTOSD_SOCKET"]).call("daemon.status")):
    try:
        print(use().fileno() >= 0)
    except Exception as error:
        print(error)
"""


def as_another_user(control, groups):
    """What a user of these groups gets: a socket, and the daemon's status."""
    for path in (control, *control.parents):
        if path != Path("/") and path.is_dir():
            path.chmod(path.stat().st_mode | 0o001)     # pytest made it for us alone
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER_USER.format(groups=groups)],
                          env=os.environ | {"RUSTOSD_SOCKET": str(control)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_others_are_refused_and_told_why(peer):
    sock, status = as_another_user(peer.control, [])
    assert "no permission to open" in sock and "[sockets]" in sock
    assert "no permission to open" in status


def test_members_of_the_group_get_sockets_and_nothing_else(peer, tmp_path):
    """Of a second control socket in front of nothing but a session's other end."""
    program = f"""
import asyncio, socket, sys
from rustosd.control.operations import Operations
from rustosd.control.groups import Groups
from rustosd.control.server import ControlServer
from tests.rustosd.fake import FakeCore
from netstack.sockets import AsyncStack
from netstack.stack import Stack
from rustosd.handoff import Handoff

async def main():
    handoff = Handoff(AsyncStack(Stack(bytes(32)), asyncio.get_running_loop(), lambda: None))
    core = FakeCore()
    core.open_session = handoff.open_session
    server = ControlServer({str(tmp_path / "control.sock")!r}, Operations(core), groups=Groups(sockets=23456))
    await server.start()
    print("up", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"up\n"
        assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o660
        assert as_another_user(tmp_path / "control.sock", [23456]) == [
            "True", "daemon.status is not permitted: be root, or in the group that read_group or change_group under [control] "
                    "names"]
        assert "no permission to open" in as_another_user(tmp_path / "control.sock", [23457])[0]
        server.stdin.close()


def test_a_daemon_that_is_not_there_is_named_with_what_to_do():
    with pytest.raises(OSError, match="start one with `rustosd run`") as caught:
        Socket(daemon=Daemon("/nonexistent/control.sock"))
    assert caught.value.errno == errno.ENETDOWN


