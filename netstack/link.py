"""Frames of our own for one link: ARP and Neighbor Discovery messages, and the way out for frames that waited."""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.mm.hw import put16, put32
from cython.cimports.netstack.counters import (
    ARP_REPLIES_SENT,
    ARP_REQUESTS_SENT,
    NDP_ADVERTISEMENTS_SENT,
    NDP_SOLICITATIONS_SENT,
)
from cython.cimports.netstack.net import (
    ADDRESS_PREFERRED,
    MAX_ADDRESSES,
    MAX_INTERFACES,
    Interface,
    InterfaceAddress,
    count,
    interface_send,
    packet_new,
)
from cython.cimports.netstack.route import common_prefix
from cython.cimports.netstack.wire.address import is_unspecified, is_v4, store_v6
from cython.cimports.netstack.wire.arp import ARP_LENGTH, ARP_REPLY, ARP_REQUEST, arp_emit, same_mac
from cython.cimports.netstack.wire.ndp import (
    NDP_LENGTH_MAX,
    NDP_NEIGHBOR_ADVERTISEMENT,
    NDP_NEIGHBOR_SOLICITATION,
    NDP_OVERRIDE,
    NDP_SOLICITED,
    Ndp,
    ndp_emit,
    solicited_node,
)

ETHERTYPE_ARP = cython.declare(uint16_t, 0x0806)
ETHERTYPE_IPV6 = cython.declare(uint16_t, 0x86DD)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _frame(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
           ethertype: uint16_t, n: uint32_t) -> cython.pointer[Packet]:
    """A new frame from our MAC with room for n octets; NULL: no memory, or no such interface."""
    i: cython.pointer[Interface] = net.interfaces[interface]
    p: cython.pointer[Packet] = cython.NULL
    if i != cython.NULL:
        p = packet_new(14 + n, 0)
    if p == cython.NULL:
        return p
    p.length = 14 + n
    p.l3_offset = 14
    memcpy(p.octets, to, 6)
    memcpy(cython.address(p.octets[6]), i.mac, 6)
    put16(cython.address(p.octets[12]), ethertype)
    return p


