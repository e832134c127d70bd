"""Both commands as people and scripts meet them: text, JSON, one-line errors, exit statuses, a terminal."""

import json
import os
import re
import subprocess
import sys

import pytest
import typer

from rustosd import config
from rustosd.cli import control, daemon, shell, tables
from tests.rustosd.terminal import on_a_terminal, rustosctl_command

TABLES = {
    ("nic",): """\
NIC      LINK    MTU       RX       TX  ADDRESSES
lo       up    65535      0 B      0 B  -
rustos0  up     1500  1.5 KiB  5.0 GiB  10.77.0.2/24, fd77::2/64
2 interfaces
""",
    ("addr",): """\
NIC      ADDRESS       STATE
rustos0  10.77.0.2/24  preferred
rustos0  fd77::2/64    tentative
2 addresses
""",
    ("route",): """\
DESTINATION     GATEWAY    NIC      SOURCE  METRIC  KIND
10.77.0.0/24    -          rustos0  -            0  connected
203.0.113.0/24  10.77.0.1  rustos0  -            0  static
2 routes
""",
    ("neigh",): """\
ADDRESS    MAC  NIC      STATE
10.77.0.1  -    rustos0  incomplete
1 neighbor
""",
    ("conn",): """\
 ID  PROTO  STATE        UNREAD  UNSENT  LOCAL         REMOTE              RX       TX       RTT
  -  tcp    listen            -       -  *:80          -                    -        -         -
  -  udp    open              0       -  10.77.0.2:7   -                  9 B      9 B         -
7.2  tcp    established       0     512  [fd77::2]:80  [fd77::1]:40000  100 B  2.0 KiB  0.250 ms
3 sockets
""",
    ("conn", "--limit", "1"): """\
ID  PROTO  STATE   UNREAD  UNSENT  LOCAL  REMOTE  RX  TX  RTT
 -  tcp    listen       -       -  *:80   -        -   -    -
1 of 3 sockets
""",
    ("drops",): """\
FRAMES  DIRECTION  REASON         MEANING
     9  out        no_route       no route there
     4  in         ipv4_checksum  wrong IPv4 header checksum
2 reasons
""",
    ("counters",): """\
COUNT  COUNTER          MEANING
    5  tcp_retransmits  TCP segments sent again
1 counter
""",
}


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_tables_read_as_promised(rustosctl, words):
    status, out, err = rustosctl(*words)
    assert (status, err) == (0, "")
    assert out == TABLES[words]


@pytest.mark.parametrize("noun", ["nic", "addr", "route", "neigh", "conn"])
def test_a_noun_alone_is_its_list(rustosctl, noun):
    assert rustosctl(noun) == rustosctl(noun, "list")
    assert rustosctl(noun, "--json") == rustosctl(noun, "list", "--json")


@pytest.mark.parametrize(("words", "key", "rows"), [
    (("nic",), "nics", 2), (("addr",), "addresses", 2), (("route",), "routes", 2), (("neigh",), "neighbors", 1),
    (("conn",), "connections", 3), (("drops",), "drops", 2), (("drops", "--all"), "drops", 3),
    (("counters", "-a"), "counters", 2),
])
def test_json_has_the_rows_of_the_table(rustosctl, words, key, rows):
    status, out, _ = rustosctl(*words, "--json")
    document = json.loads(out)
    assert status == 0 and list(document) == ["schema", key] and document["schema"] == 1
    assert len(document[key]) == rows
    assert rustosctl(*words)[1].splitlines()[-1].startswith(str(rows))


def test_json_rows_are_exact_and_missing_is_null(rustosctl):
    assert json.loads(rustosctl("route", "--json")[1])["routes"][:1] == [
        {"destination": "10.77.0.0/24", "gateway": None, "nic": "rustos0", "source": None, "metric": 0,
         "kind": "connected"}]
    assert json.loads(rustosctl("nic", "show", "rustos0", "--json")[1])["nic"]["tx_octets"] == 5 << 30


def test_status_in_text_and_json(rustosctl):
    status, out, _ = rustosctl("status")
    facts = dict(line.strip().split("  ", 1) for line in out.partition("\n\n")[0].splitlines())
    assert status == 0 and facts["interfaces"] == "1" and facts["services"] == "echo/7, http/80"
    assert facts["dropped"] == "13" and facts["connections"] == "1" and facts["up"] == "0s"
    assert json.loads(rustosctl("status", "--json")[1])["status"]["pid"] == os.getpid()


