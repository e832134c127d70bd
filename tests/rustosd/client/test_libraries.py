"""Programs of the standard library on our sockets, and `rustosctl nc`."""

import hashlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import rustosd.client as ours
from tests.peers.clients import expected_sha256
from tests.peers.conftest import CONTROL, V4, V6, need, url
from tests.rustosd.handoff.conftest import inside

pytestmark = pytest.mark.usefixtures("our_daemon")


@pytest.mark.parametrize("host", [V4, V6])
def test_http_client_fetches(host):
    connection = http.client.HTTPConnection(host, 80, timeout=20)
    connection._create_connection = ours.create_connection
    for _ in range(2):
        connection.request("GET", "/bytes/3000000")
        answer = connection.getresponse()
        assert answer.status == 200
        assert hashlib.sha256(answer.read()).hexdigest() == expected_sha256(3_000_000)
    connection.close()


def test_urllib_fetches(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", ours.create_connection)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{V4}/bytes/100000", timeout=20) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == expected_sha256(100_000)


@pytest.mark.parametrize("host", [V4, V6])
def test_http_server_serves_curl(peer, host):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"hello {self.client_address[0]}\n".encode())

        def log_message(self, *_):
            pass

    server = HTTPServer((host, 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = ours.Socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    server.socket.bind((host, 0))
    server.server_address = server.socket.getsockname()
    server.server_name, server.server_port = server.server_address[:2]
    server.server_activate()
    thread = threading.Thread(target=lambda: [server.handle_request() for _ in range(3)])
    thread.start()
    for _ in range(3):
        site = url(host, "").rstrip("/")
        answer = peer.netns.run("curl", "-sSgf", f"{site}:{server.server_port}/").stdout
        assert answer == f"hello {'fd77::1' if ':' in host else '10.77.0.1'}\n"
    thread.join(20)
    server.server_close()


def test_the_module_stands_in_for_socket():
    sock = ours.socket(ours.AF_INET, ours.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect((V4, 7))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    assert isinstance(sock, socket.socket)
    assert ours.gaierror is socket.gaierror
    sock.close()


def test_facts_are_those_of_the_connection():
    with ours.create_connection((V4, 7)) as sock:
        sock.sendall(bytes(1000))
        assert sock.recv(10_000)
        facts = sock.facts()
        assert facts["state"] == "ESTABLISHED" and facts["octets_sent"] >= 1000 and facts["mss"] > 500
        assert "iss" not in facts
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        time.sleep(0.01)
        sock.sendall(bytes(1000))


# nc

def nc(peer, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", CONTROL, "--socket", str(peer.control), "nc", *map(str, arguments)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_until_listening(peer, port, protocol="tcp"):
    end = time.monotonic() + 20
    while not any(row["local"].endswith(f":{port}") and row["protocol"] == protocol
                  for row in peer.ctl("conn", "list")["connections"]):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nc_sends_its_input_and_prints_the_answer(peer):
    process = nc(peer, V4, 7)
    sent = bytes(range(256)) * 4000
    out, err = process.communicate(sent, timeout=60)
    assert (out, err, process.returncode) == (sent, b"", 0)


def test_nc_listens(peer):
    process = nc(peer, "-l", 4711)
    wait_until_listening(peer, 4711)
    sock = inside(peer.netns.path, lambda: socket.create_connection((V4, 4711), timeout=20))
    sock.sendall(b"to you")
    process.stdin.write(b"to me")
    process.stdin.close()
    process.stdin = None
    answer = b""
    while part := sock.recv(100):
        answer += part
    sock.close()
    assert answer == b"to me"
    assert process.communicate(timeout=20)[0] == b"to you"
    assert process.returncode == 0


def test_nc_meets_nc_of_another_kind(peer):
    need("nc")
    process = nc(peer, "-l", "-v", 4712)
    wait_until_listening(peer, 4712)
    peer.netns.run("sh", "-c", f"printf hello | nc -N -w 10 {V6} 4712")
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"hello", 0)
    assert b"connection from fd77::1 port" in err


def test_nc_by_udp(peer):
    process = nc(peer, "-u", V4, 7)
    out, _ = process.communicate(b"datagram", timeout=20)
    assert (out, process.returncode) == (b"datagram", 0)
    process = nc(peer, "-u", "-l", "-w", "2", 4713)
    wait_until_listening(peer, 4713, "udp")
    with inside(peer.netns.path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.connect((V4, 4713))
        sock.send(b"first")
        assert process.communicate(b"", timeout=20)[0] == b"first"


@pytest.mark.parametrize(("arguments", "status", "words"), [
    ((V4, 9), 1, "10.77.0.2 port 9: Connection refused"), (("no.such.host.invalid", 9), 1, "no.such.host.invalid port 9: "),
    ((V4,), 2, "give HOST and PORT"), ((), 2, "give HOST and PORT"), (("-4", "-6", V4, 7), 2, "exclude each other"),
    (("-l", 7), 1, "already listened on"), (("-z", V4, 7), 0, ""), (("-w", "0.2", "10.77.0.99", 7), 1, "10.77.0.99 port 7: "),
])
def test_nc_ends_with_the_status_of_what_happened(peer, arguments, status, words):
    process = nc(peer, *arguments)
    _, err = process.communicate(b"", timeout=60)
    assert (process.returncode, words in err.decode(), err.count(b"\n")) == (status, True, 1 if status else 0), err


def test_nc_without_a_daemon_says_what_to_do():
    process = subprocess.run([sys.executable, "-c", CONTROL, "--socket", "/nonexistent", "nc", "10.0.0.1", "1"],
                             capture_output=True, text=True)
    assert process.returncode == 3
    assert "start one with `rustosd run`" in process.stderr
