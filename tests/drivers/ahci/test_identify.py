"""What a drive says of itself, believed as far as it can be true."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.ahci.identify import IdentifyError, Identity, parse, parse_error_log
from drivers.disk import Feature
from tests.models.ahci import identification


def test_an_honest_drive_is_believed():
    found = parse(identification(sectors=7814037168, model="WDC WD40EFRX", serial="WD-1", firmware="82.00A82", log=True,
                                 fua=True, words={106: 1 << 14 | 1 << 13 | 3, 217: 5400, 169: 1}))
    assert found == Identity(
        "WDC WD40EFRX", "WD-1", "82.00A82", 7814037168, 512, 4096, 32, Feature.QUEUE | Feature.FUA | Feature.TRIM
        | Feature.WRITE_CACHE | Feature.SMART | Feature.ROTATING | Feature.ERROR_LOG, True, 5400, fastest=1,
        has_write_cache=True, logs=True, has_smart=True)


def test_sectors_of_4096_octets():
    found = parse(identification(words={106: 1 << 14 | 1 << 12, 117: 2048, 118: 0}))
    assert (found.sector_octets, found.physical_octets) == (4096, 4096)


@pytest.mark.parametrize(("data", "why"), [
    (bytes(511), "511 octets"),
    (identification(words={0: 0x8000}), "packet device"),
    (identification(words={49: 0}), "no DMA"),
    (identification(words={83: 0x4000}), "48-bit"),
    (identification(words={83: 0xFFFF}), "48-bit"),
    (identification(sectors=0), "0 sectors"),
    (identification(sectors=(1 << 48) + 1), "sectors"),
    (identification(words={106: 1 << 14 | 1 << 12, 117: 300}), "sectors of 600"),
    (identification(words={106: 1 << 14 | 1 << 12, 117: 0, 118: 0xFFFF}), "sectors of"),
    (identification(words={255: 0x01A5}), "checksum"),
    (bytes(512), "DMA"),
    (b"\xff" * 512, "packet device"),
])
def test_what_cannot_be_true_or_driven_is_refused_with_a_reason(data, why):
    with pytest.raises(IdentifyError, match=why):
        parse(data)


def test_words_that_say_they_mean_nothing_mean_nothing():
    found = parse(identification(words={76: 0xFFFF, 84: 0xFFFF, 87: 0, 106: 0xFFFF, 169: 0xFFFF, 217: 0xFFFF}))
    assert (found.queued, found.queue_depth, found.physical_octets, found.plain_fua) == (False, 1, 512, False)
    assert found.features == Feature.FUA | Feature.WRITE_CACHE


def test_names_are_printable_whatever_the_drive_says():
    data = bytearray(identification())
    data[54:94] = bytes(range(0, 40))
    assert set(parse(bytes(data)).model) <= {chr(c) for c in range(0x20, 0x7F)}


@given(st.binary(min_size=512, max_size=512), st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=20))
def test_whatever_a_drive_says_there_is_an_answer_within_bounds(noise, changes):
    near = bytearray(identification())
    for at, octet in changes:
        near[at] = octet
    for data in (noise, bytes(near)):
        try:
            found = parse(data)
        except IdentifyError:
            continue
        assert 0 < found.sectors <= 1 << 48 and found.sector_octets in (512, 1024, 2048, 4096)
        assert found.sector_octets <= found.physical_octets <= 65536 and 1 <= found.queue_depth <= 32
        assert (found.model + found.serial + found.firmware).isprintable() and 0 <= found.rotation_rpm < 65535


@given(st.binary(max_size=600))
def test_an_error_log_is_believed_only_when_it_is_whole(data):
    found = parse_error_log(data)
    if found is not None:
        assert len(data) == 512 and sum(data) % 256 == 0 and found.tag == data[0] & 31


def test_an_error_log_names_the_command_that_failed():
    page = bytearray(512)
    page[0], page[2], page[3] = 17, 0x41, 0x40
    page[511] = -sum(page) & 0xFF
    found = parse_error_log(bytes(page))
    assert (found.tag, found.status, found.error) == (17, 0x41, 0x40)
    page[0] |= 0x80
    assert parse_error_log(bytes(page)) is None
    assert struct.unpack_from("<B", page, 0) == (0x91,)
