"""The iperf3 server as the real client sees it, and as clients that do not behave."""

import asyncio
import json
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustosd.services.iperf3 import Iperf3Service, Parameters, Phase, State
from rustosd.services.iperf3_streams import CATCH_UP_S, HEADER_32, HEADER_64, UdpEndpoint, UdpStream

from .conftest import HOSTS, PATIENCE_S, run, until

COOKIE = b"abcdefghijklmnopqrstuvwxyz0123456789\0"
TCP_PARAMETERS = {"tcp": True, "omit": 0, "time": 5, "num": 0, "blockcount": 0, "parallel": 1, "len": 131072}
UDP_PARAMETERS = {**TCP_PARAMETERS, "tcp": False, "udp": True, "len": 1000, "bandwidth": 1_000_000}


# A real client runs for seconds: one loop will do, and the clients by hand have both.
on_uvloop = pytest.mark.asyncio(loop_factories=["uvloop"])


async def iperf3(service: Iperf3Service, *arguments: str, expect_error: bool = False) -> dict:
    """The real client's own JSON report."""
    _, out, err = await run("iperf3", "-c", service.hosts[0], "-p", str(service.port), "-J", *arguments)
    report = json.loads(out)
    if not expect_error:
        assert "error" not in report, (report["error"], err)
    return report


# The real client


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("arguments", "streams"),
    [
        (("-t", "1"), 1),
        (("-t", "1", "-R"), 1),
        (("-n", "200M", "-P", "4"), 4),
        (("-n", "200M", "-P", "4", "-R"), 4),
        (("-t", "1", "--bidir"), 2),
        (("-n", "200M", "--bidir", "-P", "3"), 6),
        (("-t", "1", "-O", "1", "-R"), 1),
        (("-n", "10M"), 1),
        (("-n", "10M", "-R", "-P", "2"), 2),
        (("-k", "50", "-l", "1000"), 1),
        (("-n", "50M", "-l", "100", "-R"), 1),
        (("-n", "200M", "-l", "1M"), 1),
    ],
)
@on_uvloop
async def test_tcp(serve, host, arguments, streams):
    service = await serve(Iperf3Service, hosts=(host,))
    report = await iperf3(service, *arguments)
    end = report["end"]
    assert len(end["streams"]) == streams
    for stream in end["streams"]:
        assert stream["sender"]["bytes"] > 0 and stream["receiver"]["bytes"] > 0
        assert stream["receiver"]["bytes"] <= stream["sender"]["bytes"] * 1.01
    sums = [end["sum_sent"], end["sum_received"]]
    if "--bidir" in arguments:
        sums += [end["sum_sent_bidir_reverse"], end["sum_received_bidir_reverse"]]
    assert all(each["bits_per_second"] > 0 for each in sums)
    assert end["cpu_utilization_percent"]["remote_total"] >= 0
    await until(lambda: service.connections() == 0)
    assert service.outcomes == {"finished": 1}


@on_uvloop
async def test_tcp_counts_exactly_what_a_finite_test_sent(serve):
    service = await serve(Iperf3Service)
    for _ in range(5):  # the end of the test and the last data race each other
        report = await iperf3(service, "-n", "10M", "-P", "2")
        assert report["end"]["sum_received"]["bytes"] == report["end"]["sum_sent"]["bytes"] >= 10 * 2**20


@pytest.mark.parametrize("extra", [(), ("-l", "500"), ("-P", "2")])
@on_uvloop
async def test_tcp_reverse_never_exceeds_the_rate_asked_for(serve, extra):
    service = await serve(Iperf3Service)
    report = await iperf3(service, "-t", "2", "-R", "-b", "20M", *extra)
    expected = 20e6 * (2 if "-P" in extra else 1)
    assert report["end"]["sum_sent"]["bits_per_second"] < 1.2 * expected


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("extra", [(), ("--udp-counters-64bit",), ("-P", "3"), ("-l", "64"), ("-O", "1")])
@pytest.mark.parametrize("direction", ["", "-R", "--bidir"])
@on_uvloop
async def test_udp(serve, host, extra, direction):
    service = await serve(Iperf3Service, hosts=(host,))
    end_condition = ("-t", "1") if "-O" in extra else ("-n", "300K")
    options = ("-u", "-b", "8M", "-l", "1000", *end_condition, *extra, *filter(None, [direction]))
    report = await iperf3(service, *options)
    end = report["end"]
    streams = (3 if "-P" in extra else 1) * (2 if direction == "--bidir" else 1)
    assert len(end["streams"]) == streams
    for stream in (stream["udp"] for stream in end["streams"]):
        assert stream["packets"] > 0
        assert stream["lost_packets"] < stream["packets"]         # a busy machine drops, some days a third
        assert 0 <= stream["jitter_ms"] < 50
    if direction == "-R":
        assert end["sum_sent"]["bits_per_second"] < 1.3 * 8e6 * (3 if "-P" in extra else 1)
    await until(lambda: service.connections() == 0)
    assert service.outcomes == {"finished": 1}


