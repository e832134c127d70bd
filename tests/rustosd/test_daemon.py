"""The whole daemon as a process in a network of its own, with the kernel, ping, curl and iperf3 as its peers."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rustosd.services.http import PERIOD
from tests.support.netns import Netns

CONFIG = """\
[control]
socket = "{directory}/run/control.sock"
[host]
journal = "{directory}/run/journal.jsonl"
[crash]
directory = "{directory}/crash"
[[disk]]
name = "disk0"
path = "{directory}/disks/disk0.img"
size = "64MiB"
"""
START_S = STOP_S = 60


def need(*commands):
    missing = [command for command in commands if not shutil.which(command)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; scripts/test installs them")


class Running:
    """A daemon that runs in a namespace, its output, and rustosctl beside it."""

    def __init__(self, netns, directory, config="", stdout=None):
        self.netns = netns
        self.directory = directory
        self.file = directory / "rustosd.toml"
        self.file.write_text(CONFIG.format(directory=directory) + config)
        self.output = open(directory / "output", "w+")      # noqa: SIM115 (closed by stop)
        self.process = netns.popen(sys.executable, "-c", "from rustosd.cli.daemon import main; main()", "run",
                                   "--config", str(self.file), stdout=self.output if stdout is None else stdout,
                                   stderr=subprocess.STDOUT)

    def said(self):
        self.output.flush()
        return (self.directory / "output").read_text()

    def wait_ready(self):
        deadline = time.monotonic() + START_S
        while "Ctrl-C stops it." not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return self

    def ctl(self, *words, check=True):
        code = "from rustosd.cli.control import main; main()"
        return self.netns.run(sys.executable, "-c", code, "--socket", f"{self.directory}/run/control.sock", *words,
                              check=check)

    def rows(self, *words):
        document = json.loads(self.ctl(*words, "--json").stdout)
        return next(value for key, value in document.items() if key != "schema")

    def stop(self, number=signal.SIGTERM):
        """End it and return its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        finally:
            self.process.kill()
            self.output.close()


