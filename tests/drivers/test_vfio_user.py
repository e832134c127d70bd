"""The vfio-user client against a strict server with a model of QEMU's edu card, and against servers that mean ill."""

import asyncio
import contextlib
import gc
import os
import select
import socket
import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers import vfio_user, vfio_user_channel
from drivers.errors import DeviceError, DeviceGone, DeviceRefused, DeviceTimeout
from drivers.vfio_user import open_vfio_user
from drivers.vfio_user_abi import Command
from tests.models import vfio_user_server as server_module
from tests.models.edu import PAGE, Edu
from tests.models.vfio_user_server import (
    CONFIG,
    DMA_MAP,
    DMA_READ,
    DMA_UNMAP,
    DMA_WRITE,
    ERR,
    MSIX,
    REGION_READ,
    REQ,
    SET_IRQS,
    Region,
    Server,
    sealed_file,
)
from tests.support import edu
from tests.support.edu import BUFFER, BUFFER_OCTETS, DMA_COMMAND, DMA_COUNT, DMA_SOURCE, DMA_TARGET, LIVENESS, START


class Bench:
    """A model, its server and its client."""

    def __init__(self, path, model=None, client=None, **server):
        self.path, self.model = str(path / "socket"), model or Edu()
        self.server = Server(self.path, self.model, **server)
        try:
            self.device = open_vfio_user(self.path, **(client or {}))
        except BaseException:
            self.server.close()
            self.model.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.device.close()
        self.server.close()
        self.model.close()


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path) as made:
        yield made
        assert made.server.violations == []


def test_the_device_answers_at_its_bars_also_after_a_reset(bench):
    """PCI memory decoding, which the kernel switches on for VFIO."""
    memory = 1 << 1
    assert not bench.device.config.read(4, 2) & memory
    bench.device.bar(0)
    assert bench.device.config.read(4, 2) & memory
    bench.device.reset()
    assert bench.device.config.read(4, 2) & memory


@pytest.mark.parametrize("twin", [True, False], ids=["two sockets", "one socket"])
@pytest.mark.parametrize("share", [True, False], ids=["shared memory", "messages"])
def test_it_does_what_every_way_to_a_device_does(tmp_path, share, twin):
    kinds = ("intx", "msi", "msix")
    with Bench(tmp_path, twin=twin, client={"share_memory": share}) as bench:
        seen = edu.prove(bench.device, kinds)
        assert seen.pop("path") == bench.path
        assert seen == edu.expected("vfio-user", "vfio-user", kinds)
        assert bench.server.violations == []
        assert bench.server.counts[DMA_MAP] == bench.server.counts[DMA_UNMAP] > 0


def test_a_register_access_is_one_message_of_its_own_width(bench):
    bar = bench.device.bar(0)
    bench.model.accesses.clear()
    bar.write32(LIVENESS, 5)
    assert bar.read32(LIVENESS) == 0xFFFFFFFA
    assert bench.model.accesses == [("write", 0, LIVENESS, 4), ("read", 0, LIVENESS, 4)]
    assert bar.address == 0


def test_a_bar_is_mapped_where_the_server_lets_us_and_by_message_elsewhere(bench):
    bar = bench.device.bar(2)
    bench.model.accesses.clear()
    bar.write32(PAGE + 8, 0xCAFE0001)
    bar.write16(8, 0xBEEF)
    assert (bar.read32(PAGE + 8), bar.read16(8)) == (0xCAFE0001, 0xBEEF)
    assert os.pread(bench.model.memory, 4, PAGE + 8) == struct.pack("<I", 0xCAFE0001)
    assert bench.model.accesses == [("write", 2, 8, 2), ("read", 2, 8, 2)]


@pytest.mark.parametrize(("sealed", "allow", "mapped"), [(True, False, True), (False, False, False), (False, True, True)])
def test_a_bar_whose_file_could_be_cut_short_is_mapped_only_if_asked_for(tmp_path, sealed, allow, mapped):
    model = Edu()
    fd = sealed_file(PAGE) if sealed else os.memfd_create("unsealed")
    os.ftruncate(fd, PAGE)
    model.regions[1] = Region(PAGE, fd)
    with Bench(tmp_path, model, client={"map_unsealed": allow}) as bench:
        assert (bench.device.bar(1).address != 0) is mapped
    os.close(fd)


