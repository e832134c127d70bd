"""The same jobs on a bad link: nftables drops 1 % and 5 % of the frames, both ways."""

from collections.abc import Iterator

import pytest

from tests.peers.clients import echo_at_once, expected_sha256, fetch_at_once
from tests.peers.conftest import V4, V6, Peer, need, url

BOTH = pytest.mark.parametrize("host", [V4, V6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", params=[1, 5], ids=["loss1", "loss5"])
def lossy(peer: Peer, request: pytest.FixtureRequest) -> Iterator[Peer]:
    """The daemon behind a link that loses some percent of the frames each way."""
    need("nft")
    percent = request.param
    rules = ["add table inet loss"]
    for hook in ("input", "output"):
        device = "iifname" if hook == "input" else "oifname"
        rules += [f"add chain inet loss {hook} {{ type filter hook {hook} priority 0 ; }}",
                  f"add rule inet loss {hook} {device} rustos0 numgen random mod 100 < {percent} counter drop"]
    peer.netns.run("nft", "; ".join(rules))
    try:
        yield peer
        assert "packets 0 " not in peer.netns.run("nft", "list", "table", "inet", "loss").stdout
    finally:
        peer.netns.run("nft", "delete table inet loss")


@BOTH
def test_curl_gets_its_octets_intact(lossy: Peer, host: str) -> None:
    fetch = f"curl -sSgf '{url(host, '/bytes/100000000')}' | sha256sum"
    answer = lossy.netns.run("sh", "-c", fetch, timeout=120).stdout
    assert answer.split()[0] == expected_sha256(100_000_000)


@BOTH
def test_a_thousand_connections_at_once_all_get_their_octets(lossy: Peer, host: str) -> None:
    assert lossy.netns.call(fetch_at_once, host, 1000, 20_000, timeout=120) == 1000


@BOTH
def test_echo_returns_everything_sent(lossy: Peer, host: str) -> None:
    assert lossy.netns.call(echo_at_once, host, 20, 300_000, timeout=120) == 20
