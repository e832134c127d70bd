"""A stand-in for the protocol core: connections to itself through bounded rings, one step of the loop per flight.

It has what the real core cannot be made to do at will: rings of a few octets, errors on demand, a peer that never
answers. It is strict where the real one need not be: a call on a released handle fails the test.
"""

import errno
from collections import deque
from dataclasses import dataclass, field

from netstack.tcp.api import (
    EVENT_ACCEPTED,
    EVENT_CLOSED,
    EVENT_CONNECTED,
    EVENT_EOF,
    EVENT_READABLE,
    EVENT_WRITABLE,
)

SILENT = "192.0.2.1"            # SYNs to it are never answered
UNREACHABLE = "198.51.100.1"    # no route


@dataclass(eq=False)
class End:
    handle: int
    local: tuple[str, int]
    remote: tuple[str, int]
    listener: int = 0
    peer: "End | None" = None
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    fin_queued: bool = False
    fin_sent: bool = False
    fin_received: bool = False
    eof_told: bool = False
    short: bool = False         # a write was taken in part: WRITABLE is owed
    over: bool = False
    released: bool = False


class FakeTcp:
    def __init__(self, ring=65536):
        self.ring = ring
        self.ends = {}
        self.listeners = {}
        self.news = {}
        self.flights = deque()
        self.serial = 0
        self.options = []
        self.touched = False

    # what the sockets call

    def listen(self, host, port, backlog):
        if host == "203.0.113.9":
            raise OSError(errno.EADDRNOTAVAIL, "not ours")
        port = port or self._port()
        for other, other_port, _ in self.listeners.values():
            if port == other_port and (other == host or not other or not host):
                raise OSError(errno.EADDRINUSE, "in use")
        self.serial += 1
        self.listeners[self.serial] = (host, port, backlog)
        return self.serial

    def close_listener(self, listener):
        del self.listeners[listener]

    def listener_port(self, listener):
        return self.listeners[listener][1]

    def listener_of(self, handle):
        return self.ends[handle].listener

    def connect(self, now, host, port, source_host=None, source_port=0):
        if host == UNREACHABLE:
            raise OSError(errno.ENETUNREACH, "no route")
        if source_host == "203.0.113.9":
            raise OSError(errno.EADDRNOTAVAIL, "not ours")
        source = source_host or ("::1" if ":" in host else "127.0.0.1")
        end = self._end((source, source_port or self._port()), (host, port))
        if host != SILENT:
            self.flights.append(("syn", end, None))
        return end.handle

    def ready(self):
        news, self.news = self.news, {}
        return [(handle, bits, code) for handle, (bits, code) in news.items()]

    def read(self, handle, most):
        end = self._live(handle)
        data = bytes(end.received[:most])
        del end.received[:most]
        self._after_read(end)
        return data

    def read_into(self, handle, buffer):
        data = self.read(handle, len(buffer))
        memoryview(buffer)[:len(data)] = data
        return len(data)

    def unread(self, handle):
        return len(self._live(handle).received)

    def write(self, handle, data):
        end = self._live(handle)
        assert not end.fin_queued, "written to after FIN"
        if end.over:
            raise BrokenPipeError(errno.EPIPE, "over")
        assert isinstance(data, bytes) or memoryview(data).format == "B"
        taken = min(len(data), self.ring - len(end.sent))
        end.sent += data[:taken]
        end.short = end.short or taken < len(data)
        self.flights.append(("data", end, None))
        return taken

    def unsent(self, handle):
        return len(self._live(handle).sent)

    def shutdown(self, handle):
        end = self._live(handle)
        end.fin_queued = True
        self.flights.append(("data", end, None))

    def abort(self, handle):
        end = self._live(handle)
        end.released = True
        self.news.pop(handle, None)
        self.abort_quietly(end)

    def release(self, handle):
        end = self._live(handle)
        end.released = True
        self.news.pop(handle, None)
        if end.received and not end.over:
            self.abort_quietly(end)
        elif not end.over:
            end.fin_queued = True
            self.flights.append(("data", end, None))
        else:
            del self.ends[handle]

    def local(self, handle):
        return self._live(handle).local

    def remote(self, handle):
        return self._live(handle).remote

    def set_nodelay(self, handle, value):
        self._live(handle)
        self.options.append((handle, "nodelay", value))

    def set_keepalive(self, handle, value):
        self._live(handle)
        self.options.append((handle, "keepalive", value))

    def set_keepalive_idle(self, handle, value):
        self._live(handle)
        self.options.append((handle, "keepalive_idle", value))

    def set_user_timeout(self, handle, value):
        self._live(handle)
        self.options.append((handle, "user_timeout", value))

    # what the network does

    def step(self):
        """Let everything in flight arrive once."""
        for _ in range(len(self.flights)):
            kind, end, code = self.flights.popleft()
            getattr(self, f"_arrive_{kind}")(end, code)

    def tell(self, end, bits, code=0):
        if not end.released:
            old_bits, old_code = self.news.get(end.handle, (0, 0))
            self.news[end.handle] = (old_bits | bits, old_code or code)

    def die(self, end, code):
        """The connection ends with this error."""
        if not end.over:
            end.over = True
            self.tell(end, EVENT_CLOSED, code)
            if end.released:
                self.ends.pop(end.handle, None)

    def abort_quietly(self, end):
        if not end.over and end.peer is not None:
            self.flights.append(("rst", end.peer, errno.ECONNRESET))
        end.over = True
        self.ends.pop(end.handle, None)

    def _arrive_syn(self, end, _):
        if end.over or end.released:
            return
        host, port = end.remote
        for listener, (bound, bound_port, _) in self.listeners.items():
            if bound_port == port and (not bound or bound == host or bound == ("::" if ":" in host else "0.0.0.0")):
                peer = self._end(end.remote, end.local)
                peer.listener, peer.peer, end.peer = listener, end, peer
                self.tell(peer, EVENT_ACCEPTED)
                self.tell(end, EVENT_CONNECTED)
                return
        self.die(end, errno.ECONNREFUSED)

    def _arrive_data(self, end, _):
        peer = end.peer
        if end.over or peer is None:
            return
        if peer.over and end.sent:
            self.die(end, errno.ECONNRESET)
            return
        if peer.released and end.sent:      # nobody reads there any more
            self.abort_quietly(peer)
            return
        room = self.ring - len(peer.received)
        if end.sent and room > 0:
            peer.received += end.sent[:room]
            del end.sent[:room]
            self.tell(peer, EVENT_READABLE)
        if end.short and self.ring - len(end.sent) >= self.ring // 4:
            end.short = False
            self.tell(end, EVENT_WRITABLE)
        if end.fin_queued and not end.sent and not end.fin_sent:
            end.fin_sent = peer.fin_received = True
            self._after_read(peer)
            if peer.fin_sent:
                self.die(end, 0)
                self.die(peer, 0)

    def _arrive_rst(self, end, code):
        end.sent.clear()
        self.die(end, code)

    def _after_read(self, end):
        if end.fin_received and not end.received and not end.eof_told:
            end.eof_told = True
            self.tell(end, EVENT_EOF)
        if end.peer is not None and end.peer.sent:
            self.flights.append(("data", end.peer, None))

    def _end(self, local, remote):
        self.serial += 1
        end = self.ends[self.serial + (1 << 16)] = End(self.serial + (1 << 16), local, remote)
        return end

    def _port(self):
        self.serial += 1
        return 40000 + self.serial % 20000

    def _live(self, handle):
        end = self.ends[handle]
        assert not end.released, "used after release"
        return end


