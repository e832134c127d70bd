"""Every command of `rustosctl`, whoever wrote it: what it prints as text and JSON is in `golden/`, and it works on a terminal.

RUSTOSD_GOLDEN=write writes the files anew; look at the difference before you keep it.
"""

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import typer

from rustosd import config
from rustosd.cli import control
from tests.rustosd import test_cli
from tests.rustosd.fake import CHANGES, NOTES
from tests.rustosd.fake_devices import NIC, OUR_AHCI
from tests.rustosd.terminal import on_a_terminal, rustosctl_command

GOLDEN = Path(__file__).with_name("golden")
CRASH = "crash-20261128T180000Z-4711.txt"
SHOWN = {
    "status": ("status",), "status-health": ("status",), "reload": ("reload",), "reload-check": ("reload", "--check"),
    "log": ("log", "levels"), "log-tail": ("log", "tail"), "crash-list": ("crash", "list"),
    "crash-show": ("crash", "show", CRASH), "ping": ("ping", "10.77.0.1", "-c", "2", "-i", "0.002"),
    "ping-lost": ("ping", "10.77.0.9", "-c", "1"), "nic-list": ("nic", "list"), "nic-show": ("nic", "show", "rustos0"),
    "addr-list": ("addr", "list"), "route-list": ("route", "list"), "neigh-list": ("neigh", "list"),
    "conn-list": ("conn", "list"), "drops": ("drops",), "counters": ("counters",),
    "device-take": ("device", "take", NIC, "--force"), "device-give": ("device", "give", OUR_AHCI),
}
"""Golden files of text and JSON."""
SILENT = {
    ("addr", "add", "rustos0", "10.77.0.3/24"), ("addr", "del", "rustos0", "10.77.0.2/24"),
    ("route", "add", "192.0.2.0/24", "via", "10.77.0.1"), ("route", "del", "203.0.113.0/24"),
    ("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:09", "dev", "rustos0"),
    ("neigh", "del", "10.77.0.1", "dev", "rustos0"), ("log", "set", "all", "debug"),
    ("swap", "kernel", "off"),
    ("program", "start", "web"), ("program", "stop", "web"), ("program", "restart", "web"),
    ("kill", "901"), ("suspend", "901"), ("resume", "901"), ("nice", "901", "5"),
    ("sched", "set", "901", "--class", "interactive", "--priority", "3", "--cpus", "0", "--cpu-quota", "50%"),
}
"""What is done prints nothing."""
SAID = {("crash", "clear"): "1 report removed\n"}
ELSEWHERE = {
    "nc": "rustosd/client/test_libraries.py", "report": "rustosd/test_cli_report.py",
    "capture": "peers/test_capture.py", "traceroute": "peers/test_traceroute.py", "top": "rustosd/test_cli_top.py",
    **dict.fromkeys(("run", "wait", "logs"), "peers/test_programs.py"), "process top": "rustosd/test_cli_process_top.py",
    "config show": "rustosd/test_cli_every.py", "log unset": "rustosd/test_cli_every.py",
    **{f"conn {verb}": "rustosd/test_cli_network.py" for verb in ("show", "close")},
    **{f"disk {verb}": "rustosd/test_cli_disk.py" for verb in ("exports", "read", "write")},
    **{f"disk {verb}": "peers/test_nbd.py" for verb in ("export", "unexport")},
    **{f"disk {verb}": "rustosd/test_cli_sata.py"
       for verb in ("cache", "drive", "erase", "ports", "retry", "smart", "standby", "trim")},
}
"""Commands whose output is no text of ours, or a file, and who tests them, below tests/."""
EXITS = {"ping-lost": 1}


