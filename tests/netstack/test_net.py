"""The shared state: its hash, its randomness, its interfaces and addresses."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.counters import HELP as COUNTER_HELP
from netstack.counters import LABELS as COUNTER_LABELS
from netstack.counters import Counter
from netstack.net import NetState, keyed_hash
from netstack.verdict import HELP, LABELS, Verdict

MASK = (1 << 64) - 1
SECRET = bytes(range(16))
MAC = "02:00:00:00:00:01"


def reference_siphash(key: bytes, message: bytes) -> int:
    """SipHash-2-4 as the paper describes it, for any message."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    a, b, c, d = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def rotate(x, n):
        return ((x << n) | (x >> (64 - n))) & MASK

    def sip_round(a, b, c, d):
        a = (a + b) & MASK
        b = rotate(b, 13) ^ a
        a = rotate(a, 32)
        c = (c + d) & MASK
        d = rotate(d, 16) ^ c
        a = (a + d) & MASK
        d = rotate(d, 21) ^ a
        c = (c + b) & MASK
        b = rotate(b, 17) ^ c
        c = rotate(c, 32)
        return a, b, c, d

    tail = len(message) % 8
    padded = message + bytes(7 - tail) + bytes([len(message) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at:at + 8], "little")
        d ^= word
        for _ in range(2):
            a, b, c, d = sip_round(a, b, c, d)
        a ^= word
    c ^= 0xFF
    for _ in range(4):
        a, b, c, d = sip_round(a, b, c, d)
    return a ^ b ^ c ^ d


def test_reference_hash_has_the_published_value():
    # Aumasson and Bernstein, "SipHash: a fast short-input PRF", appendix A
    assert reference_siphash(SECRET, bytes(range(15))) == 0xA129CA6149BE45E5


words = st.integers(0, MASK)


@given(st.binary(min_size=16, max_size=16), st.tuples(words, words, words, words, words))
def test_hash_is_siphash_2_4(key, m):
    message = b"".join(word.to_bytes(8, "little") for word in m)
    assert keyed_hash(key, *m) == reference_siphash(key, message)


def test_random_depends_on_the_secret_alone():
    first, again, other = NetState(SECRET), NetState(SECRET), NetState(bytes(16))
    drawn = [first.draw64() for _ in range(100)]
    assert drawn == [again.draw64() for _ in range(100)]
    assert drawn != [other.draw64() for _ in range(100)]
    assert len(set(drawn)) == 100


def test_a_short_secret_is_refused():
    with pytest.raises(ValueError, match="16 random octets"):
        NetState(bytes(15))


@given(st.integers(1, 0xFFFFFFFF))
def test_random_below_stays_below(bound):
    state = NetState(SECRET)
    assert all(0 <= state.draw_below(bound) < bound for _ in range(20))


