"""Client programs of the kernel's side; run in forked children inside the namespace, on plain sockets."""

import asyncio
import hashlib
import os
import resource
import socket
from pathlib import Path

PERIOD = bytes(range(251))


def expected_octets(n: int) -> bytes:
    """What /bytes/N holds: octet i is i mod 251."""
    return (PERIOD * (n // 251 + 1))[:n]


def expected_sha256(n: int) -> str:
    """The digest of /bytes/N, without holding all of it."""
    digest = hashlib.sha256()
    block = PERIOD * 4096
    for _ in range(n // len(block)):
        digest.update(block)
    digest.update(block[:n % len(block)])
    return digest.hexdigest()


async def _fetch(host: str, n: int, start: asyncio.Event, opened: asyncio.Semaphore) -> bool:
    reader, writer = await asyncio.open_connection(host, 80)
    opened.release()
    await start.wait()      # until all are open, so that they are open at the same time
    writer.write(f"GET /bytes/{n} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read(-1)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200 ") and body == expected_octets(n)


def fetch_at_once(host: str, connections: int, n: int) -> int:
    """How many of so many simultaneous connections got /bytes/n right."""
    files = len(os.listdir("/proc/self/fd")) + connections + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, 4096)))

    async def run() -> int:
        start, opened = asyncio.Event(), asyncio.Semaphore(0)

        async def all_open() -> int:
            for _ in range(connections):
                await opened.acquire()
            start.set()
            return 0

        return sum(await asyncio.gather(all_open(), *(_fetch(host, n, start, opened) for _ in range(connections))))

    return asyncio.run(run())


def echo_at_once(host: str, connections: int, octets: int) -> int:
    """How many of so many simultaneous connections to the echo service got everything back."""
    async def one(k: int) -> bool:
        reader, writer = await asyncio.open_connection(host, 7)
        sent = bytes([k & 0xFF]) * octets
        writer.write(sent)
        writer.write_eof()
        got = await reader.read(-1)
        writer.close()
        return got == sent

    async def run() -> int:
        return sum(await asyncio.gather(*(one(k) for k in range(connections))))

    return asyncio.run(run())


def short_connections(host: str, times: int) -> int:
    """Connections one after the other, closed first by us (echo) and by the server (HTTP) in turn; how many did."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535")     # this namespace's
    Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")
    served = 0
    for k in range(times):
        with socket.create_connection((host, 80 if k % 2 else 7), timeout=10) as s:
            if k % 2:
                s.sendall(b"GET /bytes/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b""
                while part := s.recv(4096):
                    answer += part
                served += answer.startswith(b"HTTP/1.1 200 ")
            else:
                s.sendall(b"x")
                served += s.recv(1) == b"x"
    return served


def refused(host: str, port: int) -> bool:
    """Does connecting there end in ECONNREFUSED?"""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def udp_round_trips(host: str, times: int, octets: int) -> int:
    """Datagrams that came back from the echo service as they were."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    good = 0
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, 7))
        for k in range(times):
            sent = k.to_bytes(4, "big") + bytes(octets - 4)
            s.send(sent)
            good += s.recv(65536) == sent
    return good


def udp_refused(host: str) -> bool:
    """Does a datagram to a closed port come back as ECONNREFUSED (an ICMP port unreachable)?"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, 9))
        s.send(b"anybody?")
        try:
            s.recv(1)
        except ConnectionRefusedError:
            return True
    return False
