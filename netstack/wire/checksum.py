"""The Internet checksum (RFC 1071); the sums themselves are inline in the `.pxd`."""

import cython
from cython.cimports.libc.stdint import uint8_t
from cython.cimports.netstack.wire.address import Addr, address_from


def checksum(data: cython.const[cython.uchar][::1], start: int = 0) -> int:
    """The checksum of a contiguous buffer as the number a header holds; `start`: an unfolded sum to go on from."""
    acc: cython.uint = start
    n: cython.Py_ssize_t = data.shape[0]
    value: cython.uint = fold(sum_octets(cython.address(data[0]), n, acc) if n else acc)
    return ((value & 0xFF) << 8) | (value >> 8)


def pseudo_header(source: object, destination: object, protocol: cython.int, length: cython.uint) -> int:
    """The unfolded sum of a pseudo header, for `checksum(data, start)`."""
    a: Addr
    b: Addr
    address_from(source, cython.address(a))
    address_from(destination, cython.address(b))
    return sum_pseudo(cython.address(a), cython.address(b), cython.cast(uint8_t, protocol), length)
