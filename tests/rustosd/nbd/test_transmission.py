"""Requests and replies, in all three forms, against a disk in memory; and everything a client may get wrong."""

import asyncio
import os
import random
import socket
import struct

import pytest

from drivers.block.ram import RamDisk
from rustosd.nbd import wire
from rustosd.nbd.server import Limits
from tests.rustosd.nbd.conftest import OCTETS
from tests.rustosd.nbd.raw import RawClient

FORMS = {"simple": {"structured": False}, "structured": {}, "extended": {"extended": True}}
pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs eventfd")


@pytest.fixture(params=FORMS)
async def client(request, running):
    return await running.client(**FORMS[request.param])


async def test_what_was_written_is_read(client):
    data = random.Random(1).randbytes(4096)
    assert (await client.answer(client.write(8192, data))).error == 0
    got = await client.ask(wire.CMD_READ, 8192, 4096)
    assert next(iter(got.data.values())) == data
    assert list(got.data) == [8192 if client.structured or client.extended else -1]


async def test_many_requests_at_once_are_all_answered_once(client):
    source = random.Random(2)
    blocks = [source.randbytes(512 * source.randint(1, 64)) for _ in range(300)]
    offsets = [index << 16 for index in range(300)]
    writes = [client.write(at, block) for at, block in zip(offsets, blocks, strict=True)]
    for cookie in writes:
        assert (await client.answer(cookie)).error == 0
    reads = [client.request(wire.CMD_READ, at, len(block)) for at, block in zip(offsets, blocks, strict=True)]
    for cookie, block in zip(reads, blocks, strict=True):
        assert next(iter((await client.answer(cookie)).data.values())) == block


async def test_a_request_of_any_size_up_to_the_largest(client, running):
    data = random.Random(3).randbytes(32 << 20)
    assert (await client.answer(client.write(512, data))).error == 0
    got = await client.ask(wire.CMD_READ, 512, len(data))
    if client.structured or client.extended:
        assert got.content(512, len(data)) == data
    else:
        assert got.data[-1] == data
    assert running.server.budget.used <= running.server.limits.buffers_octets


