"""Sockets for other processes: each is one end of a socketpair, whose other end is joined to the stack.

`Handoff` is what the daemon has; `rustosd.client` is what programs have. Setting up and asking goes through a session (a
seqpacket socketpair with one JSON request and answer at a time); data never does.
"""

from rustosd.handoff.broker import Handoff, Limits

__all__ = ["Handoff", "Limits"]
