"""Reload: what differs, how each key is taken; then the whole daemon, with Linux's connections alive through all of it."""

import asyncio
import hashlib
import os
import signal
import socket
import sys
import time

import msgspec
import pytest

from rustosd import config, config_changes, log, reconfigure
from rustosd.config import Config
from rustosd.config_changes import RULES, differences, flatten, rule_of, taken_over
from rustosd.daemon import Daemon
from rustosd.services.http import PERIOD
from tests.rustosd.test_daemon import CONFIG, START_S, Running, left_behind, need
from tests.support.netns import Netns, unavailable


def keys_of(section, before=""):
    """Every key a configuration can have, arrays of sections as `x[+]`, `x[-]` and `x.key`."""
    for field in msgspec.structs.fields(section):
        kind, key = field.type, f"{before}{field.name}"
        kinds = getattr(kind, "__args__", (kind,))
        sections = [each for each in kinds if isinstance(each, type) and issubclass(each, msgspec.Struct)]
        if not sections:
            yield key
        for each in sections:
            if kind is not each and tuple in (getattr(kind, "__origin__", None),):
                yield from (f"{key}[+]", f"{key}[-]")
                if each is config.RouteConfig:      # all of it is its name
                    continue
            yield from keys_of(each, f"{key}.")


def test_every_key_is_in_the_table_and_every_step_is_done():
    keys = set(keys_of(Config))
    missing = [key for key in keys if rule_of(key) is config_changes.UNKNOWN]
    assert missing == [], "say in RULES of rustosd/config_changes.py how a running daemon takes these"
    for name, rule in RULES.items():
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name
        assert (rule.step in reconfigure.STEPS) == (rule.how != "restart"), name
        assert rule.when or rule.how == "now", name
    assert {rule.step for rule in RULES.values() if rule.step} == set(reconfigure.STEPS)


def test_a_key_that_nobody_thought_of_needs_a_restart():
    assert rule_of("nothing.like.it").how == "restart" and rule_of("service.new.port").how == "now"


def changes(before, after):
    return differences(flatten(config.parse(before, "a")), flatten(config.parse(after, "b")))


@pytest.mark.parametrize(("before", "after", "expected"), [
    ("", "", []),
    ("", "[log]\nlevel = 'debug'", ["log.level: info -> debug"]),
    ("", "[service.http]\nport = 8080", ["service.http.port: 80 -> 8080"]),
    ("", "[[route]]\nto = '192.0.2.0/24'\nvia = '10.77.0.1'", ["route[192.0.2.0/24 via 10.77.0.1 metric 0]: - -> present"]),
    ("[[interface]]\nname = 'a'\n[[interface]]\nname = 'b'\nmtu = 1400", "[[interface]]\nname = 'b'\n[[interface]]\nname = 'a'",
     ["interface[b].mtu: 1400 -> 1500"]),
    ("[[interface]]\nname = 'a'", "[[interface]]\nname = 'b'", ["interface[a]: present -> -", "interface[b]: - -> present"]),
    ("", "[[device]]\nbdf = '0000:03:00.0'", ["device[bdf 0000:03:00.0]: - -> present"]),
    ("[[device]]\nbdf = '0000:03:00.0'", "[[device]]\nbdf = '0000:03:00.0'\n[device.e1000]\nrx_ring = 128",
     ["device[bdf 0000:03:00.0].e1000.rx_ring: - -> 128"]),
    ("", "[log.levels]\n'rustosd.pump' = 'debug'", ["log.levels: - -> rustosd.pump = debug"]),
])
def test_what_differs_is_said_by_name(before, after, expected):
    said = [f"{change.key}: {config_changes.spoken(change.path, change.old)} -> "
            f"{config_changes.spoken(change.path, change.new)}" for change in changes(before, after)]
    assert sorted(said) == sorted(expected)


def test_what_is_in_force_is_what_was_taken():
    old, new = (flatten(config.parse(text, "x")) for text in (
        "", "[stack]\nmax_routes = 9\n[log]\nlevel = 'error'\n[[interface]]\nname = 'z'"))
    taken = [change for change in differences(old, new) if change.rule.how != "restart"]
    running = taken_over(old, new, taken)
    left = differences(running, new)
    assert {change.key for change in left} == {"stack.max_routes", "interface[rustos0]"}
    assert taken_over(running, new, left) == new


