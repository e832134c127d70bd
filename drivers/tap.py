"""A TAP device as a NIC: the Linux kernel at the other end of the wire.

With offload, every frame travels behind a `virtio_net_hdr`: TCP super-segments of up to 64 KiB cross in one system
call, and checksums of frames that never leave the machine are neither computed nor verified, in both directions.
"""

import errno
import fcntl
import os
import socket
import struct

import cython
from cython.cimports.libc.errno import EAGAIN, EBADF, EINTR, ENODEV
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.frame import BURST, MAX_FRAME, RX_CHECKSUM, TSO4, TSO6, TX_CHECKSUM
from cython.cimports.mm.hw import get16
from cython.cimports.posix.uio import iovec, writev
from cython.cimports.posix.unistd import read, write

if not cython.compiled:
    raise ImportError("drivers.tap must be compiled: python setup.py build_ext --inplace")

TUN_PATH = "/dev/net/tun"
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_IFNAMSIZ = 16
_REJECT_NAMES = ("", "too_short", "too_long", "gso_type", "gso_size", "gso_family", "gso_checksum", "checksum_range")

assert MAX_FRAME == 65553 and cython.sizeof(virtio_net_hdr) == 10 and len(_REJECT_NAMES) == REJECTS


@cython.final
@cython.cclass
class Tap(Nic):
    """One end of an Ethernet wire whose other end is a network interface of this machine's kernel."""

    def __cinit__(self):
        self.fd = -1
        self.arena = cython.cast(cython.pointer[uint8_t], malloc(ARENA))
        if self.arena == cython.NULL:
            raise MemoryError

    def __init__(self, fd: int, name: str, mac: bytes, mtu: int = 1500, offload: bool = True, control=None):
        """Drive an open descriptor, which becomes ours: a TAP another program opened, or in tests a packet socket.

        With `offload` a 10-octet virtio_net_hdr precedes every frame. To make a new interface use `Tap.open`.
        """
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"{mac.hex(':')} is no unicast MAC address")
        os.set_blocking(fd, False)
        self.fd = fd
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.offload = offload
        self.features = RX_CHECKSUM | TX_CHECKSUM | TSO4 | TSO6 if offload else 0
        self.control = control

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)
        free(self.arena)

    @staticmethod
    def open(name: str, mac: bytes, mtu: int = 1500, offload: bool = True, path: str = TUN_PATH) -> Tap:
        """Make the interface `name` (or the next free one for "tap%d") and hold its far end, whose address is `mac`.

        The interface is down and without addresses; it disappears when the Tap is closed or the process ends.

        Raises OSError, with what to do about it, and ValueError for a name or address that cannot be.
        """
        if not 1 <= len(name.encode()) < _IFNAMSIZ or name in (".", "..") or set(name) & set("/: \t\n"):
            raise ValueError(f"{name!r} is no interface name: 1 to {_IFNAMSIZ - 1} octets without '/', ':' or spaces")
        flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL | (IFF_VNET_HDR if offload else 0)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _explained(error, name, path) from None
        try:
            answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            if offload:
                fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET))
                fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
            name = answer[:_IFNAMSIZ].rstrip(b"\0").decode()
            control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            return Tap(fd, name, mac, mtu, offload, control)
        except OSError as error:
            os.close(fd)
            raise _explained(error, name, path) from None
        except BaseException:
            os.close(fd)
            raise

    def fileno(self) -> int:
        """The descriptor: readable while frames wait, -1 once closed."""
        return self.fd

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def receive(self, burst: RxBurst) -> cython.int:
        """Empty the burst and fill it; how many frames, 0 when none waits, or -1 when the interface is gone.

        At most 2 * BURST system calls. The octets stay valid until the next call.
        """
        burst.clear()
        return self._receive(burst)

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def transmit(self, burst: TxBurst) -> cython.int:
        """Write all frames, one system call each and no copy, and empty the burst; how many the kernel refused."""
        return self._transmit(burst)

    @cython.ccall
    @cython.exceptval(-2, check=True)
    def room(self) -> cython.int:
        """Always a whole burst: the kernel takes a frame in, or refuses it, within the write."""
        return BURST

    @property
    def link_up(self) -> bool:
        """Whether the kernel's side is up. One system call."""
        if self.gone or self.control is None:
            return not self.gone
        try:
            answer = fcntl.ioctl(self.control, _SIOCGIFFLAGS, struct.pack("16s24x", self.name.encode()))
        except OSError:
            return False
        return bool(struct.unpack_from("16xH", answer)[0] & _IFF_UP)

    def statistics(self) -> dict:
        """Counters since it was opened; reasons that never occurred are left out."""
        c: cython.pointer[TapCounters] = cython.address(self.counters)
        rejected = {f"rx_dropped_{_REJECT_NAMES[i]}": c.rejected[i] for i in range(1, REJECTS) if c.rejected[i]}
        failed = {f"rx_failed_{_errno_name(i)}": c.rx_failed[i] for i in range(ERRNOS) if c.rx_failed[i]}
        refused = {f"tx_dropped_{_errno_name(i)}": c.tx_refused[i] for i in range(ERRNOS) if c.tx_refused[i]}
        return {
            "rx_frames": c.rx_frames, "rx_octets": c.rx_octets, "rx_dropped": sum(rejected.values()),
            "tx_frames": c.tx_frames, "tx_octets": c.tx_octets, "tx_dropped": sum(refused.values()),
            "rx_super_segments": c.rx_super_segments, "tx_super_segments": c.tx_super_segments,
        } | rejected | failed | refused

    def close(self) -> None:
        """Close the descriptor; an interface made by `open` disappears. Stop watching `fileno` before."""
        self.gone = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.control is not None:
            self.control.close()
            self.control = None

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _receive(self, burst: RxBurst) -> cython.int:
        header: cython.int = VNET if self.offload else 0
        at: cython.pointer[uint8_t] = self.arena
        last: cython.pointer[uint8_t] = self.arena + ARENA - SLOT
        f: cython.pointer[RxFrame]
        n: cython.Py_ssize_t
        _reads: cython.int
        reject: cython.int
        for _reads in range(2 * BURST):      # rejected frames leave room in the burst, yet must not hold us here
            if burst.count == BURST or at > last:
                break
            n = read(self.fd, at + VNET - header, MAX_FRAME + 1 + header)
            if n <= 0:
                return self._nothing_read(burst.count, c_errno if n < 0 else EBADFD)
            f = cython.address(burst.frames[burst.count])
            f.data = at + VNET
            f.length = cython.cast(uint32_t, n - header) if n > header else 0
            f.segment_size = 0
            f.flags = 0
            reject = _check_length(f)
            if reject == ACCEPT and self.offload:
                reject = _apply(cython.cast(cython.pointer[virtio_net_hdr], at), f)
            if reject != ACCEPT:
                self.counters.rejected[reject] += 1
                continue
            self.counters.rx_frames += 1
            self.counters.rx_octets += f.length
            self.counters.rx_super_segments += f.segment_size != 0
            burst.count += 1
            at += (VNET + f.length + 7) & ~cython.cast(uint32_t, 7)
        return burst.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _nothing_read(self, count: cython.int, error: cython.int) -> cython.int:
        """What `receive` returns when a read failed after `count` frames."""
        if error in (EAGAIN, EINTR):
            return count
        if error in (EBADFD, EBADF, ENODEV):
            self.gone = True
            return count if count else -1
        self.counters.rx_failed[error if error < ERRNOS else 0] += 1
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _transmit(self, burst: TxBurst) -> cython.int:
        refused: cython.int = 0
        i: cython.int
        for i in range(burst.count):
            if not self._write(cython.address(burst.frames[i])):
                refused += 1
                burst.refused |= cython.cast(uint64_t, 1) << i
        burst.count = 0
        return refused

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _write(self, f: cython.pointer[TxFrame]) -> cython.bint:
        header: virtio_net_hdr
        vector: iovec[4]
        count: cython.int = 0
        error: cython.int
        if self.offload:
            memset(cython.address(header), 0, cython.sizeof(virtio_net_hdr))
            if f.checksum_start:
                header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
                header.csum_start = f.checksum_start
                header.csum_offset = f.checksum_offset
            if f.segment_size:
                header.gso_type = VIRTIO_NET_HDR_GSO_TCPV6 if f.family == 6 else VIRTIO_NET_HDR_GSO_TCPV4
                header.gso_size = f.segment_size
                header.hdr_len = f.head_length      # a hint: how much to keep in one piece
            vector[0].iov_base = cython.address(header)
            vector[0].iov_len = cython.sizeof(virtio_net_hdr)
            count = 1
        vector[count].iov_base = cython.cast(cython.p_void, f.head)
        vector[count].iov_len = f.head_length
        count += 1
        if f.part_length[0]:
            vector[count].iov_base = cython.cast(cython.p_void, f.part[0])
            vector[count].iov_len = f.part_length[0]
            count += 1
        if f.part_length[1]:
            vector[count].iov_base = cython.cast(cython.p_void, f.part[1])
            vector[count].iov_len = f.part_length[1]
            count += 1
        if (self._write_small(vector, count) if f.length <= SMALL - VNET else writev(self.fd, vector, count)) < 0:
            error = c_errno
            self.counters.tx_refused[error if error < ERRNOS else 0] += 1
            return False
        self.counters.tx_frames += 1
        self.counters.tx_octets += f.length
        self.counters.tx_super_segments += f.segment_size != 0
        return True


    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _write_small(self, vector: cython.pointer[iovec], count: cython.int) -> cython.Py_ssize_t:
        """As writev, for what together is at most SMALL octets long."""
        whole: uint8_t[SMALL]
        n: cython.size_t = 0
        k: cython.int
        for k in range(count):
            memcpy(whole + n, vector[k].iov_base, vector[k].iov_len)
            n += vector[k].iov_len
        return write(self.fd, whole, n)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _check_length(f: cython.pointer[RxFrame]) -> cython.int:
    if f.length < ETHERNET:
        return TOO_SHORT
    return TOO_LONG if f.length > MAX_FRAME else ACCEPT


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _apply(h: cython.pointer[virtio_net_hdr], f: cython.pointer[RxFrame]) -> cython.int:
    """Carry over to the frame what the kernel says about it, or say why that cannot be. Unknown flags mean nothing."""
    ethertype: cython.int
    if h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and cython.cast(uint32_t, h.csum_start) + h.csum_offset + 2 > f.length:
        return CHECKSUM_RANGE
    if h.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID):
        f.flags = RX_CHECKSUM
    if h.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return ACCEPT
    ethertype = get16(f.data + 12)
    if ethertype == 0x8100 and f.length >= ETHERNET + 4:
        ethertype = get16(f.data + 16)
    if h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_TCPV4:
        if ethertype != 0x0800:
            return GSO_FAMILY
    elif h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_TCPV6:
        if ethertype != 0x86DD:
            return GSO_FAMILY
    else:
        return GSO_TYPE
    if h.gso_size == 0 or h.gso_size > f.length:
        return GSO_SIZE
    if not f.flags:
        return GSO_CHECKSUM
    f.segment_size = h.gso_size
    return ACCEPT


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, "unknown")


def _explained(error: OSError, name: str, path: str) -> OSError:
    """The same error with what went wrong and what to do next."""
    no_module = "load the module with `modprobe tun` (in a container, pass the device in)"
    advice = {
        errno.ENOENT: f"{path} does not exist: {no_module}",
        errno.ENODEV: f"{path} has no driver behind it: {no_module}",
        errno.ENXIO: f"{path} has no driver behind it: {no_module}",
        errno.EACCES: f"no permission to open {path}: run as root",
        errno.EPERM: f"no permission to make the interface {name}: run as root or with CAP_NET_ADMIN",
        errno.EBUSY: f"the interface {name} exists already: stop what uses it, or `ip link delete {name}`, "
                     "or choose another name",
        errno.EBADFD: f"{path} is no TUN/TAP device",
        errno.ENOTTY: f"{path} is no TUN/TAP device",
        errno.EINVAL: f"the kernel refuses the interface {name}: check its name, and that this kernel's TAP "
                      "knows IFF_VNET_HDR",
    }
    plain = f"cannot make the interface {name} from {path}: {error.strerror}"
    return OSError(error.errno, advice.get(error.errno, plain))
