"""Policies are the daemon's to enforce, whatever a client sends on its session or its sockets."""

import errno
import socket

import pytest

from rustosd.client.wire import HEADER
from rustosd.policy import Destination, Policies, PolicyConfig, Ports, Subject
from tests.netstack.sockets.conftest import until
from tests.rustosd.handoff.host import Host, readable
from tests.rustosd.handoff.test_splice import packet

USER = Subject(1000)
OWN = PolicyConfig(name="own", users=("1000",), connect=(Destination("127.0.0.1 9000-9999"),),
                   bind=(Ports("80"), Ports("9000-9999")))
TIGHT = PolicyConfig(name="tight", connect=(Destination("udp any 9001"),))


@pytest.fixture
async def host():
    made = Host()
    made.told = []
    made.handoff.audit = lambda reason, **facts: made.told.append((reason, facts["policy"], facts["what"], facts["uid"]))
    made.handoff.set_policies(Policies([OWN, TIGHT]))
    yield made
    made.close()


def be(host, subject):
    host.session.close()
    host.session = host.handoff.open_session(1, subject)


async def refused(on, op, **fields):
    return (await on.ask(op, **fields))[0].get("errno", 0)


async def test_streams_reach_what_they_may_and_no_more(host):
    be(host, USER)
    identity, _ = await host.stream()
    assert await refused(host, "connect", id=identity, host="127.0.0.1", port=8999) == errno.EACCES
    assert await refused(host, "connect", id=identity, host="10.0.0.1", port=9000) == errno.EACCES
    assert await refused(host, "connect", id=identity, host="127.0.0.1", port=9000) == 0
    assert host.handoff.policies.denied == {("own", "connect"): 2}
    assert host.told == [("policy_denied", "own", "connect", 1000)] * 2


async def test_ports_are_bound_as_far_as_a_policy_says(host):
    be(host, USER)
    identity, _ = await host.stream()
    assert await refused(host, "bind", id=identity, host="127.0.0.1", port=81) == errno.EACCES
    assert await refused(host, "listen", id=identity, backlog=1) == errno.EACCES     # would be on some free port
    identity, _ = await host.stream()
    assert await refused(host, "bind", id=identity, host="127.0.0.1", port=80) == 0
    assert await refused(host, "listen", id=identity, backlog=1) == 0


async def test_who_says_that_it_is_bound_has_the_port_that_was_kept_and_is_judged_by_it(host):
    be(host, USER)
    answer, ends = await host.ask("open", type="stream", family=4, more=2, ports=True)
    assert len({*answer["ports"]}) == 3 == len(ends) and host.handoff.kept_ports == {*answer["ports"]}
    for identity in (answer["id"], answer["more"][0]):
        assert await refused(host, "listen", id=identity, backlog=1, bound=True) == errno.EACCES
    host.handoff.set_policies(Policies())
    taken, _ = await host.stream()      # an explicit wish goes before
    assert await refused(host, "bind", id=taken, host="", port=answer["ports"][2]) == 0
    assert await refused(host, "listen", id=taken, backlog=1) == 0
    assert await refused(host, "listen", id=answer["more"][1], backlog=1, bound=True) == errno.EADDRINUSE
    names, _ = await host.ask("listen", id=answer["id"], backlog=1, bound=True)
    assert names["local"] == ["0.0.0.0", answer["ports"][0]]
    none, _ = await host.stream()
    names, _ = await host.ask("listen", id=none, backlog=1, bound=True)     # none was kept for it: as if unbound
    assert names["local"][1] not in {0, *answer["ports"]}
    for end in ends:
        end.close()
    await until(lambda: not host.handoff.kept_ports)


async def test_low_ports_are_for_root(host):
    host.handoff.set_policies(Policies())
    for subject, expected in ((USER, errno.EACCES), (Subject(0), 0)):
        be(host, subject)
        identity, _ = await host.stream()
        assert await refused(host, "bind", id=identity, host="127.0.0.1", port=80) == expected


async def test_who_asks_is_judged_not_who_has_opened(host):
    identity, _ = await host.stream()
    be(host, USER)
    assert await refused(host, "connect", id=identity, host="10.0.0.1", port=22) == errno.EACCES


async def test_a_session_may_less_and_never_more_again(host):
    assert await refused(host, "restrict", policy="nothing-like-it") == errno.EINVAL
    assert await refused(host, "restrict", uid=1000, groups=[], policy="") == 0
    assert await refused(host, "restrict", uid=0, policy="") == errno.EPERM
    identity, _ = await host.stream()
    assert await refused(host, "connect", id=identity, host="10.0.0.1", port=9000) == errno.EACCES
    for _again in range(3):
        assert await refused(host, "restrict", policy="tight") == 0
    (session,) = host.handoff.sessions
    assert session.subject.named == ("tight",)
    assert await refused(host, "connect", id=identity, host="127.0.0.1", port=9000) == errno.EACCES
    assert host.handoff.policies.denied["tight", "connect"] == 1


async def datagrams(host, port):
    """A socket of the client that is bound there, and its end."""
    answer, (end,) = await host.ask("open", type="datagram", family=4)
    end.setblocking(False)
    assert await refused(host, "bind", id=answer["id"], host="127.0.0.1", port=port) == 0
    return answer["id"], end


async def test_a_datagram_that_a_client_sends_past_its_library_goes_nowhere(host):
    _, sink = await datagrams(host, 4000)
    be(host, USER)
    identity, end = await datagrams(host, 0)
    _, other = await datagrams(host, 9001)
    end.send(packet(4000, b"no"))
    end.send(packet(9001, b"yes"))
    await until(lambda: readable(other) and readable(end))
    assert other.recv(100)[HEADER.size:] == b"yes"
    assert HEADER.unpack_from(end.recv(100))[2] == errno.EACCES and not readable(sink)
    assert await refused(host, "may", id=identity, host="127.0.0.1", port=4000) == errno.EACCES
    assert await refused(host, "may", id=identity, host="127.0.0.1", port=9001) == 0
    assert host.handoff.policies.denied == {("own", "send"): 2}


async def test_new_policies_are_for_sockets_that_are_there(host):
    _, sink = await datagrams(host, 4000)
    _, end = await datagrams(host, 0)
    end.send(packet(4000, b"1"))
    await until(lambda: readable(sink))
    sink.recv(100)
    host.handoff.set_policies(Policies([PolicyConfig(name="none", users=("0",), connect=())]))
    end.send(packet(4000, b"2"))
    await until(lambda: readable(end))
    assert HEADER.unpack_from(end.recv(100))[2] == errno.EACCES and not readable(sink)
    host.handoff.set_policies(Policies())
    end.send(packet(4000, b"3"))
    await until(lambda: readable(sink))
    assert sink.recv(100)[HEADER.size:] == b"3"


async def test_a_socket_that_was_passed_on_keeps_the_policy_of_who_opened_it(host):
    be(host, USER)
    _, end = await datagrams(host, 0)
    passed = socket.socket(fileno=end.detach())
    be(host, Subject(0))
    passed.send(packet(4000, b"no"))
    await until(lambda: readable(passed))
    assert HEADER.unpack_from(passed.recv(100))[2] == errno.EACCES
