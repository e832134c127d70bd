"""Addresses of programs, and octets that are none."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustosd.process.sockaddr import Endpoint, emit, parse

FAMILIES = (socket.AF_INET, socket.AF_INET6)
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None and not a.is_link_local).map(str)
ports = st.integers(0, 65535)


@given(v4, ports)
def test_ipv4_comes_back_as_it_was_by_both_families(host, port):
    assert parse(emit(Endpoint(host, port), socket.AF_INET), socket.AF_INET) == (host, port)
    if host != "0.0.0.0":
        assert parse(emit(Endpoint(host, port), socket.AF_INET6), socket.AF_INET6) == (host, port)


@given(v6, ports)
def test_ipv6_comes_back_as_it_was(host, port):
    back = parse(emit(Endpoint(host, port), socket.AF_INET6), socket.AF_INET6)
    assert (socket.inet_pton(socket.AF_INET6, back.host), back.port) == (socket.inet_pton(socket.AF_INET6, host), port)


def test_linux_reads_what_we_write():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        one.bind(("::1", 0))
        octets = emit(Endpoint("::1", one.getsockname()[1]), socket.AF_INET6)
        assert struct.unpack("=H", octets[:2]) == (socket.AF_INET6,) and len(octets) == 28


@given(st.binary(max_size=40), st.sampled_from(FAMILIES))
def test_any_octets_are_an_address_or_a_reason(octets, family):
    try:
        host, port = parse(octets, family)
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EAFNOSUPPORT)
    else:
        assert host and 0 <= port <= 65535


@pytest.mark.parametrize(("octets", "family", "number"), [
    (emit(Endpoint("::1", 5), socket.AF_INET6), socket.AF_INET, errno.EAFNOSUPPORT),
    (emit(Endpoint("1.2.3.4", 5), socket.AF_INET).ljust(28, b"\0"), socket.AF_INET6, errno.EAFNOSUPPORT),
    (emit(Endpoint("1.2.3.4", 5), socket.AF_INET), socket.AF_INET6, errno.EINVAL),      # Linux looks at the length first
])
def test_an_address_of_the_other_family_is_refused(octets, family, number):
    with pytest.raises(OSError) as caught:
        parse(octets, family)
    assert caught.value.errno == number
