"""The e1000 driver on real vfio-pci against QEMU's 82540EM and 82574L; Linux is the peer at the other end of the cable."""

import hashlib
import json
import time

import pytest

from tests.lab import inside_e1000 as inside
from tests.lab.guest import CARDS

V4, V6 = "10.9.0.2", "fd09::2"
OURS = [f"{V4}/24", f"{V6}/64"]
PEER = ["10.9.0.1/24", "fd09::1/64"]
KINDS = [("e1000", "intx"), ("e1000e", "msix"), ("e1000e", "msi"), ("e1000e", "intx")]
BYTES = 5_000_000


@pytest.fixture(scope="module", autouse=True)
def prepared(guest):
    guest.preload("tests.lab.inside_e1000")
    guest.run("sysctl -q vm.nr_hugepages=24")
    yield
    guest.run("sysctl -q vm.nr_hugepages=0")


class Served:
    """Our host on one card, and what the peer does to it."""

    def __init__(self, guest, name, kind, **options):
        self.guest, self.card = guest, CARDS[name]
        for address in PEER:
            guest.netns.run("ip", "addr", "add", address, "dev", name, "nodad")
        self.call = guest.start(inside.serve, self.card.bdf, [kind], OURS, timeout=150, **options)
        self.hello = self.call.next(60)
        self.answers(V4)

    def answers(self, host, seconds=15):
        """Ping until it answers."""
        limit = time.monotonic() + seconds
        while self.peer("ping", "-q", "-c", "1", "-W", "1", host, check=False).returncode:
            assert time.monotonic() < limit, f"{host} does not answer"

    def peer(self, *command, **options):
        return self.guest.netns.run(*command, **options)

    def signal(self, name):
        self.guest.run(f"kill -{name} {self.hello['pid']}")

    def end(self):
        """Its counters."""
        self.signal("TERM")
        return self.call.result()

    def clean(self):
        self.call.kill()
        self.peer("ip", "addr", "flush", "dev", self.card.name)


@pytest.fixture
def serve(guest):
    served = []

    def start(name, kind, **options):
        served.append(Served(guest, name, kind, **options))
        return served[-1]

    yield start
    for one in served:
        one.clean()


def iperf3(served, host, *arguments):
    answer = json.loads(served.peer("iperf3", "-c", host, "--json", "-t", "2", *arguments, check=False).stdout)
    assert "error" not in answer
    return answer["end"]["sum_received"]["bits_per_second"] / 1e6


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=lambda v: v)
def test_ping_curl_and_iperf3_by_each_interrupt_kind(serve, name, kind, record_property):
    served = serve(name, kind)
    hello = served.hello
    assert (hello["mac"], hello["kind"], hello["link"]) == (served.card.mac, kind, True)
    assert hello["negotiation"].up and hello["negotiation"].complete
    served.answers(V6)
    expected = hashlib.sha256(pattern(BYTES)).hexdigest()
    for host in (V4, V6):
        assert " 0% packet loss" in served.peer("ping", "-q", "-f", "-c", "300", host).stdout
        url = f"http://[{host}]/bytes/{BYTES}" if ":" in host else f"http://{host}/bytes/{BYTES}"
        assert served.peer("sh", "-c", f"curl -sSgf '{url}' | sha256sum").stdout.split()[0] == expected
        for direction in ([], ["-R"]):
            rate = iperf3(served, host, *direction)
            record_property(f"{host}{''.join(direction)}_mbps", round(rate))
            assert rate > 1
    end = served.end()
    nic = end["nic"]
    assert end["pump"]["errors"] == end["pump"]["tx_refused"] == nic["tx_dropped"] == nic["resets"] == 0
    assert nic["tx_super_segments"] > 0 and nic["hw_super_segments_sent"] > 0
    assert 0 < nic["wakeups"] < nic["rx_frames"]
    if name == "e1000e":            # QEMU's 82540EM verifies nothing and says so
        assert nic["rx_checksums"] > 0.9 * nic["rx_frames"]


@pytest.mark.parametrize(("name", "kind"), KINDS[:2], ids=lambda v: v)
def test_a_link_that_goes_and_comes_back_loses_no_connection(serve, guest, name, kind):
    served = serve(name, kind)
    transfer = guest.netns.popen("sh", "-c", f"curl -sSf -m 60 --limit-rate 2M http://{V4}/bytes/20000000 | sha256sum",
                                 stdout=-1, text=True)
    time.sleep(2)
    guest.monitor("set_link", name=name, up=False)
    time.sleep(1.5)
    assert served.peer("ping", "-q", "-c", "1", "-W", "1", V4, check=False).returncode
    guest.monitor("set_link", name=name, up=True)
    assert transfer.communicate(timeout=60)[0].split()[0] == hashlib.sha256(pattern(20_000_000)).hexdigest()
    assert served.end()["nic"]["link_changes"] >= 2


@pytest.mark.parametrize(("name", "kind"), KINDS[:2], ids=lambda v: v)
def test_a_reset_under_load_loses_no_connection(serve, guest, name, kind):
    served = serve(name, kind)
    transfer = guest.netns.popen("sh", "-c", f"curl -sSf -m 60 --limit-rate 4M http://{V4}/bytes/20000000 | sha256sum",
                                 stdout=-1, text=True)
    for _ in range(2):
        time.sleep(1.5)
        served.signal("USR1")
    assert transfer.communicate(timeout=60)[0].split()[0] == hashlib.sha256(pattern(20_000_000)).hexdigest()
    end = served.end()
    assert end["nic"]["resets"] == 2 and end["pump"]["errors"] == 0


def pattern(length):
    """What /bytes/N answers with."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]
