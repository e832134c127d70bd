"""Client programs that run in processes of their own, on our sockets: `python -m tests.rustosd.handoff.programs NAME ...`."""

import hashlib
import os
import sys
import time

from rustosd.client import create_connection

BLOCK = bytes(range(256)) * 1024


def transfer(host, port):
    """Send for ever; say so when it has begun."""
    sock = create_connection((host, int(port)))
    sock.sendall(BLOCK)
    print("sending", flush=True)
    while True:
        sock.sendall(BLOCK)


def stall(host, port):
    """Connect and never read."""
    sock = create_connection((host, int(port)))
    print("connected", sock.fileno(), flush=True)
    time.sleep(600)


def echo(host, port, count, octets):
    """So many connections at the same time, each with so many octets there and back; prints how many were right."""
    socks = [create_connection((host, int(port)), timeout=60) for _ in range(int(count))]
    sent = os.urandom(int(octets))
    for sock in socks:
        sock.sendall(sent)
        sock.shutdown(1)
    right = 0
    for sock in socks:
        digest = hashlib.sha256()
        while part := sock.recv(65536):
            digest.update(part)
        right += digest.digest() == hashlib.sha256(sent).digest()
        sock.close()
    print(right, flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
