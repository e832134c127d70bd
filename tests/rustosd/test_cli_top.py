"""`rustosctl top`: rates out of two samples, screens of several sizes, and a real run on a pty that pyte draws."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import termios
import time

import msgspec
import pyte
import pytest

from rustosd.cli.top_view import SORTS, View, rates, screen, sorted_connections
from rustosd.control import network_protocol as p
from tests.rustosd.terminal import rustosctl_command

NEVER_S = 60
SECOND_NS = 1_000_000_000


def sample(second=0, **changes):
    """The daemon's counters after so many seconds of steady work."""
    busy = [p.Busy(id=f"{n}.1", local=f"10.77.0.2:{80 + n}", remote=f"[fd77::{n}]:40000", state="established",
                   owner="service http", pid=None, rx_octets=1000 * n * second, tx_octets=125_000 * second,
                   rtt_us=250.0 * n or None, retransmits=second) for n in range(3)]
    values = {
        "version": "1.2.3", "uptime_s": 100.0 + second, "at_ns": second * SECOND_NS, "connections": 3, "busiest": busy,
        "nics": [p.Traffic(name=name, link=link, rx_frames=10 * second, rx_octets=1250 * second, tx_frames=20 * second,
                           tx_octets=125_000_000 * second, rx_dropped=second, tx_dropped=0)
                 for name, link in (("lo", "up"), ("rustos0", "up"), ("eth0", "down"))],
        "drops": {"ipv4_checksum": 5 * second, "no_route": 7}, "buffer_octets": 1 << 20, "buffer_limit_octets": 1 << 29,
        "resident_octets": 64 << 20,
        "pump": {"wakeups": 100 * second, "yields": 0, "rx_bursts": 10 * second, "rx_frames": 35 * second, "tx_bursts": 0,
                 "tx_frames": 0},
    }
    return p.Sample(**values | changes)


def seen(seconds=2):
    view = View()
    for second in range(seconds):
        view.take(sample(second))
    return view


def test_rates_are_what_happened_in_a_second():
    now = rates(sample(10), sample(12))
    nic = now.nics[1]
    assert (nic.rx_bits_per_s, nic.tx_bits_per_s, nic.rx_frames_per_s, nic.refused_per_s) == (10_000, 1e9, 10, 1)
    assert now.interval_s == 2 and now.pump.wakeups_per_s == 100
    assert (now.pump.frames_per_rx_burst, now.pump.frames_per_tx_burst) == (3.5, None)
    assert [(drop.reason, drop.frames_per_s) for drop in now.drops] == [("ipv4_checksum", 5), ("no_route", 0)]
    assert [each.tx_bits_per_s for each in now.busiest] == [1e6] * 3


def test_what_is_new_or_went_back_counts_as_quiet():
    before = sample(5, nics=[], busiest=[], drops={})
    now = rates(before, sample(6))
    assert {nic.tx_bits_per_s for nic in now.nics} == {0} and {each.tx_bits_per_s for each in now.busiest} == {0}
    assert {nic.rx_frames_per_s for nic in rates(sample(9), sample(8, at_ns=20 * SECOND_NS)).nics} == {0}


GOLDEN_80x24 = """\
rustosd 1.2.3, up 1m 41s, 3 connections
memory  TCP buffers 1.0 MiB of 512.0 MiB, process 64.0 MiB
pump    100 wake-ups/s, 3.5/- frames a burst in/out, 0 yields/s

NIC            RX b/s               TX b/s              RX f/s  TX f/s  REFUSED
lo              10.0k          █      1.0G          █       10      20        1
rustos0         10.0k          █      1.0G          █       10      20        1
eth0            10.0k          █      1.0G          █       10      20        1

  DROPS/S       TOTAL  REASON
        5           5  ipv4_checksum
        0           7  no_route

 ID    RX b/s   TX b/s       RTT  LOCAL            REMOTE           OWNER
2.1     16.0k     1.0M  0.500 ms  10.77.0.2:82     [fd77::2]:40000  service http
1.1      8.0k     1.0M  0.250 ms  10.77.0.2:81     [fd77::1]:40000  service http
0.1         0     1.0M         -  10.77.0.2:80     [fd77::0]:40000  service http






q quit   p pause   s sort, now by rate
"""


def test_the_screen_of_80_by_24():
    shown = "\n".join(line.text for line in screen(seen(), 80, 24)) + "\n"
    assert shown == GOLDEN_80x24


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 132, 300])
@pytest.mark.parametrize("height", [1, 9, 10, 24, 50])
def test_every_size_is_kept_to(width, height):
    lines = screen(seen(70), width, height)
    assert len(lines) <= height and all(len(line.text) <= width for line in lines)
    if width >= 80 and height >= 24:
        text = "\n".join(line.text for line in lines)
        assert "rustos0" in text and "ipv4_checksum" in text and "2.1" in text and "REFUSED" in text and "q quit" in text


def test_connections_are_sorted_by_what_is_asked_for():
    busiest = rates(sample(0), sample(1)).busiest
    assert [each.id for each in sorted_connections(busiest, "rx")] == ["2.1", "1.1", "0.1"]
    assert [each.id for each in sorted_connections(busiest, "rtt")] == ["2.1", "1.1", "0.1"]
    assert {sort for sort in SORTS if sorted_connections(busiest, sort)} == set(SORTS)


