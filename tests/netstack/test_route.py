"""The route table against a model that tries every route."""

import ipaddress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netstack import route
from netstack.net import NetState

SECRET = bytes(range(16))
INTERFACES = 3


def make_state(limit=64, interfaces=INTERFACES):
    state = NetState(SECRET)
    for i in range(interfaces):
        state.add_interface(f"e{i}", bytes([2, 0, 0, 0, 0, i]), 1500)
        state.set_up(i + 1, True)
    route.create_routes(state, limit)
    return state


def near(bits, base):
    """Addresses that share long prefixes with each other, so that routes nest and fork everywhere."""
    flips = st.lists(st.integers(0, bits - 1), max_size=3)
    return flips.map(lambda at: base ^ sum(1 << i for i in set(at)))


addresses = st.one_of(
    near(32, int(ipaddress.ip_address("10.1.2.3"))).map(ipaddress.IPv4Address),
    near(128, int(ipaddress.ip_address("2001:db8::1:2"))).map(ipaddress.IPv6Address),
    near(128, 0).map(ipaddress.IPv6Address),
    st.integers(0, (1 << 32) - 1).map(ipaddress.IPv4Address),
    st.integers(0, (1 << 128) - 1).map(ipaddress.IPv6Address),
).filter(lambda a: a.version == 4 or not a.ipv4_mapped)


@st.composite
def prefixes(draw):
    address = draw(addresses)
    # an IPv6 prefix that lies within ::ffff:0:0/96 is none
    length = draw(st.integers(0, 32 if address.version == 4 else 128))
    return ipaddress.ip_network((address, length), strict=False)


interfaces = st.integers(1, INTERFACES)
metrics = st.integers(0, 3) | st.just(0xFFFFFFFE)


class RouteModel(RuleBasedStateMachine):
    limit = 24

    def __init__(self):
        super().__init__()
        self.state = make_state(self.limit)
        self.up = dict.fromkeys(range(1, INTERFACES + 1), True)
        self.model = []     # (network, metric, interface) in the order of their making

    def best(self, address):
        fitting = [r for r in self.model
                   if r[0].version == address.version and address in r[0] and self.up[r[2]]]
        return min(fitting, key=lambda r: (-r[0].prefixlen, r[1]), default=None)    # min keeps the older of equals

    @rule(network=prefixes(), metric=metrics, interface=interfaces)
    def add(self, network, metric, interface):
        key = (network, metric, interface)
        before = self.state.generation
        if key not in self.model and len(self.model) == self.limit:
            with pytest.raises(OSError, match="no room"):
                route.add_route(self.state, str(network), None, interface, metric)
            assert self.state.generation == before
            return
        assert route.add_route(self.state, str(network), None, interface, metric) is (key in self.model)
        assert self.state.generation != before
        if key not in self.model:
            self.model.append(key)

    @rule(data=st.data(), metric=metrics, interface=interfaces)
    def add_another_way(self, data, metric, interface):
        if self.model:
            self.add(data.draw(st.sampled_from(self.model))[0], metric, interface)

    @rule(data=st.data(), any_interface=st.booleans(), any_metric=st.booleans())
    def remove(self, data, any_interface, any_metric):
        network, metric, interface = data.draw(
            st.sampled_from(self.model) if self.model else st.tuples(prefixes(), metrics, interfaces))
        gone = [r for r in self.model if r[0] == network and (any_metric or r[1] == metric)
                and (any_interface or r[2] == interface)]
        before = self.state.generation
        assert len(gone) == route.remove_route(
            self.state, str(network), -1 if any_interface else interface, None if any_metric else metric)
        assert (self.state.generation != before) == bool(gone)
        self.model = [r for r in self.model if r not in gone]

    @rule(network=prefixes())
    def remove_what_may_not_be_there(self, network):
        gone = [r for r in self.model if r[0] == network]
        assert route.remove_route(self.state, str(network)) == len(gone)
        self.model = [r for r in self.model if r not in gone]

    @rule(interface=interfaces)
    def forget_interface(self, interface):
        route.forget_interface(self.state, interface)
        self.model = [r for r in self.model if r[2] != interface]

    @rule(interface=interfaces, up=st.booleans())
    def link(self, interface, up):
        self.state.set_up(interface, up)
        self.up[interface] = up

    @rule(address=addresses)
    def look_anywhere(self, address):
        self.look(address)

    @rule(data=st.data())
    def look_at_an_edge(self, data):
        """The first, the last and the neighboring addresses of a prefix in the table."""
        if self.model:
            network = data.draw(st.sampled_from(self.model))[0]
            for value in (int(network[0]), int(network[-1]), int(network[0]) - 1, int(network[-1]) + 1):
                if 0 <= value < 1 << network.max_prefixlen:
                    address = type(network[0])(value)
                    if address.version == 4 or not address.ipv4_mapped:
                        self.look(address)

    def look(self, address):
        expected, row = self.best(address), route.lookup(self.state, address)
        found = row and (ipaddress.ip_network(row["prefix"]), row["metric"], row["interface"])
        assert found == expected

    @invariant()
    def rows_are_the_routes(self):
        rows = [(ipaddress.ip_network(r["prefix"]), r["metric"], r["interface"]) for r in route.routes(self.state)]
        assert len(rows) == len(self.model) and set(rows) == set(self.model)


TestRouteModel = RouteModel.TestCase
TestRouteModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class DenseRouteModel(RouteModel):
    """From a table filled with every prefix of one address."""

    limit = 40

    @initialize()
    def fill(self):
        for length in range(33):
            self.add(ipaddress.ip_network(("10.1.2.3", length), strict=False), 0, 1 + length % INTERFACES)


