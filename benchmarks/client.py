"""The programs that ask: plain blocking sockets, the same towards every server.

`python -m benchmarks.client MEASURE HOST AMOUNT` prints one number: what `MEASURE`, a function of this module, returns.
"""

from __future__ import annotations

import resource
import socket
import statistics
import sys
import time

from benchmarks.ports import DOOR, ECHO, SINK, SOURCE

CHUNK = 1 << 18
PATIENCE_S = 20
PAYLOAD = bytes(range(64))


def ready(host: str, seconds: float) -> float:
    """How long it took until the server answered; at most `seconds`."""
    began = time.monotonic()
    while True:
        try:
            with _connected(host, DOOR, 0.5) as sock:
                return _round_trips(sock, 0)
        except OSError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.05)


def stream_in(host: str, seconds: float) -> float:
    """Mb/s into the server, over one connection, up to its word that it has all."""
    block = bytes(CHUNK)
    sent = 0
    with _connected(host, SINK) as sock:
        began = now = time.perf_counter()
        while now - began < seconds:
            sent += sock.send(block)
            now = time.perf_counter()
        sock.shutdown(socket.SHUT_WR)
        received = int.from_bytes(_exactly(sock, 8))
        took = time.perf_counter() - began
    if received != sent:
        raise SystemExit(f"{sent} octets were sent, {received} arrived")
    return sent * 8e-6 / took


def stream_out(host: str, seconds: float) -> float:
    """Mb/s out of the server, over one connection."""
    buffer = bytearray(CHUNK)
    received = 0
    with _connected(host, SOURCE) as sock:
        began = now = time.perf_counter()
        while now - began < seconds:
            received += sock.recv_into(buffer)
            now = time.perf_counter()
    return received * 8e-6 / (now - began)


def udp_echo(host: str, seconds: float) -> float:
    """Round trips of 64 octets per second, one at a time; one that is lost costs a second."""
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, ECHO))
        sock.settimeout(1)
        began = now = time.perf_counter()
        while now - began < seconds:
            sock.send(PAYLOAD)
            try:
                sock.recv(100)
                count += 1
            except TimeoutError:
                print("a datagram was lost", file=sys.stderr)
            now = time.perf_counter()
    return count / (now - began)


def tcp_echo(host: str, seconds: float) -> float:
    """Round trips of 64 octets per second over one connection."""
    with _connected(host, DOOR) as sock:
        return _round_trips(sock, seconds)


def octet_echo(host: str, seconds: float) -> float:
    """The median round trip of one octet over one connection, us."""
    took = []
    with _connected(host, DOOR) as sock:
        began = now = time.perf_counter()
        while now - began < seconds:
            sock.send(b"x")
            sock.recv(1)
            took.append(-now + (now := time.perf_counter()))
    return statistics.median(took) * 1e6


def connects(host: str, seconds: float) -> float:
    """Connections made and closed per second, one after the other, until the server has served the last."""
    count = 1
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        _connected(host, DOOR).close()
        count += 1
    with _connected(host, DOOR) as sock:
        _round_trips(sock, 0)
    return count / (time.perf_counter() - began)


def idle(host: str, count: float) -> float:
    """Open so many connections and keep them until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [_connected(host, DOOR) for _ in range(int(count))]
    _round_trips(held[-1], 0)       # the server has accepted them all
    print("open", flush=True)
    sys.stdin.read()
    return len(held)


def _connected(host: str, port: int, patience: float = PATIENCE_S) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=patience)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _round_trips(sock: socket.socket, seconds: float) -> float:
    count = 0
    began = now = time.perf_counter()
    while count == 0 or now - began < seconds:
        sock.sendall(PAYLOAD)
        _exactly(sock, len(PAYLOAD))
        count += 1
        now = time.perf_counter()
    return count / (now - began)


def _exactly(sock: socket.socket, size: int) -> bytes:
    octets = b""
    while len(octets) < size:
        if not (more := sock.recv(size - len(octets))):
            raise ConnectionError("the server closed the connection")
        octets += more
    return octets


if __name__ == "__main__":
    print(globals()[sys.argv[1]](sys.argv[2], float(sys.argv[3])))
