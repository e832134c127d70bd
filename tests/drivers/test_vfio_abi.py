"""The answers of the kernel that have no fixed length, parsed whatever they are; and the layout of what we send."""

import struct
from ctypes import sizeof

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import vfio_abi as abi


def answer(*capabilities, at=32):
    """A region's answer with these (number, body) behind it."""
    octets = bytes(at)
    for index, (number, body) in enumerate(capabilities):
        following = len(octets) + 8 + len(body) if index + 1 < len(capabilities) else 0
        octets += struct.pack("HHI", number, 1, following) + body
    return octets


def test_sparse_areas_are_found_behind_other_capabilities():
    areas = struct.pack("IIQQQQ", 2, 0, 0, 0x1000, 0x3000, 0x1000)
    octets = answer((3, b""), (1, areas))
    found = abi._capability(octets, 32, 1)
    assert abi._pairs(octets, found + 8, found + 16) == [(0, 0x1000), (0x3000, 0x1000)]
    assert abi._capability(octets, 32, 2) is None


def test_a_list_that_never_ends_ends():
    looped = bytes(32) + struct.pack("HHI", 9, 1, 32)
    assert abi._capability(looped, 32, 1) is None


@given(st.binary(max_size=200), st.integers(0, 1 << 32), st.integers(1, 3))
def test_any_octets_give_an_answer(octets, offset, wanted):
    found = abi._capability(octets, offset, wanted)
    if found is not None:
        pairs = abi._pairs(octets, found + 8, found + 16)
        assert len(pairs) * 16 <= len(octets)


@pytest.mark.parametrize(("structure", "size"), [
    (abi._GroupStatus, 8), (abi._DeviceInfo, 20), (abi._RegionInfo, 32), (abi._IrqInfo, 16), (abi._IrqSet, 20),
    (abi._IommuInfo, 24), (abi._DmaMap, 32), (abi._DmaUnmap, 24),
])
def test_structures_are_as_long_as_the_kernels(structure, size):
    assert sizeof(structure) == size


def test_the_numbers_of_the_calls_are_the_kernels():
    assert (abi._GET_API_VERSION, abi._IOMMU_UNMAP_DMA) == (0x3B64, 0x3B72)
