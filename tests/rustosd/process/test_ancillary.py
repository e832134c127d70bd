"""Ancillary data with addresses, of any shape; what Linux makes of it is in tests/peers/socket_calls.py."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustosd.client.wire import pack_address
from rustosd.process import ancillary

V4, V6 = pack_address("10.77.0.2"), pack_address("fd77::2")


def message(level, kind, data, length=None):
    return struct.pack("=Qii", 16 + len(data) if length is None else length, level, kind) + data + bytes(-len(data) % 8)


@given(st.binary(max_size=200) | st.lists(
    st.builds(message, st.sampled_from((0, 41, 1)), st.sampled_from((8, 50, 1)), st.binary(max_size=30),
              st.none() | st.integers(0, 2**64 - 1)), max_size=4).map(b"".join))
def test_whatever_a_program_sends_along_is_read_or_refused(control):
    try:
        assert len(ancillary.source(control)) == 16
    except OSError as error:
        assert error.errno == errno.EINVAL


@pytest.mark.parametrize(("family", "key", "ours"), [
    (socket.AF_INET, ancillary.WANTS_V4, V4), (socket.AF_INET6, ancillary.WANTS_V6, V6),
    (socket.AF_INET6, ancillary.WANTS_V6, V4), (socket.AF_INET6, ancillary.WANTS_V4, V4)])
def test_what_is_told_of_a_datagram_is_taken_for_the_answer(family, key, ours):
    assert ancillary.arrived(ours, {}, family) == ancillary.arrived(ours, {key: bytes(4)}, family) == b""
    assert ancillary.source(ancillary.arrived(ours, {key: struct.pack("=i", 1)}, family)) == ours


def test_other_data_among_it_is_passed_over():
    other = message(socket.IPPROTO_IP, socket.IP_TOS, bytes(4))
    told = ancillary.arrived(V4, {ancillary.WANTS_V4: struct.pack("=i", 1)}, socket.AF_INET)
    assert ancillary.source(other + told + other) == V4
    assert ancillary.source(other) == bytes(16)
