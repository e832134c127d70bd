"""Linux as the peer: ping, curl, iperf3, plain sockets, nmap, against a daemon with its default configuration."""

import json
import re
from itertools import pairwise

import pytest

from tests.peers.clients import (
    echo_at_once,
    expected_sha256,
    fetch_at_once,
    refused,
    short_connections,
    udp_refused,
    udp_round_trips,
)
from tests.peers.conftest import V4, V6, Peer, need, url

BOTH = pytest.mark.parametrize("host", [V4, V6], ids=["ipv4", "ipv6"])


@BOTH
def test_ping_flood_loses_nothing(peer: Peer, host: str) -> None:
    answer = peer.netns.run("ping", "-q", "-f", "-c", "10000", host).stdout
    assert "10000 packets transmitted, 10000 received, 0% packet loss" in answer


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1400, 1452])
def test_ping_of_every_size_the_mtu_takes_comes_back_whole(peer: Peer, host: str, size: int) -> None:
    answer = peer.netns.run("ping", "-q", "-c", "3", "-i", "0.01", "-s", str(size), host).stdout
    assert "3 received, 0% packet loss" in answer


@BOTH
def test_curl_gets_a_hundred_megabytes_intact(peer: Peer, host: str) -> None:
    answer = peer.netns.run("sh", "-c", f"curl -sSgf '{url(host, '/bytes/100000000')}' | sha256sum").stdout
    assert answer.split()[0] == expected_sha256(100_000_000)


@BOTH
def test_curl_shows_the_index_page(peer: Peer, host: str) -> None:
    assert "iperf3" in peer.netns.run("curl", "-sSgf", url(host, "/")).stdout


@BOTH
def test_a_thousand_connections_at_once_all_get_their_octets(peer: Peer, host: str) -> None:
    assert peer.netns.call(fetch_at_once, host, 1000, 20_000) == 1000


@BOTH
def test_echo_returns_everything_and_closes_after_a_half_close(peer: Peer, host: str) -> None:
    assert peer.netns.call(echo_at_once, host, 20, 300_000) == 20


@BOTH
def test_udp_echo_returns_every_datagram(peer: Peer, host: str) -> None:
    assert peer.netns.call(udp_round_trips, host, 2000, 64) == 2000
    assert peer.netns.call(udp_round_trips, host, 50, 1452) == 50


@BOTH
def test_a_closed_port_refuses(peer: Peer, host: str) -> None:
    assert peer.netns.call(refused, host, 9)
    assert peer.netns.call(udp_refused, host)


@BOTH
@pytest.mark.parametrize("arguments", [
    ("-t", "1"), ("-t", "1", "-R"), ("-n", "20M", "-P", "4"), ("-t", "1", "-P", "4", "-R"), ("-t", "1", "--bidir"),
    ("-u", "-b", "50M", "-t", "1"), ("-u", "-b", "50M", "-t", "1", "-R"),
], ids=lambda a: "_".join(a).replace("-", ""))
def test_iperf3_measures(peer: Peer, host: str, arguments: tuple[str, ...]) -> None:
    need("iperf3")
    answer = json.loads(peer.netns.run("iperf3", "-c", host, "--json", *arguments).stdout)
    assert "error" not in answer
    end = answer["end"]
    moved = end.get("sum_received", end.get("sum", {})).get("bytes", 0)
    assert moved > 1_000_000


def _ports(scan: str) -> dict[int, str]:
    return {int(port): state for port, state in re.findall(r"^(\d+)/tcp +(\S+)", scan, re.MULTILINE)}


@pytest.mark.parametrize("kind", ["-sS", "-sT"])
def test_nmap_sees_open_and_closed_ports(peer: Peer, kind: str) -> None:
    need("nmap")
    scan = peer.netns.run("nmap", "-n", "-Pn", kind, "-p", "7,9,80,5201,5202", V4).stdout
    assert _ports(scan) == {7: "open", 9: "closed", 80: "open", 5201: "open", 5202: "closed"}


def test_nmap_sees_the_same_over_ipv6(peer: Peer) -> None:
    need("nmap")
    scan = peer.netns.run("nmap", "-6", "-n", "-Pn", "-sS", "-p", "7,9,80", V6).stdout
    assert _ports(scan) == {7: "open", 9: "closed", 80: "open"}


def test_nmap_gets_no_answer_to_bad_checksums(peer: Peer) -> None:
    need("nmap")
    before = peer.metrics()
    scan = peer.netns.run("nmap", "-n", "-Pn", "-sS", "--badsum", "--max-retries", "0", "-p", "9,80", V4).stdout
    assert _ports(scan) == {9: "filtered", 80: "filtered"}
    name = 'rustos_frames_ended_total{verdict="tcp_checksum"}'
    assert peer.metrics()[name] - before.get(name, 0) >= 2


def test_nmap_odd_scans_get_what_rfc_9293_says(peer: Peer) -> None:
    need("nmap")
    for kind in ("-sF", "-sN", "-sX"):      # no SYN, no ACK, no RST: closed ports answer RST, open ones nothing
        scan = peer.netns.run("nmap", "-n", "-Pn", kind, "--max-retries", "1", "-p", "9,80", V4).stdout
        assert _ports(scan) == {9: "closed", 80: "open|filtered"}, kind


def test_every_received_frame_has_ended_exactly_once(peer: Peer) -> None:
    metrics = peer.metrics()
    received = sum(value for name, value in metrics.items() if name.startswith("rustos_nic_rx_frames_total"))
    ended = sum(value for name, value in metrics.items() if name.startswith("rustos_frames_ended_total"))
    assert received > 10_000
    assert received == ended


def test_short_connections_leave_no_memory_behind(peer: Peer) -> None:
    """A leak grows with every batch; a heap that has found its size has batches in which it does not grow."""
    batch, batches = 25_000, 6          # the table of TIME-WAIT is full after the first two
    sizes = []
    for _ in range(batches):
        assert peer.netns.call(short_connections, V4, batch, timeout=120) == batch
        sizes.append(peer.resident_octets())
    least = min(after - before for before, after in pairwise(sizes[1:]))
    assert least < 16 * batch, sizes    # not even 16 octets for each connection
