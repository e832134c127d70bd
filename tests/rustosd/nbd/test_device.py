"""An export of ours as a device for swap; and the same client against a server that nobody here wrote."""

import asyncio
import errno
import os
import random
import shutil
import socket
import struct
import subprocess
import threading

import pytest

from drivers.block.ram import RamDisk
from mm.swap.errors import SwapCorrupt, SwapFailed
from mm.swap.store import SwapStore
from rustosd.nbd.client import NbdRefused, negotiate, open_export
from rustosd.nbd.device import NbdDevice

PAGE = 4096


def swapped(store, count, seed=1):
    """Write pages and read them back; whether they are the same."""
    written = random.Random(seed).randbytes(count * PAGE)
    first = store.allocate(count)
    store.write(first, written)
    memory = bytearray(count * PAGE)
    store.read_into(first, count, memory)
    for i in range(0, count, 7):
        one = bytearray(PAGE)
        store.read_into(first + i, 1, one)
        assert one == written[i * PAGE:(i + 1) * PAGE]
    store.release(first, count)
    store.trim()
    return memory == written


async def test_pages_go_to_an_export_and_come_back(running):
    device = await asyncio.to_thread(NbdDevice, str(running.path), "disk")
    store = SwapStore(device)
    assert device.octets == 64 << 20 and device.describe() == "export disk"
    found = await asyncio.gather(*(asyncio.to_thread(swapped, store, 700, seed) for seed in range(4)))
    assert found == [True] * 4
    counts = running.engine.statistics()
    assert counts["requests"]["write"] >= 4 * 6 and counts["requests"]["trim"]
    await asyncio.to_thread(store.close)
    await asyncio.sleep(0.05)
    assert running.engine.statistics()["ended"]["disconnect"] == 2


async def test_a_part_of_an_export_stays_within_it(running):
    disk = running.disks[0]
    device = await asyncio.to_thread(NbdDevice, str(running.path), "disk", begin=1 << 20, octets=1 << 20)
    store = SwapStore(device)
    assert store.slots.count == 256
    first = store.allocate(256)
    await asyncio.to_thread(store.write, first, os.urandom(1 << 20))
    client = await running.client()
    for at in ((1 << 20) - 4096, 2 << 20):
        assert (await client.ask(0, at, 4096)).content(at, 4096) == bytes(4096)
    assert disk.statistics()["sectors_written"] == (1 << 20) // 512
    await asyncio.to_thread(store.close)


async def test_what_another_client_changes_is_noticed(running):
    store = SwapStore(await asyncio.to_thread(NbdDevice, str(running.path), "disk"))
    first = store.allocate(2)
    await asyncio.to_thread(store.write, first, os.urandom(2 * PAGE))
    client = await running.client()
    assert (await client.answer(client.write(0, b"x" * 512))).error == 0
    with pytest.raises(SwapCorrupt, match=f"export disk: cannot read slot {first}"):
        await asyncio.to_thread(store.read_into, first, 1, bytearray(PAGE))
    await asyncio.to_thread(store.read_into, first + 1, 1, bytearray(PAGE))
    await asyncio.to_thread(store.close)


async def test_a_server_that_ends_is_an_error_that_stays(make):
    server = make()
    server.export()
    store = SwapStore(await asyncio.to_thread(NbdDevice, str(server.path), "disk"))
    first = store.allocate(1)
    await asyncio.to_thread(store.write, first, os.urandom(PAGE))
    await server.server.stop(0)
    for _ in range(2):
        with pytest.raises(SwapFailed) as caught:
            await asyncio.to_thread(store.read_into, first, 1, bytearray(PAGE))
        assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)
    await asyncio.to_thread(store.close)


@pytest.mark.parametrize(("name", "options", "says"), [
    ("none", {}, "export 'none':"), ("read", {}, "read-only"), ("disk", {"begin": 64 << 20}, "67108864 octets"),
    ("disk", {"octets": 65 << 20}, "are wanted"), ("disk", {"begin": 100}, "are wanted"),
])
async def test_what_cannot_be_swap_is_refused(running, name, options, says):
    running.export("read", RamDisk("read", 1 << 20, read_only=True))
    with pytest.raises(OSError, match=says):
        await asyncio.to_thread(NbdDevice, str(running.path), name, **options)


async def test_nobody_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(OSError, match=r"no NBD server answers on .*: is rustosd running"):
        NbdDevice(str(tmp_path / "none"), "disk")


@pytest.mark.parametrize("said", [
    b"", b"NBDMAGIC" + b"\0" * 10, b"HTTP/1.1 400 Bad Request\r\n", b"NBDMAGICIHAVEOPT\0\0",
    b"NBDMAGICIHAVEOPT\0\3" + bytes(20), b"NBDMAGICIHAVEOPT\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0) * 70,
    b"NBDMAGICIHAVEOPT\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30),
    b"NBDMAGICIHAVEOPT\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 0x80000006, 2) + b"no",
])
def test_whatever_a_server_says_the_handshake_ends(said):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError) as caught:
            negotiate(ours, "disk")
        assert isinstance(caught.value, NbdRefused)


@pytest.mark.skipif(shutil.which("nbdkit") is None, reason="nbdkit is not installed")
def test_a_server_that_nobody_here_wrote(tmp_path):
    path = str(tmp_path / "nbdkit.sock")
    with subprocess.Popen(["nbdkit", "-f", "-U", path, "--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=512",
                           "blocksize-error-policy=error"]) as server:
        try:
            for _ in range(200):
                if os.path.exists(path):
                    break
                server.poll()
                assert server.returncode is None
                threading.Event().wait(0.05)
            opened = open_export(path, "")
            assert (opened.octets, opened.block_octets, opened.shareable) == (16 << 20, 512, True)
            opened.connection.close()
            store = SwapStore(NbdDevice(path, ""))
            assert swapped(store, 1000)
            store.close()
        finally:
            server.terminate()