def test_a_bar_longer_than_its_file_is_not_mapped(tmp_path):
    model = Edu()
    model.regions[2] = Region(4 * PAGE, model.memory)
    with Bench(tmp_path, model, client={"map_unsealed": True}) as bench:
        assert bench.device.bar(2).address == 0


def test_what_is_longer_than_a_message_goes_in_pieces(tmp_path):
    with Bench(tmp_path, max_data=1024) as bench:
        bar = bench.device.bar(2)._calls
        octets = bytes(index % 251 for index in range(5000))
        bar.write_block(100, octets)
        assert bar.read_block(100, 5000) == octets
        sizes = [size for verb, region, _, size in bench.model.accesses if (verb, region) == ("read", 2)]
        assert sizes == [1024] * 4 + [904]
        with pytest.raises(IndexError):
            bar.read_block(2 * PAGE - 1, 2)


def test_vectors_beyond_what_one_message_carries_go_in_several(tmp_path):
    model = Edu(vectors=20)
    with Bench(tmp_path, model, max_fds=8) as bench:
        vectors = bench.device.interrupts(20)
        assert (len(vectors), bench.server.counts[SET_IRQS]) == (20, 3)
        for index in (0, 8, 19):
            bench.server.port.message(MSIX, index)
            assert [edu.count(vector, 5 if number == index else 0) for number, vector in enumerate(vectors)] == [
                number == index for number in range(20)]
        assert bench.device.interrupts(3, ("msix",))[2].drain() == 0
        assert bench.server.violations == []


def test_a_server_that_takes_no_files_gets_no_interrupts_and_asks_for_memory(tmp_path):
    with Bench(tmp_path, max_fds=0, twin=False) as bench:
        with pytest.raises(DeviceError, match="takes no file descriptors"):
            bench.device.interrupts()
        bench.device.enable_bus_master(True)
        assert edu.transfer(bench.device, bench.device.bar(0))
        assert bench.server.violations == []


def test_a_server_that_cannot_reset_leaves_it_to_the_device(tmp_path):
    with Bench(tmp_path, reset=False) as bench:
        assert bench.device.reset() == "none"
    with Bench(tmp_path) as bench:
        assert bench.device.reset() == "device"
        assert bench.model.resets == 1


def test_a_line_that_the_server_does_not_hold_back_is_not_asked_to_be(tmp_path):
    with Bench(tmp_path, automasked=False) as bench:
        line, = bench.device.interrupts(1, ("intx",))
        line.mask()
        line.unmask()
        assert bench.server.violations == []


def test_a_refusal_tells_the_servers_reason_and_leaves_the_connection(bench):
    with pytest.raises(DeviceError, match="refuses to read 1 octets at 0x4 of region 0: Invalid argument") as caught:
        bench.device.bar(0).read8(LIVENESS)
    assert caught.value.errno == 22
    assert bench.device.config.read(0, 4) == edu.IDS


def test_memory_the_server_was_not_shown_is_refused_to_it(tmp_path):
    with Bench(tmp_path, client={"share_memory": False}) as bench:
        block = bench.device.dma_alloc(64, "mine")
        bench.device.config.read(0, 4)
        port = bench.server.port
        port.maps[1 << 40] = 1 << 20, None      # what nobody has told it
        end = block.iova + (2 << 20)
        port.maps[end] = 1 << 20, None
        for iova in (1 << 40, end, end + 4096):
            with pytest.raises(OSError, match="Bad address"):
                port.dma_read(iova, 16)
            with pytest.raises(OSError, match="Bad address"):
                port.dma_write(iova, b"x")
        port.dma_write(block.iova, b"hello")
        assert bytes(block.view()[:5]) == b"hello"
        assert port.dma_read(block.iova, 5) == b"hello"


@pytest.mark.parametrize("twin", [True, False])
def test_the_servers_wish_for_memory_is_heard_while_nobody_asks_and_while_somebody_waits(tmp_path, twin):
    """A transfer of a mebibyte each way in the middle of a register access that waits for it."""
    with Bench(tmp_path, twin=twin, client={"share_memory": False}) as bench:
        block = bench.device.dma_alloc(1 << 20, "big")
        port = bench.server.port
        if twin:        # on a socket of its own the server can ask at any time
            port.dma_write(block.iova, b"a" * (1 << 20))
            assert bytes(block.view()) == b"a" * (1 << 20)
        asked = []

        def read(region, offset, octets):
            port.dma_write(block.iova, b"b" * (1 << 20))
            asked.append(port.dma_read(block.iova, 1 << 20))
            return bytes(octets)

        bar = bench.device.bar(0)
        bench.model.read = read
        assert bar.read32(0) == 0
        assert asked == [b"b" * (1 << 20)]