@pytest.mark.parametrize("arguments", [("-n", "1M"), ("-n", "1M", "-R"), ("-k", "100"), ("-t", "1", "-b", "0", "-R")])
@on_uvloop
async def test_udp_other_ends(serve, arguments):
    service = await serve(Iperf3Service)
    rate = () if "-b" in arguments else ("-b", "100M")
    report = await iperf3(service, "-u", *rate, *arguments)
    assert report["end"]["sum"]["packets"] > 0
    assert service.outcomes == {"finished": 1} or service.connections() > 0


@on_uvloop
async def test_server_output_is_shown(serve):
    service = await serve(Iperf3Service)
    report = await iperf3(service, "-n", "1M", "--get-server-output")
    assert "[  1] received 1048576 octets" in report["server_output_text"]


@on_uvloop
async def test_several_tests_run_at_once(serve):
    service = await serve(Iperf3Service)
    reports = await asyncio.gather(
        iperf3(service, "-t", "1"),
        iperf3(service, "-t", "1", "-R"),
        iperf3(service, "-t", "1", "-u", "-b", "1M", "-P", "2"),
        iperf3(service, "-t", "1", "-u", "-b", "1M", "-R"),
        iperf3(service, "-t", "1", "-u", "-b", "1M"),
    )
    assert all(report["end"]["streams"] for report in reports)
    await until(lambda: service.connections() == 0)
    assert service.outcomes == {"finished": 5}


@on_uvloop
async def test_one_test_too_many_is_denied(serve):
    service = await serve(Iperf3Service, max_tests=1)
    first = asyncio.ensure_future(iperf3(service, "-t", "5"))     # the second comes while it runs
    await until(lambda: service.connections() >= 2)
    second = await iperf3(service, "-t", "1", expect_error=True)
    assert "the server is busy running a test" in second["error"]
    await first
    assert "error" not in await iperf3(service, "-n", "1M")


@on_uvloop
async def test_stop_tells_the_client(serve):
    service = await serve(Iperf3Service)
    client = asyncio.ensure_future(iperf3(service, "-t", "20", expect_error=True))
    await until(lambda: service.connections() >= 2)
    await service.stop(0.2)
    report = await asyncio.wait_for(client, PATIENCE_S)
    assert "the server has terminated" in report["error"]


@pytest.mark.parametrize("arguments", [(), ("-u", "--bidir", "-b", "1M")])
@on_uvloop
async def test_stop_lets_a_running_test_end(serve, arguments):
    service = await serve(Iperf3Service)
    client = asyncio.ensure_future(iperf3(service, "-t", "1", *arguments))
    await until(lambda: any(session.phase is Phase.TEST_END for session in service._sessions.values()))
    await service.stop(10)
    report = await client
    assert len(report["end"]["streams"]) == (2 if arguments else 1)
    assert service.outcomes == {"finished": 1}


@on_uvloop
async def test_a_client_that_is_killed_leaves_nothing(serve):
    service = await serve(Iperf3Service)
    process = await asyncio.create_subprocess_exec(
        "iperf3", "-c", "127.0.0.1", "-p", str(service.port), "-t", "20", "-P", "3", "--bidir",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await until(lambda: service.connections() == 7)
    process.kill()
    await process.wait()
    await until(lambda: service.connections() == 0)
    assert service.outcomes == {"connection_lost": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("-t", "100"), "test duration"), (("--sctp",), "SCTP")],
)
@on_uvloop
async def test_what_the_server_does_not_do_is_a_clear_error(serve, arguments, message):
    service = await serve(Iperf3Service, max_test_s=50)
    report = await iperf3(service, *arguments, expect_error=True)
    assert message in report["error"]


# Clients that nobody would write