def test_one_sample_in_text_and_json(rustosctl):
    status, out, err = rustosctl("top", "--once", "-d", "0.1")
    assert (status, err) == (0, "") and out.startswith("rustosd ") and "rustos0" in out and "q quit" not in out
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads(rustosctl("top", "--json", "-d", "0.1")[1])
    assert list(document) == ["schema", "top"] and document["schema"] == 1
    top = document["top"]
    assert [nic["name"] for nic in top["nics"]] == ["lo", "rustos0"] and top["busiest"][0]["owner"] == "service http"
    assert top["busiest"][0]["octets"] == 2148 and {drop["reason"] for drop in top["drops"]} == {"ipv4_checksum", "no_route"}


def test_it_needs_a_terminal_or_to_be_told_otherwise(rustosctl):
    status, out, err = rustosctl("top")
    assert (status, out) == (2, "") and "--once and --json print one interval" in err


class Run:
    """`rustosctl top` on a terminal of its own, as pyte draws it."""

    def __init__(self, socket_path, columns=80, lines=24, shell=None):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.octets = b""
        self.pid, self.main = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", PYTHONIOENCODING="utf-8")
            command = rustosctl_command("--socket", socket_path, "top", "-d", "0.2")
            if shell is not None:
                command = ["/bin/bash", "-mc", shell.format(shlex.join(command))]
            os.execv(command[0], command)
        self.resize(columns, lines)
        self.mode = termios.tcgetattr(self.main)

    def resize(self, columns, lines):
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, condition):
        """Draw what comes until the condition holds."""
        end = time.monotonic() + NEVER_S
        while not condition():
            assert time.monotonic() < end, "\n".join(self.screen.display)
            self.draw()

    def draw(self):
        if select.select([self.main], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                octets = os.read(self.main, 65536)
                self.octets += octets
                self.stream.feed(octets)

    def shows(self, words):
        return lambda: any(words in line for line in self.screen.display)

    def press(self, keys):
        os.write(self.main, keys.encode())

    def end(self):
        """The exit status once it has ended; what it wrote until then is drawn."""
        end = time.monotonic() + NEVER_S
        while True:
            self.draw()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.draw()
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end

    def as_before(self):
        """Whether the terminal is as it was: the first screen, a cursor, keys by the line and echoed."""
        return (termios.tcgetattr(self.main)[3] == self.mode[3] and self.octets.rfind(b"\x1b[?1049l") > self.octets.rfind(
            b"\x1b[?1049h") and self.octets.rfind(b"\x1b[?25h") > self.octets.rfind(b"\x1b[?25l"))

    def close(self):
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.main)


@pytest.fixture
def run(socket_path):
    one = Run(socket_path)
    try:
        one.until(one.shows("q quit"))
        yield one
    finally:
        one.close()


def test_on_a_terminal_it_lives_and_obeys_keys(run, core):
    assert run.screen.display[0].startswith("rustosd ") and any("rustos0" in line for line in run.screen.display)
    assert any("7.2" in line and "service http" in line for line in run.screen.display)
    assert not termios.tcgetattr(run.main)[3] & (termios.ICANON | termios.ECHO)

    def moves_megabits():       # as long as it takes: a rate is on the screen for one interval only
        core.stack.connection_rows[0]["octets_received"] += 10 << 20
        return any("M" in line and "7.2" in line for line in run.screen.display)

    run.until(moves_megabits)
    run.press("s")
    run.until(run.shows("now by rx"))
    run.press("\x1b[A")         # an arrow is no key of ours, and not ESC either
    run.press("p")
    run.until(run.shows("PAUSED"))
    run.press("p")
    run.until(lambda: not run.shows("PAUSED")())
    run.press("q")
    assert run.end() == 0 and run.as_before()


def test_it_follows_the_size_of_the_window(run):
    run.resize(132, 40)
    run.until(lambda: run.screen.display[39].startswith("q quit"))
    run.resize(50, 12)
    run.until(lambda: run.screen.display[11].startswith("q quit"))
    run.resize(30, 5)
    run.until(run.shows("needs 40x10"))
    run.press("q")
    assert run.end() == 0 and run.as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(run, number):
    os.kill(run.pid, number)
    assert run.end() == 130 and run.as_before()


def test_ctrl_z_gives_the_terminal_back_for_a_while(socket_path):
    run = Run(socket_path, shell="{}; echo stopped; read -r; fg; echo over")
    try:
        run.until(run.shows("q quit"))
        run.press("\x1a")
        run.until(run.shows("stopped"))
        assert run.as_before()
        run.press("\n")
        run.until(run.shows("q quit"))
        run.press("q")
        run.until(run.shows("over"))
        assert run.end() == 0 and run.as_before()
    finally:
        run.close()


def test_a_daemon_that_goes_away_ends_it_with_a_line(run, core, monkeypatch):
    def fail(*_):
        raise OSError(5, "the daemon is ill")
    monkeypatch.setattr(core.stack, "usage", fail)
    assert run.end() == 1 and run.as_before() and any("rustosctl: the daemon is ill" in line for line in run.screen.display)


def test_samples_survive_the_socket():
    assert msgspec.json.decode(msgspec.json.encode(sample(3)), type=p.Sample) == sample(3)