# --- ARP ------------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def arp_request(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
                sender: cython.pointer[cython.const[Addr]],
                target: cython.pointer[cython.const[Addr]]) -> cython.void:
    a: Arp
    broadcast: uint8_t[6]
    if to == cython.NULL:
        memset(broadcast, 0xFF, 6)
        to = broadcast
    memset(cython.address(a), 0, cython.sizeof(Arp))
    a.operation = ARP_REQUEST
    a.sender = sender[0]
    a.target = target[0]
    _send_arp(net, interface, to, cython.address(a))
    count(net, ARP_REQUESTS_SENT, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def arp_reply(net: cython.pointer[Net], interface: uint32_t,
              request: cython.pointer[cython.const[Arp]]) -> cython.void:
    a: Arp
    a.operation = ARP_REPLY
    a.sender = request.target
    a.target = request.sender
    memcpy(a.target_mac, request.sender_mac, 6)
    _send_arp(net, interface, request.sender_mac, cython.address(a))
    count(net, ARP_REPLIES_SENT, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_arp(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
              a: cython.pointer[Arp]) -> cython.void:
    p: cython.pointer[Packet] = _frame(net, interface, to, ETHERTYPE_ARP, ARP_LENGTH)
    if p == cython.NULL:
        return
    memcpy(a.sender_mac, net.interfaces[interface].mac, 6)
    arp_emit(a, cython.address(p.octets[14]))
    interface_send(net, interface, p)


# --- Neighbor Discovery ---------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ndp_solicit(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
                source: cython.pointer[cython.const[Addr]],
                target: cython.pointer[cython.const[Addr]]) -> cython.void:
    m: Ndp
    group: Addr
    mac: uint8_t[6]
    memset(cython.address(m), 0, cython.sizeof(Ndp))
    m.type = NDP_NEIGHBOR_SOLICITATION
    m.target = target[0]
    m.has_mac = not is_unspecified(source)      # RFC 4861 4.3
    if to != cython.NULL:
        _send_ndp(net, interface, to, source, target, cython.address(m))
    else:
        solicited_node(cython.address(group), target)
        _multicast_mac(mac, cython.address(group))
        _send_ndp(net, interface, mac, source, cython.address(group), cython.address(m))
    count(net, NDP_SOLICITATIONS_SENT, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ndp_advertise(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
                  asker: cython.pointer[cython.const[Addr]],
                  target: cython.pointer[cython.const[Addr]]) -> cython.void:
    m: Ndp
    all_nodes: Addr
    mac: uint8_t[6]
    memset(cython.address(m), 0, cython.sizeof(Ndp))
    m.type = NDP_NEIGHBOR_ADVERTISEMENT
    m.flags = NDP_OVERRIDE
    m.has_mac = True
    m.target = target[0]
    if not is_unspecified(asker):
        m.flags |= NDP_SOLICITED
        _send_ndp(net, interface, to, target, asker, cython.address(m))
    else:
        memset(cython.address(all_nodes), 0, cython.sizeof(Addr))
        all_nodes.octets[0] = 0xFF
        all_nodes.octets[1] = 0x02
        all_nodes.octets[15] = 0x01
        _multicast_mac(mac, cython.address(all_nodes))
        _send_ndp(net, interface, mac, target, cython.address(all_nodes), cython.address(m))
    count(net, NDP_ADVERTISEMENTS_SENT, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _send_ndp(net: cython.pointer[Net], interface: uint32_t, to: cython.pointer[cython.const[uint8_t]],
              source: cython.pointer[cython.const[Addr]], destination: cython.pointer[cython.const[Addr]],
              m: cython.pointer[Ndp]) -> cython.void:
    p: cython.pointer[Packet] = _frame(net, interface, to, ETHERTYPE_IPV6, 40 + NDP_LENGTH_MAX)
    if p == cython.NULL:
        return
    header: cython.pointer[uint8_t] = cython.address(p.octets[14])
    memcpy(m.mac, net.interfaces[interface].mac, 6)
    n: uint32_t = ndp_emit(m, source, destination, header + 40)
    put32(header, cython.cast(uint32_t, 0x60000000))
    put16(header + 4, n)
    header[6] = 58      # ICMPv6
    header[7] = 255     # RFC 4861 4.3: proof that no router has forwarded it
    store_v6(header + 8, source)
    store_v6(header + 24, destination)
    p.length = 14 + 40 + n
    p.family = 6
    interface_send(net, interface, p)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _multicast_mac(mac: cython.pointer[uint8_t], group: cython.pointer[cython.const[Addr]]) -> cython.void:
    """The Ethernet group of an IPv6 multicast address (RFC 2464 7)."""
    mac[0] = 0x33
    mac[1] = 0x33
    memcpy(mac + 2, cython.address(group.octets[12]), 4)


# --- ourselves ------------------------------------------------------------------------------------------------------

@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def link_source(net: cython.pointer[cython.const[Net]], interface: uint32_t,
                near: cython.pointer[cython.const[Addr]], source: cython.pointer[Addr]) -> cython.bint:
    own: cython.pointer[InterfaceAddress]
    best: cython.int = -1
    common: cython.int
    slot: cython.int
    if net.interfaces[interface] == cython.NULL:
        return False
    for slot in range(MAX_ADDRESSES):
        own = cython.address(net.interfaces[interface].addresses[slot])
        if own.state != ADDRESS_PREFERRED or is_v4(cython.address(own.address)) != is_v4(near):
            continue
        common = common_prefix(cython.address(own.address), near)
        if common > best:
            best = common
            source[0] = own.address
    return best >= 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_own_mac(net: cython.pointer[cython.const[Net]], mac: cython.pointer[cython.const[uint8_t]]) -> cython.bint:
    i: cython.int
    for i in range(MAX_INTERFACES):
        if net.interfaces[i] != cython.NULL and same_mac(net.interfaces[i].mac, mac):
            return True
    return False