class Client:
    """One control connection, spoken by hand."""

    def __init__(self, service: Iperf3Service, reader, writer):
        self.service, self.reader, self.writer = service, reader, writer

    @classmethod
    async def greet(cls, service: Iperf3Service, cookie: bytes = COOKIE):
        client = cls(service, *await asyncio.open_connection("127.0.0.1", service.port))
        client.writer.write(cookie)
        return client

    async def state(self) -> int:
        octets = await asyncio.wait_for(self.reader.readexactly(1), PATIENCE_S)
        return int.from_bytes(octets, "big", signed=True)

    async def faults(self) -> int:
        assert await self.state() == State.SERVER_ERROR
        (fault, _) = struct.unpack(">II", await self.reader.readexactly(8))
        assert await self.reader.read() == b""
        return fault

    def say(self, document) -> None:
        octets = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.writer.write(struct.pack(">I", len(octets)) + octets)

    async def ask(self, parameters: dict) -> None:
        assert await self.state() == State.PARAM_EXCHANGE
        self.say(parameters)

    async def stream(self, cookie: bytes = COOKIE):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        writer.write(cookie)
        return reader, writer

    async def results(self) -> dict:
        self.writer.write(bytes([State.TEST_END]))
        assert await self.state() == State.EXCHANGE_RESULTS
        self.say({"streams": []})
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        results = json.loads(await self.reader.readexactly(length))
        assert await self.state() == State.DISPLAY_RESULTS
        self.writer.write(bytes([State.IPERF_DONE]))
        assert await self.reader.read() == b""
        return results


@pytest.fixture
async def service(serve):
    service = await serve(Iperf3Service)
    yield service
    await until(lambda: not service._sessions)


async def running(service, **changes) -> Client:
    client = await Client.greet(service)
    await client.ask({**TCP_PARAMETERS, **changes})
    assert await client.state() == State.CREATE_STREAMS
    client.data = await client.stream()
    assert await client.state() == State.TEST_START
    assert await client.state() == State.TEST_RUNNING
    return client


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({**TCP_PARAMETERS, "parallel": 129}, 6),
        ({**TCP_PARAMETERS, "parallel": 0}, 6),
        ({**TCP_PARAMETERS, "len": 0}, 7),
        ({**TCP_PARAMETERS, "len": 1048577}, 7),
        ({**UDP_PARAMETERS, "len": 11}, 7),
        ({**UDP_PARAMETERS, "len": 15, "udp_counters_64bit": 1}, 7),
        ({**UDP_PARAMETERS, "len": 65508}, 7),
        ({**TCP_PARAMETERS, "time": 86401}, 5),
        ({**TCP_PARAMETERS, "omit": 601}, 12),
        ({"sctp": True}, 18),
        ({}, 114),
        ({**TCP_PARAMETERS, "udp": True}, 114),
        ({**TCP_PARAMETERS, "parallel": -1}, 114),
        ({**TCP_PARAMETERS, "time": "ten"}, 114),
        ({**TCP_PARAMETERS, "num": 2**70}, 114),
        ([], 114),
        (b"{", 114),
        (b"", 114),
        (b"\xff\xfe", 114),
        (b'{"tcp":true,"client_version":"\xff"}', 114),
        (b'{"title":' + b"[" * 8000, 114),
        (b'{"tcp":true,"num":1e999}', 114),
    ],
)
async def test_bad_parameters_are_a_numbered_error(service, parameters, fault):
    client = await Client.greet(service)
    await client.ask(parameters)
    assert await client.faults() == fault
    client.writer.close()


@pytest.mark.parametrize("length", [16 * 1024 + 1, 2**31, 2**32 - 1])
async def test_parameters_that_claim_too_much_are_refused_unread(service, length):
    client = await Client.greet(service)
    assert await client.state() == State.PARAM_EXCHANGE
    client.writer.write(struct.pack(">I", length))
    assert await client.faults() == 114
    client.writer.close()


@pytest.mark.parametrize("octet", [0, 9, 255])
async def test_an_unknown_state_ends_the_test(service, octet):
    client = await running(service)
    client.writer.write(bytes([octet]))
    assert await client.faults() == 110
    assert await client.data[0].read() == b""
    client.writer.close()


async def test_client_terminate_ends_the_test(service):
    client = await running(service)
    client.writer.write(bytes([State.CLIENT_TERMINATE]))
    assert await client.reader.read() == b""
    await until(lambda: service.outcomes == {"client_terminated": 1})
    client.writer.close()


