"""What a policy allows and denies, and whose it is."""

import pytest

from rustosd import config
from rustosd.config import ConfigError
from rustosd.policy import PRIVILEGED, Destination, Policies, PolicyConfig, Ports, Subject

USER = Subject(1000, frozenset({100}))


@pytest.mark.parametrize(("rule", "allowed", "denied"), [
    ("any", [("tcp", "192.0.2.1", 1), ("udp", "fd77::1", 65535)], []),
    ("10.77.0.0/24", [("tcp", "10.77.0.1", 80), ("udp", "10.77.0.255", 53), ("tcp", "::ffff:10.77.0.1", 80)],
     [("tcp", "10.77.1.1", 80), ("tcp", "fd77::1", 80)]),
    ("tcp any 80,8000-8002", [("tcp", "::1", 80), ("tcp", "1.2.3.4", 8001)],
     [("udp", "1.2.3.4", 80), ("tcp", "1.2.3.4", 81), ("tcp", "1.2.3.4", 8003)]),
    ("udp fd77::1 53", [("udp", "fd77::1", 53), ("udp", "fd77::1%2", 53)], [("udp", "fd77::2", 53), ("tcp", "fd77::1", 53)]),
])
def test_destinations(rule, allowed, denied):
    policies = Policies([PolicyConfig(name="p", connect=(Destination(rule),))])
    permit = policies.permit(USER._replace(named=("p",)))
    assert [permit.connect(*one) for one in allowed] == [None] * len(allowed)
    assert [permit.connect(*one) for one in denied] == ["p"] * len(denied)
    assert str(Destination(rule)) == rule


@pytest.mark.parametrize(("text", "why"), [
    ("", "no destination"), ("tcp", "no destination"), ("10.0.0.1/8", "did you mean 10.0.0.0/8"), ("example.org", "no address"),
    ("any 0", "no port"), ("any 70000", "no port"), ("any 9-8", "no port"), ("any 80 x", "no destination"),
    ("sctp any", "no addr"),
])
def test_what_is_no_destination_says_so(text, why):
    with pytest.raises(ValueError, match=why):
        Destination(text)


@pytest.mark.parametrize("text", ["", "tcp", "80 81", "http", "80-"])
def test_what_are_no_ports(text):
    with pytest.raises(ValueError, match="no port"):
        Ports(text)


def permit(who, *policies):
    return Policies([PolicyConfig(**{"name": name, **fields}) for name, fields in policies]).permit(who)


def test_without_a_policy_everything_but_roots_ports():
    free, root = permit(USER), permit(Subject(0))
    assert free.connect("tcp", "192.0.2.1", 22) is None and not free.restricts
    assert [free.bind("tcp", port) for port in (0, 1024, 1023, 1)] == [None, None, PRIVILEGED, PRIVILEGED]
    assert root.bind("udp", 53) is None and free.listen("tcp", 80) is None


def test_the_first_policy_that_names_somebody_is_his():
    policies = (("a", {"users": ("1001",), "connect": ()}), ("b", {"groups": ("100",), "connect": (Destination("any 80"),)}),
                ("c", {"users": ("1000",), "connect": ()}))
    assert permit(USER, *policies).connect("tcp", "1.1.1.1", 80) is None
    assert permit(USER, *policies).connect("tcp", "1.1.1.1", 81) == "b"
    assert permit(Subject(1002), *policies).connect("tcp", "1.1.1.1", 81) is None


def test_ones_own_policy_gives_low_ports_and_one_that_was_asked_for_does_not():
    web = ("web", {"users": ("1000",), "bind": (Ports("tcp 80"), Ports("8000-8999"))})
    mine = permit(USER, web)
    assert [mine.bind("tcp", port) for port in (80, 8080, 443, 9000)] == [None, None, "web", "web"]
    assert mine.bind("udp", 80) == "web" and mine.bind("tcp", 0) is None
    assert mine.listen("tcp", 0) == "web"           # a free port is none that it names
    other = permit(Subject(7, named=("web",)), web)
    assert other.bind("tcp", 80) == PRIVILEGED and other.bind("tcp", 8080) is None and other.bind("tcp", 9000) == "web"
    assert permit(Subject(7, own="web"), web).bind("tcp", 80) is None       # root said it is his


def test_one_more_policy_only_takes_away():
    policies = (("own", {"users": ("1000",), "connect": (Destination("10.0.0.0/8"),)}),
                ("all", {"connect": (Destination("any"),)}))
    both = permit(USER._replace(named=("all",)), *policies)
    assert both.connect("tcp", "10.1.1.1", 1) is None and both.connect("tcp", "192.0.2.1", 1) == "own"


def test_a_policy_that_has_gone_allows_nothing():
    gone = permit(USER._replace(named=("was",)))
    assert gone.connect("tcp", "10.77.0.1", 80) == gone.bind("tcp", 8080) == gone.listen("udp", 8080) == "was"


@pytest.mark.parametrize(("text", "why"), [
    ("[[policy]]\nname = 'a'\n[[policy]]\nname = 'a'", "x:4: .*another policy already"),
    (f"[[policy]]\nname = '{PRIVILEGED}'", "x:2: .*choose another"), ("[[policy]]\nname = 'a b'", "x:2: "),
    ("[[policy]]\nname = 'a'\nconnect = ['any']\nbind = ['http']", "x:4: .*'http' is no port"),
])
def test_mistakes_name_their_line(text, why):
    with pytest.raises(ConfigError, match=why):
        config.parse(text, "x")


@pytest.mark.parametrize("key", ["users", "groups"])
def test_whom_nobody_knows_is_told(key):
    with pytest.raises(ValueError, match=r"there is no .* no-such-name"):
        Policies([PolicyConfig(name="a", **{key: ("no-such-name",)})])
