"""netdevice(7): what programs ask their sockets about interfaces, answered by a socket of Linux's in their own network.

Their ends of our sockets were made by the daemon, in its network, and know nothing of IPv4 addresses.
"""

import ctypes
import errno
import fcntl
import socket
import struct
from typing import Final

from rustosd.process.call import Call
from rustosd.process.sockets import GuestSocket, error

_CONF: Final = 0x8912
_OF_IPV4: Final = frozenset((0x8915, 0x8917, 0x8919, 0x891B))           # ADDR, DSTADDR, BRDADDR, NETMASK
# NAME, FLAGS, METRIC, MTU, HWADDR, INDEX, PFLAGS, TXQLEN, MAP
_OF_ALL: Final = frozenset((0x8910, 0x8913, 0x891D, 0x8921, 0x8927, 0x8933, 0x8935, 0x8942, 0x8970))
_ETHTOOL: Final = 0x8946
_UNSENT: Final = 0x894B                 # SIOCOUTQNSD, which is of TCP
_IFREQ_OCTETS: Final = 40
_IFCONF: Final = struct.Struct("=i4xQ")
_CONF_OCTETS_MOST: Final = 1 << 16


def ioctl(one: GuestSocket, call: Call) -> None:
    """Gets are answered; what would change an interface fails with EPERM."""
    request, at = call.int(1) & 0xFFFF_FFFF, call.pointer(2)
    if request == _UNSENT:
        call.proceed()
    elif request == _CONF:
        _list(one, call, at)
    elif request in _OF_IPV4 and one.family != socket.AF_INET:
        raise error(errno.ENOTTY)
    elif request in _OF_IPV4 or request in _OF_ALL:
        call.write(at, fcntl.ioctl(one.loop.network, request, call.read(at, _IFREQ_OCTETS)))
        call.answer()
    else:
        raise error(errno.EOPNOTSUPP if request == _ETHTOOL else errno.EPERM)


def _list(one: GuestSocket, call: Call, at: int) -> None:
    """SIOCGIFCONF: as many as the caller has room for, or how much room they take."""
    room, to = _IFCONF.unpack(call.read(at, _IFCONF.size))
    if room < 0:
        raise error(errno.EINVAL)
    rows = ctypes.create_string_buffer(min(room, _CONF_OCTETS_MOST)) if to else None
    asked = _IFCONF.pack(0 if rows is None else len(rows), 0 if rows is None else ctypes.addressof(rows))
    octets, _ = _IFCONF.unpack(fcntl.ioctl(one.loop.network, _CONF, asked))
    if rows is not None:
        call.write(to, rows.raw[:octets])
    call.write(at, struct.pack("=i", octets))
    call.answer()
