"""`rustosctl report`: what is in the file, what must not be, and a report without a daemon."""

import json
import os
import stat
import subprocess
import tarfile

import pytest

from rustosd import config
from rustosd.capture.pcapng import Reader
from rustosd.cli import report
from rustosd.control.upkeep_operations import UpkeepOperations
from rustosd.secrets import HIDDEN, is_secret, text_without_secrets, without_secrets
from tests.rustosd.terminal import on_a_terminal
from tests.rustosd.test_daemon import Running

CRASH = "crash-20261128T180000Z-4711.txt"
SECRET = "swordfish-4711"


def files(path):
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2]: archive.extractfile(member).read().decode() for member in archive}


def test_it_has_what_a_bug_report_needs_and_says_so(rustosctl, core, tmp_path):
    core.logs.ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.daemon", "started", {"version": "0.1.0"})
    path = tmp_path / "r.tar.gz"
    status, out, err = rustosctl("report", "-o", str(path))
    assert (status, err) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    inside = files(path)
    assert {"CONTENTS", "about.json", "status.json", "config.toml", "log.txt", "drops.json", "counters.json", "devices.json",
            "disks.json", "connections.json", "host/cmdline", CRASH} <= inside.keys()
    assert not [name for name in inside if name.endswith(".error")]
    for name in inside:
        assert name == "CONTENTS" or (name in out and name in inside["CONTENTS"])
    assert "started version=0.1.0" in inside["log.txt"] and config.parse(inside["config.toml"], "x") == core.config
    assert json.loads(inside["connections.json"])["states_of_these"]["tcp established"] == 1
    assert "look before you send it" in out


def test_it_is_json_too_and_overwrites_nothing(rustosctl, tmp_path):
    path = tmp_path / "r.tar.gz"
    document = json.loads(rustosctl("report", "-o", str(path), "--json")[1])
    assert document["schema"] == 1 and document["report"]["octets"] == path.stat().st_size
    before = path.read_bytes()
    assert rustosctl("report", "-o", str(path)) == (1, "", f"rustosctl: {path}: File exists; name another file with -o\n")
    assert path.read_bytes() == before


def test_no_secret_is_in_it(rustosctl, core, tmp_path, monkeypatch):
    """In the configuration, the log, a crash report's configuration, and on the kernel's command line."""
    real = config.msgspec.to_builtins
    monkeypatch.setattr(config.msgspec, "to_builtins", lambda value, **how: real(value, **how) | {
        "nbd": {"tls_psk": SECRET, "password": SECRET, "users": [{"name": "joe", "token": SECRET}]}})
    assert SECRET in config.to_toml(core.config) and SECRET not in config.to_toml(core.config, secrets=False)
    cmdline = tmp_path / "cmdline"
    cmdline.write_text(f"root=/dev/sda1 rd.luks.key={SECRET} wifi_password='{SECRET}' quiet\n")
    monkeypatch.setitem(report.HOST_FILES, "cmdline", str(cmdline))
    path = tmp_path / "r.tar.gz"
    assert rustosctl("report", "-o", str(path))[0] == 0
    inside = files(path)
    assert not [name for name, text in inside.items() if SECRET in text]
    assert inside["config.toml"].count(HIDDEN) == 3 and "joe" in inside["config.toml"]
    assert "root=/dev/sda1" in inside["host/cmdline"] and "quiet" in inside["host/cmdline"]


def test_what_the_daemon_refuses_is_told_in_its_place(rustosctl, monkeypatch, tmp_path):
    def fail(*_):
        raise ValueError("not today")
    monkeypatch.setattr(UpkeepOperations, "daemon_about", fail)
    assert rustosctl("report", "-o", str(tmp_path / "r.tar.gz"))[0] == 0
    assert files(tmp_path / "r.tar.gz")["about.json.error"] == "not today\n"


def test_without_a_daemon_there_are_the_hosts_facts_and_the_crash_reports(tmp_path, monkeypatch, capsys):
    from rustosd.cli import control, shell
    monkeypatch.setattr(report, "CRASH_DIRECTORY", tmp_path)
    (tmp_path / CRASH).write_text("reason: it fell\n")
    path = tmp_path / "r.tar.gz"
    assert shell.run(control.app, "rustosctl", ["--socket", str(tmp_path / "none"), "report", "-o", str(path)]) == 3
    assert "start one with `rustosd run`" in capsys.readouterr().err
    assert {CRASH, "host/meminfo", "CONTENTS"} <= files(path).keys()


def test_on_a_terminal_and_in_the_directory_one_is_in(socket_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(config.__file__)))
    assert "tar.gz" in on_a_terminal(socket_path, 60, "report")
    (made,) = tmp_path.glob("rustosd-report-*.tar.gz")
    done = subprocess.run(["tar", "tzf", made.name], capture_output=True, text=True, check=True)
    assert "about.json" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a network namespace")
def test_what_passes_meanwhile_is_in_it_on_request(netns, tmp_path):
    daemon = Running(netns, tmp_path).wait_ready()
    pings = netns.popen("ping", "-i", "0.05", "-s", "1000", "10.77.0.2", stdout=subprocess.DEVNULL)
    said = daemon.ctl("report", "-o", f"{tmp_path}/r.tar.gz", "--capture", "1.5s").stdout
    pings.kill()
    pings.wait()
    assert daemon.stop() == 0
    assert "1.5 s of frames" in said
    with tarfile.open(tmp_path / "r.tar.gz") as archive:
        (name,) = [name for name in archive.getnames() if name.endswith("capture.pcapng")]
        packets = Reader().feed(archive.extractfile(name).read())[1]
    assert len(packets) > 5 and max(len(packet.octets) for packet in packets) == report.CAPTURED_OCTETS


@pytest.mark.parametrize("text", ["x", "0", "0s", "121s", "-1", "1e3", "nan"])
def test_a_time_that_is_none_is_refused(rustosctl, text):
    status, out, err = rustosctl("report", "--capture", text)
    assert (status, out) == (2, "") and "is no time to capture, such as 10s" in err


@pytest.mark.parametrize(("name", "secret"), [
    ("password", True), ("tls_psk", True), ("api_token", True), ("private_key", True), ("client_secret", True),
    ("passphrase", True), ("key", False), ("tls_key_file", False), ("max_sockets", False), ("bypass", False), ("mac", False),
])
def test_secrets_go_by_their_names(name, secret):
    assert is_secret(name) is secret
    assert without_secrets({"a": [{name: "x"}]}) == {"a": [{name: HIDDEN if secret else "x"}]}


def test_a_text_loses_its_secrets():
    assert text_without_secrets("a=1 password=x token='y z' Key: w") == (
        f"a=1 password={HIDDEN} token={HIDDEN} Key: {HIDDEN}")