def test_commands_that_cross_on_one_socket_are_both_answered(tmp_path):
    """The server asks for memory just while the client writes: neither waits for the other."""
    with Bench(tmp_path, twin=False, client={"share_memory": False}) as bench:
        block = bench.device.dma_alloc(1 << 20, "big")
        bar = bench.device.bar(0)
        stop = threading.Event()

        def poke():
            while not stop.is_set():
                bar.write32(LIVENESS, 1)

        bench.device.enable_bus_master(True)
        threads = [threading.Thread(target=poke) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            bar.write32(DMA_SOURCE, block.iova)
            bar.write32(DMA_TARGET, BUFFER)
            bar.write32(DMA_COUNT, BUFFER_OCTETS)
            bar.write32(DMA_COMMAND, START)
        stop.set()
        for thread in threads:
            thread.join()
        assert bar.read32(LIVENESS) == 0xFFFFFFFE
        assert bench.server.violations == []


def test_a_server_that_ends_is_a_device_that_is_gone(tmp_path):
    with Bench(tmp_path) as bench:
        bar = bench.device.bar(0)
        line, = bench.device.interrupts(1, ("intx",))
        bench.device.dma_alloc(64, "ring")
        bench.server.close()
        for act in (lambda: bar.read32(0), lambda: bar.write32(LIVENESS, 1), bench.device.reset, line.unmask,
                    lambda: bench.device.config.read(0, 4), lambda: bench.device.dma_alloc(8 << 20, "more"),
                    lambda: bench.device.bar(2), lambda: bench.device.interrupts(1)):
            with pytest.raises(DeviceGone, match="closed the connection"):
                act()
        bench.device.close()
        assert [owned.owner for owned in bench.device.leaked] == ["ring"]


async def test_whoever_asked_is_told_of_the_end_even_while_nobody_uses_the_device(tmp_path):
    with Bench(tmp_path) as bench:
        told = asyncio.Event()
        bench.device.on_release_request(told.set)
        await asyncio.to_thread(bench.server.close)
        await asyncio.wait_for(told.wait(), 10)
        late = asyncio.Event()
        with pytest.raises(DeviceGone):
            bench.device.on_release_request(late.set)
        await asyncio.wait_for(late.wait(), 10)


async def test_the_servers_request_to_let_go_is_heard(bench):
    told = asyncio.Event()
    bench.device.on_release_request(told.set)
    bench.server.port.message(REQ, 0)
    await asyncio.wait_for(told.wait(), 10)
    assert bench.device.on_error(told.set) is False


async def test_errors_are_heard_and_the_device_is_let_report_them(bench):
    bench.model.irqs[ERR] = 1
    bench.model.config[0x34] = 0x40
    bench.model.config[0x40:0x42] = 0x10, 0         # a PCI Express capability, the last one
    told = asyncio.Event()
    assert bench.device.on_error(told.set) is True
    assert ("write", CONFIG, 0x48, 2) in bench.model.accesses
    bench.server.port.message(ERR, 0)
    await asyncio.wait_for(told.wait(), 10)


def test_opening_and_closing_leaves_nothing_behind(tmp_path):
    def use():
        with Bench(tmp_path) as bench:
            bench.device.bar(2).read32(PAGE)
            bench.device.interrupts(2)
            bench.device.dma_alloc(5000, "left")

    use()
    before = holdings()
    for _ in range(5):
        use()
    assert holdings() == before


def holdings():
    gc.collect()
    with open("/proc/self/maps") as maps:
        mapped = sum("memfd" in line for line in maps)
    return len(os.listdir("/proc/self/fd")), mapped, threading.active_count()


def test_nobody_there_is_told_with_what_to_do(tmp_path):
    with pytest.raises(DeviceRefused, match="has the server been started"):
        open_vfio_user(str(tmp_path / "none"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(DeviceRefused, match="nobody listens there"):
        open_vfio_user(str(tmp_path / "dead"))
    with pytest.raises(DeviceRefused, match="too long"):
        open_vfio_user(str(tmp_path / ("x" * 200)))


class Hostile:
    """A server that answers with what it is told to: `answer(packet)` gives octets, and files beside them."""

    def __init__(self, path, answer):
        self.path = str(path / "hostile")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, args=(answer,), daemon=True)
        self._thread.start()

    def _run(self, answer):
        self.connection = connection = self._listener.accept()[0]
        stream = server_module.Stream(connection, 64)
        try:
            while True:
                packet = stream.receive()
                for fd in packet.fds:
                    os.close(fd)
                octets, fds = answer(packet)
                if octets is not None:
                    socket.send_fds(connection, [octets], fds)
        except (server_module.Closed, OSError):
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._listener.close()
        os.unlink(self.path)


def good(packet, payload):
    return struct.pack("=HHIII", packet.number, packet.command, 16 + len(payload), 1, 0) + payload


VERSION_OK = struct.pack("=HH", 0, 1)
ANSWERS = {
    1: VERSION_OK, 4: struct.pack("=IIII", 16, 3, 9, 5),
    5: struct.pack("=IIIIQQ", 32, 3, CONFIG, 0, 256, 0),
}


@pytest.mark.parametrize(("command", "payload", "says"), [
    (1, b"", "a VERSION of 0 octets"),
    (1, struct.pack("=HH", 1, 0), "protocol 1.0"),
    (1, struct.pack("=HH", 0, 2), "protocol 0.2"),
    (1, VERSION_OK + b"{}", "does not end with a zero"),
    (1, VERSION_OK + b"\xff\0", "no JSON"),
    (1, VERSION_OK + b"[" * 4000 + b"\0", "no JSON"),
    (1, VERSION_OK + b"[]\0", "no object"),
    (1, VERSION_OK + b'{"capabilities": 3}\0', "no object"),
    (1, VERSION_OK + b'{"capabilities": {"max_msg_fds": -1}}\0', "max_msg_fds is '-1'"),
    (1, VERSION_OK + b'{"capabilities": {"max_msg_fds": true}}\0', "max_msg_fds is 'True'"),
    (1, VERSION_OK + b'{"capabilities": {"max_data_xfer_size": 0}}\0', "max_data_xfer_size is '0'"),
    (1, VERSION_OK + b'{"capabilities": {"pgsizes": 1073741824}}\0', "all larger than"),
    (1, VERSION_OK + b'{"capabilities": {"twin_socket": {"supported": true}}}\0', "fd_index is '-1'"),
    (1, VERSION_OK + b'{"capabilities": {"twin_socket": {"supported": true, "fd_index": 0}}}\0', "fd_index is '0'"),
    (4, b"", "device info of 0 octets"),
    (4, struct.pack("=IIII", 16, 1, 9, 5), "no PCI device"),
    (4, struct.pack("=IIII", 16, 3, 7, 5), "no PCI device"),
    (5, bytes(31), "region info of 31 octets"),
    (5, struct.pack("=IIIIQQ", 32, 3, 6, 0, 256, 0), "of region 6"),
    (5, struct.pack("=IIIIQQ", 1 << 31, 3, CONFIG, 0, 256, 0), "asked for 7"),
    (5, struct.pack("=IIIIQQ", 32, 3, CONFIG, 0, 1 << 63, 0), "has 0x8000000000000000 octets"),
    (5, struct.pack("=IIIIQQ", 32, 3, CONFIG, 0, 255, 0), "configuration space of 255"),
], ids=lambda value: str(value)[:40] if not isinstance(value, bytes) else "")
def test_an_answer_that_does_not_hold_ends_the_connection_with_a_word(tmp_path, command, payload, says):
    def answer(packet):
        return good(packet, payload if packet.command == command else ANSWERS[packet.command]), []

    before = holdings()[0]
    with Hostile(tmp_path, answer) as hostile, pytest.raises(DeviceError, match=says) as caught:
        open_vfio_user(hostile.path)
    assert "no vfio-user" in str(caught.value) and caught.value.device == hostile.path
    wait_for(lambda: holdings()[0] <= before)


@pytest.mark.parametrize(("octets", "says"), [
    (lambda packet: struct.pack("=HHIII", packet.number, packet.command, 15, 1, 0), "a message of 15 octets"),
    (lambda packet: struct.pack("=HHIII", packet.number, packet.command, 1 << 31, 1, 0), "a message of 2147483648"),
    (lambda packet: struct.pack("=HHIII", packet.number, packet.command, 16, 2, 0), "flags 0x2"),
    (lambda packet: struct.pack("=HHIII", packet.number, packet.command, 16, 0x41, 0), "flags 0x41"),
    (lambda packet: struct.pack("=HHIII", packet.number + 1, packet.command, 16, 1, 0), "nobody awaits"),
    (lambda packet: struct.pack("=HHIII", packet.number, DMA_UNMAP, 16, 1, 0), "nobody awaits"),
    (lambda packet: struct.pack("=HHIII", 9, DMA_READ, 20, 0, 0) + bytes(4), "a DMA command of 4 octets"),
    (lambda packet: struct.pack("=HHIIIQQ", 9, DMA_READ, 32, 0, 0, 0, 1 << 40), "a DMA command for"),
    (lambda packet: struct.pack("=HHIIIQQ", 9, DMA_WRITE, 32, 0, 0, 0, 8), "for 8 octets with 0"),
    (lambda packet: good(packet, b"HTTP"), "answer an access to 4"),
    (lambda packet: good(packet, struct.pack("=QIII", 4, CONFIG, 4, 0)), "is answered with"),
    (lambda packet: good(packet, struct.pack("=QIIQ", 0, CONFIG, 4, 0)), "24 octets answer"),
])
def test_a_message_that_does_not_hold_ends_the_connection_with_a_word(tmp_path, octets, says):
    def answer(packet):
        return (octets(packet) if packet.command == REGION_READ else good(packet, ANSWERS.get(packet.command, b""))), []

    with Hostile(tmp_path, answer) as hostile:
        device = open_vfio_user(hostile.path)
        with pytest.raises(DeviceError, match=says):
            device.config.read(0, 4)
        with pytest.raises(DeviceGone, match="broke the protocol"):
            device.config.read(0, 4)
        device.close()


@pytest.mark.parametrize("count", [1, 8, 9, 60])
def test_files_that_nobody_asked_for_are_closed(tmp_path, count):
    with open(os.devnull) as null:
        def answer(packet):
            return good(packet, ANSWERS[packet.command]), [null.fileno()] * count

        before = holdings()[0]
        with Hostile(tmp_path, answer) as hostile:
            if count > 8:
                with pytest.raises(DeviceError, match="file descriptors in one message"):
                    open_vfio_user(hostile.path)
            else:
                open_vfio_user(hostile.path)._session.close()
        wait_for(lambda: holdings()[0] <= before)


def wait_for(true):
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("what", ["nothing", "half a header", "half a payload", "commands without end"])
def test_a_server_that_does_not_answer_is_not_waited_for_without_end(tmp_path, what):
    flood = struct.pack("=HHIIIQQ", 9, DMA_READ, 32, 0x10, 0, 0, 8) * 2000

    def answer(packet):
        whole = good(packet, ANSWERS.get(packet.command, bytes(20)))
        if packet.command != REGION_READ:
            return whole, []
        if what == "commands without end":
            while True:
                hostile.connection.sendall(flood)
        return {"nothing": None, "half a header": whole[:7], "half a payload": whole[:20]}[what], []

    with Hostile(tmp_path, answer) as hostile:
        device = open_vfio_user(hostile.path, timeout_s=0.5)
        with pytest.raises(DeviceTimeout, match="the answer to REGION_READ"):
            device.config.read(0, 4)
        with pytest.raises(DeviceGone, match="did not answer within"):
            device.config.read(0, 4)
        device.close()


def test_a_server_that_takes_no_answers_is_not_given_memory_without_end(tmp_path, monkeypatch):
    """It asks for a mebibyte again and again and reads none of it."""
    monkeypatch.setattr(vfio_user_channel, "TIMEOUT_S", 0.5)
    ours, theirs = socket.socketpair()
    served = []

    def serve(_message):
        served.append(1)
        return bytes(1 << 20)

    channel = vfio_user_channel.Channel("x", ours, serve)
    ask = struct.pack("=HHIIIQQ", 9, DMA_READ, 32, 0, 0, 0, 1 << 20)
    theirs.setblocking(False)
    theirs.send(ask * 1000)
    channel.service()
    assert "did not answer" in channel.lost
    assert 3 <= len(served) < 10
    channel.close()
    theirs.close()


def test_what_the_server_asked_for_while_it_answered_is_all_sent_before_the_call_ends():
    """Nobody would send the rest until the next call."""
    ours, theirs = socket.socketpair()
    channel = vfio_user_channel.Channel("x", ours, lambda _message: bytes(1 << 20))
    got = []

    def peer():
        stream = server_module.Stream(theirs, 0)
        asked = stream.receive()
        stream.send(9, DMA_READ, 0, struct.pack("=QQ", 0, 1 << 20))
        theirs.sendall(good(asked, b"done"))
        got.append(len(stream.receive().payload))

    thread = threading.Thread(target=peer)
    thread.start()
    assert channel.request(Command.REGION_READ, b"").payload == b"done"
    thread.join(10)
    assert got == [1 << 20]
    channel.close()
    theirs.close()


def test_a_second_socket_that_is_none_is_refused(tmp_path):
    told = VERSION_OK + b'{"capabilities": {"twin_socket": {"supported": true, "fd_index": 0}}}\0'
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with open(os.devnull) as null, udp:
        for fd in (null.fileno(), udp.fileno()):
            with (Hostile(tmp_path, lambda packet, fd=fd: (good(packet, told), [fd])) as hostile,
                  pytest.raises(DeviceError, match="the second socket is no")):
                open_vfio_user(hostile.path)


def test_an_idle_client_hears_nonsense_and_ends_the_connection(tmp_path):
    with Bench(tmp_path) as bench:
        bench.server.port._stream.socket.send(b"nonsense" * 4)
        wait_for(lambda: bench.device._session._main.lost)
        with pytest.raises(DeviceGone, match="broke the protocol"):
            bench.device.bar(0)


def test_the_wait_for_an_interrupt_needs_no_message(bench):
    """INTx through the eventfd alone."""
    line, = bench.device.interrupts(1, ("intx",))
    before = dict(bench.server.counts)
    bench.server.port.line(True)
    assert select.select([line.fd], [], [], 10)[0]
    assert line.drain() == 1
    assert bench.server.counts == before


FIELDS = st.one_of(st.integers(0, 64), st.sampled_from([4096, 1 << 16, 1 << 20, 1 << 31]), st.integers(0, (1 << 32) - 1))


@st.composite
def nonsense(draw):
    """What a server might send: a message nearly right, or none at all, with files beside it or not."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=64)), draw(st.integers(0, 3))
    payload = b"".join(struct.pack("=I", draw(FIELDS)) for _ in range(draw(st.integers(0, 20))))
    if draw(st.booleans()):
        payload += draw(st.binary(max_size=7))
    size = draw(st.one_of(st.just(16 + len(payload)), FIELDS))
    command, flags = draw(st.integers(0, 20)), draw(st.sampled_from([0, 0x10, 1, 1, 1, 0x21, 0x20, 2, 0xFF]))
    head = struct.pack("=HHIII", draw(st.integers(0, 12)), command, size, flags, draw(FIELDS))
    return head + payload, draw(st.integers(0, 9))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(nonsense(), max_size=6), honest=st.integers(0, 4), chunk=st.integers(1, 40))
def test_whatever_a_server_sends_every_call_ends_and_nothing_is_left(tmp_path, messages, honest, chunk):
    """So many honest answers, then nonsense in pieces, then the end."""
    before = holdings()
    script = iter(messages)
    count = [honest]

    def answer(packet):
        if count[0]:
            count[0] -= 1
            return good(packet, ANSWERS.get(packet.command, b"")), []
        octets, fds = next(script, (b"", 0))
        if not octets:
            raise OSError
        for start in range(0, len(octets), chunk):
            socket.send_fds(hostile.connection, [octets[start:start + chunk]], [0] * fds if not start else [])
        return None, []

    with Hostile(tmp_path, answer) as hostile, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vfio_user, "RESET_S", 0.2)
        try:
            device = open_vfio_user(hostile.path, timeout_s=0.2)
        except DeviceError:
            pass
        else:
            for act in (lambda: device.bar(2).read32(0), lambda: device.interrupts(3), device.reset,
                        lambda: device.dma_alloc(64, "x"), lambda: device.config.read(0, 4)):
                with contextlib.suppress(DeviceError):
                    act()
            device.close()
    wait_for(lambda: holdings()[:2] <= before[:2])
