"""Logs: one JSON object a line for programs, a readable line for people, and what libraries say in the same form."""

import io
import json
import logging
import os
import re
from pathlib import Path

import pytest
import structlog

from rustosd import log


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restored():
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = handlers, level


def test_json_off_a_terminal():
    to = io.StringIO()
    log.configure("info", "auto", to)
    structlog.get_logger().info("link_up", nic="rustos0", speed_mbps=1000)
    structlog.get_logger().debug("unheard")
    (line,) = to.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["nic"], said["speed_mbps"], said["level"]) == ("link_up", "rustos0", 1000, "info")
    assert said["timestamp"].endswith("Z")


@pytest.mark.parametrize(("form", "to"), [("auto", Terminal()), ("console", io.StringIO())])
def test_words_for_people(form, to):
    log.configure("debug", form, to)
    structlog.get_logger().debug("link_up", nic="rustos0")
    assert "link_up" in to.getvalue() and not to.getvalue().startswith("{")
    assert ("\x1b[" in to.getvalue()) == to.isatty()


def test_what_libraries_say_is_json_too():
    to = io.StringIO()
    log.configure("info", "json", to)
    logging.getLogger("asyncio").warning('a "quoted" %s', "word")
    logging.getLogger("asyncio").info("unheard")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("asyncio").exception("failed")
    first, second = map(json.loads, to.getvalue().splitlines())
    assert (first["event"], first["logger"], first["level"]) == ('a "quoted" word', "asyncio", "warning")
    assert second["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_trace_has_no_local_variables(form):
    to = io.StringIO()
    log.configure("info", form, to)

    def fail():
        password = "sword" + "fish"     # a trace may have the line, not the value
        raise ValueError(password[:0])

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "in fail" in to.getvalue() or '"name": "fail"' in to.getvalue()
    assert "swordfish" not in to.getvalue()


def heard(to):
    return [json.loads(line)["event"] for line in to.getvalue().splitlines()]


def test_levels_by_logger_change_while_it_runs():
    to = io.StringIO()
    logs = log.configure("warning", "json", to, {"rustosd.devices": "debug"})
    devices, pump = structlog.get_logger("rustosd.devices.manager"), structlog.get_logger("rustosd.pump")
    devices.debug("a")
    pump.info("b")
    logs.set_level("rustosd.pump", "info")
    pump.info("c")
    logs.set_level("rustosd.devices", None)
    devices.info("d")
    logs.set_level(None, "debug")
    devices.debug("e")
    pump.debug("f")
    assert heard(to) == ["a", "c", "e"]
    assert [line.event for line in logs.ring.tail(9)] == ["a", "c", "e"]
    with pytest.raises(ValueError, match="has no level of its own"):
        logs.set_level("rustosd.devices", None)


def test_a_library_is_heard_from_its_own_level_on():
    to = io.StringIO()
    logs = log.configure("info", "json", to)
    logging.getLogger("asyncio").info("a")
    logs.set_level("asyncio", "debug")
    logging.getLogger("asyncio").debug("b")
    logs.set_level("asyncio", None)
    logging.getLogger("asyncio").info("c")
    assert heard(to) == ["b"]


def test_a_burst_is_one_line_and_a_count():
    to = io.StringIO()
    logs = log.configure("info", "json", to)
    for _ in range(1000):
        structlog.get_logger("rustosd.pump").error("callback_failed", error="x")
    logs.tell_repeated(True)
    first, last = map(json.loads, to.getvalue().splitlines())
    assert first["event"] == "callback_failed"
    assert (last["event"], last["of"], last["more"], last["level"]) == ("repeated", "callback_failed", 999, "error")


def test_secrets_are_not_said():
    to = io.StringIO()
    logs = log.configure("info", "json", to)
    structlog.get_logger().info("configured", params={"tls": {"psk": "swordfish"}}, password="swordfish", name="joe")
    logs.ring.tail(1)
    assert "swordfish" not in to.getvalue() + repr(logs.ring.tail(1)) and "joe" in to.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_journal_gets_priorities_on_every_line(form, tmp_path, monkeypatch):
    with open(tmp_path / "stream", "w") as to:
        found = os.fstat(to.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        log.configure("debug", form, to)
        speaker = structlog.get_logger("rustosd")
        for level in ("debug", "info", "warning", "error"):
            getattr(speaker, level)("said")
        try:
            raise ValueError("x")
        except ValueError:
            speaker.exception("failed")
    lines = (tmp_path / "stream").read_text().splitlines()
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<3>"]
    assert all(line.startswith("<3>") for line in lines[4:])
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")     # inherited from somebody whose stderr it was
    other = io.StringIO()
    log.configure("info", "json", other)
    structlog.get_logger().info("said")
    assert other.getvalue().startswith("{")


def test_a_reader_that_does_not_read_keeps_nobody_waiting():
    reader, writer = os.pipe()
    with open(reader) as read, open(writer, "w") as to:
        logs = log.configure("debug", "json", to)
        for number in range(600):
            structlog.get_logger("rustosd").info(f"event{number}", text="x" * 3000)
        logs.tell_repeated()                            # nothing can be told yet
        os.set_blocking(reader, False)
        said = read.read()
        logs.tell_repeated()
        structlog.get_logger("rustosd").info("the end")
        lines = (said + read.read()).splitlines()
    assert json.loads(lines[0])["event"] == "event0"
    lost, last = json.loads(lines[-2]), json.loads(lines[-1])
    whole = [json.loads(line)["event"] for line in lines[:-2] if line.endswith("}")]
    assert whole == [f"event{number}" for number in range(len(whole))]
    assert (lost["event"], lost["lines"], last["event"]) == ("log_lines_lost", 600 - len(whole), "the end")
    assert [line.event for line in logs.ring.tail(601)][-3:] == ["event599", "log_lines_lost", "the end"]


def test_a_reader_that_has_gone_and_a_full_disk_are_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as to:
        logs = log.configure("info", "json", to)
        structlog.get_logger("rustosd").info("said")
        logging.getLogger("asyncio").warning("said")
        assert logs._output.take_lost() == 2
    structlog.get_logger("rustosd").info("said")        # it is closed
    with open("/dev/full", "w") as to:
        logs = log.configure("info", "console", to)
        structlog.get_logger("rustosd").info("said")
        logs.tell_repeated()
        structlog.get_logger("rustosd").info("said again")
    assert [line.event for line in logs.ring.tail(9)] == ["said", "log_lines_lost", "said again"]


def test_every_module_logs_under_its_name():
    root = Path(log.__file__).parent
    nameless = [path for path in root.rglob("*.py") if re.search(r"^log = structlog.get_logger\(\)", path.read_text(), re.M)]
    assert nameless == []
