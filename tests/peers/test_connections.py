"""`conn show` and `conn close` on connections that Linux has with the daemon's services and with a program's sockets."""

import socket
import subprocess
import sys
import time

import pytest

from tests.peers.conftest import CONTROL, V4

NEVER_S = 30
# Connects to the echo service, says what it reads, and how it ended.
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as s:
    s.sendall(b"hello")
    print(s.recv(100), flush=True)
    try:
        print("end of file" if s.recv(100) == b"" else "data", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
"""

# Accepts one connection and reads it to its end.
SERVER = """
import socket
with socket.create_server(("10.77.0.1", 4712)) as listener:
    print("ready", flush=True)
    s, _ = listener.accept()
    try:
        while s.recv(100):
            pass
        print("end of file", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
"""


def connection(peer, port, remote=False):
    """The row of the one established connection whose local (or remote) port it is."""
    end = time.monotonic() + NEVER_S
    while time.monotonic() < end:
        rows = [row for row in peer.ctl("conn")["connections"] if row["state"] == "established"
                and row["remote" if remote else "local"].endswith(f":{port}")]
        if rows:
            return rows[0]
    raise AssertionError("there is no such connection")


def close(peer, identity, *words):
    peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "conn", "close", identity, *words)


@pytest.mark.parametrize(("words", "ending"), [((), "end of file"), (("--reset",), "reset")])
def test_a_service_s_connection(peer, words, ending):
    with peer.netns.popen(sys.executable, "-c", CLIENT, V4, "7", stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "b'hello'\n"
        shown = peer.ctl("conn", "show", connection(peer, 7)["id"])["connection"]
        assert (shown["owner"], shown["service"], shown["nic"], shown["state"]) == (
            "service echo", "echo", "rustos0", "established")
        assert shown["rx_octets"] == shown["tx_octets"] == 5 and shown["rtt_us"] > 0 and shown["cwnd"] > 5
        assert shown["sack"] and shown["timestamps"] and shown["window_scale"] and shown["peer_mss"] == 1460
        close(peer, shown["id"], *words)
        assert client.stdout.readline() == f"{ending}\n"
        assert client.wait(NEVER_S) == 0


@pytest.mark.parametrize(("words", "ending"), [((), "end of file"), (("--reset",), "reset")])
def test_a_program_s_connection(peer, words, ending):
    with peer.netns.popen(sys.executable, "-c", SERVER, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        command = [sys.executable, "-c", CONTROL, "--socket", str(peer.control), "nc", "10.77.0.1", "4712"]
        try:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as nc:
                row = connection(peer, 4712, remote=True)
                shown = peer.ctl("conn", "show", row["id"])["connection"]
                assert shown["pid"] == nc.pid and shown["owner"].endswith(f"[{nc.pid}]") and shown["service"] is None
                assert any(busy["id"] == row["id"] for busy in peer.ctl("top", "-d", "0.1")["top"]["busiest"])
                close(peer, row["id"], *words)
                assert server.stdout.readline() == f"{ending}\n"
                assert nc.wait(NEVER_S) == (1 if words else 0)
        finally:
            server.kill()
    states = {row["state"] for row in peer.ctl("conn")["connections"] if row["id"] == shown["id"]}
    assert states <= (set() if words else {"fin_wait_2", "time_wait"})


def test_an_interface_shows_what_its_device_counts(peer):
    before = peer.ctl("nic", "show", "rustos0")["nic"]
    peer.netns.run("ping", "-c1", "-W5", V4)
    after = peer.ctl("nic", "show", "rustos0")["nic"]
    assert after["statistics"]["rx_frames"] > before["statistics"]["rx_frames"] and after["kind"] == "tap"
    assert after["features"] == ["rx_checksum", "tx_checksum", "tso4", "tso6"] and after["link"] == "up"
    assert socket.inet_aton(after["addresses"][1].partition("/")[0])