def test_changes_are_silent_and_done(rustosctl, core):
    for words in (("addr", "add", "rustos0", "10.77.0.3/24"), ("addr", "del", "rustos0", "10.77.0.2/24"),
                  ("route", "add", "192.0.2.0/24", "via", "10.77.0.1", "metric", "7"),
                  ("route", "add", "default", "via", "fd77::1"), ("route", "del", "203.0.113.0/24"),
                  ("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:09", "dev", "rustos0"),
                  ("neigh", "del", "10.77.0.1", "dev", "rustos0")):
        assert rustosctl(*words) == (0, "", ""), words
    assert [row["address"] for row in core.stack.address_rows] == ["fd77::2/64", "10.77.0.3/24"]
    assert [(row["prefix"], row["gateway"], row["metric"]) for row in core.stack.route_rows] == [
        ("10.77.0.0/24", None, 0), ("192.0.2.0/24", "10.77.0.1", 7), ("::/0", "fd77::1", 0)]
    assert [row["address"] for row in core.stack.neighbor_rows] == ["10.77.0.9"]


@pytest.mark.parametrize(("words", "status", "message"), [
    (("nci",), 2, "No such command 'nci'"),
    (("fds", "4711"), 2, "No such command 'fds', but: process fds (see rustosctl --help)"),
    (("process", "fsd"), 2, "Did you mean 'fds'?"),
    (("nic", "--jsn"), 2, "No such option"),
    (("addr", "add", "rustos0"), 2, "Missing argument"),
    (("addr", "add", "rustos0", "10.0.0.1"), 2, "'10.0.0.1' lacks its prefix length, for example 10.0.0.1/24"),
    (("addr", "add", "rustos0", "fd00::1"), 2, "lacks its prefix length, for example fd00::1/64"),
    (("addr", "add", "rust/0", "10.0.0.1/8"), 2, "is no interface name"),
    (("route", "add", "192.0.2.1/24", "via", "10.77.0.1"), 2, "did you mean 192.0.2.0/24?"),
    (("route", "add", "192.0.2.0/24"), 2, "needs via ADDRESS or dev NIC"),
    (("route", "add", "192.0.2.0/24", "vai", "x"), 2, "unexpected 'vai'; known here: via, dev, metric"),
    (("route", "add", "192.0.2.0/24", "via"), 2, "via needs a value behind it"),
    (("route", "add", "192.0.2.0/24", "dev", "a", "dev", "b"), 2, "dev is there twice"),
    (("route", "add", "192.0.2.0/24", "dev", "a", "metric", "x"), 2, "is no metric"),
    (("neigh", "add", "10.77.0.9", "dev", "rustos0"), 2, "lladdr is missing"),
    (("neigh", "add", "10.77.0.9", "lladdr", "zz", "dev", "rustos0"), 2, "'zz' is no MAC address"),
    (("ping", "localhost"), 2, "'localhost' is no IP address"),
    (("ping", "10.77.0.1", "-c", "0"), 2, "Invalid value for '-c'"),
    (("conn", "--limit", "0"), 2, "Invalid value for '--limit'"),
    (("nic", "show", "eth9"), 1, "there is no interface eth9; there is lo, rustos0"),
    (("addr", "add", "eth9", "10.0.0.1/8"), 1, "there is no interface eth9; there is lo, rustos0"),
    (("addr", "add", "rustos0", "10.77.0.2/24"), 1, "rustos0 already has 10.77.0.2"),
    (("addr", "del", "rustos0", "10.77.0.9/24"), 1, "rustos0 has no address 10.77.0.9/24; see: rustosctl addr list"),
    (("nc", "10.77.0.1", "no-service"), 2, "'no-service' is no port: give a number up to 65535"),
    (("nc", "10.77.0.1", "65616"), 2, "'65616' is no port"),
    (("nc", "-u", "10.77.0.1", "²"), 2, "'²' is no port"),
    (("route", "del", "198.51.100.0/24"), 1, "there is no such static route to 198.51.100.0/24; see: rustosctl route list"),
    (("route", "add", "192.0.2.0/24", "via", "198.51.100.1"), 1, "198.51.100.1 is on no connected link"),
])
def test_what_is_wrong_is_one_line_and_a_status(rustosctl, words, status, message):
    got, out, err = rustosctl(*words)
    assert (got, out) == (status, "")
    assert message in err and err.count("\n") == 1 and err.startswith("rustosctl: ")


def test_no_daemon_is_status_3_and_says_what_to_do(tmp_path, capsys):
    for words in (["status"], ["nic", "--json"], ["ping", "10.77.0.1", "-c", "1"], ["addr", "add", "x", "10.0.0.1/8"]):
        assert shell.run(control.app, "rustosctl", ["--socket", str(tmp_path / "none"), *words]) == 3
        assert "start one with `rustosd run`" in capsys.readouterr().err


def test_no_words_at_all_show_the_help_and_are_a_usage_error(capsys):
    for app, name in ((control.app, "rustosctl"), (daemon.app, "rustosd")):
        assert shell.run(app, name, []) == 2
        assert capsys.readouterr().out.startswith(f"Usage: {name}")
        assert shell.run(app, name, ["--help"]) == 0
        capsys.readouterr()