@pytest.fixture
def running(netns, tmp_path):
    daemon = Running(netns, tmp_path).wait_ready()
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One daemon for the tests that leave it as it was."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace and a TAP device")
    with Netns() as netns:
        daemon = Running(netns, tmp_path_factory.mktemp("daemon")).wait_ready()
        # DAD of the IPv6 address takes a second.
        deadline = time.monotonic() + START_S
        while any(row["state"] == "tentative" for row in daemon.rows("addr")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield daemon
        assert daemon.stop() == 0


def test_it_says_what_to_try(shared):
    said = shared.said()
    assert "10.77.0.2 and fd77::2 behind rustos0" in said
    for word in ("ping 10.77.0.2", "ping fd77::2", "curl http://10.77.0.2/metrics", "iperf3 -c 10.77.0.2", "rustosctl"):
        assert word in said


@need("ping")
@pytest.mark.parametrize("host", ["10.77.0.2", "fd77::2"])
def test_linux_pings_it(shared, host):
    """All at once, for ping(8) waits no longer for the last answer than -i says, and a busy machine takes its time.

    -S: what waits for the neighbor's address fills ping's own small send buffer, and then it does not send the rest at once.
    """
    for count, size in (("20", "56"), ("5", "1400")):
        said = shared.netns.run("ping", "-c", count, "-l", count, "-i", "20", "-S", "100000", "-s", size, host).stdout
        assert " 0% packet loss" in said, said


@pytest.mark.parametrize("host", ["10.77.0.1", "fd77::1", "127.0.0.1", "10.77.0.2", "fd77::2"])
def test_it_pings_linux_and_itself(shared, host):
    assert "3 sent, 3 received, 0% lost" in shared.ctl("ping", host, "-c", "3", "-i", "0.01").stdout


def test_a_ping_nobody_answers_fails(shared):
    result = shared.ctl("ping", "10.77.0.99", "-c", "1", "-W", "0.2", check=False)
    assert result.returncode == 1 and "no answer from 10.77.0.99" in result.stdout


@need("curl")
@pytest.mark.parametrize("host", ["10.77.0.2", "[fd77::2]"])
def test_linux_fetches_pages(shared, host):
    index = shared.netns.run("curl", "-sSf", f"http://{host}/").stdout
    assert "<!doctype html>" in index and "10.77.0.2" in index and "iperf3" in index
    shown = shared.netns.run("curl", "-sSf", f"http://{host}/metrics").stdout
    assert 'rustos_nic_rx_frames_total{nic="rustos0"}' in shown and "rustos_tcp_passive_opens_total" in shown
    size = 20_000_000
    octets = shared.netns.run("curl", "-sSf", f"http://{host}/bytes/{size}", text=False).stdout
    expected = (bytes(range(PERIOD)) * (size // PERIOD + 1))[:size]
    assert hashlib.sha256(octets).digest() == hashlib.sha256(expected).digest()


@need("iperf3")
@pytest.mark.parametrize("words", [(), ("-R",), ("-P", "4"), ("-u", "-b", "50M"), ("-6",)], ids=" ".join)
def test_linux_measures_it(shared, words):
    host = "fd77::2" if "-6" in words else "10.77.0.2"
    result = json.loads(shared.netns.run("iperf3", "-J", "-t", "1", "-c", host, *words).stdout)
    assert "error" not in result
    moved = result["end"]["sum"] if "-u" in words else result["end"]["sum_received"]
    assert moved["bytes"] > 1_000_000


def test_rustosctl_shows_the_host(shared):
    (nic,) = [row for row in shared.rows("nic") if row["name"] == "rustos0"]
    assert (nic["kind"], nic["link"], nic["mtu"], nic["offload"]) == ("tap", "up", 1500, True)
    assert {"10.77.0.2/24", "fd77::2/64"} <= set(nic["addresses"])
    routes = {(row["destination"], row["gateway"], row["kind"]) for row in shared.rows("route")}
    assert {("0.0.0.0/0", "10.77.0.1", "static"), ("::/0", "fd77::1", "static"),
            ("10.77.0.0/24", None, "connected")} <= routes
    shared.netns.run("ping", "-c", "1", "10.77.0.2")
    assert "10.77.0.1" in [row["address"] for row in shared.rows("neigh")]
    listening = {row["local"].rpartition(":")[2] for row in shared.rows("conn") if row["state"] in ("listen", "open")}
    assert {"7", "80", "5201"} <= listening
    status = shared.rows("status")
    assert status["pid"] == shared.process.pid and status["services"] == ["echo/7", "iperf3/5201", "http/80", "nbd/10809"]
    assert all(row["help"] for row in shared.rows("drops", "--all") + shared.rows("counters", "--all"))


def test_a_closed_port_refuses(shared):
    code = "import socket; socket.create_connection(('10.77.0.2', 9), 5)"
    result = shared.netns.run(sys.executable, "-c", code, check=False)
    assert "ConnectionRefusedError" in result.stderr


@need("ping")
def test_addresses_routes_and_neighbors_change_while_it_runs(running):
    running.ctl("addr", "add", "rustos0", "10.77.0.3/24")
    running.netns.run("ping", "-c", "1", "10.77.0.3")
    running.ctl("addr", "del", "rustos0", "10.77.0.3/24")
    running.netns.run("ip", "neigh", "flush", "all")
    assert running.netns.run("ping", "-c", "1", "-W", "1", "10.77.0.3", check=False).returncode == 1

    running.netns.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    running.ctl("route", "del", "0.0.0.0/0")
    assert running.ctl("ping", "192.0.2.1", "-c", "1", "-W", "0.3", check=False).returncode == 1
    running.ctl("route", "add", "192.0.2.0/24", "via", "10.77.0.1")
    assert running.ctl("ping", "192.0.2.1", "-c", "1").returncode == 0
    running.ctl("route", "del", "192.0.2.0/24", "via", "10.77.0.1")
    assert running.ctl("ping", "192.0.2.1", "-c", "1", "-W", "0.3", check=False).returncode == 1

    running.ctl("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:09", "dev", "rustos0")
    (row,) = [row for row in running.rows("neigh") if row["address"] == "10.77.0.9"]
    assert (row["mac"], row["state"]) == ("02:00:00:00:00:09", "permanent")
    running.ctl("neigh", "del", "10.77.0.9", "dev", "rustos0")
    assert "10.77.0.9" not in [row["address"] for row in running.rows("neigh")]


def left_behind(running):
    """Interfaces and files, but for the disk, which is to stay."""
    return running.netns.links(), sorted(path.name for path in running.directory.iterdir() if path.name != "disks")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_no_trace(running, number):
    assert running.stop(number) == 0
    assert left_behind(running) == ([], ["output", "rustosd.toml"])
    assert "Traceback" not in (running.directory / "output").read_text()


@need("curl")
def test_the_kernel_serves_page_and_metrics_where_asked_to(netns, tmp_path):
    config = f'[metrics]\nlisten = "127.0.0.1:9477"\nsocket = "{tmp_path}/metrics.sock"\n[status]\nconnections = false\n'
    daemon = Running(netns, tmp_path, config).wait_ready()
    for where in (("http://127.0.0.1:9477",), ("--unix-socket", f"{tmp_path}/metrics.sock", "http://any")):
        *options, site = where
        page = netns.run("curl", "-sSf", *options, f"{site}/").stdout
        assert "comes by the kernel" in page and "The configuration keeps them to itself." in page
        status = json.loads(netns.run("curl", "-sSf", *options, f"{site}/status.json").stdout)
        assert status["connections"]["listed"] is False and status["connections"]["busiest"] == []
        metrics = netns.run("curl", "-sSf", *options, f"{site}/metrics").stdout
        assert 'rustos_service_connections{service="metrics"}' in metrics and "metrics_unix" in metrics
    netns.run("ip", "link", "set", "rustos0", "down")       # the stack is out of reach, the kernel's port is not
    deadline = time.monotonic() + START_S
    while "link-down" not in netns.run("curl", "-sSf", "http://127.0.0.1:9477/status.json").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert daemon.stop() == 0
    assert left_behind(daemon) == ([], ["output", "rustosd.toml"])


def test_open_connections_end_in_the_grace_time(running):
    code = ("import socket, sys; s = socket.create_connection(('10.77.0.2', 7)); s.sendall(b'x'); s.recv(1)\n"
            "print('up', flush=True)\n"
            "try: print('end', s.recv(1), flush=True)\n"
            "except ConnectionResetError: print('reset', flush=True)")
    client = running.netns.popen(sys.executable, "-c", code, stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "up\n"
    assert running.stop() == 0
    assert client.communicate(timeout=30)[0].split()[0] in ("end", "reset")
    assert running.netns.links() == []


def test_a_second_signal_ends_it_at_once(running):
    with contextlib.suppress(ProcessLookupError):
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
    assert running.stop(signal.SIGINT) in (0, -signal.SIGINT)
    assert running.netns.links() == []


def test_the_next_start_takes_over_from_a_killed_one(netns, tmp_path):
    first = Running(netns, tmp_path).wait_ready()
    first.process.kill()
    first.process.wait(STOP_S)
    assert netns.links() == []              # the TAP went with its process
    second = Running(netns, tmp_path).wait_ready()
    assert second.rows("status")["services"]
    assert second.stop() == 0
    assert left_behind(second) == ([], ["crash", "output", "run", "rustosd.toml"])
    assert len(list((tmp_path / "crash").iterdir())) == 1       # what is told of the first
    assert list((tmp_path / "run").iterdir()) == []     # a directory that was there before is not ours to remove


def test_recover_gives_back_and_says_so(netns, tmp_path):
    first = Running(netns, tmp_path).wait_ready()
    first.process.kill()
    first.process.wait(STOP_S)
    code = "from rustosd.cli.daemon import main; main()"
    command = [sys.executable, "-c", code, "recover", "--config", str(first.file)]
    assert netns.run(*command).stdout == "1 of 1 given back\n"
    assert netns.run(*command).stdout == "nothing was left to give back\n"
    first.output.close()


@pytest.mark.parametrize(("prepare", "config", "message"), [
    (("ip", "tuntap", "add", "rustos0", "mode", "tap"), "", "the interface rustos0 exists already"),
    (("ip", "addr", "add", "10.77.0.200/25", "dev", "lo"), "", "configure another subnet"),
    (("true",), '[log]\nlevel = "loud"\n', "log.level: invalid enum value 'loud'"),
    (("true",), "[service.http]\nport = 5201\n", "5201 is the port of service iperf3 already"),
    (("true",), '[metrics]\nlisten = "192.0.2.1:9477"\n', "cannot serve metrics on 192.0.2.1:9477: Cannot assign requested"),
    (("true",), '[metrics]\nsocket = "/nonexistent/metrics.sock"\n', "cannot make the socket /nonexistent/metrics.sock: "),
])
def test_what_keeps_it_from_starting_is_one_line(netns, tmp_path, prepare, config, message):
    netns.run(*prepare)
    links = netns.links()
    failed = Running(netns, tmp_path, config)
    assert failed.process.wait(START_S) == (2 if config and "metrics" not in config else 1)
    (line,) = [line for line in failed.said().splitlines() if not line.startswith("{")]     # besides the log
    assert line.startswith("rustosd: ") and message in line
    assert netns.links() == links and left_behind(failed)[1] == ["output", "rustosd.toml"]
    failed.output.close()


def test_two_daemons_do_not_share_a_journal(running):
    code = [sys.executable, "-c", "from rustosd.cli.daemon import main; main()", "run", "--config", str(running.file)]
    result = running.netns.run(*code, check=False)
    assert result.returncode == 1 and "stop it first" in result.stderr and result.stderr.count("\n") == 1
    assert running.rows("status")["pid"] == running.process.pid


def test_a_disk_keeps_what_was_written_and_goes_away_while_nothing_was(netns, tmp_path):
    image = tmp_path / "disks" / "disk0.img"
    daemon = Running(netns, tmp_path).wait_ready()
    assert image.stat().st_size == 64 << 20
    (row,) = daemon.rows("disk")
    assert (row["name"], row["model"], row["octets"]) == ("disk0", "file", 64 << 20)
    assert daemon.stop() == 0 and not image.parent.exists()
    daemon = Running(netns, tmp_path).wait_ready()
    (tmp_path / "data").write_bytes(b"kept" * 1000)
    daemon.ctl("disk", "write", "disk0", "--offset", "1000", "-i", str(tmp_path / "data"), "--yes")
    daemon.process.kill()
    daemon.process.wait()
    daemon.output.close()
    assert image.read_bytes()[1000:5000] == b"kept" * 1000
    daemon = Running(netns, tmp_path).wait_ready()
    daemon.ctl("disk", "read", "disk0", "--offset", "1000", "--length", "4000", "-o", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"kept" * 1000
    assert daemon.stop() == 0 and image.exists()


def test_it_goes_on_when_whoever_reads_its_log_does_not_or_has_gone(netns, tmp_path):
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))        # it is full
    daemon = Running(netns, tmp_path, stdout=writer)
    os.close(writer)
    try:
        deadline = time.monotonic() + START_S
        while daemon.ctl("status", check=False).returncode:
            assert time.monotonic() < deadline
        daemon.ctl("log", "set", "rustosd", "debug")        # which is a line in the log
        os.close(reader)
        daemon.ctl("log", "set", "rustosd", "info")
        assert daemon.rows("status")["pid"] == daemon.process.pid
    finally:
        assert daemon.stop() == 0


def until(there):
    deadline = time.monotonic() + START_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rustosctl_finds_a_daemon_whose_socket_was_removed(running):
    control = running.directory / "run" / "control.sock"
    control.unlink()
    until(control.exists)
    assert running.rows("status")["pid"] == running.process.pid
    assert "control_socket_made_again" in running.said()
    assert running.stop() == 0
    assert not control.exists()


TALK = """
import socket, sys
with socket.create_connection(("10.77.0.2", 7), timeout=60) as one:
    for line in sys.stdin:
        one.sendall(line.encode())
        print(one.makefile().readline(), end="", flush=True)
"""


def test_an_interface_that_is_deleted_on_the_host_comes_back_with_its_connections(running):
    with running.netns.popen(sys.executable, "-c", TALK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        def talk(words):
            client.stdin.write(words)
            client.stdin.flush()
            return client.stdout.readline()

        def is_up():
            return "rustos0" in running.netns.links() and all(row["link"] == "up" for row in running.rows("nic"))

        assert talk("before\n") == "before\n"
        running.netns.run("ip", "link", "delete", "rustos0")
        until(is_up)
        assert talk("after\n") == "after\n"
        running.process.send_signal(signal.SIGSTOP)          # before it notices, its name is somebody else's
        running.netns.run("ip", "link", "delete", "rustos0")
        running.netns.run("ip", "tuntap", "add", "rustos0", "mode", "tap")
        running.process.send_signal(signal.SIGCONT)
        until(lambda: "tap_deleted" in running.said())
        running.netns.run("ip", "link", "delete", "rustos0")
        until(is_up)
        assert talk("at last\n") == "at last\n"
        client.stdin.close()
        assert client.wait(START_S) == 0
    assert "tap_made_again" in running.said()
    assert running.stop() == 0 and running.netns.links() == []


def test_half_a_start_is_undone(netns, tmp_path):
    """The second TAP cannot be made: the first goes, and nothing else stays."""
    netns.run("ip", "tuntap", "add", "second", "mode", "tap")
    failed = Running(netns, tmp_path, '[[interface]]\nname = "first"\n[[interface]]\nname = "second"\n')
    assert failed.process.wait(START_S) == 1
    assert "the interface second exists already" in failed.said()
    assert netns.links() == ["second"]
    failed.output.close()


def test_without_offload_and_with_another_mtu(netns, tmp_path):
    config = ('[[interface]]\nname = "plain"\noffload = false\nmtu = 1400\naddress = ["192.0.2.2/24"]\n'
              'kernel_address = ["192.0.2.1/24"]\ngateway = ["192.0.2.1"]\n')
    daemon = Running(netns, tmp_path, config).wait_ready()
    try:
        (nic,) = [row for row in daemon.rows("nic") if row["name"] == "plain"]
        assert (nic["offload"], nic["mtu"]) == (False, 1400)
        if shutil.which("curl"):
            octets = netns.run("curl", "-sSf", "http://192.0.2.2/bytes/1000000", text=False).stdout
            assert octets == (bytes(range(PERIOD)) * 4000)[:1_000_000]
    finally:
        assert daemon.stop() == 0
