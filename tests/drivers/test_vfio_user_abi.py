"""vfio-user's messages: numbers and layouts as in the protocol's text, and answers parsed whatever they are."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import vfio_user_abi as abi
from drivers.vfio_abi import CONFIG_REGION, IrqFlag, RegionFlag
from drivers.vfio_user_abi import Command, Inbox, ProtocolError


def message(number, command, payload=b"", flags=0, error=0):
    return struct.pack("=HHIII", number, command, 16 + len(payload), flags, error) + payload


@pytest.mark.parametrize(("made", "octets"), [
    (abi.command(3, Command.DEVICE_RESET, b""), "03000d001000000000000000" "00000000"),
    (abi.command(0x102, Command.REGION_READ, abi.region_read(7, 4, 2)),
     "020109002000000000000000" "00000000" "0400000000000000" "07000000" "02000000"),
    (abi.region_write(0, 0x20, b"\x01\x02"), "2000000000000000" "00000000" "02000000" "0102"),
    (abi.dma_map(0x200000, 0x1000), "20000000" "03000000" "0000000000000000" "0000200000000000" "0010000000000000"),
    (abi.dma_unmap(0x200000, 0x1000), "18000000" "00000000" "0000200000000000" "0010000000000000"),
    (abi.irq_eventfds(2, 8, 3), "14000000" "24000000" "02000000" "08000000" "03000000"),
    (abi.irq_disable(1), "14000000" "21000000" "01000000" "00000000" "00000000"),
    (abi.irq_mask(0, masked=True), "14000000" "09000000" "00000000" "00000000" "01000000"),
    (abi.irq_mask(0, masked=False), "14000000" "11000000" "00000000" "00000000" "01000000"),
    (abi.device_info(), "10000000" "00000000" "00000000" "00000000"),
    (abi.region_info(7, 64), "40000000" "00000000" "07000000" "00000000" "0000000000000000" "0000000000000000"),
    (abi.irq_info(2), "10000000" "00000000" "02000000" "00000000"),
    (abi.dma_done(0x1000, 2, b"ab"), "0010000000000000" "0200000000000000" "6162"),
])
def test_octets_are_the_protocols(made, octets):
    assert made == bytes.fromhex(octets)


def test_an_answer_echoes_number_and_command_and_a_refusal_has_no_payload():
    asked = abi.Message(7, Command.DMA_READ, False, True, 0, b"", [])
    assert abi.reply(asked, b"ok") == message(7, 11, b"ok", 1)
    assert abi.reply(asked, b"ok", 14) == message(7, 11, b"", 0x21, 14)


def test_the_versions_text_says_what_we_take():
    octets = abi.version(twin=False)
    assert octets[:4] == struct.pack("=HH", 0, 1) and octets.endswith(b"}}\0")
    assert b"migration" not in octets and b"twin_socket" not in octets
    assert b'"twin_socket": {"supported": true}' in abi.version(twin=True)


def test_what_the_server_does_not_say_is_as_the_protocol_says():
    assert abi.decode_version(struct.pack("=HH", 0, 0), 0) == abi.Capabilities(1, 1 << 20, 4096, 65535, None)
    text = b"""{"capabilities": {"max_msg_fds": 100, "max_data_xfer_size": 99999999,
        "twin_socket": {"supported": true, "fd_index": 1}}}\0"""
    assert abi.decode_version(struct.pack("=HH", 0, 1) + text, 2) == abi.Capabilities(8, 1 << 20, 4096, 65535, 1)


def test_a_refusal_without_a_number_is_an_error_all_the_same():
    assert Inbox().take(b"", []) is None
    for flags, error, seen in ((0x21, 0, 5), (0x21, 13, 13), (1, 13, 0)):
        assert feed(message(1, 9, b"", flags, error), 7)[0].error == seen


def feed(octets, step):
    """What an inbox makes of a stream that comes in such pieces."""
    inbox, found = Inbox(), []
    while octets:
        count = min(inbox.wanted, step, len(octets))
        assert count > 0
        if (whole := inbox.take(octets[:count], [])) is not None:
            found.append(whole)
        octets = octets[count:]
    return found


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 99), st.binary(max_size=100)), max_size=5), st.integers(1, 50))
def test_messages_are_the_same_in_whatever_pieces_they_come(messages, step):
    octets = b"".join(message(*one) for one in messages)
    assert [(found.number, found.command, found.payload) for found in feed(octets, step)] == messages


@given(st.binary(max_size=200), st.integers(1, 64))
def test_any_stream_gives_messages_or_a_word(octets, step):
    try:
        feed(octets, step)
    except ProtocolError as error:
        assert str(error)


def test_files_belong_to_the_message_they_came_with():
    inbox = Inbox()
    first, second = message(1, 5, bytes(32), 1), message(2, 5, bytes(32), 1)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    assert inbox.take(first[:16], fds[:1]) is None and inbox.partial
    whole = inbox.take(first[16:], [])
    assert whole.fds == fds[:1] and not inbox.partial
    whole.close()
    inbox.take(second[:16], fds[1:])
    inbox.close()
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


@given(st.binary(max_size=120), st.integers(0, 8), st.integers(0, 3))
def test_any_answer_gives_a_value_or_a_word(octets, index, fds):
    asked = abi.Message(1, Command.DMA_WRITE, False, True, 0, octets, [])
    for decode in (lambda: abi.decode_version(octets, fds), lambda: abi.decode_device_info(octets),
                   lambda: abi.decode_region_info(octets, index), lambda: abi.decode_irq_info(octets, index),
                   lambda: abi.decode_region_access(octets, index, 0, 4, data=True), lambda: abi.decode_dma(asked)):
        try:
            decode()
        except ProtocolError as error:
            assert str(error)


def region(size, *areas, flags=15, index=1):
    sparse = struct.pack("=HHIII", 1, 1, 0, len(areas), 0) + b"".join(struct.pack("=QQ", *area) for area in areas)
    return struct.pack("=IIIIQQ", 32 + len(sparse), flags, index, 32, size, 0) + sparse


def test_parts_to_map_lie_inside_the_region_on_pages_and_apart():
    needed, info = abi.decode_region_info(region(0x4000, (0, 0x1000), (0x2000, 0x1000)), 1)
    assert (needed, info.size, info.areas) == (80, 0x4000, [(0, 0x1000), (0x2000, 0x1000)])
    assert info.flags == RegionFlag(15)
    for areas in ([(0, 0x5000)], [(0x1000, 0)], [(0x800, 0x1000)], [(0, 0x2000), (0x1000, 0x1000)], [(1 << 63, 1 << 63)],
                  [(0x4000, 0x1000)]):
        with pytest.raises(ProtocolError, match="to map"):
            abi.decode_region_info(region(0x4000, *areas), 1)
    assert abi.decode_region_info(region(0x100, (0, 0x1000)), 1)[1].areas == [(0, 0x1000)]      # a page holds it
    with pytest.raises(ProtocolError, match="configuration space"):
        abi.decode_region_info(region(0x1000 + 1, index=CONFIG_REGION), CONFIG_REGION)


def test_interrupts_are_no_more_than_msix_has():
    assert abi.decode_irq_info(struct.pack("=IIII", 16, 7, 2, 2048), 2) == (IrqFlag(7), 2048)
    with pytest.raises(ProtocolError, match="2049 vectors"):
        abi.decode_irq_info(struct.pack("=IIII", 16, 7, 2, 2049), 2)