def test_ping_prints_like_ping(rustosctl, core):
    status, out, _ = rustosctl("ping", "10.77.0.1", "-c", "2", "-i", "0.01", "-s", "100")
    assert status == 0 and out == """\
PING 10.77.0.1: 100 octets of data
108 octets from 10.77.0.1: seq=1 ttl=64 time=0.250 ms
108 octets from 10.77.0.1: seq=2 ttl=64 time=0.250 ms
--- 10.77.0.1 ---
2 sent, 2 received, 0% lost
round trip min/avg/max = 0.250/0.250/0.250 ms
"""
    assert [ping[2:] for ping in core.pings] == [(1, 100, 1.0), (2, 100, 1.0)]
    assert len({ping[1] for ping in core.pings}) == 1


def test_ping_without_an_answer_fails(rustosctl):
    status, out, _ = rustosctl("ping", "10.77.0.9", "-c", "1")
    assert status == 1 and "seq=1: no answer from 10.77.0.9" in out and "100% lost" in out
    status, out, _ = rustosctl("ping", "192.0.2.1", "-c", "1")
    assert status == 1 and "seq=1: no route to 192.0.2.1" in out
    status, out, _ = rustosctl("ping", "10.77.0.8", "-c", "1")
    assert status == 1 and "seq=1: host unreachable, says 10.77.0.2" in out
    status, out, _ = rustosctl("ping", "10.77.0.9", "-c", "1", "--json")
    assert status == 1 and json.loads(out)["ping"]["received"] == 0


def test_ping_json_counts(rustosctl):
    document = json.loads(rustosctl("ping", "10.77.0.1", "-c", "3", "-i", "0.002", "--json")[1])["ping"]
    assert (document["sent"], document["received"]) == (3, 3)
    assert [echo["sequence"] for echo in document["echoes"]] == [1, 2, 3]


def test_colour_only_on_a_terminal(socket_path):
    command = rustosctl_command("--socket", socket_path, "nic")
    piped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert piped.returncode == 0 and "\x1b[" not in piped.stdout
    shown = on_a_terminal(socket_path, 100, "addr")
    assert "\x1b[32mpreferred" in shown and "2 addresses" in shown


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("noun", ["nic", "addr", "route", "neigh", "conn", "drops", "counters", "status"])
def test_a_narrow_terminal_cuts_nothing(socket_path, noun, columns):
    words = subprocess.run(rustosctl_command("--socket", socket_path, noun), capture_output=True, text=True).stdout
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, columns, noun))
    assert sorted(shown.split()) == sorted(words.split())


def test_interfaces_fit_80_columns(socket_path):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, 80, "nic"))
    assert max(map(len, shown.splitlines())) <= 80


def test_a_reader_that_leaves_is_no_traceback(socket_path, core):
    core.stack.connection_rows = core.stack.connection_rows * 5000
    with subprocess.Popen(rustosctl_command("--socket", socket_path, "conn"), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 1


def test_looking_at_a_daemon_loads_nothing_heavy():
    code = ("import sys, rustosd.cli.control; "
            "print([m for m in ('asyncio', 'structlog', 'rich', 'pyroute2', 'uvloop', 'scapy') if m in sys.modules])")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout == "[]\n", shown.stdout + shown.stderr


# rustosd


@pytest.fixture
def rustosd(capsys):
    def run(*words):
        status = shell.run(daemon.app, "rustosd", list(words))
        return (status, *capsys.readouterr())
    return run


def test_config_default_is_the_default(rustosd):
    status, out, _ = rustosd("config", "default")
    assert status == 0 and config.parse(out, "shown") == config.default() and "# " in out


def test_config_check_and_show(rustosd, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('[service.http]\nport = 8080\n')
    assert rustosd("config", "check", str(file)) == (0, f"{file}: good; rustos0; 0 static routes\n", "")
    status, out, _ = rustosd("config", "show", "--config", str(file))
    assert status == 0 and config.parse(out, "shown") == config.load(file)
    file.write_text('[service.http]\nprot = 8080\n')
    message = f"rustosd: {file}:2: service.http.prot: unknown; did you mean port?\n"
    for words in (("config", "check", str(file)), ("config", "show", "-c", str(file)), ("run", "--config", str(file))):
        assert rustosd(*words) == (2, "", message)


def test_version_is_one_line(rustosd):
    status, out, _ = rustosd("version")
    assert status == 0 and out.startswith("rustosd ") and out.count("\n") == 1


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 60, "1024.0 PiB"),
    (None, "-"),
])
def test_octets_read_well(value, text):
    assert tables.octets(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h 0m"),
                                             (90061, "1d 1h")])
def test_durations_read_well(value, text):
    assert tables.duration(value) == text


def test_an_interrupt_has_its_own_status():
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert shell.run(app, "x", ["--"]) == 130
