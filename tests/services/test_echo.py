"""Echo (RFC 862) as kernel clients see it."""

import asyncio
import os
import socket

import pytest

from rustosd.services.echo import EchoEndpoint, EchoService

from .conftest import HOSTS, PATIENCE_S, until


@pytest.mark.parametrize("host", HOSTS)
async def test_tcp_returns_every_octet_and_the_rest_after_half_close(serve, host):
    service = await serve(EchoService, hosts=(host,))
    reader, writer = await asyncio.open_connection(host, service.port)
    sent = os.urandom(3_000_000)

    async def send():
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.wait_for(asyncio.gather(send(), reader.read()), PATIENCE_S)
    assert received == sent
    writer.close()
    await until(lambda: service.connections() == 0)


async def test_tcp_stops_reading_from_a_peer_that_does_not_read(serve):
    service = await serve(EchoService)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1024)
    writer.transport.pause_reading()
    block = bytes(1024 * 1024)
    try:
        for _ in range(256):
            writer.write(block)
            await asyncio.wait_for(writer.drain(), 1)
        pytest.fail("the server took 256 MiB that nobody reads back")
    except TimeoutError:
        pass
    (connection,) = service._connections
    assert connection.transport.get_write_buffer_size() < 4 * 1024 * 1024
    writer.transport.abort()


async def test_an_idle_connection_is_ended_and_a_busy_one_is_not(serve):
    service = await serve(EchoService, idle_s=0.4)
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", service.port)
    busy_reader, busy_writer = await asyncio.open_connection("127.0.0.1", service.port)
    for _ in range(12):
        busy_writer.write(b"x")
        assert await busy_reader.readexactly(1) == b"x"
        await asyncio.sleep(0.1)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await idle_reader.readexactly(1)
    assert service.connections() == 1
    assert service.events["expired"] == 1
    idle_writer.close()
    busy_writer.close()


async def test_connections_beyond_the_limit_are_refused(serve):
    service = await serve(EchoService, max_connections=2)
    held = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(2)]
    await until(lambda: service.connections() == 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert service.events["refused"] == 1
    for _, each in (*held, (reader, writer)):
        each.close()


@pytest.mark.parametrize("host", HOSTS)
async def test_udp_returns_each_datagram_to_its_sender(serve, host):
    service = await serve(EchoService, hosts=(host,))
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((host, service.port))
        for sent in (b"x", os.urandom(1472), os.urandom(9000)):
            client.send(sent)
            assert await asyncio.wait_for(loop.sock_recv(client, 65536), PATIENCE_S) == sent


class Recorder:
    def __init__(self):
        self.sent = []

    def sendto(self, data, address):
        self.sent.append((data, address))


def test_udp_never_answers_ports_that_answer_anything():
    service = EchoService()
    endpoint = EchoEndpoint(service)
    endpoint.connection_made(transport := Recorder())
    for port in (7, 13, 17, 19, 37, 0):
        endpoint.datagram_received(b"ping", ("192.0.2.1", port))
    endpoint.datagram_received(b"ping", ("192.0.2.1", 40000))
    assert transport.sent == [(b"ping", ("192.0.2.1", 40000))]
    assert service.events == {"datagram_dropped_loop": 6}


def test_udp_drops_by_name_while_its_transport_is_full():
    service = EchoService()
    endpoint = EchoEndpoint(service)
    endpoint.connection_made(transport := Recorder())
    endpoint.pause_writing()
    endpoint.datagram_received(b"lost", ("192.0.2.1", 40000))
    endpoint.resume_writing()
    endpoint.datagram_received(b"kept", ("192.0.2.1", 40000))
    assert [data for data, _ in transport.sent] == [b"kept"]
    assert service.events == {"datagram_dropped_busy": 1}


async def test_stop_lets_the_echo_arrive_and_frees_the_port(serve):
    service = await serve(EchoService)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"last words")
    assert await reader.readexactly(10) == b"last words"
    await service.stop(5)
    assert await reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", service.port)
    writer.close()
    with socket.socket(type=socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", service.port))


async def test_a_stop_that_is_cancelled_leaves_nothing_open(serve):
    service = await serve(EchoService)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.transport.pause_reading()
    for _ in range(64):
        writer.write(bytes(1024 * 1024))
    await until(lambda: any(each.transport.get_write_buffer_size() for each in service._connections))
    stop = asyncio.ensure_future(service.stop(60))
    await asyncio.sleep(0.1)
    stop.cancel()
    await until(lambda: service.connections() == 0)
    assert not service._servers and not service._endpoints
    writer.transport.abort()


async def test_start_on_a_taken_port_raises_and_leaves_nothing_open(serve):
    service = await serve(EchoService)
    second = EchoService(port=service.port, hosts=("127.0.0.1",))
    with pytest.raises(OSError):
        await second.start(asyncio.get_running_loop())
    assert not second._servers and not second._endpoints


async def test_statistics_have_bounded_labels(serve):
    service = await serve(EchoService)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"four")
    await reader.readexactly(4)
    samples = {(sample.name, sample.labels.get("event")): sample.value for sample in service.statistics()}
    assert samples == {
        ("rustos_service_connections", None): 1,
        ("rustos_service_received_octets_total", None): 4,
        ("rustos_service_sent_octets_total", None): 4,
        ("rustos_service_events_total", "accepted"): 1,
        ("rustos_service_events_total", "refused"): 0,      # there from the start, or the first would go unseen
        ("rustos_service_events_total", "expired"): 0,
    }
    writer.close()
