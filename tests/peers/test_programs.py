"""Unmodified programs whose sockets are the stack's, with Linux in the same namespace as their peer."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.conftest import CONTROL, V4, V6, Peer, need

HERE = Path(__file__).resolve().parent
KERNEL = {V4: "10.77.0.1", V6: "fd77::1"}
LIMIT_S = 120


def command(peer: Peer, *argv: str, options: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-c", CONTROL, "--socket", str(peer.control), "run", *options, "--", *argv]


def run(peer: Peer, *argv: str, options: tuple[str, ...] = (), **more) -> subprocess.CompletedProcess:
    return peer.netns.run(*command(peer, *argv, options=options), check=False, timeout=LIMIT_S, **more)


class Running:
    """A program that runs on the stack until the test has done with it."""

    def __init__(self, peer: Peer, *argv: str, port: int, options: tuple[str, ...] = ()) -> None:
        self.process = peer.netns.popen(*command(peer, *argv, options=options), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        limit = time.monotonic() + LIMIT_S
        while peer.netns.run("nc", "-z", "-w", "1", V4, str(port), check=False).returncode:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < limit
            time.sleep(0.1)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        return self.process.wait()


@pytest.fixture(scope="module")
def uppercase(peer: Peer) -> Iterator[None]:
    process = peer.netns.popen(sys.executable, str(HERE / "socket_peers.py"), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def files(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a big file, and where Linux serves it."""
    folder = tmp_path_factory.mktemp("www")
    (folder / "big").write_bytes(os.urandom(3_000_000))
    process = peer.netns.popen(sys.executable, "-m", "http.server", "-b", KERNEL[V4], "-d", str(folder), "8000",
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peer.netns.run("sh", "-c", f"until nc -z {KERNEL[V4]} 8000; do sleep 0.1; done")
    yield folder, f"http://{KERNEL[V4]}:8000/big"
    process.kill()
    process.wait()


@pytest.mark.parametrize("host", [V4, V6], ids=["ipv4", "ipv6"])
def test_a_program_that_uses_sockets_in_every_way_sees_what_it_sees_on_linux(peer: Peer, uppercase: None, host: str) -> None:
    script = str(HERE / "socket_calls.py")
    native = peer.netns.run(sys.executable, script, KERNEL[host], KERNEL[host], timeout=LIMIT_S).stdout
    ours = run(peer, sys.executable, script, KERNEL[host], host)
    assert ours.stdout == native, ours.stderr
    assert native.endswith("done\n")


@pytest.mark.parametrize("seed", [1, 2])
def test_calls_that_make_no_sense_are_refused_and_harm_nobody(peer: Peer, uppercase: None, seed: int) -> None:
    made = run(peer, sys.executable, str(HERE / "hostile_calls.py"), str(seed), KERNEL[V4])
    assert made.returncode == 0, made.stderr
    refused, heard = made.stdout.splitlines()
    assert {"EFAULT", "EINVAL", "EBADF", "ENOTSOCK", "EAFNOSUPPORT", "ENOPROTOOPT"} <= set(refused.split())
    assert heard == "STILL HERE" and "Traceback" not in made.stderr


SILENT_PEER = """
import errno, socket, sys, time
for options in ({"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}, {"TCP_USER_TIMEOUT": 2000}):
    one = socket.create_connection((sys.argv[1], 18091), 10)
    for name, value in options.items():
        one.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        if "TCP_USER_TIMEOUT" in options:
            one.sendall(b"is anybody there?")
        one.settimeout(60)
        print(one.recv(100))
    except TimeoutError as failed:
        print(errno.errorcode.get(failed.errno), flush=True)
    except OSError as failed:
        print(errno.errorcode[failed.errno], flush=True)
"""


def test_a_peer_that_falls_silent_is_noticed_in_the_time_that_the_program_sets(peer: Peer, uppercase: None) -> None:
    other = "10.77.0.66"
    peer.netns.run("ip", "address", "add", f"{other}/24", "dev", "rustos0")
    program = peer.netns.popen(*command(peer, sys.executable, "-u", "-c", SILENT_PEER, other), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(2):
            assert program.stdout.readline() == "ready\n"
            peer.netns.run("ip", "address", "del", f"{other}/24", "dev", "rustos0")
            print("now", file=program.stdin, flush=True)
            assert program.stdout.readline() == "ECONNRESET\n"      # the kernel's ends know no other way to fail
            peer.netns.run("ip", "address", "add", f"{other}/24", "dev", "rustos0")
        assert program.wait(LIMIT_S) == 0
    finally:
        program.kill()
        program.communicate()
        peer.netns.run("ip", "address", "del", f"{other}/24", "dev", "rustos0", check=False)


BOUND_TO_ANY = """
import errno, socket
def bound():
    one = socket.socket()
    one.bind(("", 0))
    return one
many = [bound() for _ in range(60)]
ports = [one.getsockname()[1] for one in many]
assert len(set(ports)) == 60 and min(ports) >= 49152, ports
assert {one.getsockname()[0] for one in many} == {"0.0.0.0"}
for refused in (("", 0), ("", ports[0] + 1)):
    try:
        many[-1].bind(refused)
    except OSError as failed:
        assert failed.errno == errno.EINVAL
    else:
        raise AssertionError("bound twice")
many[-1].connect((HOST, 18091))
assert many[-1].getsockname()[1] == ports[-1]
many[-1].sendall(b"from there")
print(many[-1].recv(100).decode(), ports[-2])
many[-2].listen()
assert many[-2].getsockname()[1] == ports[-2]
accepted, peer = many[-2].accept()
print(accepted.recv(100).decode(), flush=True)
"""


def test_a_bind_to_any_port_is_true_before_the_daemon_hears_of_it(peer: Peer, uppercase: None) -> None:
    program = peer.netns.popen(*command(peer, sys.executable, "-u", "-c", f"HOST = '{KERNEL[V4]}'\n{BOUND_TO_ANY}"),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    heard = program.stdout.readline().split()
    assert heard[:2] == ["FROM", "THERE"], heard + program.stdout.readlines()
    peer.netns.run("sh", "-c", f"until echo hello | nc -N -w 5 {V4} {heard[2]}; do sleep 0.1; done", timeout=LIMIT_S)
    assert program.communicate(timeout=LIMIT_S)[0] == "hello\n\n" and program.returncode == 0


def test_it_leaves_no_socket_behind(peer: Peer, uppercase: None) -> None:
    before = len(peer.ctl("conn", "list")["connections"])
    run(peer, sys.executable, "-c", "import socket; kept = [socket.socket(kind=k) for k in (1, 2) for _ in range(50)]\n"
                                    f"kept[0].connect(('{KERNEL[V4]}', 18091)); kept[1].bind(('', 4500)); kept[1].listen()")
    wait_for(lambda: sum(row["state"] != "time_wait" for row in peer.ctl("conn", "list")["connections"]) <= before,
             "it has left some")


def test_curl(peer: Peer, files: tuple[Path, str]) -> None:
    folder, address = files
    need("curl")
    done = run(peer, "curl", "-sS", "-o", str(folder / "fetched"), "-w", "%{local_ip}", address)
    assert (done.returncode, done.stdout) == (0, V4), done.stderr
    assert (folder / "fetched").read_bytes() == (folder / "big").read_bytes()


def test_a_name_that_is_cut_off_in_the_middle_of_a_character(peer: Peer, files: tuple[Path, str], tmp_path: Path) -> None:
    odd = tmp_path / "überlangerer-ähnlicher"
    shutil.copy(need("curl"), odd)
    done = run(peer, str(odd), "-s", "-o", "/dev/null", "-w", "%{size_download}", files[1])
    assert (done.returncode, done.stdout) == (0, "3000000"), done.stderr
    done = run(peer, str(odd), "-s", "-o", "/dev/null", files[1], options=("--untraced",))
    assert done.returncode == 0, done.stderr


def test_a_static_program(peer: Peer, files: tuple[Path, str]) -> None:
    folder, address = files
    run(peer, need("busybox"), "wget", "-q", "-O", str(folder / "static"), address)
    assert (folder / "static").read_bytes() == (folder / "big").read_bytes()


def test_pythons_http_server(peer: Peer, files: tuple[Path, str]) -> None:
    folder, _ = files
    with Running(peer, sys.executable, "-m", "http.server", "-d", str(folder), "8080", port=8080) as server:
        fetched = peer.netns.run("sh", "-c", f"curl -sS http://{V4}:8080/big | cmp - {folder / 'big'}")
        assert fetched.returncode == 0
        assert server.stop() == 128 + signal.SIGTERM


def iperf3(peer: Peer, *more: str) -> dict:
    """A client's report. Between two tests the server listens anew, on Linux too: who comes just then tries again."""
    limit = time.monotonic() + 20
    while True:
        report = json.loads(peer.netns.run("iperf3", "-c", V4, "-p", "5333", "-t", "1", "-J", *more, check=False).stdout)
        if "refused" not in report.get("error", "") or time.monotonic() > limit:
            return report
        time.sleep(0.1)


def test_iperf3_both_ways(peer: Peer) -> None:
    need("iperf3")
    with Running(peer, "iperf3", "-s", "-p", "5333", port=5333):
        for more in ((), ("-R",), ("-u", "-b", "20M")):
            report = iperf3(peer, *more)
            assert "error" not in report, report["error"]


def test_redis_and_its_benchmark(peer: Peer) -> None:
    need("redis-server")
    with Running(peer, "redis-server", "--port", "6400", "--save", "", "--protected-mode", "no", port=6400) as server:
        quick = ("redis-benchmark", "-h", V4, "-p", "6400", "-t", "set,get,lpush", "-n", "3000", "-c", "20", "--csv")
        assert peer.netns.run(*quick).stdout.count("\n") == 4       # a header and three rows
        ours = run(peer, *quick)                                    # both ends on the stack
        assert ours.stdout.count("\n") == 4, ours.stderr
        peer.netns.run("redis-cli", "-h", V4, "-p", "6400", "shutdown", "nosave", check=False)
        assert server.process.wait(30) == 0


def test_nginx_with_workers_reloads_without_losing_anybody(peer: Peer, files: tuple[Path, str], tmp_path: Path) -> None:
    nginx = need("nginx")
    folder, _ = files
    (tmp_path / "conf").write_text(
        f"user root; worker_processes 2; daemon off; error_log {tmp_path}/err; pid {tmp_path}/pid;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; server {{ listen 8088; root {folder}; }} }}\n")
    with Running(peer, nginx, "-p", str(tmp_path), "-c", str(tmp_path / "conf"), port=8088) as server:
        for _ in range(3):
            done = peer.netns.run("sh", "-c", f"curl -sS http://{V4}:8088/big | cmp - {folder / 'big'}")
            assert done.returncode == 0
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGHUP)
        master = int((tmp_path / "pid").read_text())
        os.kill(master, signal.SIGQUIT)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("tool", ["node", "java"])
def test_other_runtimes(peer: Peer, files: tuple[Path, str], tmp_path: Path, tool: str) -> None:
    need(tool)
    source = {"node": f"require('http').get('{files[1]}', r => {{ let n = 0; r.on('data', d => n += d.length); "
                      "r.on('end', () => console.log(n)); })",
              "java": "public class P { public static void main(String[] a) throws Exception { System.out.println("
                      f"new java.net.URL(\"{files[1]}\").openStream().readAllBytes().length); }} }}"}[tool]
    (tmp_path / "P.java").write_text(source)
    argv = [tool, "-e", source] if tool == "node" else [tool, str(tmp_path / "P.java")]
    done = run(peer, *argv)
    assert done.stdout.strip() == "3000000", done.stderr


def test_wget(peer: Peer, files: tuple[Path, str]) -> None:
    folder, address = files
    done = run(peer, need("wget"), "-q", "-O", str(folder / "got"), address)
    assert done.returncode == 0 and (folder / "got").read_bytes() == (folder / "big").read_bytes()


def test_a_go_client(peer: Peer, files: tuple[Path, str]) -> None:
    """Go makes no use of libc's sockets, polls by itself and has a thread for whatever blocks."""
    done = run(peer, need("hey"), "-n", "60", "-c", "6", files[1])
    assert re.search(r"\[200\]\s+60 responses", done.stdout), done.stdout + done.stderr


def test_a_go_server(peer: Peer, files: tuple[Path, str]) -> None:
    folder, _ = files
    with Running(peer, need("websocketd"), "--port", "8091", "--staticdir", str(folder), port=8091) as server:
        fetched = peer.netns.run("sh", "-c", f"curl -sS http://{V4}:8091/big | cmp - {folder / 'big'}")
        assert fetched.returncode == 0
        assert server.stop() == 128 + signal.SIGTERM


def test_pythons_asyncio_on_both_ends(peer: Peer) -> None:
    script = """
import asyncio
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, sender): self.transport.sendto(data.upper(), sender)
class Client(asyncio.DatagramProtocol):
    def __init__(self): self.got = asyncio.get_running_loop().create_future()
    def datagram_received(self, data, sender): self.got.set_result(data)
async def once(number):
    reader, writer = await asyncio.open_connection("10.77.0.2", 8092)
    sent = bytes([number]) * 300_000
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == sent
    writer.close()
async def main():
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(echo, "10.77.0.2", 8092):
        await asyncio.gather(*map(once, range(20)))
    await loop.create_datagram_endpoint(Datagrams, ("10.77.0.2", 8093))
    transport, client = await loop.create_datagram_endpoint(Client, remote_addr=("10.77.0.2", 8093))
    transport.sendto(b"hello")
    print(await asyncio.wait_for(client.got, 30))
asyncio.run(main())
"""
    done = run(peer, sys.executable, "-c", script)
    assert done.stdout == "b'HELLO'\n", done.stderr


ACCEPTING = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 8095), backlog=64, family=family)
print("ready")
for number in range(int(sys.argv[2])):
    one, peer = listener.accept()
    assert one.getpeername() == peer and one.getsockname()[:2] == (sys.argv[1], 8095)
    if heard := one.recv(100):
        one.sendall(b"%s from %d" % (heard, peer[1]))
    one.close()
