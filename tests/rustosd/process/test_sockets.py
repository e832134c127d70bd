"""The table of sockets, and connections in it that nobody has asked about."""

import socket
from types import SimpleNamespace

from rustosd.client.wire import ACCEPTED, pack_address
from rustosd.process.accepted import Accepted
from rustosd.process.sockaddr import Endpoint, emit
from rustosd.process.sockets import State, Table
from rustosd.process.streams import StreamSocket, _peer_name

LOOP = SimpleNamespace()


def ends(remote, remote_port, local, local_port):
    return ACCEPTED.pack(bytes(range(8)), pack_address(remote), remote_port, pack_address(local), local_port)


def listener(table, family=socket.AF_INET):
    made = StreamSocket(LOOP, table, family, "0011223344556677", 7, 4096)
    made.options = {(1, 2): b"\1\0\0\0"}
    table.add(made)
    return made


def test_an_accepted_connection_becomes_a_socket_once_it_is_asked_for():
    table = Table(set)
    origin = listener(table)
    table.add(Accepted(origin, ends("10.77.0.1", 4000, "10.77.0.2", 80), 99))
    origin.options = {}
    one = table.by_inode(99)
    assert isinstance(one, StreamSocket) and table.by_inode(99) is one and one.connected
    assert (one.remote, one.local, one.state) == (Endpoint("10.77.0.1", 4000), Endpoint("10.77.0.2", 80), State.CONNECTED)
    assert one.options == {(1, 2): b"\1\0\0\0"} and one.identity == bytes(range(8)).hex()


def test_who_has_connected_is_told_as_the_socket_would_tell_it():
    for family, host in ((socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77::1"), (socket.AF_INET6, "10.77.0.1")):
        assert _peer_name(ends(host, 4000, "::", 80), family) == emit(Endpoint(host, 4000), family)


def test_a_server_that_only_accepts_does_not_fill_the_table():
    held = {7}
    table = Table(lambda: held)
    origin = listener(table)
    for inode in range(100, 100 + 20 * Table.SWEEP_AT):
        held = {7, inode - 1, inode}
        table.add(Accepted(origin, ends("10.77.0.1", 4000, "10.77.0.2", 80), inode))
        assert len(table) <= Table.SWEEP_AT
    assert table.by_inode(7) is origin and table.by_inode(inode) is not None
    assert table.by_inode(100) is None


def test_sockets_that_are_held_stay_however_many_there_are():
    held = {7}
    table = Table(lambda: held)
    origin = listener(table)
    for inode in range(100, 100 + 4 * Table.SWEEP_AT):
        held.add(inode)
        table.add(Accepted(origin, ends("10.77.0.1", 4000, "10.77.0.2", 80), inode))
    assert table.inodes() == held
