"""Socket options of supervised programs: what the stack does about them, and what they are when asked.

Options with an effect are told to the daemon. Hints about what the stack decides by itself are taken and remembered. Those
that promise what it does not do (multicast, time stamps, zero copy) fail with ENOPROTOOPT, and are counted.
"""

import errno
import socket
import struct

from cython.cimports.rustosd.process.call import Call

from rustosd.client.options import DEFAULTS, within
from rustosd.process import ancillary
from rustosd.process.sockets import GuestSocket, State, error

_INT = struct.Struct("=i")
_LINGER = struct.Struct("=ii")
_VALUE_MOST = 256
_SOL, _TCP, _IP, _IPV6, _UDP = (socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6,
                                socket.IPPROTO_UDP)
_TCP_INFO, _TCP_CONGESTION = 11, 13
_TCP_THIN_LINEAR_TIMEOUTS, _TCP_THIN_DUPACK, _TCP_FASTOPEN_CONNECT, _TCP_FASTOPEN_NO_COOKIE = 16, 17, 30, 34
_IP_RECVERR, _IP_MTU_DISCOVER, _IP_BIND_ADDRESS_NO_PORT = 11, 10, 24
_IPV6_RECVERR, _IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_DONTFRAG, _IPV6_TCLASS, _IPV6_AUTOFLOWLABEL = 25, 23, 24, 62, 67, 70
_IPV6_ADDR_PREFERENCES = 72
_UDP_NO_CHECK6_TX, _UDP_GRO = 101, 104
_CONGESTION = b"reno"
_NAME_OF_CONGESTION = _CONGESTION.ljust(16, b"\0")         # TCP_CA_NAME_MAX

TOLD = {
    (_TCP, socket.TCP_NODELAY): "nodelay",
    (_SOL, socket.SO_KEEPALIVE): "keepalive",
    (_SOL, socket.SO_RCVBUF): "receive_buffer",
    (_TCP, socket.TCP_KEEPIDLE): "keepalive_idle", (_TCP, socket.TCP_KEEPINTVL): "keepalive_interval",
    (_TCP, socket.TCP_KEEPCNT): "keepalive_probes", (_TCP, socket.TCP_USER_TIMEOUT): "user_timeout",
}
_SHARING = {(_SOL, socket.SO_REUSEADDR), (_SOL, socket.SO_REUSEPORT)}
HINTS = frozenset({
    (_SOL, socket.SO_BROADCAST), (_SOL, socket.SO_OOBINLINE),
    (_TCP, socket.TCP_CORK), (_TCP, socket.TCP_QUICKACK), (_TCP, socket.TCP_DEFER_ACCEPT), (_TCP, socket.TCP_SYNCNT),
    (_TCP, socket.TCP_NOTSENT_LOWAT), (_TCP, socket.TCP_LINGER2), (_TCP, socket.TCP_FASTOPEN), (_TCP, _TCP_FASTOPEN_CONNECT),
    (_TCP, _TCP_FASTOPEN_NO_COOKIE), (_TCP, _TCP_THIN_LINEAR_TIMEOUTS), (_TCP, _TCP_THIN_DUPACK),
    (_IP, socket.IP_TOS), (_IP, socket.IP_TTL), (_IP, _IP_MTU_DISCOVER), (_IP, _IP_RECVERR),
    (_IP, _IP_BIND_ADDRESS_NO_PORT),
    (_IPV6, socket.IPV6_V6ONLY), (_IPV6, socket.IPV6_UNICAST_HOPS), (_IPV6, _IPV6_MTU_DISCOVER), (_IPV6, _IPV6_RECVERR),
    (_IPV6, _IPV6_TCLASS), (_IPV6, _IPV6_AUTOFLOWLABEL), (_IPV6, _IPV6_MTU), (_IPV6, _IPV6_DONTFRAG),
    (_IPV6, _IPV6_ADDR_PREFERENCES), (_UDP, _UDP_NO_CHECK6_TX), (_UDP, _UDP_GRO),
})
"""Taken and remembered: the stack does as it does (RFC 9293, 5681; nothing is fragmented), with or without them."""
_ADDRESSES = {ancillary.WANTS_V4, ancillary.WANTS_V6}
_DEFAULTS = {
    **DEFAULTS, (_TCP, socket.TCP_MAXSEG): 1460, (_IP, socket.IP_TTL): 64, (_IPV6, socket.IPV6_UNICAST_HOPS): 64,
}
_STATES = {State.NEW: 7, State.CONNECTING: 2, State.CONNECTED: 1, State.LISTENING: 10, State.FAILED: 7}
"""As tcpi_state has them (net/tcp_states.h)."""