async def test_a_stream_with_another_cookie_is_no_stream(service):
    client = await Client.greet(service)
    await client.ask(TCP_PARAMETERS)
    assert await client.state() == State.CREATE_STREAMS
    other, other_writer = await client.stream(b"x" * 37)
    assert await other.readexactly(1) == bytes([State.PARAM_EXCHANGE]), "a test of its own"
    own, own_writer = await client.stream()
    assert await client.state() == State.TEST_START
    late, late_writer = await client.stream()
    assert await client.state() == State.TEST_RUNNING
    assert await late.read() == b"\xff", "one stream too many"
    for writer in (other_writer, own_writer, late_writer, client.writer):
        writer.close()
    assert await own.read() == b""


async def test_cookies_may_come_in_pieces_and_out_of_turn(service):
    client = await Client.greet(service, b"")
    for octet in COOKIE:
        client.writer.write(bytes([octet]))
        await asyncio.sleep(0)
    await client.ask({**TCP_PARAMETERS, "bidirectional": True, "len": 1000})
    assert await client.state() == State.CREATE_STREAMS
    sink = await client.stream(b"")  # opened first, so it is the one the server reads
    await until(lambda: service.connections() == 2)
    source = await client.stream()
    await until(lambda: service.connections() == 3)
    sink[1].write(COOKIE)
    assert await client.state() == State.TEST_START
    assert await client.state() == State.TEST_RUNNING
    assert len(await source[0].readexactly(1000)) == 1000
    sink[1].write(bytes(12345))
    await until(lambda: any(stream.octets == 12345 for stream in service._sessions[COOKIE].streams))
    results = await client.results()
    assert [stream["id"] for stream in results["streams"]] == [1, 3]
    assert results["streams"][0]["bytes"] == 12345
    assert results["streams"][1]["bytes"] >= 1000
    for _, writer in (sink, source, (None, client.writer)):
        writer.close()


async def test_a_stream_that_breaks_leaves_its_test_with_what_it_had(service):
    client = await running(service)
    client.data[1].write(bytes(5000))
    await until(lambda: service._sessions[COOKIE].streams[0].octets == 5000)
    client.data[1].transport.abort()
    await until(lambda: service.events["stream_lost"] == 1)
    assert (await client.results())["streams"][0]["bytes"] == 5000
    client.writer.close()


async def test_an_end_within_the_omitted_start_is_an_end(service):
    client = await running(service, omit=1)
    client.data[1].write(bytes(5000))
    await until(lambda: service._sessions[COOKIE].streams[0].octets == 5000)
    client.writer.write(bytes([State.TEST_END]))
    assert await client.state() == State.EXCHANGE_RESULTS
    await asyncio.sleep(1.2)
    client.say({"streams": []})
    (length,) = struct.unpack(">I", await client.reader.readexactly(4))
    (stream,) = json.loads(await client.reader.readexactly(length))["streams"]
    assert stream["bytes"] == 5000
    assert 0 < stream["end_time"] < 1.2
    client.writer.close()


async def test_what_is_queued_when_the_omitted_start_ends_is_counted_when_it_is_sent(service):
    client = await running(service, reverse=True, omit=1)
    stream, = service._sessions[COOKIE].streams
    await until(lambda: stream.octets_omitted > 0)
    assert stream.transport.get_write_buffer_size() > 0
    assert (await client.results())["streams"][0]["bytes"] >= 0     # nobody has read since
    client.data[1].transport.abort()
    client.writer.close()


async def test_a_finite_test_waits_for_what_the_client_says_it_sent(service):
    client = await running(service, time=0, num=9000)
    client.data[1].write(bytes(5000))
    client.writer.write(bytes([State.TEST_END]))
    assert await client.state() == State.EXCHANGE_RESULTS
    client.say({"streams": [{"id": 1, "bytes": 9000}]})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.readexactly(4), 0.2)
    client.data[1].write(bytes(4000))
    (length,) = struct.unpack(">I", await client.reader.readexactly(4))
    (stream,) = json.loads(await client.reader.readexactly(length))["streams"]
    assert stream["bytes"] == 9000
    client.writer.close()


async def test_a_finite_test_waits_no_longer_than_its_bound(serve):
    service = await serve(Iperf3Service, step_s=0.4)
    client = await running(service, time=0, num=9000)
    client.writer.write(bytes([State.TEST_END]))
    assert await client.state() == State.EXCHANGE_RESULTS
    client.say({"streams": [{"id": 1, "bytes": 2**62}]})
    (length,) = struct.unpack(">I", await asyncio.wait_for(client.reader.readexactly(4), PATIENCE_S))
    (stream,) = json.loads(await client.reader.readexactly(length))["streams"]
    assert stream["bytes"] == 0
    client.writer.close()


