"""What each counter counts: the one place for the label and the help text that metrics and `rustosctl` show."""

_TABLE = {
    ARP_REQUESTS_SENT: "ARP requests sent, announcements included",
    ARP_REPLIES_SENT: "ARP replies sent",
    NDP_SOLICITATIONS_SENT: "IPv6 neighbor solicitations sent, duplicate address detection included",
    NDP_ADVERTISEMENTS_SENT: "IPv6 neighbor advertisements sent",
    NEIGHBOR_EVICTIONS: "neighbor entries given up to make room for others",
    DAD_CONFLICTS: "own addresses found in use by another host",
    ICMP_ECHO_REPLIES_SENT: "echo requests answered",
    ICMP_ECHO_REPLIES_RECEIVED: "echo replies to requests of ours",
    ICMP_ERRORS_SENT: "ICMP and ICMPv6 error messages sent",
    ICMP_ERRORS_RECEIVED: "ICMP and ICMPv6 error messages received about packets of ours",
    ICMP_ERRORS_SUPPRESSED: "ICMP and ICMPv6 error messages not sent because of the rate limit",
    UDP_DATAGRAMS_RECEIVED: "UDP datagrams queued for a socket",
    UDP_DATAGRAMS_SENT: "UDP datagrams sent",
    TCP_SEGMENTS_RECEIVED: "TCP segments received; a super-segment counts as the segments it was made of",
    TCP_SEGMENTS_SENT: "TCP segments sent; a super-segment counts as the segments it becomes",
    TCP_OCTETS_RECEIVED: "octets of TCP payload received in order",
    TCP_OCTETS_SENT: "octets of TCP payload sent, each counted once",
    TCP_ACTIVE_OPENS: "connections opened from here",
    TCP_PASSIVE_OPENS: "connections accepted",
    TCP_CONNECT_FAILURES: "connections that never became established",
    TCP_RESETS_SENT: "TCP resets sent",
    TCP_RESETS_RECEIVED: "TCP resets that ended a connection",
    TCP_RETRANSMITS: "TCP segments sent again",
    TCP_RETRANSMIT_TIMEOUTS: "retransmission timeouts",
    TCP_FAST_RETRANSMITS: "recoveries begun by duplicate or selective acknowledgments",
    TCP_TAIL_PROBES: "probes sent because the last segments in flight went unanswered",
    TCP_DUPLICATE_ACKS_RECEIVED: "duplicate acknowledgments received",
    TCP_OUT_OF_ORDER: "TCP segments received ahead of their turn and kept",
    TCP_ZERO_WINDOW_PROBES: "probes sent into a closed window",
    TCP_DELAYED_ACKS: "acknowledgments sent because the delay ran out",
    TCP_CHALLENGE_ACKS: "challenge acknowledgments sent (RFC 5961)",
    TCP_TIME_WAIT_RECYCLED: "connections in TIME-WAIT given up early for a new one",
    TCP_ABORTS: "connections given up: no answer, no memory, or the application asked",
    TCP_IMPOSSIBLE_TRANSITIONS: "events that the TCP state table has no row for; anything but 0 is a bug",
}
if list(_TABLE) != list(range(COUNTERS)):
    raise ImportError("netstack/counters.py: the table does not have each Counter once, in order")

LABELS: tuple[str, ...] = tuple(Counter(c).name.lower() for c in _TABLE)
HELP: tuple[str, ...] = tuple(_TABLE.values())
