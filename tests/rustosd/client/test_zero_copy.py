"""Large writes, whose pages the daemon copies from itself: what asyncio promises of a transport holds for them as well."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import uvloop

from rustosd.client import aio, zero_copy
from rustosd.client.sock import _daemon
from tests.netstack.sockets.conftest import Recorder, until
from tests.peers.conftest import V4
from tests.rustosd.handoff.conftest import LINUX_HOSTS, inside

pytestmark = [
    pytest.mark.usefixtures("our_daemon"),
    pytest.mark.skipif(not zero_copy.ONE_OCTET, reason="needs Linux 6.5 or newer, as the writer does"),
]
MIB = 1 << 20
CONTENT = random.Random(1).randbytes(8 * MIB)


@pytest.fixture
def net():
    return aio


@pytest.fixture(autouse=True)
def nothing_stays(joined):
    """Every descriptor and every object a test has lent comes back."""
    uvloop.new_event_loop().close()         # the first one has pipes made that stay for all
    before = descriptors()
    yield
    patience = time.monotonic() + 10
    gc.collect()
    while zero_copy._adrift and time.monotonic() < patience:        # the loop was closed before
        time.sleep(0.01)
        zero_copy._sweep()
    assert not zero_copy._adrift
    assert not [writer for writer in zero_copy._writers if writer._kept]
    assert descriptors() <= before


def descriptors():
    """What is open, but for pipes that wait for the next writer, and sessions with the daemon."""
    while zero_copy._pipes:
        zero_copy._close(zero_copy._pipes.pop())
    _daemon.close()
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def is_given_back(transport):
    return transport._zero_copy is None


async def test_arrives_whole_in_order_and_is_let_go_of(joined):
    client, server = await joined()
    client.transport.write(CONTENT)
    assert not is_given_back(client.transport)
    await until(lambda: len(server.data) == len(CONTENT), 30)
    assert server.data == CONTENT
    await until(lambda: is_given_back(client.transport))
    client.transport.write(b"small")
    assert is_given_back(client.transport)
    client.transport.close()
    await server.lost
    assert server.data == CONTENT + b"small"


@pytest.mark.parametrize("seed", range(4))
async def test_small_and_large_and_what_is_no_bytes_keep_their_order(joined, seed):
    client, server = await joined()
    chance = random.Random(seed)
    written = bytearray()
    kinds = [bytes, bytearray, memoryview]
    for _ in range(60):
        size = chance.choice([1, 2, 100, 4095, 5000, 131_071, 131_072, 200_000, 300_001])
        piece = chance.choice(kinds)(chance.randbytes(size))
        if chance.random() < 0.2:
            client.transport.writelines([b"head", piece, b"", b"tail"])
            written += b"head" + piece + b"tail"
        else:
            client.transport.write(piece)
            written += piece
        if isinstance(piece, bytearray):
            piece[:] = bytes(size)      # theirs again at once
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    client.transport.close()
    await server.lost
    assert server.data == bytes(written)


async def test_many_small_ones_behind_a_large_one_go_together(joined, monkeypatch):
    calls = refuse_splice(monkeypatch, None)
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    lines = [b"line %d\n" % number for number in range(20_000)]
    for line in lines:
        client.transport.write(line)
    server.transport.resume_reading()
    client.transport.close()
    await asyncio.wait_for(server.lost, 30)
    assert server.data == CONTENT + b"".join(lines)
    assert len(calls) < len(lines) / 20


async def test_memory_that_is_used_again_does_not_arrive(joined):
    client, server = await joined()
    server.transport.pause_reading()
    pieces = [CONTENT[at:at + 256 * 1024] for at in range(0, MIB, 256 * 1024)]
    for _ in range(len(pieces)):
        client.transport.write(pieces.pop(0))
    litter = [os.urandom(256 * 1024) for _ in range(32)]        # where they would be, had they gone
    server.transport.resume_reading()
    await until(lambda: len(server.data) == MIB)
    assert server.data == CONTENT[:MIB]
    del litter
    client.transport.close()


async def test_a_header_before_the_body(joined):
    client, server = await joined()
    client.transport.write(b"header\r\n\r\n")
    client.transport.write(CONTENT)
    assert not is_given_back(client.transport)
    client.transport.close()
    await server.lost
    assert server.data == b"header\r\n\r\n" + CONTENT


async def test_what_the_transport_still_has_goes_first(joined):
    client, server = await joined()
    server.transport.pause_reading()
    before = 0
    while not client.transport.get_write_buffer_size():
        client.transport.write(bytearray(b"x" * 10))
        before += 10
    client.transport.write(CONTENT)
    assert not is_given_back(client.transport)
    server.transport.resume_reading()
    client.transport.close()
    await asyncio.wait_for(server.lost, 30)
    assert server.data == b"x" * before + CONTENT


async def test_while_the_other_does_not_read_the_protocol_is_paused_and_the_rest_counted(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    client.transport.write(CONTENT)
    assert client.log == ["made", "pause"]
    await asyncio.sleep(0.2)
    assert len(CONTENT) < client.transport.get_write_buffer_size() < 2 * len(CONTENT)
    server.transport.resume_reading()
    await until(lambda: "resume" in client.log, 30)
    assert client.transport.get_write_buffer_size() <= client.transport.get_write_buffer_limits()[0]
    await until(lambda: len(server.data) == 2 * len(CONTENT), 30)
    assert client.log == ["made", "pause", "resume"]
    client.transport.close()


async def test_a_protocol_that_the_transport_has_paused_is_not_paused_twice(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(bytearray(CONTENT))
    assert client.log == ["made", "pause"]
    client.transport.write(CONTENT)
    assert is_given_back(client.transport)
    assert client.log == ["made", "pause"]
    server.transport.resume_reading()
    client.transport.close()
    await server.lost
    assert server.data == CONTENT * 2


class Source(Recorder):
    """Writes whenever it may."""

    left = 40

    def resume_writing(self):
        super().resume_writing()
        while self.left and self.log[-1] != "pause":
            self.left -= 1
            self.transport.write(CONTENT[self.left * 1000:][:256 * 1024])

    @classmethod
    def content(cls):
        return b"".join(CONTENT[left * 1000:][:256 * 1024] for left in reversed(range(cls.left)))


@pytest.mark.parametrize("refused_at", [None, 1, 2, 5, 9, "behind a part"])
async def test_a_protocol_that_writes_when_told_to_resume(joined, monkeypatch, refused_at):
    refuse_splice(monkeypatch, refused_at)
    client, server = await joined(client_factory=Source)
    client.resume_writing()
    await until(lambda: client.left == 0, 30)
    client.transport.close()
    await server.lost
    assert server.data == Source.content()
    paused = [entry for entry in client.log if entry in ("pause", "resume")][1:]
    assert paused == ["pause", "resume"] * (len(paused) // 2) + ["pause"] * (len(paused) % 2)


def refuse_splice(monkeypatch, when):
    """As a filter of system calls does: the call of that number, or one behind a part. Whether, for each call so far."""
    calls = []
    splice = os.splice
    took_a_part = False

    def refused(pipe, sock, octets):
        nonlocal took_a_part
        calls.append(len(calls) + 1 == when or (took_a_part and when == "behind a part"))
        if calls[-1]:
            took_a_part = False
            raise PermissionError(1, "Operation not permitted")
        moved = splice(pipe, sock, octets)
        took_a_part = not any(calls) and moved < octets
        return moved

    monkeypatch.setattr(os, "splice", refused)
    return calls


async def test_what_a_protocol_raises_goes_to_the_loop(joined):
    class Broken(Recorder):
        def pause_writing(self):
            raise RuntimeError("of the program")

    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    client, server = await joined(client_factory=Broken)
    client.transport.write(CONTENT)
    client.transport.close()
    await server.lost
    assert server.data == CONTENT
    assert told == ["of the program"]


async def test_close_waits_for_what_is_written(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    client.transport.close()
    client.transport.close()
    assert client.transport.is_closing()
    client.transport.write(b"too late")
    client.transport.write_eof()
    await asyncio.sleep(0.1)
    assert "lost" not in client.log
    server.transport.resume_reading()
    assert await client.lost is None
    assert await server.lost is None
    assert server.data == CONTENT
    await until(lambda: is_given_back(client.transport))
    for size in (200_000, MIB):
        with contextlib.suppress(RuntimeError):     # which is uvloop's way; asyncio's is a line in the log
            client.transport.write(CONTENT[:size])
        assert is_given_back(client.transport)


async def test_who_has_closed_hears_nothing_more(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    client.transport.close()
    server.transport.write(b"late")
    await asyncio.sleep(0.1)
    server.transport.resume_reading()
    await client.lost
    assert client.data == b""


async def test_what_waits_is_written_when_the_loop_has_closed_it_behind_the_peers_end(joined):
    """As asyncio writes what its transport has; by then connection_lost was called."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    client, server = await joined(server_factory=lambda: Recorder(keep_open=True))
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    server.transport.write_eof()
    await client.lost
    server.transport.resume_reading()
    await until(lambda: "eof" in server.log, 30)
    assert server.data == CONTENT
    assert told == []
    server.transport.close()