listener.close()
print("closed")
time.sleep(60)
"""
CONNECTING = """
import socket, sys
where, several = (sys.argv[1], 8095), int(sys.argv[2])
for number in range(0, int(sys.argv[3]), several):
    many = [socket.create_connection(where, 30) for _ in range(several)]
    for one in many:
        one.sendall(b"hello")
    for one in many:
        expected = b"hello from %d" % one.getsockname()[1]
        while expected:
            part = one.recv(100)
            assert part and expected.startswith(part), (part, expected)
            expected = expected[len(part):]
        assert one.recv(100) == b""
"""


@pytest.mark.parametrize(("host", "several"), [(V4, 1), (V4, 30), (V6, 30)])
def test_descriptors_that_are_ahead_of_many_connections_go_with_their_listener(peer: Peer, host: str, several: int) -> None:
    def held() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    def connect() -> None:
        peer.netns.run(sys.executable, "-c", CONNECTING, host, str(several), "300", timeout=LIMIT_S)

    server = peer.netns.popen(*command(peer, sys.executable, "-u", "-c", ACCEPTING, host, "600"), stdout=subprocess.PIPE,
                              text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        few = held()
        connect()
        assert held() > few + 20
        connect()
        assert server.stdout.readline() == "closed\n"
        wait_for(lambda: held() <= few, "they are let go of")
    finally:
        server.terminate()
        server.communicate(timeout=LIMIT_S)


def test_connections_are_not_lost_where_there_is_room_for_few_descriptors(peer: Peer) -> None:
    server = peer.netns.popen("prlimit", "--nofile=60:60", *command(peer, sys.executable, "-u", "-c", ACCEPTING, V4, "600"),
                              stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        peer.netns.run(sys.executable, "-c", CONNECTING, V4, "10", "600", timeout=LIMIT_S)
        assert server.stdout.readline() == "closed\n"
    finally:
        server.terminate()
        server.communicate(timeout=LIMIT_S)


def test_redis_cli_talks_to_linux(peer: Peer) -> None:
    server = peer.netns.popen(need("redis-server"), "--port", "6401", "--save", "", "--protected-mode", "no",
                              stdout=subprocess.DEVNULL)
    try:
        peer.netns.run("sh", "-c", f"until nc -z {KERNEL[V4]} 6401; do sleep 0.1; done")
        client = ("redis-cli", "-h", KERNEL[V4], "-p", "6401")
        assert run(peer, *client, "set", "key", "x" * 100_000).stdout == "OK\n"
        assert run(peer, *client, "get", "key").stdout == "x" * 100_000 + "\n"
        piped = run(peer, *client, "--pipe", input="".join(f"SET k{i} {i}\r\n" for i in range(5000)))
        assert "errors: 0, replies: 5000" in piped.stdout, piped.stdout + piped.stderr
    finally:
        server.kill()
        server.wait()


def test_the_openssh_client(peer: Peer, tmp_path: Path) -> None:
    """To a server on Linux that takes a key made for this: its user's home is a folder of ours, for it alone."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    for command in (("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")),
                    (need("dropbearkey"), "-t", "ed25519", "-f", str(tmp_path / "host"))):
        need(command[0])
        subprocess.run(command, check=True, capture_output=True)
    (home / ".ssh" / "authorized_keys").write_text((tmp_path / "key.pub").read_text())
    start = f"mount --bind {home} ~root && exec {need('dropbear')} -F -E -s -r {tmp_path / 'host'} -p {KERNEL[V4]}:2222"
    server = peer.netns.popen("unshare", "-m", "sh", "-c", start, stderr=subprocess.PIPE, text=True)
    try:
        peer.netns.run("sh", "-c", f"until nc -z {KERNEL[V4]} 2222; do sleep 0.1; done")
        ssh = (need("ssh"), "-F", "none", "-i", str(tmp_path / "key"), "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o",
               f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "BatchMode=yes", f"root@{KERNEL[V4]}")
        done = run(peer, *ssh, "wc -c; echo $SSH_CONNECTION; exit 5", input="x" * 500_000)
        assert done.returncode == 5, done.stderr
        octets, connection = done.stdout.splitlines()
        assert octets == "500000" and connection.startswith(f"{V4} ")
    finally:
        server.kill()
        server.wait()