class FakeUdp:
    def __init__(self):
        self.bound = {}
        self.peers = {}
        self.waiting = {}
        self.errors = {}
        self.news = []
        self.serial = 0

    def bind(self, host, port, reuse=False):
        if host == "203.0.113.9":
            raise OSError(errno.EADDRNOTAVAIL, "not ours")
        self.serial += 1
        port = port or 50000 + self.serial
        if (host, port) in self.bound.values() and not reuse:
            raise OSError(errno.EADDRINUSE, "in use")
        self.bound[self.serial] = (host, port)
        self.waiting[self.serial] = deque()
        return self.serial

    def connect(self, endpoint, host, port):
        if host == UNREACHABLE:
            raise OSError(errno.ENETUNREACH, "no route")
        self.peers[endpoint] = (host, port)
        if self.bound[endpoint][0] in ("0.0.0.0", "::"):
            self.bound[endpoint] = ("::1" if ":" in host else "127.0.0.1", self.bound[endpoint][1])

    def send(self, endpoint, data, host=None, port=0):
        host, port = (host, port) if host else self.peers[endpoint]
        if host == UNREACHABLE:
            raise OSError(errno.ENETUNREACH, "no route")
        if len(data) > 65507:
            raise OSError(errno.EMSGSIZE, "too long")
        source = self.bound[endpoint]
        if source[0] in ("0.0.0.0", "::"):
            source = ("::1" if ":" in host else "127.0.0.1", source[1])
        for other, (bound, bound_port) in self.bound.items():
            if bound_port == port and bound in (host, "0.0.0.0", "::", None):
                if self.peers.get(other, source) == source and len(self.waiting[other]) < 256:
                    self.waiting[other].append((bytes(data), *source))
                    self.news.append(other)
                return
        if endpoint in self.peers:
            self.errors[endpoint] = ConnectionRefusedError(errno.ECONNREFUSED, "port closed")
            self.news.append(endpoint)

    def receive(self, endpoint, most):
        waiting = self.waiting[endpoint]
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]

    def ready(self):
        news, self.news = list(dict.fromkeys(self.news)), []
        return news

    def error(self, endpoint):
        return self.errors.pop(endpoint, None)

    def close(self, endpoint):
        del self.bound[endpoint], self.waiting[endpoint]

    def local(self, endpoint):
        return self.bound[endpoint]

    def remote(self, endpoint):
        return self.peers.get(endpoint)


class FakeStack:
    """The two of them, and a pump that runs one step per round of the loop."""

    def __init__(self, loop, ring=65536):
        self.tcp = FakeTcp(ring)
        self.udp = FakeUdp()
        self.loop = loop
        self.scheduled = False
        self.face = None

    def kick(self):
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.run)

    def run(self):
        self.scheduled = False
        self.tcp.step()
        if self.face is not None:
            self.face.dispatch()
        if self.tcp.flights:
            self.kick()