async def test_results_that_are_no_results(service):
    client = await running(service)
    client.writer.write(bytes([State.TEST_END]))
    assert await client.state() == State.EXCHANGE_RESULTS
    client.say(b'{"streams": 7}')
    assert await client.faults() == 117
    client.writer.close()


async def test_a_greeting_that_never_ends_is_ended(serve):
    service = await serve(Iperf3Service, idle_s=0.3)
    client = await Client.greet(service, COOKIE[:-1])
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.state()
    assert service.connections() == 0
    client.writer.close()


@pytest.mark.parametrize("phase", ["parameters", "streams", "results"])
async def test_every_step_has_a_deadline(serve, phase):
    service = await serve(Iperf3Service, step_s=0.3)
    client = await (running(service) if phase == "results" else Client.greet(service))
    if phase == "streams":
        await client.ask(TCP_PARAMETERS)
        assert await client.state() == State.CREATE_STREAMS
    if phase == "parameters":
        assert await client.state() == State.PARAM_EXCHANGE
    if phase == "results":
        client.writer.write(bytes([State.TEST_END]))
        assert await client.state() == State.EXCHANGE_RESULTS
    assert await client.state() == State.SERVER_TERMINATE
    assert await client.reader.read() == b""
    assert service.outcomes == {"timed_out": 1}
    client.writer.close()


async def test_a_test_without_end_that_moves_nothing_is_ended(serve):
    service = await serve(Iperf3Service, idle_s=0.3)
    client = await running(service, time=0)
    assert await client.state() == State.SERVER_TERMINATE
    assert service.outcomes == {"stalled": 1}
    client.writer.close()


# UDP by hand

HELLOS = [
    (struct.pack("<I", 0x36373839), struct.pack("<I", 0x39383736)),
    (struct.pack(">I", 0x36373839), struct.pack(">I", 0x39383736)),
    (struct.pack("<I", 123456789), struct.pack("<I", 987654321)),
    (struct.pack(">I", 123456789), struct.pack(">I", 987654321)),
]


def datagram_client(service: Iperf3Service) -> socket.socket:
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", service.port))
    client.setblocking(False)
    return client


@pytest.mark.parametrize(("hello", "answer"), HELLOS)
async def test_udp_hellos_old_and_new(service, hello, answer):
    loop = asyncio.get_running_loop()
    client = await Client.greet(service)
    with datagram_client(service) as datagrams, datagram_client(service) as stranger:
        datagrams.send(hello)  # before the test exists
        await until(lambda: service.events["datagram_unexpected"] == 1)
        await client.ask({**UDP_PARAMETERS, "parallel": 2})
        assert await client.state() == State.CREATE_STREAMS
        datagrams.send(b"what?")
        await until(lambda: service.events["datagram_unexpected"] == 2)
        for _ in range(2):  # the second asks for an answer that was lost
            datagrams.send(hello)
            assert await asyncio.wait_for(loop.sock_recv(datagrams, 100), PATIENCE_S) == answer
        stranger.send(hello)
        assert await asyncio.wait_for(loop.sock_recv(stranger, 100), PATIENCE_S) == answer
        assert await client.state() == State.TEST_START
        assert await client.state() == State.TEST_RUNNING
        for number in (1, 2, 5, 4, 6):
            datagrams.send(HEADER_32.pack(0, 0, number) + bytes(988))
        datagrams.send(b"short")
        await until(lambda: service.events["datagram_malformed"] == 1)
        results = await client.results()
        assert [(s["packets"], s["errors"], s["bytes"]) for s in results["streams"]] == [(6, 1, 5000), (0, 0, 0)]
        datagrams.send(HEADER_32.pack(0, 0, 7) + bytes(988))
        await until(lambda: service.events["datagram_unexpected"] == 3)
    client.writer.close()


