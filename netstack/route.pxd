# Longest-prefix match for both families: prefixes are 128 bits, an IPv4 prefix /n is stored as /(96+n).
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from netstack.net cimport Net
from netstack.wire.address cimport Addr

cdef struct Route:
    Addr prefix
    Addr gateway                # unspecified: on link
    Addr source                 # preferred source; unspecified: chosen by the interface
    uint8_t length              # 0-128
    uint8_t interface
    uint8_t kind                # RouteKind
    uint32_t metric             # lower wins among equal prefixes

cpdef enum RouteKind:
    ROUTE_CONNECTED = 0         # made by an address
    ROUTE_STATIC
    ROUTE_LOCAL

cdef int routes_create(Net *net, uint32_t limit) except -1
cdef void routes_destroy(Net *net) noexcept nogil
# NULL: no route. Routes over an interface that is down do not count.
cdef const Route *route_lookup(const Net *net, const Addr *destination) noexcept nogil
# 0; -1: the table is full; 1: replaced one of the same prefix, metric and interface. Changes net.generation.
cdef int route_insert(Net *net, const Route *route) noexcept nogil
# How many went; 0: there was none. `interface` < 0 and `metric` 0xFFFFFFFF match any. Changes net.generation.
cdef int route_remove(Net *net, const Addr *prefix, uint8_t length, int interface, uint32_t metric) noexcept nogil
cdef void routes_forget_interface(Net *net, int interface) noexcept nogil
# Python rows: dicts with prefix, gateway, interface (index), source, metric, kind
cdef list route_rows(const Net *net)
