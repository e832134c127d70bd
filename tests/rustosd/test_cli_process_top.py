"""`rustosctl process top`: what processes took between two samples, and the lines of a screen."""

import json

import msgspec

from rustosd.cli.process_top import SORTS, Sample, View, ordered, rates
from rustosd.control import network_protocol as network
from rustosd.control import process_protocol as p
from tests.rustosd.fake import PROCESS

SECOND_NS = 1_000_000_000


def process(pid, second, **changes):
    values = {"pid": pid, "group": 900, "command": f"nginx {pid}", "rss_octets": pid << 20, "cpu_s": 0.25 * second,
              "sockets": 2, "program": "web", "sched_class": "normal"}
    return msgspec.convert(PROCESS | values | changes, p.Process)


def busy(identity, octets, pid=900):
    return network.Busy(id=identity, local="a:1", remote="b:2", state="established", owner="x", pid=pid, rx_octets=octets,
                        tx_octets=2 * octets, rtt_us=None, retransmits=0)


def sample(second):
    return Sample(second * SECOND_NS, [process(901, second), process(902, 0), process(7, 2 * second, group=6, program="")],
                  [busy("1.1", 1000 * second), busy("2.1", 500 * second), busy("3.1", 10**9, pid=None)])


def seen():
    view = View()
    for second in range(2):
        view.take(sample(second))
    return view


def test_rates_are_what_happened_in_between():
    first, second, other = rates(sample(2), sample(4))
    assert (first.cpu_percent, second.cpu_percent, other.cpu_percent) == (25, 0, 50)
    assert (first.rx_bits_per_s, first.tx_bits_per_s) == (8 * 1500, 16 * 1500)
    assert second.rx_bits_per_s == other.rx_bits_per_s == 0      # its connections are told of a program once


def test_who_is_new_or_has_gone_is_no_surprise():
    (new,) = rates(Sample(0, [process(1, 5)], [busy("1.1", 5)]), Sample(SECOND_NS, [process(2, 9)], [busy("9.1", 100)]))
    assert (new.pid, new.cpu_percent, new.rx_bits_per_s) == (2, 0, 800)


def test_every_order_has_the_largest_first():
    rows = rates(sample(0), sample(1))
    assert [ordered(rows, sort)[0].pid for sort in SORTS] == [7, 902, 901, 901]


def test_screens_fit_whatever_their_size():
    view = seen()
    for width, height in ((80, 24), (40, 10), (200, 5), (1, 1), (132, 50)):
        lines = view.lines(width, height)
        assert len(lines) <= height and all(len(line.text) <= width for line in lines)
    text = "\n".join(line.text for line in view.lines(120, 24))
    assert "3 processes, 75% of a processor" in text and "web" in text and "24.0k" in text and "now by cpu" in text
    view.sort_next()
    view.paused = True
    assert "PAUSED" in view.lines(120, 24)[0].text and "now by memory" in view.lines(120, 24)[-1].text
    assert "first figures" in View().lines(80, 24)[0].text


def test_a_command_is_nothing_a_terminal_obeys():
    view = View()
    for second in range(2):
        view.take(Sample(second * SECOND_NS, [process(901, second, command="x\x1b[2J\ny")], []))
    assert view.lines(120, 24)[3].text.endswith("x?[2J?y")


def test_one_interval_of_a_daemon(rustosctl):
    status, out, err = rustosctl("process", "top", "--once", "-d", "0.1")
    assert (status, err) == (0, "") and "901  fetch" in out
    status, out, _ = rustosctl("process", "top", "--once", "-d", "0.1", "--json")
    assert status == 0 and [row["pid"] for row in json.loads(out)["processes"]] == [0, 901]
