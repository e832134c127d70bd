# The stack: five verbs over one Net.
from libc.stdint cimport int64_t, uint8_t, uint32_t
from mm.frame cimport BURST, RxBurst, RxFrame, TxBurst, TxFrame
from netstack.ip cimport IpView
from netstack.net cimport Interface, Net, NetState, Packet
from netstack.tcp.api cimport Tcp
from netstack.udp cimport Udp
from netstack.verbs cimport PacketStack

cdef class Stack(PacketStack):
    cdef readonly NetState state
    cdef readonly Tcp tcp
    cdef readonly Udp udp
    cdef Packet *handed             # packets whose octets the last `transmit` handed out
    cdef uint8_t *loop_octets       # where loopback frames lie on their way, made by the first
    cdef TxBurst loop_burst
    cdef void frames(self, Interface *i, RxBurst burst) noexcept nogil
    cdef int frame(self, Interface *i, const RxFrame *f) noexcept nogil
    cdef int packet(self, Interface *i, IpView *view) noexcept nogil
    cdef int icmp(self, const RxFrame *f, IpView *view) noexcept nogil
    cdef uint32_t fill(self, Interface *i, TxFrame *frames, uint32_t capacity) noexcept nogil
    cdef void take_back(self) noexcept nogil
    cdef Interface *interface(self, int index)
