"""What `socket_calls` talks to: UDP and TCP that answer in upper case, on kernel sockets, in both families."""

import contextlib
import socket
import struct
import threading

UDP_PORTS, TCP_PORT = (18090, 18092), 18091


def _datagrams(one: socket.socket) -> None:
    while True:
        data, sender = one.recvfrom(70000)
        one.sendto(data.upper(), sender)


def _stream(one: socket.socket) -> None:
    with one, contextlib.suppress(OSError):
        while data := one.recv(65536):
            if data == b"RST":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            one.sendall(data.upper())
        one.sendall(b"BYE")


def main() -> None:
    """Serve until killed; says when it is ready."""
    for port in UDP_PORTS:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        one.bind(("::", port))
        threading.Thread(target=_datagrams, args=(one,)).start()
    listener = socket.create_server(("::", TCP_PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    print("ready", flush=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=_stream, args=(accepted,), daemon=True).start()


if __name__ == "__main__":
    main()
