# Longest-prefix match for both families: prefixes are 128 bits, an IPv4 prefix /n is stored as /(96+n).
# A path-compressed binary trie per family: a lookup visits the prefixes that contain the destination and the forks between them.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
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

cpdef enum:
    ROUTES = 65536              # the usual limit

cdef struct RouteNode:
    uint64_t key[2]             # the prefix as numbers, most significant word first
    uint64_t mask[2]
    int32_t child[2]            # by the first bit after the prefix; -1: none
    int32_t first               # its routes by ascending metric; -1: only a fork
    uint8_t length

cdef struct RouteEntry:
    Route route
    int32_t next                # of the same prefix, or of the free list; -1: last
    uint8_t in_use

cdef struct RouteTable:
    RouteNode *nodes
    RouteEntry *entries
    int32_t root[2]             # of IPv6 and of IPv4; -1: no routes
    int32_t free_node           # heads of the free lists; -1: empty
    int32_t free_entry
    uint32_t capacity           # entries there is memory for, and twice as many nodes; doubles up to `limit`
    uint32_t limit
    uint32_t count

# Memory grows with the routes, up to `limit` of them. Pointers from route_lookup hold until the next change.
cdef int routes_create(Net *net, uint32_t limit) except -1
cdef void routes_destroy(Net *net) noexcept nogil
# NULL: no route. Routes over an interface that is down do not count.
# Of the routes of one prefix the one of the lowest metric, of the same metric the older.
cdef const Route *route_lookup(const Net *net, const Addr *destination) noexcept nogil
# Host bits of the prefix are ignored. 0; -1: the table is full or the route is no route; 1: replaced one of the same prefix, metric and interface. Changes net.generation.
cdef int route_insert(Net *net, const Route *route) noexcept nogil
# How many went; 0: there was none. `interface` < 0 and `metric` 0xFFFFFFFF match any. Changes net.generation.
cdef int route_remove(Net *net, const Addr *prefix, uint8_t length, int interface, uint32_t metric) noexcept nogil
cdef void routes_forget_interface(Net *net, int interface) noexcept nogil
# Python rows: dicts with prefix, gateway, interface (index), source, metric, kind
cdef list route_rows(const Net *net)
# How many leading bits two addresses share, 0 to 128.
cdef int common_prefix(const Addr *a, const Addr *b) noexcept nogil