def test_random_below_is_not_biased():
    # a plain modulo would draw the lowest third twice as often, a plain multiplication the multiples of three
    bound = 3 << 30
    state = NetState(SECRET)
    thirds = collections.Counter(state.draw_below(bound) // (1 << 30) for _ in range(30_000))
    assert all(abs(count - 10_000) < 500 for count in thirds.values()), thirds
    residues = collections.Counter(state.draw_below(bound) % 3 for _ in range(30_000))
    assert all(abs(count - 10_000) < 500 for count in residues.values()), residues
    assert state.draw_below(0) == 0


def test_loopback_is_there():
    state = NetState(SECRET)
    (lo,) = state.interfaces()
    assert (lo["index"], lo["name"], lo["up"], lo["mtu"]) == (0, "lo", True, 65535)
    assert lo["features"] == ["rx_checksum", "tx_checksum", "tso4", "tso6"]
    assert [(row["address"], row["state"]) for row in state.addresses()] == [
        ("127.0.0.1/8", "preferred"), ("::1/128", "preferred")]
    with pytest.raises(ValueError, match="loopback interface stays"):
        state.remove_interface(0)


def test_interfaces_come_and_go():
    state = NetState(SECRET)
    before = state.generation
    assert state.add_interface("eth0", MAC, 1500, 3) == 1
    assert state.add_interface("eth1", bytes.fromhex("020000000002"), 9000) == 2
    assert state.generation != before
    row = state.interfaces()[1]
    assert (row["name"], row["mac"], row["mtu"], row["up"]) == ("eth0", MAC, 1500, False)
    assert row["features"] == ["rx_checksum", "tx_checksum"]
    before = state.generation
    state.set_up(1, True)
    assert state.interfaces()[1]["up"] and state.generation != before
    before = state.generation
    state.set_up(1, True)
    assert state.generation == before       # nothing changed
    state.add_address(1, "10.0.0.1/24")
    state.remove_interface(1)
    assert [row["name"] for row in state.interfaces()] == ["lo", "eth1"]
    assert not state.is_own("10.0.0.1")
    assert state.add_interface("eth2", MAC, 1500) == 1      # the lowest free index


@pytest.mark.parametrize("arguments, complaint", [
    (("lo", MAC, 1500), "already an interface lo"),
    (("", MAC, 1500), "not an interface name"),
    (("sixteen-letters-", MAC, 1500), "not an interface name"),
    (("a b", MAC, 1500), "not an interface name"),
    (("é", MAC, 1500), "not an interface name"),
    (("e0", "01:00:5e:00:00:01", 1500), "MAC"),
    (("e0", "00:00:00:00:00:00", 1500), "MAC"),
    (("e0", "02:00", 1500), "MAC"),
    (("e0", "nonsense", 1500), "MAC"),
    (("e0", MAC, 67), "MTU"),
    (("e0", MAC, 65536), "MTU"),
    (("e0", MAC, 1500, 16), "feature bits 0x10"),
])
def test_bad_interfaces_are_refused(arguments, complaint):
    state = NetState(SECRET)
    with pytest.raises(ValueError, match=complaint):
        state.add_interface(*arguments)
    assert len(state.interfaces()) == 1


def test_interfaces_are_bounded():
    state = NetState(SECRET)
    for i in range(1, 32):
        assert state.add_interface(f"e{i}", MAC, 1500) == i
    with pytest.raises(OSError, match="at most 32"):
        state.add_interface("one-more", MAC, 1500)


@pytest.mark.parametrize("index", [-1, 1, 31, 32, 1 << 40])
def test_an_interface_that_is_not_there_is_a_clear_error(index):
    state = NetState(SECRET)
    for call in (state.remove_interface, state.take_output, lambda i: state.set_up(i, True),
                 lambda i: state.add_address(i, "10.0.0.1/8"), lambda i: state.remove_address(i, "10.0.0.1/8")):
        with pytest.raises(ValueError, match="no interface"):
            call(index)


def with_interface():
    state = NetState(SECRET)
    return state, state.add_interface("eth0", MAC, 1500)


def test_an_ipv4_address_is_ours_at_once_an_ipv6_one_after_detection():
    state, index = with_interface()
    assert state.add_address(index, "10.77.0.2/24") == 0
    assert state.add_address(index, "fd77::2/64") == 1
    assert [(row["address"], row["family"], row["state"]) for row in state.addresses()[2:]] == [
        ("10.77.0.2/24", 4, "preferred"), ("fd77::2/64", 6, "tentative")]
    assert state.is_own("10.77.0.2") and not state.is_own("fd77::2")
    assert not state.is_own("10.77.0.1")
    assert state.is_own("127.0.0.1") and state.is_own("127.200.0.1") and state.is_own("::1")
    assert not state.is_own("::7f00:1") and not state.is_own("::2")
    state.add_address(0, "2001:db8::1/128")     # no detection on loopback
    assert state.is_own("2001:db8::1")
    state.add_address(index, "fd77::3/64", detect=False)
    assert state.is_own("fd77::3")


def test_addresses_are_removed_by_their_text():
    state, index = with_interface()
    state.add_address(index, "10.77.0.2/24")
    state.add_address(index, "10.77.0.3/24")
    with pytest.raises(ValueError, match="no address"):
        state.remove_address(index, "10.77.0.2/25")
    with pytest.raises(ValueError, match="no address"):
        state.remove_address(index, "10.77.0.4/24")
    before = state.generation
    state.remove_address(index, "10.77.0.2/24")
    assert state.generation != before
    assert not state.is_own("10.77.0.2") and state.is_own("10.77.0.3")
    assert state.add_address(index, "10.77.0.5/24") == 0       # its slot is free again
    state.remove_address(index, "10.77.0.3")
    assert not state.is_own("10.77.0.3")


def test_the_same_address_on_two_interfaces_is_ours_until_both_lose_it():
    state, index = with_interface()
    other = state.add_interface("eth1", MAC, 1500)
    state.add_address(index, "10.0.0.1/24")
    state.add_address(other, "10.0.0.1/24")
    state.remove_address(index, "10.0.0.1/24")
    assert state.is_own("10.0.0.1")
    state.remove_address(other, "10.0.0.1/24")
    assert not state.is_own("10.0.0.1")


@pytest.mark.parametrize("text, complaint", [
    ("10.0.0.0/24", "network or broadcast"), ("10.0.0.255/24", "network or broadcast"), ("224.0.0.1/24", "of a host"),
    ("0.0.0.0/0", "of a host"), ("255.255.255.255/32", "of a host"), ("::/0", "of a host"), ("ff02::1/64", "of a host"),
    ("127.0.0.1/8", "loopback"), ("::1/128", "loopback"), ("::ffff:10.0.0.1/128", "IPv4-mapped"),
    ("10.0.0.1/33", "10.0.0.1/33"), ("what", "what"), ("", "''"),
])
def test_bad_addresses_are_refused(text, complaint):
    state, index = with_interface()
    with pytest.raises(ValueError, match=complaint):
        state.add_address(index, text)
    assert len(state.addresses()) == 2


def test_point_to_point_prefixes_have_no_broadcast_address():
    state, index = with_interface()
    state.add_address(index, "10.0.0.0/31")     # RFC 3021
    state.add_address(index, "10.0.0.3/32")
    assert state.is_own("10.0.0.0") and state.is_own("10.0.0.3")


def test_addresses_are_bounded_and_unique():
    state, index = with_interface()
    for i in range(1, 33):
        state.add_address(index, f"10.0.{i}.1/24")
    with pytest.raises(ValueError, match="already has"):
        state.add_address(index, "10.0.1.1/16")
    with pytest.raises(OSError, match="at most 32"):
        state.add_address(index, "10.0.99.1/24")
    assert all(state.is_own(f"10.0.{i}.1") for i in range(1, 33))


def test_ipv6_needs_its_smallest_mtu():
    state = NetState(SECRET)
    index = state.add_interface("thin", MAC, 1279)
    with pytest.raises(ValueError, match="1280"):
        state.add_address(index, "fd77::2/64")
    state.add_address(index, "10.0.0.1/24")


def test_many_addresses_are_all_found():
    state = NetState(SECRET)
    kept = []
    for i in range(1, 32):
        index = state.add_interface(f"e{i}", MAC, 1500)
        for k in range(32):
            state.add_address(index, f"10.{i}.{k}.1/24")
            kept.append(f"10.{i}.{k}.1")
    assert all(state.is_own(text) for text in kept)
    assert not any(state.is_own(f"10.{i}.{k}.2") for i in range(1, 32) for k in range(32))
    for i in range(1, 32, 2):
        state.remove_interface(i)
    assert [text for text in kept if state.is_own(text)] == [text for text in kept if int(text.split(".")[1]) % 2 == 0]


@pytest.mark.parametrize("enum, end, labels, help", [
    (Verdict, "VERDICTS", LABELS, HELP), (Counter, "COUNTERS", COUNTER_LABELS, COUNTER_HELP)])
def test_every_verdict_and_counter_has_its_words(enum, end, labels, help):
    count = enum[end]
    assert len(labels) == len(help) == len(set(labels)) == len(set(help)) == count
    for member in enum:
        if member != count:
            assert labels[member] == member.name.lower()
            assert help[member] and "\n" not in help[member]


def test_everything_starts_at_zero():
    state = NetState(SECRET)
    assert state.verdicts() == dict.fromkeys(LABELS, 0)
    assert state.unsent() == dict.fromkeys(LABELS, 0)
    assert state.counters() == dict.fromkeys(COUNTER_LABELS, 0)
