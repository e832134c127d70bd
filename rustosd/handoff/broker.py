"""The table of all sockets that other processes have, the limits, and the sessions on which they ask for them."""

from __future__ import annotations

import contextlib
import errno as errors
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import structlog

from netstack.sockets import AsyncStack
from rustosd import open_files
from rustosd.descriptors import End
from rustosd.handoff import protocol as p
from rustosd.handoff.datagram import DatagramSocket
from rustosd.handoff.shared_port import SharedPorts
from rustosd.handoff.stream import StreamSocket
from rustosd.handoff.table import SocketTable
from rustosd.policy import ROOT, Policies, Subject
from rustosd.pump import Pump
from rustosd.services.base import Sample

FATES_MOST = 4096
SPARE_DESCRIPTORS = 512
PORT_ATTEMPTS = 64

log = structlog.get_logger(__name__)
Socket = StreamSocket | DatagramSocket


@dataclass(frozen=True, slots=True)
class Limits:
    """How much other processes may have; a session counts as a socket."""

    sockets: int = 4096
    sockets_per_process: int = 1024
    buffer_octets: int = 1 << 20    # what may wait in the kernel, per socket and direction, on its way to or from a program


class Handoff(SocketTable):
    """Sockets for other processes on one stack. Everything happens on the loop's thread."""

    def __init__(self, network: AsyncStack, limits: Limits | None = None, policies: Policies | None = None,
                 audit: Callable[..., object] = lambda _reason, **_facts: None, pump: Pump | None = None):
        """`audit`: told of what a policy denies, as `rustosd.audit.AuditLog.write`. `pump`: looks at the sockets in every
        breath; else the loop does.
        """
        super().__init__(network, limits or Limits())
        self.set_limits(self.limits)
        self.policies = policies or Policies()
        self.audit = audit
        self.kept_ports: set[int] = set()                   # for sockets that may want any port
        self._fates: OrderedDict[bytes, int] = OrderedDict()
        self.shared_ports = SharedPorts(network)
        self._pump = pump
        if pump is None:
            network.loop.add_reader(self.ends.fileno(), self.catch_up)
        else:
            pump.look_at(self.ends, self.ends.fileno())

    def set_limits(self, limits: Limits) -> None:
        """From now on. There are fewer sockets where we may not have as many descriptors: some are for everything else."""
        may = open_files.raise_limit(2 * limits.sockets + SPARE_DESCRIPTORS)
        room = may - min(SPARE_DESCRIPTORS, may // 2)
        self.limits, self.bound = limits, "max_sockets under [sockets] allows"
        if room < limits.sockets:
            self.limits, self.bound = replace(limits, sockets=room), (
                f"the {may} open files that rustosd may have leave room for (LimitNOFILE=, ulimit -n)")
            log.warning("fewer_sockets", sockets=room, max_sockets=limits.sockets, open_files=may,
                        advice="raise LimitNOFILE= of the service (ulimit -n), or lower max_sockets under [sockets]")

    def usage(self) -> dict[str, int]:
        """How many of the sockets that there may be there are."""
        return {"sockets": len(self.sockets) + len(self.sessions) + self.spares, "sockets_limit": self.limits.sockets}

    def set_policies(self, policies: Policies) -> None:
        """From now on, for sockets that are there already, too; connections that are made stay."""
        self.policies = policies
        for one in self.sockets.values():
            one.note_policies()

    # sessions

    def open_session(self, pid: int, subject: Subject = ROOT) -> socket.socket:
        """The client's end of a new session of process `pid`, which is `subject`'s. Raises OSError (EMFILE, ENFILE)."""
        self.check_room(pid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.one_more(pid)
        self.sessions.add(Session(self, ours, pid, subject))
        return theirs

    def end_session(self, session: Session) -> None:
        """Its sockets live on, as long as anybody has them."""
        if session in self.sessions:
            self.sessions.discard(session)
            self.one_less(session.pid)
            session.close()

    # ports and fates

    def free_port(self) -> int:
        """One that nobody listens on, and that is kept for nobody. Raises OSError (EADDRINUSE)."""
        for _ in range(PORT_ATTEMPTS):
            if (port := self.network.tcp.free_port()) not in self.kept_ports:
                return port
        raise OSError(errors.EADDRINUSE, "no ephemeral port is free")

    def keep_port(self) -> int:
        """As `free_port`, and nobody else gets it until `give_port`."""
        port = self.free_port()
        self.kept_ports.add(port)
        return port

    def give_port(self, port: int) -> None:
        """It is for anybody again."""
        self.kept_ports.discard(port)

    def note_fate(self, identity: bytes, error: int) -> None:
        """Remember how a connection ended, for the client that asks."""
        self._fates[identity] = error
        if len(self._fates) > FATES_MOST:
            self._fates.popitem(last=False)

    def statistics(self) -> Iterator[Sample]:
        """Samples for Prometheus."""
        yield Sample("rustos_handoff_sockets", "gauge", "Sockets that other processes have.", len(self.sockets), {})
        yield Sample("rustos_handoff_spares", "gauge", "Ends that their listening sockets have ahead.", self.spares, {})
        yield Sample("rustos_handoff_sessions", "gauge", "Sessions on which they ask for them.", len(self.sessions), {})
        yield Sample("rustos_handoff_opened_total", "counter", "Sockets opened by or accepted for them.", self.opened, {})
        yield Sample("rustos_handoff_refused_total", "counter", "Sockets that a limit did not let be.", self.refused, {})
        for (policy, what), count in self.policies.denied.items():
            yield Sample("rustos_policy_denied_total", "counter", "What a policy has denied to programs.", count,
                         {"policy": policy, "what": what})

    def catch_up(self) -> None:
        """Take note of everything that clients have done to their sockets."""
        self.ends.catch_up()
        self.network.kick_if_touched()

    # what is asked on sessions

    def answer(self, session: Session, octets: bytes) -> tuple[p.Answer | None, list[End]]:
        """What one packet is answered with, if at all, and the descriptors that go along. Never raises for what it says."""
        self.catch_up()     # a port is free again once its socket is closed
        try:
            request = p.decode(octets)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return {"errno": errors.EPROTO, "error": f"not a request: {error}"}, []
        try:
            if isinstance(request, p.Open):
                return self._open(session, request)
            if isinstance(request, p.Spare):
                return self._spare(request)
            if isinstance(request, p.Set) and request.quiet:
                with contextlib.suppress(OSError, ValueError):
                    self._carry_out(session, request)
                return None, []
            return self._carry_out(session, request), []
        except OSError as error:
            return {"errno": error.errno or errors.EIO, "error": error.strerror or str(error)}, []
        except ValueError as error:
            return {"errno": errors.EINVAL, "error": str(error)}, []
        except Exception:
            log.exception("handoff_request_failed", request=type(request).__name__)
            return {"errno": errors.EIO, "error": "that failed inside; the daemon's log has the trace"}, []

    def _open(self, session: Session, request: p.Open) -> tuple[p.Answer, list[End]]:
        identity, theirs = self._new(session, request)
        identities, ends = [identity], [theirs]
        answer = {"id": identity.hex(), "buffer": self.limits.buffer_octets // 2,
                  "policed": self.policies.permit(session.subject).restricts}
        with contextlib.suppress(OSError):
            # Not the last ones: somebody may want another kind.
            while len(identities) <= request.more and self.held(session.pid) < self.limits.sockets_per_process // 2:
                identity, theirs = self._new(session, request)
                identities.append(identity)
                ends.append(theirs)
        if request.more:
            answer["more"] = [one.hex() for one in identities[1:]]
        if request.ports:
            answer["ports"] = [self.sockets[one].keep_port() for one in identities]
        return answer, ends

    def _spare(self, request: p.Spare) -> tuple[p.Answer, list[End]]:
        """Raises OSError (EINVAL): it does not listen."""
        listener = getattr(self.sockets.get(_key(request.id)), "listener", None)
        if listener is None:
            raise OSError(errors.EINVAL, "the socket does not listen")
        spares: list[tuple[bytes, End]] = []
        limits = self.limits
        with contextlib.suppress(OSError):
            # They are no sockets yet: neither their process nor all others may miss them.
            while (len(spares) < request.count and self.held(listener.owner.pid) < limits.sockets_per_process // 2
                   and self.usage()["sockets"] < limits.sockets // 2):
                spares.append(listener.lay_by())
        return {"ids": [identity.hex() for identity, _ in spares]}, [end for _, end in spares]

    def _new(self, session: Session, request: p.Open) -> tuple[bytes, End]:
        """A socket: its id and the client's end. Raises OSError (EMFILE, ENFILE)."""
        stream = request.type == "stream"
        identity, ours, theirs = self.pair(session.pid, socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET)
        kind = StreamSocket if stream else DatagramSocket
        one = kind(self, identity, ours, session.pid, request.family, session.subject)
        self.add(identity, session.pid, one)
        self.ends.watch(ours.fileno(), one)
        return identity, theirs

    def _carry_out(self, session: Session, request: p.Request) -> p.Answer:
        if isinstance(request, p.Error):
            return {"fate": self._fates.pop(_key(request.id), 0)}
        if isinstance(request, p.Addresses):
            return {"addresses": self._addresses()}
        if isinstance(request, p.Restrict):
            return self._restrict(session, request)
        one = self.sockets.get(_key(request.id))
        if one is None:
            raise OSError(errors.ENOTCONN, "the socket is closed")
        if isinstance(request, (p.Connect, p.Listen)) and request.bound:
            one.bind_as_told(request.v6only)
        self._judge(session, one, request)
        match request:
            case p.May():
                return {}
            case p.Bind():
                _set_all(one, request.options)
                return one.bind(request.host, request.port, request.v6only)
            case p.Connect():
                _set_all(one, request.options)
                return one.connect(request.host, request.port, request.chaff)
            case p.Listen():
                _set_all(one, request.options)
                return one.listen(request.backlog)
            case p.Set():
                return one.set(request.option, request.value)
            case p.Facts():
                return one.facts()
        return one.names()

    def _restrict(self, session: Session, request: p.Restrict) -> p.Answer:
        """Raises OSError (EPERM), ValueError: there is no such policy."""
        who = session.subject
        if request.policy:
            self.policies.check_name(request.policy)
        if request.uid is not None and who.uid:
            raise OSError(errors.EPERM, "only root names another user")
        if request.uid:
            session.subject = Subject(request.uid, frozenset(request.groups), request.policy, who.named)
        elif request.policy and request.policy not in who.named:
            session.subject = who._replace(named=(*who.named, request.policy))
        return {}

    def _judge(self, session: Session, one: Socket, request: p.Request) -> None:
        """Raises OSError (EACCES) for what a policy denies: that of who asks, whoever has opened the socket."""
        permit, kind = self.policies.permit(session.subject), one.protocol
        match request:
            case p.Bind():
                denied = permit.bind(kind, request.port)
            case p.Listen():
                denied = permit.listen(kind, one.names()["local"][1])
            case p.Connect() | p.May():
                denied = permit.connect(kind, request.host, request.port)
            case _:
                return
        if denied is not None:
            what = "send" if isinstance(request, p.May) else type(request).__name__.lower()
            raise self.deny(denied, what, session.subject, session.pid, kind, getattr(request, "host", ""),
                            getattr(request, "port", 0) or one.names()["local"][1])

    def deny(self, policy: str, what: str, who: Subject, pid: int, protocol: str, host: str, port: int) -> OSError:
        """Count and tell what a policy denies; the error to be raised."""
        self.policies.denied[policy, what] += 1
        self.audit("policy_denied", policy=policy, what=what, uid=who.uid, pid=pid, protocol=protocol, host=host, port=port)
        where = f"{protocol} port {port}" if what in ("bind", "listen") else f"{protocol} {host} port {port}"
        return OSError(errors.EACCES, f"{what} {where} is denied by {policy}; see: rustosctl policy")

    def _addresses(self) -> list[str]:
        hosts = (ipaddress.ip_interface(row["address"]).ip for row in self.network.stack.addresses())
        return [str(host) for host in hosts if not (host.is_loopback or host.is_link_local)]

    # the end

    def close(self) -> None:
        """End every session and socket: the programs see resets and ends of file. May be called twice."""
        if self.ends.fileno() < 0:
            return
        for session in tuple(self.sessions):
            self.end_session(session)
        for one in tuple(self.sockets.values()):
            if one.splice is not None:
                one.splice.abort()
            else:
                one.close()
        if self._pump is None:
            self.network.loop.remove_reader(self.ends.fileno())
        else:
            self._pump.look_away(self.ends)
        self.ends.close()


def _set_all(one: Socket, options: dict[str, int]) -> None:
    for option, value in options.items():
        one.set(option, value)


def _key(identity: str) -> bytes:
    """An id as the table has it."""
    try:
        return bytes.fromhex(identity)
    except ValueError:
        return b""      # nobody's


class Session:
    """One client's way to ask: a packet, its answer, the next packet. It holds nothing back for a client that does not
    read: that one's session ends."""

    def __init__(self, broker: Handoff, end: socket.socket, pid: int, subject: Subject):
        self.broker = broker
        self.pid = pid
        self.subject = subject
        self._end = end
        end.setblocking(False)
        broker.network.loop.add_reader(end.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        try:
            octets = self._end.recv(p.REQUEST_MOST + 1)     # without room for descriptors: the kernel closes them
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self.broker.end_session(self)
            return
        ends: list[End] = []
        if len(octets) > p.REQUEST_MOST:
            answer: p.Answer | None = {"errno": errors.EMSGSIZE, "error": f"a request has at most {p.REQUEST_MOST} octets"}
        else:
            answer, ends = self.broker.answer(self, octets)
            if answer is None:
                return
        try:
            packet = p.encode(answer)
            if not ends:
                self._end.send(packet)
            else:
                socket.send_fds(self._end, [packet], [end.fileno() for end in ends])
        except OSError:
            self.broker.end_session(self)
        finally:
            for end in ends:
                end.close()         # if it did not arrive, the socket ends by that

    def close(self) -> None:
        self.broker.network.loop.remove_reader(self._end.fileno())
        self._end.close()