@pytest.mark.parametrize("octets", [1 << 20, 3 << 20])
async def test_a_request_larger_than_the_memory_goes_piece_by_piece(make, octets):
    tight = make(Limits(buffers_octets=600 << 10))      # no more than a connection has at first
    tight.export()
    for options in FORMS.values():
        client = await tight.client(**options)
        data = random.Random(octets).randbytes(octets)
        assert (await client.answer(client.write(4096, data))).error == 0
        others = [client.request(wire.CMD_READ, 512 * index, 512) for index in range(20)]
        cookie = client.request(wire.CMD_READ, 4096, octets)
        others += [client.request(wire.CMD_READ, 512 * index, 512) for index in range(20)]
        got = await client.answer(cookie)           # no other reply may come into the midst of a simple one
        for other in others:
            assert (await client.answer(other)).error == 0
        assert b"".join(got.data[at] for at in sorted(got.data)) == data
        assert len(got.data) == (1 if client.structured is client.extended else octets // (128 << 10))
        assert tight.server.budget.used <= 600 << 10
        client.request(wire.CMD_DISC)
        assert await client.is_over()


async def test_zeros_travel_as_a_hole(running):
    client = await running.client()
    got = await client.ask(wire.CMD_READ, 0, 65536)
    assert (got.kinds, got.holes) == (["CHUNK_OFFSET_HOLE"], [(0, 65536)])
    got = await client.ask(wire.CMD_READ, 0, 65536, wire.CMD_FLAG_DF)
    assert got.kinds == ["CHUNK_OFFSET_DATA"] and got.data[0] == bytes(65536)
    await client.answer(client.write(65536 - 512, bytes(511) + b"x"))
    got = await client.ask(wire.CMD_READ, 0, 65536)
    assert got.kinds == ["CHUNK_OFFSET_DATA"] and got.data[0] == bytes(65535) + b"x"


async def test_zeroes_trim_flush_and_cache(client):
    await client.answer(client.write(0, b"x" * 8192))
    assert (await client.ask(wire.CMD_WRITE_ZEROES, 0, 4096)).error == 0
    assert (await client.ask(wire.CMD_WRITE_ZEROES, 512, 512, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FUA)).error == 0
    assert (await client.ask(wire.CMD_TRIM, 4096, 512)).error == 0
    assert (await client.ask(wire.CMD_FLUSH)).error == 0
    assert (await client.ask(wire.CMD_FLUSH, flags=wire.CMD_FLAG_FUA)).error == 0
    assert (await client.ask(wire.CMD_CACHE, 0, OCTETS)).error == 0
    got = await client.ask(wire.CMD_READ, 0, 8192)
    data = got.content(0, 8192) if client.structured or client.extended else got.data[-1]
    assert data[:4096] == bytes(4096) and data[4608:] == b"x" * 3584


# Proto: "Error values", "Size constraints", and each command's own words.
@pytest.mark.parametrize(("request_", "error"), [
    ((wire.CMD_READ, OCTETS, 512), wire.NBD_EINVAL),
    ((wire.CMD_READ, OCTETS - 512, 1024), wire.NBD_EINVAL),
    ((wire.CMD_READ, 2**64 - 512, 1024), wire.NBD_EINVAL),
    ((wire.CMD_READ, 1, 512), wire.NBD_EINVAL),
    ((wire.CMD_READ, 0, 511), wire.NBD_EINVAL),
    ((wire.CMD_READ, 0, 512, 0x40), wire.NBD_EINVAL),
    ((wire.CMD_READ, 0, 512, wire.CMD_FLAG_NO_HOLE), wire.NBD_EINVAL),
    ((wire.CMD_TRIM, OCTETS, 512), wire.NBD_EINVAL),
    ((wire.CMD_TRIM, 1, 512), wire.NBD_EINVAL),
    ((wire.CMD_WRITE_ZEROES, OCTETS, 512), wire.NBD_ENOSPC),
    ((wire.CMD_WRITE_ZEROES, 0, 512, wire.CMD_FLAG_DF), wire.NBD_EINVAL),
    ((wire.CMD_CACHE, OCTETS, 512), wire.NBD_EINVAL),
    ((wire.CMD_FLUSH, 0, 512), wire.NBD_EINVAL),
    ((wire.CMD_FLUSH, 512, 0), wire.NBD_EINVAL),
    ((wire.CMD_BLOCK_STATUS, 0, 512), wire.NBD_EINVAL),     # not negotiated
    ((8, 0, 512), wire.NBD_EINVAL),
    ((0xFFFF, 0, 0), wire.NBD_EINVAL),
    ((wire.CMD_READ, 0, 0), 0),
    ((wire.CMD_TRIM, 0, 0), 0),
    ((wire.CMD_WRITE_ZEROES, 0, 0), 0),
])
async def test_a_request_that_cannot_be_has_the_error_the_protocol_names(client, request_, error):
    assert (await client.ask(*request_)).error == error
    assert (await client.ask(wire.CMD_READ, 0, 512)).error == 0     # and the connection lives


async def test_writes_that_cannot_be_are_read_to_their_end(client):
    for offset, octets, flags, error in ((OCTETS, 512, 0, wire.NBD_ENOSPC), (OCTETS - 512, 100 << 10, 0, wire.NBD_ENOSPC),
                                         (1, 512, 0, wire.NBD_EINVAL), (0, 513, 0, wire.NBD_EINVAL),
                                         (0, 512, wire.CMD_FLAG_DF, wire.NBD_EINVAL)):
        assert (await client.answer(client.write(offset, bytes(octets), flags))).error == error
    assert (await client.answer(client.write(0, b""))).error == 0
    assert (await client.answer(client.write(0, b"y" * 512))).error == 0


async def test_a_read_of_more_than_the_largest_payload(running):
    for form, error in (("simple", wire.NBD_EINVAL), ("structured", wire.NBD_EOVERFLOW), ("extended", wire.NBD_EOVERFLOW)):
        client = await running.client(**FORMS[form])
        assert (await client.ask(wire.CMD_READ, 0, (32 << 20) + 512)).error == error


async def test_a_payload_larger_than_anybody_may_send_ends_the_connection(client):
    client.request(wire.CMD_WRITE, 0, 0x7FFFFE00, wire.CMD_FLAG_PAYLOAD_LEN if client.extended else 0)
    assert await client.is_over()


async def test_a_wrong_magic_ends_the_connection(client, running):
    client.request(wire.CMD_READ, 0, 512, magic=0x12560953)
    assert await client.is_over()
    assert running.engine.statistics()["ended"]["bad_magic"] == 1


async def test_a_read_only_export_is_not_written(make):
    made = make()
    made.export(read_only=True)
    for options in FORMS.values():
        client = await made.client(**options)
        assert client.flags & wire.FLAG_READ_ONLY and not client.flags & wire.FLAG_SEND_TRIM
        assert (await client.answer(client.write(0, bytes(512)))).error == wire.NBD_EPERM
        assert (await client.ask(wire.CMD_TRIM, 0, 512)).error == wire.NBD_EPERM
        assert (await client.ask(wire.CMD_WRITE_ZEROES, 0, 512)).error == wire.NBD_EPERM
        assert (await client.ask(wire.CMD_READ, 0, 512)).error == 0
        assert (await client.ask(wire.CMD_FLUSH)).error == 0


async def test_sectors_of_4096(make):
    made = make()
    made.export(disk=RamDisk("disk", OCTETS, sector_octets=4096))
    client = await made.client()
    assert (await client.ask(wire.CMD_READ, 512, 512)).error == wire.NBD_EINVAL
    assert (await client.answer(client.write(4096, bytes(512)))).error == wire.NBD_EINVAL
    assert (await client.answer(client.write(4096, b"z" * 4096))).error == 0
    assert (await client.ask(wire.CMD_READ, 4096, 4096)).data[4096] == b"z" * 4096


async def test_what_is_allocated(running):
    for options in ({}, {"extended": True}):
        client = await running.client(context=True, **options)
        await client.answer(client.write(1 << 20, b"d" * 65536))
        got = await client.ask(wire.CMD_BLOCK_STATUS, 0, 4 << 20)
        at, data = 0, []
        for length, flags in got.status:
            data += [(at, length)] if not flags else []
            assert flags in (0, wire.STATE_HOLE | wire.STATE_ZERO)
            at += length
        assert at == 4 << 20 and data == [(1 << 20, 65536)]
        assert got.kinds == ["CHUNK_BLOCK_STATUS_EXT" if options else "CHUNK_BLOCK_STATUS"]
        got = await client.ask(wire.CMD_BLOCK_STATUS, 0, 4 << 20, wire.CMD_FLAG_REQ_ONE)
        assert got.status == [(1 << 20, 3)]
        assert (await client.ask(wire.CMD_BLOCK_STATUS, OCTETS, 512)).error == wire.NBD_EINVAL


async def test_extended_requests_reach_beyond_4_gib(make):
    made = make()
    disk = RamDisk("disk", 1 << 40)
    made.export(disk=disk)
    client = await made.client(extended=True, context=True)
    assert client.octets == 1 << 40
    await client.answer(client.write((1 << 40) - 512, b"e" * 512))
    got = await client.ask(wire.CMD_BLOCK_STATUS, 0, 1 << 40, wire.CMD_FLAG_REQ_ONE)
    assert got.status[0][1] == 3 and 1 << 39 < got.status[0][0] <= 1 << 40
    assert (await client.ask(wire.CMD_TRIM, 0, 1 << 40)).error == 0
    assert (await client.ask(wire.CMD_WRITE_ZEROES, 512, (1 << 40) - 512)).error == 0
    assert (await client.ask(wire.CMD_READ, (1 << 40) - 512, 512)).holes == [((1 << 40) - 512, 512)]


async def test_extended_payloads_where_none_belong_are_read_to_their_end(running):
    client = await running.client(extended=True, context=True)
    flag = wire.CMD_FLAG_PAYLOAD_LEN
    for command in (wire.CMD_READ, wire.CMD_FLUSH, wire.CMD_BLOCK_STATUS, 99):
        cookie = client.request(command, 0, 1000, flag, bytes(1000))
        assert (await client.answer(cookie)).error == wire.NBD_EINVAL
    assert (await client.ask(wire.CMD_READ, 0, 512)).error == 0


async def test_the_payload_of_an_extended_write_comes_with_its_flag_and_without(running):
    """It must have the flag, and QEMU 10.0 sends none."""
    client = await running.client(extended=True)
    for flag in (0, wire.CMD_FLAG_PAYLOAD_LEN):
        data = bytes([flag + 1]) * 70000
        data = data[:len(data) // 512 * 512]
        assert (await client.answer(client.request(wire.CMD_WRITE, 512, len(data), flag, data))).error == 0
        assert (await client.ask(wire.CMD_READ, 512, len(data))).content(512, len(data)) == data


async def test_disconnect_lets_what_was_asked_end(client):
    cookies = [client.write(index * 4096, b"a" * 4096) for index in range(50)]
    client.request(wire.CMD_DISC)
    for cookie in cookies:
        assert (await client.answer(cookie)).error == 0
    assert await client.is_over()


async def test_what_was_asked_before_a_disconnect_is_done_even_if_nobody_waits_for_the_answer(running):
    client, sector = await running.client(), os.urandom(512)
    asked = b"".join(struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, index, index * 512, 512) + sector
                     for index in range(200))
    asked += struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.CMD_DISC, 999, 0, 0)
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as end:
        end.setblocking(True)
        end.sendall(asked)                      # the server, on this loop, has seen nothing of it yet
        end.shutdown(socket.SHUT_RDWR)          # ... and every reply finds nobody
    async with asyncio.timeout(10):
        while running.server.connections():
            await asyncio.sleep(0.01)
    other = await running.client()
    got = await other.ask(wire.CMD_READ, 0, 200 * 512)
    assert got.content(0, 200 * 512) == sector * 200


