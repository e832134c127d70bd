"""The handshake without a socket: every option, every refusal, and any octets at all."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.block.ram import RamDisk
from rustosd.nbd import wire
from rustosd.nbd.export import Export
from rustosd.nbd.negotiation import OPTIONS_MOST, Info, Negotiation, Option, Reply, State, Tls
from tests.rustosd.nbd.raw import contexts, go, option, replies, string

CLIENT = struct.pack(">I", 3)


@pytest.fixture(scope="module")
def exports():
    disks = [RamDisk("one", 1 << 20), RamDisk("two", 1 << 30, sector_octets=4096)]
    yield {"one": Export("one", disks[0], description="the first"), "two": Export("two", disks[1], read_only=True),
           "secret": Export("secret", disks[0], tls_only=True)}
    for disk in disks:
        disk.close()


@pytest.fixture
def start(exports):
    def begin(flags=CLIENT, **options):
        negotiation = Negotiation(exports, **options)
        assert negotiation.hello() == b"NBDMAGICIHAVEOPT\0\x03"
        assert negotiation.receive(flags) == b""
        return negotiation
    return begin


def ask(negotiation, number, data=b""):
    """(reply, payload) of all replies to an option."""
    found = replies(negotiation.receive(option(number, data)))
    assert all(answered == number for answered, _, _ in found)
    return [(Reply(kind), payload) for _, kind, payload in found]


def kinds(found):
    return [kind for kind, _ in found]


def test_the_old_way_in(start):
    negotiation = start()
    answer = negotiation.receive(option(Option.EXPORT_NAME, b"one"))
    assert (answer[:8], len(answer)) == ((1 << 20).to_bytes(8, "big"), 10)
    assert negotiation.state is State.TRANSMISSION and negotiation.chosen.export.name == "one"
    assert not negotiation.chosen.transmission_flags & wire.FLAG_SEND_DF


def test_the_old_way_in_with_zeroes_and_without_fixed_newstyle(start):
    negotiation = start(struct.pack(">I", 0))
    assert len(negotiation.receive(option(Option.EXPORT_NAME))) == 10 + 124
    assert negotiation.chosen.export.name == "one"      # the empty name is the first one
    other = start(struct.pack(">I", 0))
    assert other.receive(option(Option.LIST)) == b"" and other.reason == "not_fixed_newstyle"


def test_go_tells_all_and_enters(start):
    negotiation = start()
    assert kinds(ask(negotiation, Option.STRUCTURED_REPLY)) == [Reply.ACK]
    found = ask(negotiation, Option.GO, go("one", Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE, 99))
    assert kinds(found) == [Reply.INFO] * 4 + [Reply.ACK]
    told = {struct.unpack(">H", payload[:2])[0]: payload[2:] for kind, payload in found if kind is Reply.INFO}
    assert told[Info.NAME] == b"one" and told[Info.DESCRIPTION] == b"the first"
    assert struct.unpack(">III", told[Info.BLOCK_SIZE]) == (512, 4096, 32 << 20)
    octets, flags = struct.unpack(">QH", told[Info.EXPORT])
    wanted = (wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA | wire.FLAG_SEND_DF | wire.FLAG_CAN_MULTI_CONN
              | wire.FLAG_SEND_CACHE | wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO)
    assert (octets, flags) == (1 << 20, wanted)
    assert negotiation.state is State.TRANSMISSION and negotiation.chosen.structured


def test_info_tells_the_same_and_stays(start):
    negotiation = start()
    assert ask(negotiation, Option.INFO, go("two", 3)) == ask(negotiation, Option.INFO, go("two", 3))
    assert negotiation.state is State.HAGGLING
    assert kinds(ask(negotiation, Option.INFO, go("three"))) == [Reply.ERR_UNKNOWN]


def test_list_shows_what_may_be_known(start):
    found = ask(start(), Option.LIST)
    assert found == [(Reply.SERVER, string("one") + b"the first"), (Reply.SERVER, string("two")), (Reply.ACK, b"")]


def test_abort_is_answered_whatever_comes_with_it(start):
    negotiation = start(tls=Tls.FORCED)
    assert kinds(ask(negotiation, Option.ABORT, b"bye")) == [Reply.ACK]
    assert (negotiation.state, negotiation.reason) == (State.OVER, "abort")


@pytest.mark.parametrize(("number", "data", "reply"), [
    (Option.LIST, b"x", Reply.ERR_INVALID),
    (Option.STARTTLS, b"", Reply.ERR_POLICY),
    (Option.STRUCTURED_REPLY, b"x", Reply.ERR_INVALID),
    (Option.EXTENDED_HEADERS, b"x", Reply.ERR_INVALID),
    (Option.LIST_META_CONTEXT, contexts("one"), Reply.ERR_INVALID),     # structured replies come first
    (Option.GO, b"", Reply.ERR_INVALID),
    (Option.GO, go("one")[:-1], Reply.ERR_INVALID),
    (Option.GO, go("one") + b"x", Reply.ERR_INVALID),
    (Option.GO, go("one", 3, 3), Reply.ERR_INVALID),
    (Option.GO, struct.pack(">I", 0xFFFFFFFF) + b"one\0\0", Reply.ERR_INVALID),
    (Option.GO, string(b"\xff") + b"\0\0", Reply.ERR_INVALID),
    (Option.GO, string(b"o\0e") + b"\0\0", Reply.ERR_INVALID),
    (Option.GO, string(b"o" * 4097) + b"\0\0", Reply.ERR_INVALID),
    (4, b"", Reply.ERR_UNSUP),
    (0, b"", Reply.ERR_UNSUP),
    (0xFFFFFFFF, bytes(1000), Reply.ERR_UNSUP),
    (Option.LIST, bytes(70000), Reply.ERR_TOO_BIG),
])
def test_an_option_that_cannot_be_is_refused_by_name(start, number, data, reply):
    negotiation = start()
    assert kinds(ask(negotiation, number, data)) == [reply]
    assert kinds(ask(negotiation, Option.LIST))[-1] is Reply.ACK        # and the next one is understood


def test_structured_and_extended(start):
    negotiation = start()
    assert kinds(ask(negotiation, Option.STRUCTURED_REPLY)) == [Reply.ACK]
    assert kinds(ask(negotiation, Option.STRUCTURED_REPLY)) == [Reply.ERR_INVALID]
    assert kinds(ask(negotiation, Option.EXTENDED_HEADERS)) == [Reply.ACK]
    assert kinds(ask(negotiation, Option.EXTENDED_HEADERS)) == [Reply.ERR_INVALID]
    assert kinds(ask(negotiation, Option.STRUCTURED_REPLY)) == [Reply.ERR_EXT_HEADER_REQD]
    assert negotiation.receive(option(Option.EXPORT_NAME, b"one")) == b""
    assert negotiation.reason == "export_name_after_extended_headers"


def test_contexts(start):
    negotiation = start()
    ask(negotiation, Option.STRUCTURED_REPLY)
    name, there = "base:allocation", [Reply.META_CONTEXT, Reply.ACK]
    listed = {(): there, (name,): there, ("base:",): there, ("base:x", "qemu:y"): [Reply.ACK], ("x",): [Reply.ERR_INVALID],
              ("x:",) * 33: [Reply.ERR_TOO_BIG]}
    for queries, wanted in listed.items():
        assert kinds(ask(negotiation, Option.LIST_META_CONTEXT, contexts("one", *queries))) == wanted
    for queries, wanted in {(): [Reply.ACK], ("base:",): [Reply.ACK], (name, "x:y"): there}.items():
        assert kinds(ask(negotiation, Option.SET_META_CONTEXT, contexts("one", *queries))) == wanted
    assert kinds(ask(negotiation, Option.SET_META_CONTEXT, contexts("none", name))) == [Reply.ERR_UNKNOWN]
    ask(negotiation, Option.GO, go("one"))
    assert negotiation.chosen.context is None           # the failure has undone the choice


@pytest.mark.parametrize(("chosen", "entered", "valid"), [("one", "one", True), ("one", "", True), ("two", "one", False)])
def test_a_context_is_of_one_export(start, chosen, entered, valid):
    negotiation = start()
    ask(negotiation, Option.STRUCTURED_REPLY)
    ask(negotiation, Option.SET_META_CONTEXT, contexts(chosen, "base:allocation"))
    ask(negotiation, Option.GO, go(entered))
    assert (negotiation.chosen.context is not None) is valid


def test_forced_tls(start):
    negotiation = start(tls=Tls.FORCED)
    for number, data in ((Option.LIST, b""), (Option.GO, go("one")), (Option.INFO, go("x")), (99, b"")):
        assert kinds(ask(negotiation, number, data)) == [Reply.ERR_TLS_REQD]
    assert kinds(ask(negotiation, Option.STARTTLS)) == [Reply.ACK]
    assert negotiation.state is State.TLS_WANTED
    negotiation.secured()
    assert kinds(ask(negotiation, Option.STARTTLS)) == [Reply.ERR_INVALID]
    assert kinds(ask(negotiation, Option.GO, go("secret")))[-1] is Reply.ACK
    other = start(tls=Tls.FORCED)
    assert other.receive(option(Option.EXPORT_NAME, b"one")) == b"" and other.reason == "tls_required"


def test_selective_tls(start):
    negotiation = start(tls=Tls.SELECTIVE)
    for name in ("secret", "nowhere"):          # nobody learns which of them there is
        assert kinds(ask(negotiation, Option.INFO, go(name))) == [Reply.ERR_TLS_REQD]
    assert kinds(ask(negotiation, Option.INFO, go("one")))[-1] is Reply.ACK
    ask(negotiation, Option.STRUCTURED_REPLY)
    for name in ("secret", "nowhere"):          # TLS_REQD is for INFO and GO alone
        assert kinds(ask(negotiation, Option.LIST_META_CONTEXT, contexts(name))) == [Reply.ERR_UNKNOWN]
    ask(negotiation, Option.STARTTLS)
    negotiation.secured()
    assert kinds(ask(negotiation, Option.STRUCTURED_REPLY)) == [Reply.ACK]      # forgotten by STARTTLS
    assert kinds(ask(negotiation, Option.INFO, go("nowhere"))) == [Reply.ERR_UNKNOWN]
    assert len(ask(negotiation, Option.LIST)) == 4


def test_what_is_sent_in_the_clear_does_not_count_as_if_it_came_by_tls(start):
    negotiation = start(tls=Tls.SELECTIVE)
    negotiation.receive(option(Option.STARTTLS) + option(Option.GO, go("secret")))
    assert (negotiation.state, negotiation.reason) == (State.OVER, "data_before_tls")


def test_a_server_that_shuts_down(start):
    negotiation = start(shutting_down=lambda: True)
    assert kinds(ask(negotiation, Option.GO, go("one"))) == [Reply.ERR_SHUTDOWN]
    assert kinds(ask(negotiation, Option.ABORT)) == [Reply.ACK]


@pytest.mark.parametrize(("octets", "reason"), [
    (struct.pack(">I", 4), "unknown_flags"),
    (CLIENT + option(3, magic=b"NBDMAGIC"), "bad_magic"),
    (CLIENT + b"IHAVEOPT" + struct.pack(">II", 3, (1 << 20) + 1), "oversize_option"),
    (CLIENT + option(Option.EXPORT_NAME, bytes(70000)), "oversize_option"),
    (CLIENT + option(Option.EXPORT_NAME, b"nowhere"), "unknown_export"),
    (CLIENT + option(Option.EXPORT_NAME, b"secret"), "unknown_export"),
    (CLIENT + option(99) * (OPTIONS_MOST + 1), "option_flood"),
])
def test_what_has_no_answer_ends_it_with_a_reason(exports, octets, reason):
    negotiation = Negotiation(exports)
    negotiation.receive(octets)
    assert (negotiation.state, negotiation.reason) == (State.OVER, reason)
    assert negotiation.receive(option(Option.LIST)) == b""


OPTIONS = st.builds(option, st.integers(0, 12) | st.integers(0, 2**32 - 1), st.one_of(
    st.binary(max_size=60), st.builds(go, st.sampled_from(["one", "two", "", "no"]), st.integers(0, 4)),
    st.builds(contexts, st.sampled_from(["one", "two", "no"]), st.sampled_from(["base:allocation", "base:", "x"]))))


@given(st.lists(OPTIONS | st.binary(max_size=40), max_size=20), st.integers(1, 50), st.sampled_from(list(Tls)))
def test_any_octets_in_any_pieces_give_answers_and_never_an_exception(octets, size, tls):
    disk = RamDisk("one", 1 << 20)
    stream = CLIENT + b"".join(octets)
    told = []
    for step in (size, len(stream)):
        negotiation = Negotiation({"one": Export("one", disk), "two": Export("two", disk, tls_only=True)}, tls=tls)
        answers = b""
        for at in range(0, len(stream), step):
            if negotiation.state is not State.HAGGLING:
                break
            answers += negotiation.receive(stream[at:at + step])
        if negotiation.state is not State.TRANSMISSION or negotiation.chosen is None:
            replies(answers)
        told.append(answers)
    assert told[0] == told[1]       # how the stream was cut makes no difference
    disk.close()