def commands(command, path=()):
    """Every command that does something, as words and the click command."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, each in (inner or {}).items():
        yield from commands(each, (*path, name))


EVERY = dict(commands(typer.main.get_command(control.app)))


def spoken(words):
    """The command among words: ("nic", "show", "rustos0") is ("nic", "show"), and ("nic",) is ("nic", "list")."""
    return next((tuple(words[:end]) for end in (3, 2, 1) if tuple(words[:end]) in EVERY), (words[0], "list"))


def test_every_command_is_tried():
    modules = [importlib.import_module(f"tests.rustosd.{path.stem}") for path in Path(__file__).parent.glob("test_cli_*.py")]
    shown = [words for module in modules for words in getattr(module, "SHOWN", {}).values()]
    tried = {spoken(words) for words in (*shown, *test_cli.TABLES, *SILENT, *SAID)}
    missing = sorted(" ".join(words) for words in EVERY.keys() - tried if " ".join(words) not in ELSEWHERE)
    assert missing == [], "add what they print to SHOWN, with its golden files"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_who_is_said_to_test_a_command_does(command):
    text = Path(__file__).parents[1].joinpath(ELSEWHERE[command]).read_text()
    assert re.search(", ".join(f'"{word}"' for word in command.split()), text)


def settled(text):
    """Without what differs from run to run."""
    text = re.sub(r'"pid": \d+', '"pid": 1', re.sub(r"(?m)^( *pid  )\d+$", r"\g<1>1", text))
    return re.sub(r'"version": "[^"]+"|(?m:^( *version  ).*$)', lambda found: (found[1] or '"version": ') + "0", text)


@pytest.fixture
def prepared(core, request):
    """The state that some of the commands show."""
    core.logs.ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.daemon", "started", {"interfaces": ["rustos0"]})
    core.logs.ring.append("2026-11-28T18:00:01.000000", "error", "rustosd.pump", "pump_callback_failed",
                          {"exception": "Traceback (most recent call last):\n  ...\nValueError: x\n"})
    core.logs.levels["rustosd.devices"] = "debug"
    if "health" in request.node.callspec.id:
        core.health_notes = NOTES


@pytest.mark.parametrize("form", ["txt", "json"])
@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, prepared, name, form):
    status, out, err = rustosctl(*SHOWN[name], *["--json"] * (form == "json"))
    assert (status, err) == (EXITS.get(name, 0), "")
    file = GOLDEN / f"cli-{name}.{form}"
    if os.environ.get("RUSTOSD_GOLDEN") == "write":
        file.write_text(settled(out))
    assert settled(out) == file.read_text()
    if form == "json":
        assert json.loads(out)["schema"] == 1 and len(json.loads(out)) == 2


def test_the_configuration_in_force_is_a_configuration(rustosctl, core):
    core.reconfigurer.waiting = CHANGES[3:4]
    status, out, _ = rustosctl("config")
    assert status == 0 and config.parse(out, "shown") == core.config
    assert out.startswith("# /etc/rustosd/rustosd.toml\n# waits for a restart: stack.max_routes: 4096 -> 100\n")
    document = json.loads(rustosctl("config", "show", "--json")[1])["config"]
    assert config.parse(document["toml"], "shown") == core.config and document["waiting"][0]["taken"] == "restart"


@pytest.mark.parametrize("words", sorted(SILENT), ids=" ".join)
def test_what_is_done_is_silent(rustosctl, words):
    assert rustosctl(*words) == (0, "", "")


def test_what_says_a_line(rustosctl):
    for words, line in SAID.items():
        assert rustosctl(*words) == (0, line, "")


def test_levels_are_set_and_unset(rustosctl, core):
    rustosctl("log", "set", "rustosd.devices", "debug")
    rustosctl("log", "set", "all", "warning")
    assert (core.logs.level, core.logs.levels) == ("warning", {"rustosd.devices": "debug"})
    assert rustosctl("log", "unset", "rustosd.devices") == (0, "", "")
    assert core.logs.levels == {}


@pytest.mark.parametrize("columns", [30, 80])
@pytest.mark.parametrize("name", [name for name in SHOWN if name not in ("device-take", "device-give", "ping-lost")])
def test_it_works_on_a_terminal(socket_path, prepared, name, columns):
    """Colours apart, a terminal shows what a pipe does, however narrow; nothing is cut."""
    plain = subprocess.run(rustosctl_command("--socket", socket_path, *SHOWN[name]), capture_output=True, text=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(socket_path, columns, *SHOWN[name]))
    if name.startswith("ping"):
        plain.stdout, shown = (re.sub(r"[0-9.]+", "#", text) for text in (plain.stdout, shown))
    assert sorted(shown.split()) == sorted(plain.stdout.split())


def test_colour_is_for_terminals_that_want_it(socket_path, core):
    core.health_notes = NOTES
    assert "\x1b[31;1merror" in on_a_terminal(socket_path, 80, "status")
    assert "\x1b[1m" in on_a_terminal(socket_path, 80, "nic")
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        for words in (("status",), ("nic",), ("drops",)):
            shown = on_a_terminal(socket_path, 80, *words, **variables)
            assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", shown), (variables, words)


@pytest.mark.parametrize(("words", "status", "message"), [
    (("reload", "--chek"), 2, "No such option"), (("log", "set", "rustosd"), 2, "Missing argument"),
    (("log", "set", "rustosd.devcies", "debug"), 1, "there is no logger rustosd.devcies; did you mean rustosd.devices?"),
    (("log", "set", "zzz", "debug"), 1, "a logger is called as its module"),
    (("log", "set", "all", "loud"), 2, "'loud' is no level; one of debug, info, warning, error"),
    (("log", "unset", "all"), 2, "give another one: rustosctl log set all info"),
    (("log", "unset", "rustosd.control"), 1, "rustosd.control has no level of its own; see: rustosctl log"),
    (("log", "tail", "-n", "0"), 2, "Invalid value for '-n'"), (("log", "tail", "-f", "--json"), 2, "choose one"),
    (("crash", "show", "x"), 1, "there is no crash report x; see: rustosctl crash list"),
    (("crash", "clear", "../../etc/passwd"), 1, "there is no crash report ../../etc/passwd"),
])
def test_what_is_wrong_is_one_line_and_a_status(rustosctl, words, status, message):
    got, out, err = rustosctl(*words)
    assert (got, out) == (status, "")
    assert message in err and err.count("\n") == 1 and err.startswith("rustosctl: ")


def test_a_reload_that_fails_says_the_line(rustosctl, core):
    core.reconfigurer.failure = "/etc/rustosd/rustosd.toml:7: service.http.prot: unknown; did you mean port?"
    for words in (("reload",), ("reload", "--check", "--json")):
        assert rustosctl(*words) == (1, "", f"rustosctl: {core.reconfigurer.failure}\n")


def test_the_log_is_followed(socket_path, core):
    core.logs.ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.x", "old", {})
    with subprocess.Popen(rustosctl_command("--socket", socket_path, "log", "tail", "-f", "-n", "1"), stdout=subprocess.PIPE,
                          text=True) as child:
        assert child.stdout.readline().endswith("old\n")
        for number in range(3):
            core.logs.ring.append("2026-11-28T18:00:00.000000", "info", "rustosd.x", f"new{number}", {})
            assert child.stdout.readline().endswith(f"new{number}\n")
        child.terminate()


def test_every_command_has_a_help_that_says_what_it_does():
    for words, command in EVERY.items():
        assert command.help and len(command.help.split()) >= 2, words