# What a person sees of `run` itself.

def test_the_exit_status_is_the_programs(peer: Peer) -> None:
    assert run(peer, "sh", "-c", "exit 7").returncode == 7
    assert run(peer, "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    missing = run(peer, "no-such-program")
    assert (missing.returncode, missing.stderr) == (127, "rustosctl: no-such-program: No such file or directory\n")
    assert run(peer, "/etc").returncode == 126


def test_it_runs_as_whom_and_where_it_is_told(peer: Peer) -> None:
    done = run(peer, "sh", "-c", 'id -un; pwd; echo "$X $HOME."',
               options=("--user", "nobody", "--chdir", "/usr", "--env", "X=1", "--env", "HOME"))
    assert done.stdout == "nobody\n/usr\n1 .\n", done.stderr


def test_what_the_stack_does_not_answer_reaches_nobody(peer: Peer) -> None:
    done = run(peer, "sh", "-c", "ip -br address", options=())
    assert V4 in done.stdout and KERNEL[V4] not in done.stdout
    counted = run(peer, sys.executable, "-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
                  options=("--counts",))
    assert "Operation not permitted" in counted.stderr and "refused 1 times: socket type 3" in counted.stderr


def wait_for(condition, what: str):
    limit = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < limit, what
        time.sleep(0.05)
    return found


def test_programs_are_looked_after_while_they_run(peer: Peer) -> None:
    def rows():
        return {row["name"]: row for row in peer.ctl("ps")["processes"]}

    with Running(peer, "sh", "-c", "nc -lk -p 7777 & wait", port=7777) as running:
        table = rows()
        assert table["rustosd"]["pid"] == 0
        assert table["nc"]["parent"] == table["sh"]["pid"] and table["nc"]["group"] == running.process.pid
        pid = str(table["nc"]["pid"])
        listening = [row for row in peer.ctl("process", "fds", pid)["descriptors"] if row["state"] == "listening"]
        assert [(row["protocol"], row["local"]) for row in listening] == [("tcp", "0.0.0.0:7777")]
        assert peer.ctl("process", "show", pid)["process"]["calls"]["listen"] == 1
        control(peer, "suspend", pid)
        wait_for(lambda: rows()["nc"]["state"] == "stopped", "it was not suspended")
        control(peer, "resume", pid)
        control(peer, "nice", pid, "7")
        assert rows()["nc"]["nice"] == 7
        refused = control(peer, "kill", "0", status=1)
        assert "process 0 is the daemon" in refused
        assert "rustosctl ps" in control(peer, "kill", str(os.getpid()), status=1)      # not one of ours
        control(peer, "kill", pid)
        wait_for(lambda: "nc" not in rows(), "it was not killed")
    wait_for(lambda: list(rows()) == ["rustosd"], "it is told of after its end")


def control(peer: Peer, *argv: str, status: int = 0) -> str:
    """What a command says on stderr; it ends with this status."""
    done = peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), *argv, check=False)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_a_detached_program_goes_on_without_the_terminal(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTOSD_PROGRAM_LOGS", str(tmp_path))
    script = "echo to out; echo to err >&2; until [ -e go ]; do sleep 0.1; done; exit 9"
    detached = run(peer, "sh", "-c", script, options=("--detach", "--name", "worker", "--chdir", str(tmp_path)))
    pid = detached.stdout.strip()
    assert detached.returncode == 0 and Path(f"/proc/{pid}/comm").read_text() == "sh\n"
    assert os.getsid(int(pid)) not in (os.getsid(0), int(pid))
    assert pid in [str(row["pid"]) for row in peer.ctl("ps")["processes"] if row["program"] == "worker"]
    assert "runs already" in run(peer, "true", options=("--detach", "--name", "worker")).stderr
    waiting = [peer.netns.popen(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "wait", who)
               for who in ("worker", pid)]
    (tmp_path / "go").touch()
    assert [each.wait(LIMIT_S) for each in waiting] == [9, 9]
    control(peer, "wait", "worker", status=9)       # asked when it is long over
    written = peer.netns.run(sys.executable, "-c", CONTROL, "logs", "worker").stdout.splitlines()
    assert written[1:3] == ["to out", "to err"] and written[3].endswith("ended with status 9")
    assert "logs are there of: worker;" in control(peer, "logs", "nobody", status=1)


def test_what_keeps_a_detached_program_from_running_is_said_at_once(peer: Peer, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTOSD_PROGRAM_LOGS", str(tmp_path))
    failed = run(peer, "no-such-program", options=("--detach",))
    assert (failed.returncode, failed.stderr) == (127, "rustosctl: no-such-program: No such file or directory\n")
    assert list(tmp_path.iterdir()) == []
    assert "rustosctl ps" in control(peer, "wait", "nobody", status=1)


def asks_the_daemon(pid: int) -> None:
    """Return once a rustosctl sleeps on its answer: it has a socket, and waits for what comes there."""
    limit = time.monotonic() + LIMIT_S
    asleep = 0
    while asleep < 20:
        assert time.monotonic() < limit
        targets = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):        # closed since
                targets.append(os.readlink(entry))
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        asleep = asleep + 1 if state == "S" and any(target.startswith("socket:") for target in targets) else 0
        time.sleep(0.01)


def test_a_process_that_a_program_started_can_be_waited_for(peer: Peer) -> None:
    with Running(peer, "sh", "-c", "nc -lk -p 7778 & wait; sleep 60", port=7778) as running:
        (row,) = [row for row in peer.ctl("ps")["processes"] if row["name"] == "nc"]
        waiting = peer.netns.popen(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "wait", str(row["pid"]))
        asks_the_daemon(waiting.pid)
        assert waiting.poll() is None
        control(peer, "kill", str(row["pid"]))
        assert waiting.wait(LIMIT_S) == 0
        assert running.process.poll() is None


def test_what_it_leaves_running_is_ended(peer: Peer) -> None:
    mark = f"4242{os.getpid()}"
    assert run(peer, "sh", "-c", f"sleep {mark} & exit 3").returncode == 3
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False).stdout == b""


def test_below_another_one_it_says_why_not(peer: Peer) -> None:
    for options in ((), ("--host-network",)):
        done = run(peer, *command(peer, "true", options=options))
        assert done.returncode == 126 and "another rustosctl run" in done.stderr, done.stderr


def test_without_a_daemon_it_says_what_to_do(peer: Peer, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", CONTROL, "--socket", str(tmp_path / "none"), "run", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "rustosd run" in done.stderr


def test_a_supervisor_that_is_killed_takes_its_program_along(peer: Peer) -> None:
    mark = f"4343{os.getpid()}"
    process = peer.netns.popen(*command(peer, "sleep", mark))
    limit = time.monotonic() + LIMIT_S
    while not (found := re.findall(rb"\d+", subprocess.run(["pgrep", "-xf", f"sleep {mark}"], capture_output=True,
                                                           check=False).stdout)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.kill()
    process.wait()
    while (state := _state(int(found[0]))) not in ("", "Z"):        # a zombie waits for init
        assert time.monotonic() < limit, state
        time.sleep(0.05)


def _state(pid: int) -> str:
    """As proc(5) has it; empty: there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