async def test_udp_tests_of_one_host_take_turns_to_say_hello(service):
    hello, answer = HELLOS[0]
    loop = asyncio.get_running_loop()
    first, second = await Client.greet(service), await Client.greet(service, b"y" * 37)
    await first.ask(UDP_PARAMETERS)
    assert await first.state() == State.CREATE_STREAMS
    await second.ask(UDP_PARAMETERS)
    with datagram_client(service) as one, datagram_client(service) as two:
        one.send(hello)
        assert await asyncio.wait_for(loop.sock_recv(one, 100), PATIENCE_S) == answer
        assert await first.state() == State.TEST_START
        assert await second.state() == State.CREATE_STREAMS
        first.writer.close()
        two.send(hello)
        assert await asyncio.wait_for(loop.sock_recv(two, 100), PATIENCE_S) == answer
        assert await second.state() == State.TEST_START
    second.writer.close()


# Accounting, alone


class FakeSession:
    def __init__(self, **changes):
        self.parameters = Parameters(udp=True, len=1000, **changes)
        self.service = Iperf3Service()


def udp_stream(**changes) -> UdpStream:
    session = FakeSession(**changes)
    stream = UdpStream(session, UdpEndpoint(session.service), ("192.0.2.1", 4242), b"")
    stream.begin()
    return stream


ARRIVALS = st.sets(st.integers(1, 200), min_size=1).flatmap(lambda numbers: st.permutations(sorted(numbers)))


@settings(deadline=None)
@given(ARRIVALS, st.booleans())
def test_loss_is_the_numbers_that_never_came(numbers, wide):
    stream = udp_stream(udp_counters_64bit=wide)
    header = HEADER_64 if wide else HEADER_32
    for number in numbers:
        stream.received(header.pack(0, 0, number) + bytes(10))
    assert stream.packets == max(numbers)
    assert stream.lost == max(numbers) - len(numbers)
    assert stream.octets == len(numbers) * (header.size + 10)


def test_jitter_follows_rfc_1889(monkeypatch):
    stream = udp_stream()
    arrivals = [10.0, 10.020, 10.050, 10.060]
    sent = [(9, 0), (9, 20_000), (9, 40_000), (9, 60_000)]
    monkeypatch.setattr("rustosd.services.iperf3_streams.time.monotonic", lambda: arrivals[stream.packets - 1])
    expected, previous = 0.0, None
    for number, (seconds, microseconds) in enumerate(sent, 1):
        stream.received(HEADER_32.pack(seconds, microseconds, number))
        transit = arrivals[number - 1] - seconds - microseconds / 1e6
        if previous is not None:
            expected += (abs(transit - previous) - expected) / 16
        previous = transit
    assert stream.jitter_s == pytest.approx(expected) and expected > 0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_datagrams_do_no_harm(datagrams):
    stream = udp_stream()
    for datagram in datagrams:
        stream.received(datagram)
    assert stream.lost >= 0 and stream.packets >= 0
    counted = sum(len(datagram) for datagram in datagrams if len(datagram) >= HEADER_32.size)
    assert stream.octets == counted


class PacedSource(UdpStream):
    """Counts sends; takes as many as `room` allows."""

    room = 10**9

    def send_block(self):
        if self.room <= 0:
            return False
        self.room -= 1
        self.octets += self.block_octets
        return True


def paced_source() -> PacedSource:
    session = FakeSession()
    return PacedSource(session, UdpEndpoint(session.service), ("192.0.2.1", 4242), b"")


@settings(deadline=None)
@given(st.lists(st.floats(0.0001, 0.02), min_size=1, max_size=100), st.integers(10_000, 10_000_000))
def test_a_source_sends_what_its_rate_made_due(steps, octets_per_s):
    source = paced_source()
    elapsed = 0.0
    for step in steps:
        elapsed += step
        wait = source.send_due(elapsed, octets_per_s, budget=10**9)
        due = octets_per_s * elapsed
        assert due < source.octets <= due + source.block_octets + 1
        assert wait == pytest.approx((source.octets - due) / octets_per_s)


def test_a_source_that_was_held_up_catches_up_on_its_bound_and_no_more():
    source = paced_source()
    burst = 1_000_000 * CATCH_UP_S

    def sent_at(elapsed_s):
        before = source.octets
        source.send_due(elapsed_s, 1_000_000, budget=10**9)
        return source.octets - before

    source.room = 0
    assert sent_at(10.0) == 0
    source.room = 10**9
    assert sent_at(10.0) == pytest.approx(burst, abs=2000)
    assert sent_at(10.01) == pytest.approx(10_000, abs=2000), "in time again"
    assert sent_at(11.0) == pytest.approx(burst, abs=2000), "a second late again"


def test_a_source_keeps_to_its_budget():
    source = paced_source()
    assert source.send_due(1.0, 0, budget=7) == 0
    assert source.octets == 7000