async def test_a_flush_covers_what_other_connections_have_written(running):
    one, other = await running.client(), await running.client()
    assert one.flags & wire.FLAG_CAN_MULTI_CONN
    await one.answer(one.write(0, b"m" * 512))
    assert (await other.ask(wire.CMD_READ, 0, 512)).data[0] == b"m" * 512
    before = running.disks[0].statistics()["flushes"]
    assert (await other.ask(wire.CMD_FLUSH)).error == 0
    assert running.disks[0].statistics()["flushes"] == before + 1


async def test_a_client_that_does_not_read_is_not_heard_and_disturbs_nobody(make):
    made = make(Limits(buffers_octets=8 << 20))
    made.export()
    slow, other = await made.client(), await made.client()
    await other.answer(other.write(0, random.Random(4).randbytes(1 << 20)))
    slow.writer.transport.pause_reading()
    for _ in range(2000):
        slow.request(wire.CMD_READ, 0, 1 << 20)
    for _ in range(50):
        assert (await other.ask(wire.CMD_READ, 0, 4096)).error == 0
    turns = made.engine.turns
    await asyncio.sleep(0.3)
    assert made.engine.turns - turns < 40           # it sleeps, too
    assert made.server.budget.used <= 8 << 20
    made.engine.sweep(1)
    await asyncio.sleep(0.05)
    assert made.engine.statistics()["ended"]["stalled"] == 1
    assert (await other.ask(wire.CMD_READ, 0, 4096)).error == 0