TestDenseRouteModel = DenseRouteModel.TestCase
TestDenseRouteModel.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_default_routes_keep_to_their_family():
    state = make_state()
    route.add_route(state, "::/0", None, 1)
    assert route.lookup(state, "10.0.0.1") is None
    route.add_route(state, "0.0.0.0/0", None, 2)
    assert route.lookup(state, "10.0.0.1")["interface"] == 2
    assert route.lookup(state, "2001:db8::1")["interface"] == 1
    route.remove_route(state, "::/0")
    assert route.lookup(state, "2001:db8::1") is None


def test_rows_say_what_was_added():
    state = make_state()
    state.add_address(1, "10.77.0.2/24")
    route.add_route(state, "10.77.0.0/24", None, 1, kind="connected")
    route.add_route(state, "0.0.0.0/0", "10.77.0.1", 1, metric=7, source="10.77.0.2")
    route.add_route(state, "fd77::/64", None, 2)
    route.add_route(state, "::/0", "fe80::1", 2)
    assert route.routes(state) == [
        {"prefix": "0.0.0.0/0", "gateway": "10.77.0.1", "interface": 1, "source": "10.77.0.2", "metric": 7,
         "kind": "static"},
        {"prefix": "10.77.0.0/24", "gateway": None, "interface": 1, "source": None, "metric": 0, "kind": "connected"},
        {"prefix": "::/0", "gateway": "fe80::1", "interface": 2, "source": None, "metric": 0, "kind": "static"},
        {"prefix": "fd77::/64", "gateway": None, "interface": 2, "source": None, "metric": 0, "kind": "static"},
    ]
    assert route.add_route(state, "0.0.0.0/0", "10.77.0.9", 1, metric=7) is True      # replaced, not added
    assert route.lookup(state, "8.8.8.8")["gateway"] == "10.77.0.9"


def test_the_way_over_a_dead_link_gives_way_to_the_next_best():
    state = make_state()
    route.add_route(state, "10.0.0.0/24", None, 1, metric=1)
    route.add_route(state, "10.0.0.0/24", None, 2, metric=2)
    route.add_route(state, "10.0.0.0/8", None, 3)
    ways = []
    for index in (1, 2, 3):
        ways.append(route.lookup(state, "10.0.0.1")["interface"])
        state.set_up(index, False)
    assert ways == [1, 2, 3] and route.lookup(state, "10.0.0.1") is None
    state.set_up(2, True)
    state.remove_interface(1)       # its route stays until it is forgotten, and does no harm
    assert route.lookup(state, "10.0.0.1")["interface"] == 2


def test_of_equal_ways_the_older_is_taken():
    state = make_state()
    for interface in (2, 1, 3):
        route.add_route(state, "10.0.0.0/24", None, interface, metric=5)
    assert route.lookup(state, "10.0.0.1")["interface"] == 2
    route.add_route(state, "10.0.0.0/24", None, 2, metric=5)       # to replace it keeps its place
    assert route.lookup(state, "10.0.0.1")["interface"] == 2
    route.remove_route(state, "10.0.0.0/24", 2)
    assert route.lookup(state, "10.0.0.1")["interface"] == 1


@pytest.mark.parametrize("arguments, complaint", [
    (("10.0.0.1/24", None, 1), "host bits"),
    (("nowhere", None, 1), "nowhere"),
    (("::ffff:10.0.0.0/104", None, 1), "IPv4 prefix"),
    (("10.0.0.0/24", "fe80::1", 1), "different families"),
    (("10.0.0.0/24", "224.0.0.1", 1), "cannot be the gateway"),
    (("10.0.0.0/24", "0.0.0.0", 1), "cannot be the gateway"),
    (("10.0.0.0/24", "10.77.0.2", 1), "is an address of this stack"),
    (("10.0.0.0/24", None, 9), "no interface 9"),
    (("10.0.0.0/24", None, -1), "no interface -1"),
    (("10.0.0.0/24", None, 1, -1), "a metric is"),
    (("10.0.0.0/24", None, 1, 0xFFFFFFFF), "a metric is"),
    (("10.0.0.0/24", None, 1, 0, "10.9.9.9"), "not an address of this stack"),
    (("10.0.0.0/24", None, 1, 0, None, "dynamic"), "connected, static, local"),
])
def test_what_is_no_route_is_refused(arguments, complaint):
    state = make_state()
    state.add_address(1, "10.77.0.2/24")
    with pytest.raises(ValueError, match=complaint):
        route.add_route(state, *arguments)
    assert route.routes(state) == []


def test_a_table_is_made_once_and_has_bounds():
    state = make_state()
    with pytest.raises(ValueError, match="already"):
        route.create_routes(state)
    with pytest.raises(ValueError, match="holds 1 to"):
        route.create_routes(NetState(SECRET), 0)
    bare = NetState(SECRET)     # no table: no routes
    assert route.lookup(bare, "10.0.0.1") is None and route.routes(bare) == []
    assert route.remove_route(bare, "10.0.0.0/8") == 0
    with pytest.raises(OSError):
        route.add_route(bare, "10.0.0.0/8", None, 0)


def test_nothing_is_lost_over_many_changes():
    """Free lists: the table can be filled to its limit again and again."""
    state = make_state(limit=100)
    for round_ in range(50):
        for i in range(100):
            route.add_route(state, f"10.{round_}.{i}.0/24" if i % 2 else f"fd{round_:02x}:{i:x}::/32", None, 1 + i % 3)
        with pytest.raises(OSError):
            route.add_route(state, "192.168.0.0/16", None, 1)
        for interface in (1, 2, 3):
            route.forget_interface(state, interface)
        assert route.routes(state) == []
