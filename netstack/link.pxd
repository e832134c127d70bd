# Frames of our own for one link: ARP and Neighbor Discovery messages, and the way out for frames that waited.
# None of these reports failure: what could not be sent is counted in net.unsent, and their callers ask again later.
from libc.stdint cimport uint8_t, uint32_t
from netstack.net cimport Net, Packet
from netstack.wire.address cimport Addr
from netstack.wire.arp cimport Arp

# Who has `target`? `to`: the MAC to ask, NULL: everybody.
cdef void arp_request(Net *net, uint32_t interface, const uint8_t *to, const Addr *sender, const Addr *target) noexcept nogil
cdef void arp_reply(Net *net, uint32_t interface, const Arp *request) noexcept nogil
# Who has `target`? `to`: the MAC to ask, NULL: the target's solicited-node group. source unspecified: a duplicate address probe.
cdef void ndp_solicit(Net *net, uint32_t interface, const uint8_t *to, const Addr *source, const Addr *target) noexcept nogil
# `target` is ours: tell `asker` at the MAC `to`, or all nodes when the asker is unspecified.
cdef void ndp_advertise(Net *net, uint32_t interface, const uint8_t *to, const Addr *asker, const Addr *target) noexcept nogil
# Our preferred address on the interface that shares most leading bits with `near`; False: there is none of its family.
cdef bint link_source(const Net *net, uint32_t interface, const Addr *near, Addr *source) noexcept nogil
# One of our interfaces has this MAC.
cdef bint is_own_mac(const Net *net, const uint8_t *mac) noexcept nogil