async def test_octets_may_come_one_at_a_time(running):
    client = await running.client()
    header = struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 77, 512, 512)
    client.answers[77] = type(await client.ask(wire.CMD_FLUSH))()
    for octet in header + b"o" * 512:
        client.writer.write(bytes([octet]))
        await asyncio.sleep(0)
    assert (await client.answer(77)).error == 0
    assert (await client.ask(wire.CMD_READ, 512, 512)).data[512] == b"o" * 512


async def test_half_a_request_and_the_end_at_once_is_the_end(running):
    client = await running.client()
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as end:
        end.send(struct.pack(">IHH", wire.REQUEST_MAGIC, 0, wire.CMD_READ))
        end.shutdown(socket.SHUT_RDWR)
    async with asyncio.timeout(10):
        while running.server.connections():
            await asyncio.sleep(0.01)
    assert running.engine.statistics()["ended"]["eof"] == 1


async def test_a_connection_cut_anywhere_leaves_nothing_behind(running):
    source = random.Random(5)
    for _ in range(60):
        client = await RawClient.connect(running.path)
        for _ in range(source.randrange(20)):
            client.write(source.randrange(1000) * 512, bytes(512 * source.randrange(1, 300)))
            client.request(wire.CMD_READ, 0, 512 * source.randrange(1, 3000))
        await asyncio.sleep(source.choice((0, 0.001)))
        client.writer.transport.abort()
    for _ in range(100):
        if not running.server.connections():
            break
        await asyncio.sleep(0.02)
    assert running.server.connections() == 0 and running.server.budget.used == 0


async def test_against_a_reference(running):
    """Thousands of random operations, many at a time but none overlapping, against a bytearray."""
    source, reference = random.Random(6), bytearray(4 << 20)
    clients = [await running.client(**options) for options in FORMS.values()]
    for _ in range(60):
        todo, at = [], 0
        while at < len(reference) - (1 << 18):
            at += 512 * source.randrange(40)
            length = 512 * source.choice((1, 2, 8, 8, 8, 100, 300))
            client, kind = source.choice(clients), source.choice("rrwwz")
            if kind == "w":
                data = source.randbytes(length)
                reference[at:at + length] = data
                todo.append((client, client.write(at, data, source.choice((0, wire.CMD_FLAG_FUA))), None, at))
            elif kind == "z":
                reference[at:at + length] = bytes(length)
                todo.append((client, client.request(wire.CMD_WRITE_ZEROES, at, length), None, at))
            else:
                cookie = client.request(wire.CMD_READ, at, length)
                todo.append((client, cookie, bytes(reference[at:at + length]), at))
            at += length
        for client, cookie, wanted, offset in todo:
            got = await client.answer(cookie)
            assert got.error == 0
            if wanted is not None:
                simple = not (client.structured or client.extended)
                assert (got.data[-1] if simple else got.content(offset, len(wanted))) == wanted
