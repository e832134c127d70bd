from libc.stdint cimport uint8_t, uint16_t, uint64_t
from posix.uio cimport iovec
from drivers.nic cimport Nic
from mm.frame cimport MAX_FRAME, RxBurst, RxFrame, TxBurst, TxFrame

cdef extern from "<sys/ioctl.h>":
    pass                        # the numbers below are made with its _IOW

cdef extern from "<linux/if_tun.h>" nogil:
    enum: TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ
    enum: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL
    enum: TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN

cdef extern from "<linux/virtio_net.h>" nogil:
    enum: VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_DATA_VALID
    enum: VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_ECN
    # Before every frame, both ways, in host order (virtio 1.2, 5.1.6).
    cdef struct virtio_net_hdr:
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset

cdef extern from "<errno.h>" nogil:
    enum: EBADFD                # the interface was deleted under the descriptor

# Why a received frame was skipped; 0: it was not.
cdef enum:
    ACCEPT = 0
    TOO_SHORT                   # no whole Ethernet header
    TOO_LONG                    # more than MAX_FRAME: the read cut it
    GSO_TYPE                    # a kind of super-segment we never offered to take
    GSO_SIZE                    # segments of 0 octets, or longer than the frame
    GSO_FAMILY                  # the EtherType is not the one of the super-segment
    GSO_CHECKSUM                # a super-segment nobody vouches for
    CHECKSUM_RANGE              # the checksum would lie outside the frame
    REJECTS

cdef enum:
    ERRNOS = 134                # Linux has 1 to 133; 0 stands for any other
    ETHERNET = 14               # octets of the header
    VNET = 10                   # octets of a virtio_net_hdr
    # Frames follow each other closely, 8-aligned behind room for the virtio_net_hdr, so that a burst of small ones stays
    # in the nearest cache. Each is read with room for the largest; one octet more shows that it was cut.
    SLOT = VNET + MAX_FRAME + 1
    # A burst of 64 full Ethernet frames, or 7 super-segments, and small enough to stay in the second-level cache.
    ARENA = 512 * 1024
    # A frame up to this, its virtio_net_hdr included, is given to the kernel in one piece, which is cheaper than in several.
    SMALL = 1024

cdef struct TapCounters:
    uint64_t rx_frames, rx_octets, rx_super_segments
    uint64_t tx_frames, tx_octets, tx_super_segments
    uint64_t rejected[REJECTS]
    uint64_t rx_failed[ERRNOS]
    uint64_t tx_refused[ERRNOS]

cdef class Tap(Nic):
    cdef readonly str name
    cdef readonly bytes mac
    cdef readonly int mtu
    cdef readonly int features
    cdef int fd
    cdef bint offload           # a virtio_net_hdr precedes every frame
    cdef bint gone
    cdef object control         # a socket for interface flags, None when the descriptor is no TAP
    cdef uint8_t *arena
    cdef TapCounters counters

    cdef int _receive(self, RxBurst burst) noexcept nogil
    cdef int _nothing_read(self, int count, int error) noexcept nogil
    cdef int _transmit(self, TxBurst burst) noexcept nogil
    cdef bint _write(self, TxFrame *f) noexcept nogil
    cdef Py_ssize_t _write_small(self, iovec *vector, int count) noexcept nogil