async def test_flush_is_when_all_is_written(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    flushed = asyncio.ensure_future(client.transport._zero_copy.flush())
    await asyncio.sleep(0.05)
    assert not flushed.done()
    server.transport.resume_reading()
    await asyncio.wait_for(flushed, 30)
    assert client.transport.get_write_buffer_size() == 0
    client.transport.close()
    await server.lost
    assert server.data == CONTENT


async def test_end_of_file_follows_what_is_written(joined):
    client, server = await joined(server_factory=lambda: Recorder(keep_open=True))
    client.transport.write(CONTENT)
    client.transport.write_eof()
    with pytest.raises(RuntimeError):
        client.transport.write(b"more")
    await until(lambda: "eof" in server.log, 30)
    assert server.data == CONTENT
    server.transport.write(b"answer")
    server.transport.close()
    await client.lost
    assert client.data == b"answer"


async def test_abort_writes_no_more(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    client.transport.abort()
    assert await client.lost is None
    server.transport.resume_reading()
    await server.lost
    assert len(server.data) < len(CONTENT)
    assert CONTENT.startswith(server.data)
    await until(lambda: is_given_back(client.transport))


@pytest.mark.parametrize("reads", [True, False])
async def test_a_reset_while_it_waits_is_the_exception_of_connection_lost(joined, reads):
    client, server = await joined(client_factory=lambda: Recorder(pause=not reads))
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    await asyncio.sleep(0.1)
    server.transport.abort()
    assert isinstance(await client.lost, ConnectionError)
    await until(lambda: is_given_back(client.transport))


@pytest.mark.parametrize("which", [*range(1, 7), "behind a part"])
async def test_where_the_kernel_refuses_it_is_copied(joined, monkeypatch, which):
    client, server = await joined()
    calls = refuse_splice(monkeypatch, which)
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    client.transport.write(CONTENT[:5 * MIB])
    client.transport.write(b"end")
    server.transport.resume_reading()
    client.transport.close()
    await server.lost
    assert sum(calls) == 1
    assert server.data == CONTENT + CONTENT[:5 * MIB] + b"end"


async def test_where_it_was_refused_it_is_not_tried_again(joined, monkeypatch):
    client, server = await joined()
    calls = refuse_splice(monkeypatch, 1)
    for times in (1, 2):
        client.transport.write(CONTENT)
        await until(lambda: len(server.data) == times * len(CONTENT), 30)       # noqa: B023
        await until(lambda: is_given_back(client.transport))
    assert calls == [True]
    client.transport.close()


async def test_what_can_be_neither_spliced_nor_copied_is_the_end_of_it(joined, monkeypatch):
    client, server = await joined()
    refuse_splice(monkeypatch, 1)

    def short(*_):
        raise OSError(12, "Cannot allocate memory")

    client.transport.write(CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        await asyncio.sleep(0.01)
    await client.lost
    await server.lost
    assert server.data == b""


async def test_without_descriptors_the_transport_writes(joined, monkeypatch):
    client, server = await joined()

    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(zero_copy.os, "dup", none_left)
    client.transport.write(CONTENT)
    assert is_given_back(client.transport)
    client.transport.close()
    await server.lost
    assert server.data == CONTENT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")       # a process with threads forks
async def test_a_child_leaves_the_parents_pipes_and_connections_alone(joined):
    client, server = await joined()
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    zero_copy._pipes.append(zero_copy._pipe())
    child = os.fork()
    if child == 0:
        try:
            left = not zero_copy._pipes and all(writer._fd == -1 for writer in zero_copy._writers)
            client.transport._zero_copy.__del__()
        finally:
            os._exit(0 if left else 1)
    assert os.waitpid(child, 0)[1] == 0
    server.transport.resume_reading()
    client.transport.close()
    await server.lost
    assert server.data == CONTENT


def test_several_loops_in_threads():
    received = {}

    async def main(number):
        mine = CONTENT[number * 1000:][:MIB]
        done = asyncio.get_running_loop().create_future()

        async def take(reader, writer):
            done.set_result(await reader.read(-1))
            writer.close()

        async with await aio.start_server(take, V4, 0) as server:
            for _ in range(3):
                done = asyncio.get_running_loop().create_future()
                _, writer = await aio.open_connection(V4, server.sockets[0].getsockname()[1])
                for _ in range(5):
                    writer.write(mine)
                    await writer.drain()
                writer.close()
                received.setdefault(number, []).append(await done == mine * 5)

    threads = [threading.Thread(target=lambda number=number: asyncio.run(main(number))) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert received == {number: [True] * 3 for number in range(6)}


async def test_a_peer_of_linux_that_reads_slowly(peer):
    done = asyncio.get_running_loop().create_future()

    async def send(_, writer):
        for _ in range(3):
            writer.write(CONTENT)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        done.set_result(None)

    server = await aio.start_server(send, V4, 0)
    sock = inside(peer.netns.path, socket.socket)
    received = bytearray()
    with sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (V4, server.sockets[0].getsockname()[1]))
        while octets := await loop.sock_recv(sock, 100_000):
            received += octets
            if len(received) % 7 == 0:
                await asyncio.sleep(0.001)
    assert received == CONTENT * 3
    await asyncio.wait_for(done, 10)
    server.close()


async def test_tls_begins_behind_what_is_written(peer, certificate):
    """With Linux on the other side, which takes no octet too many."""
    cert, key = certificate
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(cert, key)
    received = bytearray()

    def serve(listening):
        sock, _ = listening.accept()
        with sock:
            sock.settimeout(20)
            while len(received) < len(CONTENT):
                received.extend(sock.recv(len(CONTENT) - len(received)))
            with server_side.wrap_socket(sock, server_side=True) as tls:
                tls.sendall(tls.recv(100).upper())

    listening = inside(peer.netns.path, socket.socket)
    with listening:
        listening.bind((LINUX_HOSTS[socket.AF_INET], 0))
        listening.listen()
        serving = asyncio.get_running_loop().run_in_executor(None, serve, listening)
        transport, protocol = await aio.create_connection(Recorder, *listening.getsockname())
        transport.write(CONTENT)
        assert not is_given_back(transport)
        secure = await aio.start_tls(transport, protocol, ssl.create_default_context(cafile=cert), server_hostname="localhost")
        secure.write(b"quiet")
        await until(lambda: protocol.data == b"QUIET")
        secure.close()
        await asyncio.wait_for(serving, 20)
    assert received == CONTENT


PROGRAM = """
import gc, os, sys
import rustosd.client.aio as asyncio
import rustosd.client.zero_copy     # so that it goes before sys

class Litter:
    def __del__(self, fill=os.urandom):
        self.litter = [fill(700_000) for _ in range(60)]

sys.litter = Litter()       # goes when modules have gone

async def main():
    reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    content = os.urandom(700_000)
    os.write(1, content)
    sys.stdin.readline()
    writer.write(content)
    del content
    {ending}

asyncio.run(main())
gc.collect()
litter = [os.urandom(700_000) for _ in range(20)]
"""


@pytest.mark.parametrize("ending", ["writer.close()", "writer.close(); await writer.wait_closed()", "await asyncio.sleep(0)",
                                    "os._exit(0)"])
async def test_a_program_that_ends_behind_its_write_has_sent_it(peer, ending):
    arrived = asyncio.get_running_loop().create_future()

    async def take(reader, writer):
        arrived.set_result(await reader.read(-1))
        writer.close()

    server = await aio.start_server(take, V4, 0)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM.format(ending=ending), V4, str(server.sockets[0].getsockname()[1]),
        env={**os.environ, "RUSTOSD_SOCKET": str(peer.control), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    content = await program.stdout.readexactly(700_000)
    peer.process.send_signal(signal.SIGSTOP)        # it reads once the program has ended
    try:
        await asyncio.wait_for(program.communicate(b"go\n"), 20)
    finally:
        peer.process.send_signal(signal.SIGCONT)
    assert program.returncode == 0
    assert await asyncio.wait_for(arrived, 20) == content
    server.close()


async def test_close_and_more_after_the_connection_is_lost_change_nothing(joined):
    class Closing(Recorder):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            for call in (self.transport.close, self.transport.abort, self.transport.write_eof, self.transport.close,
                         lambda: self.transport.write(CONTENT)):
                with contextlib.suppress(RuntimeError):     # uvloop's, of a handle that is closed
                    call()

    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    client, server = await joined(client_factory=Closing)
    server.transport.pause_reading()
    client.transport.write(CONTENT)
    await asyncio.sleep(0.05)
    server.transport.abort()
    await client.lost
    await until(lambda: is_given_back(client.transport))
    assert told == []
    assert client.transport.is_closing()


def test_a_program_may_write_while_its_loop_does_not_run():
    loop = asyncio.new_event_loop()
    received = loop.create_future()

    async def take(reader, writer):
        received.set_result(await reader.read(-1))
        writer.close()

    server = loop.run_until_complete(aio.start_server(take, V4, 0))
    _, writer = loop.run_until_complete(aio.open_connection(V4, server.sockets[0].getsockname()[1]))
    writer.write(CONTENT)
    with pytest.raises(TypeError):
        writer.write(7)
    writer.close()
    assert loop.run_until_complete(received) == CONTENT
    server.close()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


@pytest.mark.parametrize("call", ["abort", "close"])
async def test_a_protocol_that_ends_it_when_told_of_room(joined, call):
    class Ending(Recorder):
        def resume_writing(self):
            super().resume_writing()
            getattr(self.transport, call)()

    client, server = await joined(client_factory=Ending)
    client.transport.write(CONTENT)
    assert await client.lost is None
    await server.lost
    assert CONTENT.startswith(server.data)
    assert call == "abort" or server.data == CONTENT
    await until(lambda: is_given_back(client.transport))
