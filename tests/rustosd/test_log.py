"""Logs: one JSON object a line for programs, a readable line for people, and what libraries say in the same form."""

import io
import json
import logging

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