# The daemon and Linux


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if why := unavailable():
        pytest.skip(why)
    with Netns() as netns:
        daemon = Running(netns, tmp_path_factory.mktemp("reload")).wait_ready()
        netns.run("ip", "link", "set", "lo", "up")
        yield daemon
        assert daemon.stop() == 0
        assert "Traceback" not in (daemon.directory / "output").read_text()


CONFIG_LINES = len(CONFIG.splitlines())


def write(daemon, text="", control=""):
    daemon.file.write_text(CONFIG.format(directory=daemon.directory).replace("[control]", f"[control]\n{control}") + text)


def fetch(daemon, url, *words):
    return daemon.netns.run("curl", "-sS", "--max-time", "5", *words, url, check=False)


class Download:
    """A slow transfer from the daemon that must not notice anything."""

    SIZE = 4_000_000

    def __init__(self, daemon):
        code = f"""\
import hashlib, socket
sock = socket.create_connection(("10.77.0.2", 80), 10)
sock.sendall(b"GET /bytes/{self.SIZE} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
octets = sock.recv(4096)
print("begun", flush=True)
seen = hashlib.sha256(octets.partition(b"\\r\\n\\r\\n")[2])
input()
while octets := sock.recv(65536):
    seen.update(octets)
print(seen.hexdigest())
"""
        self.process = daemon.netns.popen(sys.executable, "-c", code, stdin=-1, stdout=-1, text=True)
        assert self.process.stdout.readline() == "begun\n"

    def finish(self):
        out, _ = self.process.communicate("\n", timeout=30)
        pattern = (bytes(range(PERIOD)) * (self.SIZE // PERIOD + 1))[:self.SIZE]
        assert out.strip() == hashlib.sha256(pattern).hexdigest()


FULL = """
[service.http]
port = 8080
[service.echo]
enabled = false
[pump]
busy_poll_us = 0
[stack]
max_routes = 1000
time_wait_s = 1
buffers_octets = 100000000
[metrics]
listen = "127.0.0.1:9477"
[sockets]
max_sockets = 5
[log.levels]
"rustosd.control" = "debug"
[[interface]]
name = "rustos0"
address = ["10.77.0.2/24", "10.77.0.5/24", "fd77::2/64"]
gateway = ["fd77::1"]
kernel_address = ["10.77.0.1/24", "10.77.0.6/24", "fd77::1/64"]
[[interface]]
name = "rustos1"
address = ["10.78.0.2/24"]
kernel_address = ["10.78.0.1/24"]
[[route]]
to = "192.0.2.0/24"
via = "10.77.0.1"
"""


@need("curl", "ping")
def test_all_that_can_change_changes_and_connections_live_on(running):
    download = Download(running)
    write(running, FULL, control='max_clients = 3')
    checked = running.rows("reload", "--check")
    assert not checked["done"] and fetch(running, "http://10.77.0.2/healthz").stdout == "ok\n"
    answer = running.rows("reload")
    assert answer["done"] and answer["changes"] == checked["changes"]
    assert [(row["key"], row["old"], row["new"]) for row in answer["changes"] if row["taken"] == "restart"] == [
        ("stack.max_routes", "4096", "1000")]

    assert fetch(running, "http://10.77.0.2:8080/healthz").stdout == "ok\n"
    assert fetch(running, "http://10.77.0.2/healthz").returncode == 7        # refused
    assert "rustos_build_info" in fetch(running, "http://127.0.0.1:9477/metrics").stdout
    for host in ("10.77.0.2", "10.77.0.5", "10.78.0.2"):
        running.netns.run("ping", "-c1", "-W2", host)
    assert "10.77.0.6/24" in running.netns.run("ip", "addr", "show", "rustos0").stdout
    routes = {(row["destination"], row["gateway"]) for row in running.rows("route")}
    assert ("192.0.2.0/24", "10.77.0.1") in routes and ("0.0.0.0/0", "10.77.0.1") not in routes
    assert running.rows("log")[1:] == [{"logger": "rustosd.control", "level": "debug"}]
    status = running.rows("status")
    assert {"iperf3/5201", "http/8080"} <= set(status["services"]) and "echo/7" not in status["services"]
    assert [note["code"] for note in status["health"]] == ["restart-needed"]
    assert running.rows("config")["waiting"][0]["key"] == "stack.max_routes"
    usage = {line.split()[0]: float(line.split()[1]) for line in fetch(
        running, "http://127.0.0.1:9477/metrics").stdout.splitlines() if line.startswith("rustos_tcp_")}
    assert 100000000 in usage.values(), usage

    write(running)      # and back: the second interface stays until a restart
    answer = running.rows("reload")
    assert [row["key"] for row in answer["changes"] if row["taken"] == "restart"] == ["interface[rustos1]"]
    assert fetch(running, "http://10.77.0.2/healthz").stdout == "ok\n"
    assert fetch(running, "http://10.77.0.2:8080/healthz").returncode == 7
    assert running.netns.run("ping", "-c1", "-W1", "10.77.0.5", check=False).returncode == 1
    assert "10.77.0.6/24" not in running.netns.run("ip", "addr", "show", "rustos0").stdout
    assert ("0.0.0.0/0", "10.77.0.1") in {(row["destination"], row["gateway"]) for row in running.rows("route")}
    download.finish()


@need("curl")
@pytest.mark.parametrize(("text", "says"), [
    ("[service.http]\nprot = 1\n", f"rustosd.toml:{CONFIG_LINES + 3}: service.http.prot: unknown; did you mean port?"),
    ("[log]\nlevel = 'loud'\n[service.http]\nport = 81\n", "one of debug, info, warning, error"),
    ("[service.http]\nport = 81\n[metrics]\nlisten = '203.0.113.9:1'\n", "choose another with listen = ... under [metrics]"),
    ("[service.http]\nport = 81\n[sockets]\ngroup = 'no-such-group'\n", "groupadd no-such-group"),
    ("[service.http]\nport = 81\n[[interface]]\nname = 'rustos0'\naddress = ['10.77.0.2/24', '10.77.0.8/24', 'fd77::2/64']\n"
     "gateway = ['10.77.0.1', 'fd77::1']\nkernel_address = ['10.77.0.1/24', 'fd77::1/64']\n"
     "[[interface]]\nname = 'lo'\n", "interface[lo]"),
])
def test_a_file_that_cannot_be_taken_changes_nothing(running, text, says):
    write(running, text)
    limit = time.monotonic() + START_S
    while any(row["state"] != "preferred" for row in running.rows("addr")):     # duplicate address detection takes a second
        assert time.monotonic() < limit
        time.sleep(0.1)
    before = [running.rows(noun) for noun in ("addr", "route", "log")]
    done = running.ctl("reload", check=False)
    assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1
    assert [running.rows(noun) for noun in ("addr", "route", "log")] == before
    assert fetch(running, "http://10.77.0.2/healthz").stdout == "ok\n"
    assert fetch(running, "http://10.77.0.2:81/healthz").returncode == 7
    assert "reload-failed" in [note["code"] for note in running.rows("status")["health"]]
    write(running)
    running.ctl("reload")
    assert "reload-failed" not in [note["code"] for note in running.rows("status")["health"]]


def test_a_hangup_reloads_too(running):
    write(running, "[log.levels]\n'rustosd.pump' = 'debug'\n")
    running.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + START_S
    while len(running.rows("log")) < 2:
        assert time.monotonic() < deadline, running.said()
        time.sleep(0.05)
    write(running)
    running.ctl("reload")


def test_a_full_table_of_connections_is_kept_when_limits_fall(running):
    """Send buffers smaller than what they hold: nothing wraps, nothing is lost."""
    download = Download(running)
    write(running, "[stack]\nsend_buffer_octets = 4096\nreceive_buffer_octets = 4096\nbuffers_octets = 1048576\n")
    running.ctl("reload")
    download.finish()
    write(running)
    running.ctl("reload")


def test_a_daemon_without_a_file_says_so():
    async def scenario():
        daemon = Daemon(config.default(), logs=log.Logs(sys.stderr))
        with pytest.raises(reconfigure.ReloadFailed, match="start it with --config FILE"):
            await daemon.reconfigurer.reload()

    asyncio.run(scenario())


def test_a_socket_of_an_old_service_does_not_keep_the_new_one_from_its_path(netns, tmp_path):
    """The kernel's metrics on a unix socket, moved and moved back."""
    daemon = Running(netns, tmp_path, f'[metrics]\nsocket = "{tmp_path}/a.sock"\n').wait_ready()
    base = CONFIG.format(directory=tmp_path)
    for name in ("b", "a"):
        daemon.file.write_text(base + f'[metrics]\nsocket = "{tmp_path}/{name}.sock"\n')
        daemon.ctl("reload")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{tmp_path}/{name}.sock")
        assert not os.path.exists(f"{tmp_path}/{'a' if name == 'b' else 'b'}.sock")
    assert daemon.stop() == 0
    assert left_behind(daemon) == ([], ["output", "rustosd.toml"])