def set_option(one: GuestSocket, call: Call) -> None:
    """setsockopt(2). Raises OSError (EINVAL, EFAULT, EPERM, ENOPROTOOPT)."""
    level, name, length = call.int(1), call.int(2), call.int(4)
    if not 0 <= length <= _VALUE_MOST:
        raise error(errno.EINVAL)
    value = call.read(call.pointer(3), length)
    key = level, name
    if not _belongs(one, level):
        raise error(errno.ENOPROTOOPT)
    if key == (_TCP, _TCP_CONGESTION):
        if value.rstrip(b"\0") != _CONGESTION:
            raise error(errno.ENOENT)
        value = _NAME_OF_CONGESTION
    elif key in _ADDRESSES:
        _number(value)
    elif key == (_SOL, socket.SO_LINGER):
        if length < _LINGER.size:
            raise error(errno.EINVAL)
        on, seconds = _LINGER.unpack_from(value)
        one.tell("reset_on_close", int(bool(on) and seconds == 0))
    elif key in TOLD:
        one.tell(TOLD[key], max(0, within(key, _signed(value))))
    elif key in _SHARING:
        if one.kind == socket.SOCK_DGRAM or name == socket.SO_REUSEPORT:     # datagram sockets share a port with either
            one.tell("reuse_port", _number(value))
    elif key == (_SOL, socket.SO_BINDTODEVICE):
        raise error(errno.EPERM)
    elif key not in HINTS:
        one.loop.refused[f"setsockopt {level}/{name}"] += 1
        raise error(errno.ENOPROTOOPT)
    one.options = {**one.options, key: value}
    call.answer()


def get_option(one: GuestSocket, call: Call) -> None:
    """getsockopt(2). Raises OSError."""
    one.settle()
    call.write_option(_value(one, call.int(1), call.int(2)))
    call.answer()


def _value(one: GuestSocket, level: int, name: int) -> bytes:
    key = level, name
    if not _belongs(one, level):
        raise error(errno.EOPNOTSUPP)
    if level == _SOL:
        if name == socket.SO_ERROR:
            failed, one.error = one.error, 0
            return _INT.pack(failed)
        facts = {socket.SO_DOMAIN: one.family, socket.SO_PROTOCOL: one.protocol, socket.SO_TYPE: one.kind,
                 socket.SO_ACCEPTCONN: int(one.state == State.LISTENING)}
        if name in facts:
            return _INT.pack(facts[name])
    if key in one.options:
        return one.options[key]
    if key == (_SOL, socket.SO_LINGER):
        return _LINGER.pack(0, 0)
    if key == (_TCP, _TCP_INFO):
        return _tcp_info(one)
    if key == (_TCP, _TCP_CONGESTION):
        return _NAME_OF_CONGESTION
    if key in _DEFAULTS:
        return _INT.pack(_DEFAULTS[key])
    if key in TOLD or key in HINTS or key in _SHARING or key in _ADDRESSES:
        return _INT.pack(0)
    one.loop.refused[f"getsockopt {level}/{name}"] += 1
    raise error(errno.ENOPROTOOPT)


def _belongs(one: GuestSocket, level: int) -> bool:
    """Whether such a socket has options of a level."""
    return {_IPV6: one.family == socket.AF_INET6, _TCP: one.kind == socket.SOCK_STREAM,
            _UDP: one.kind == socket.SOCK_DGRAM}.get(level, True)


def _tcp_info(one: GuestSocket) -> bytes:
    """The beginning of struct tcp_info (linux/tcp.h) with what the stack knows; the rest is zeros."""
    facts = {}
    if one.state == State.CONNECTED:
        try:
            facts = one.ask("facts")
        except OSError:
            facts = {}
    mss = facts.get("mss") or 1460
    info = bytearray(104)
    info[0], info[4] = _STATES[one.state], min(facts.get("backoff", 0), 255)
    for at, value in {
        8: facts.get("rto_ns", 0) // 1000, 16: mss, 20: mss, 24: -(-facts.get("in_flight", 0) // mss),
        68: (facts.get("srtt_ns") or 0) // 1000, 72: (facts.get("rttvar_ns") or 0) // 1000,
        76: (facts.get("ssthresh") or 0x7FFF_FFFF) // mss, 80: facts.get("cwnd", 0) // mss, 84: mss,
        100: facts.get("retransmits", 0),
    }.items():
        struct.pack_into("=I", info, at, min(int(value), 0xFFFF_FFFF))
    return bytes(info)


def _number(value: bytes) -> int:
    """As `_signed`; what is negative counts as 0."""
    return max(0, _signed(value))


def _signed(value: bytes) -> int:
    """An int option; one that is too short is an error, as in Linux. Raises OSError (EINVAL)."""
    if len(value) < _INT.size:
        raise error(errno.EINVAL)
    number: int = _INT.unpack_from(value)[0]
    return number
