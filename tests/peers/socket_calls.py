"""A program that uses sockets in every way it can and prints what it saw, to be run on Linux and on the stack alike.

    socket_calls.py PEER OWN        hosts: where the peers of `test_programs` listen, and what this program's own address is

Both runs must print the same lines: none has a port, a time or an address in it that the two could differ in. It is a program
of its own, with nothing but the standard library.
"""

import array
import asyncio
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

PEER, OWN = sys.argv[1:3]
FAMILY = socket.AF_INET6 if ":" in PEER else socket.AF_INET
UDP, UDP2, TCP, NOBODY = 18090, 18092, 18091, 18099
SILENT = "10.77.0.99" if FAMILY == socket.AF_INET else "fd77::99"
PATIENCE_S = 10


def say(what, *seen):
    print(what, *seen, flush=True)


def reason(act, *arguments):
    """The name of the error it raises, or what it returns."""
    try:
        return act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def stream():
    one = socket.socket(FAMILY, socket.SOCK_STREAM)
    one.settimeout(PATIENCE_S)
    return one


def datagram():
    one = socket.socket(FAMILY, socket.SOCK_DGRAM)
    one.settimeout(PATIENCE_S)
    return one


def connected():
    one = stream()
    one.connect((PEER, TCP))
    return one


def polled(one, events, ms=PATIENCE_S * 1000):
    poll = select.poll()
    poll.register(one, events)
    return [got for _, got in poll.poll(ms)]


def udp_names():
    u = datagram()
    say("a new socket's name", u.getsockname()[1] == 0, reason(u.getpeername))
    u.sendto(b"abc", (PEER, UDP))
    data, sender = u.recvfrom(100)
    say("sendto, recvfrom", data, sender[:2] == (PEER, UDP), u.getsockname()[1] != 0)
    u.sendto(b"x1", (PEER, UDP))
    u.sendto(b"y2", (PEER, UDP2))
    say("two peers, an address with each", sorted((d, a[1]) for d, a in (u.recvfrom(99) for _ in range(2))))
    u.sendto(b"plain", (PEER, UDP))
    say("recv without an address", u.recv(99))
    u.sendto(b"peeked", (PEER, UDP))
    say("MSG_PEEK", u.recvfrom(99, socket.MSG_PEEK)[0], u.recvfrom(99)[0])
    u.sendto(b"0123456789", (PEER, UDP))
    data, _, flags, _ = u.recvmsg(4)
    say("a datagram that is cut", data, bool(flags & socket.MSG_TRUNC))
    u.sendmsg([b"a", b"b"], [], 0, (PEER, UDP))
    data, _, _, sender = u.recvmsg(10)
    say("sendmsg, recvmsg", data, sender[1] == UDP)
    first, second = bytearray(3), bytearray(10)
    u.sendto(b"scatter", (PEER, UDP))
    count, *_ = u.recvmsg_into([first, second])
    say("recvmsg into pieces", count, bytes(first), bytes(second[:count - 3]))
    u.sendto(b"", (PEER, UDP))
    say("an empty datagram", u.recvfrom(10)[0])
    say("nothing there", reason(u.recvfrom, 10, socket.MSG_DONTWAIT))
    u.setblocking(False)
    say("nothing there, and it does not wait", reason(u.recvfrom, 10), reason(u.recvmsg, 10))
    u.setblocking(True)
    say("too long", reason(u.sendto, bytes(70000), (PEER, UDP)))
    say("no peer", reason(u.sendmsg, [b"x"]))
    u.close()


def udp_connected():
    c = datagram()
    c.connect((PEER, UDP))
    c.send(b"conn")
    say("connected: send, recv", c.recv(99), c.getpeername()[:2] == (PEER, UDP), c.getsockname()[1] > 0)
    os.write(c.fileno(), b"written")
    say("write, read", polled(c, select.POLLIN) == [select.POLLIN], os.read(c.fileno(), 99))
    c.sendmsg([b"m", b"sg"])
    data, _, _, sender = c.recvmsg(10)
    say("sendmsg and recvmsg when connected", data, sender[1] == UDP)
    c.connect((PEER, UDP2))
    c.send(b"other")
    say("connected anew", c.recv(99), c.getpeername()[1])
    c.close()
    r = datagram()
    r.connect((PEER, NOBODY))
    r.send(b"?")
    answer = reason(r.recv, 9)
    say("nobody there", answer if answer not in ("ECONNREFUSED", "ECONNRESET") else "refused or reset")
    r.close()
    b = datagram()
    b.bind(("", 0))
    port = b.getsockname()[1]
    s = datagram()
    s.sendto(b"to myself", (OWN, port))
    data, sender = b.recvfrom(99)
    say("between two of my own", data, sender[1] == s.getsockname()[1])
    again = datagram()
    say("a port that is taken", reason(again.bind, ("", port)))
    for one in (b, s, again):
        one.close()


def udp_addresses():
    """Which address a datagram came to, and to answer from another."""
    v4 = FAMILY == socket.AF_INET
    level = socket.IPPROTO_IP if v4 else socket.IPPROTO_IPV6
    wants, told = (8, 8) if v4 else (49, 50)        # IP_PKTINFO; IPV6_RECVPKTINFO, IPV6_PKTINFO
    loopback = "127.0.0.1" if v4 else "::1"
    b, s = datagram(), datagram()
    b.bind(("", 0))
    s.sendto(b"unasked", (loopback, b.getsockname()[1]))
    say("nothing is told unasked", b.recvmsg(99, 99)[:3])
    b.setsockopt(level, wants, 1)
    say("asked for", b.getsockopt(level, wants))
    for host in (loopback, OWN):
        s.sendto(b"hello", (host, b.getsockname()[1]))
        _, [(_, kind, data)], flags, sender = b.recvmsg(99, 99)
        ours = [socket.inet_ntop(FAMILY, octets) for octets in (struct.unpack("=4x4s4s", data) if v4 else [data[:16]])]
        say("it came to", kind == told, [one == host for one in ours], flags)
        if host == loopback:
            say("by the interface", struct.unpack("=i8x" if v4 else "=16xi", data)[0])
    own = socket.inet_pton(FAMILY, OWN)
    b.sendmsg([b"from ", b"there"], [(level, told, struct.pack("=i4s4s", 0, own, bytes(4)) if v4 else own + bytes(4))], 0,
              (loopback, s.getsockname()[1]))
    data, sender = s.recvfrom(99)
    say("answered from another address", data, sender[0] == OWN)
    say("too short", reason(b.sendmsg, [b"x"], [(level, told, b"short")], 0, (loopback, s.getsockname()[1])))
    s.sendto(b"no room", (loopback, b.getsockname()[1]))
    _, ancillary, flags, _ = b.recvmsg(99)
    say("no room for it", ancillary, flags == socket.MSG_CTRUNC)
    c = datagram()
    c.setsockopt(level, wants, 1)
    c.connect((PEER, UDP))
    c.send(b"connected")
    data, [(_, _, about)], _, _ = c.recvmsg(99, 99)
    say("and when connected", data, own in about)
    for one in (b, s, c):
        one.close()


def tcp_connect():
    t = connected()
    t.sendall(b"hello")
    say("connect, send, recv", t.recv(99), t.getpeername()[:2] == (PEER, TCP), t.getsockname()[1] > 0)
    kind, family, protocol = (t.getsockopt(socket.SOL_SOCKET, name)
                              for name in (socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL))
    say("what it is", kind, family == FAMILY, protocol, socket.socket(fileno=os.dup(t.fileno())).family == FAMILY)
    say("connect again", reason(t.connect, (PEER, TCP)))
    t.shutdown(socket.SHUT_WR)
    say("half closed", t.recv(99), t.recv(9), reason(t.send, b"x"))
    t.close()
    b = stream()
    b.settimeout(None)
    b.connect((PEER, TCP))
    b.sendall(b"blocking")
    say("blocking connect", b.recv(99))
    say("FIONREAD", unread_after(b, b"12345"))
    b.close()
    with tempfile.TemporaryFile() as file:
        file.write(b"from a file")
        file.flush()
        f = connected()
        say("sendfile", os.sendfile(f.fileno(), file.fileno(), 0, 11), f.recv(99))
        f.close()
    big = connected()
    big.settimeout(30)
    payload = bytes(range(256)) * 4096
    received = bytearray()

    def read():
        while len(received) < len(payload):
            received.extend(big.recv(65536))
    reader = threading.Thread(target=read)
    reader.start()
    big.sendall(payload)
    reader.join(30)
    say("a megabyte there and back", bytes(received) == payload.upper())
    big.close()


def unread_after(one, data):
    one.sendall(data)
    polled(one, select.POLLIN)
    time.sleep(0.3)
    number = array.array("i", [0])
    fcntl.ioctl(one, termios.FIONREAD, number)
    return number[0], one.recv(99)


def tcp_fails():
    n = stream()
    n.setblocking(False)
    say("non-blocking, refused", errno.errorcode[n.connect_ex((PEER, NOBODY))], bool(polled(n, select.POLLOUT)),
        errno.errorcode[n.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)], n.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    n.close()
    n = stream()
    say("refused", reason(n.connect, (PEER, NOBODY)))
    n.settimeout(None)
    say("and refused again", reason(n.connect, (PEER, NOBODY)))
    say("the same socket connects elsewhere", reason(n.connect, (PEER, TCP)))
    n.sendall(b"late")
    say("and is used", n.recv(99))
    n.close()
    n = stream()
    n.setblocking(False)
    say("nobody answers yet", errno.errorcode[n.connect_ex((SILENT, TCP))], polled(n, select.POLLOUT | select.POLLIN, 300),
        reason(n.connect, (SILENT, TCP)), reason(n.getpeername))
    n.close()
    n = stream()
    say("another family", reason(n.connect, "/tmp/x") if False else reason(raw_connect, n, struct.pack("=H", 77) + bytes(14)),
        reason(raw_connect, n, b"\2"), reason(raw_connect, n, struct.pack("=H", FAMILY)))
    n.close()
    t = connected()
    t.sendall(b"RST")
    say("the peer resets", reason(t.recv, 9))
    t.close()
    say("raw", reason(socket.socket, FAMILY, socket.SOCK_STREAM, 132))


def raw_connect(one, octets):
    """connect(2) with any octets for a struct sockaddr."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(one.fileno(), octets, len(octets)) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "connected"


def tcp_nonblocking():
    n = stream()
    n.setblocking(False)
    ep = select.epoll()
    ep.register(n, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    ep.poll(0)
    say("edge-triggered: connect", errno.errorcode[n.connect_ex((PEER, TCP))])
    events = ep.poll(PATIENCE_S)
    say("is told once", bool(events) and bool(events[0][1] & select.EPOLLOUT), n.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    n.send(b"edge")
    seen = 0
    while not seen & select.EPOLLIN:
        seen = ep.poll(PATIENCE_S)[0][1]
    say("and of data", n.recv(99))
    n.close()
    ep.close()


def waiting():
    one = connected()
    one.settimeout(None)
    return one


def descriptors():
    b = waiting()
    d = os.dup(b.fileno())
    if (pid := os.fork()) == 0:
        os.write(d, b"child")
        os._exit(os.read(d, 99) != b"CHILD")
    say("inherited by a child", os.waitpid(pid, 0)[1])
    b.close()
    os.write(d, b"dup")
    say("a duplicate outlives the first", os.read(d, 99))
    os.close(d)
    t = waiting()
    left, right = socket.socketpair()
    socket.send_fds(left, [b"f"], [t.fileno()])
    _, (passed,), _, _ = socket.recv_fds(right, 9, 1)
    t.close()
    os.write(passed, b"scm")
    say("passed by SCM_RIGHTS", os.read(passed, 99))
    os.close(passed)
    t = waiting()
    os.set_inheritable(t.fileno(), True)
    code = f"import os; os.write({t.fileno()}, b'exec'); assert os.read({t.fileno()}, 9) == b'EXEC'"
    say("across exec", os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]))
    say("close-on-exec", fcntl.fcntl(socket.socket(FAMILY, socket.SOCK_STREAM | socket.SOCK_CLOEXEC), fcntl.F_GETFD))


def serving():
    s = stream()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", 0))
    s.settimeout(None)
    say("not listening yet", reason(s.accept))
    s.settimeout(PATIENCE_S)
    s.listen(5)
    port = s.getsockname()[1]
    say("listening", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), port > 0)
    other = stream()
    say("a port that is taken", reason(listen_on, other, port))
    got = []
    thread = threading.Thread(target=lambda: got.append(s.accept()))
    thread.start()
    time.sleep(0.2)
    c = socket.create_connection((OWN, port), timeout=PATIENCE_S)
    thread.join(PATIENCE_S)
    conn, address = got[0]
    say("accept in a thread", address[1] == c.getsockname()[1], conn.getsockname()[1] == port)
    conn.sendall(b"served")
    say("and data", c.recv(99))
    s.setblocking(False)
    say("nobody to accept", reason(s.accept))
    ep = select.epoll()
    ep.register(s, select.EPOLLIN)
    c2 = socket.create_connection((OWN, port), timeout=PATIENCE_S)
    say("epoll tells of one", [events for _, events in ep.poll(PATIENCE_S)])
    conn2, _ = s.accept()
    c2.close()
    say("end of file", conn2.recv(9))
    for one in (conn2, c, conn):
        one.close()
    hit = []
    signal.signal(signal.SIGALRM, lambda *_: hit.append(1))
    s.setblocking(True)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    late = threading.Timer(1.0, lambda: socket.create_connection((OWN, port), timeout=PATIENCE_S))
    late.start()
    before = time.monotonic()
    conn, _ = s.accept()
    say("a signal while accept waits", hit, time.monotonic() - before > 0.5)
    conn.close()
    late.join()
    if (pid := os.fork()) == 0:
        child, _ = s.accept()
        child.sendall(b"by the child")
        os._exit(0)
    c = socket.create_connection((OWN, port), timeout=PATIENCE_S)
    say("a child accepts", c.recv(99), os.waitpid(pid, 0)[1])
    s.close()
    c.close()
    time.sleep(0.2)
    say("closed", reason(socket.create_connection, (OWN, port), PATIENCE_S))


def listen_on(one, port):
    one.bind(("", port))
    one.listen(1)
    return "listens"


def sharing():
    """Several that listen on one port."""
    def listener(port, share=True):
        one = stream()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        try:
            one.bind(("", port))
            one.listen()
        except OSError:
            one.close()
            raise
        return one

    def served(count):
        clients, taken = [], dict.fromkeys(both, 0)
        for _ in range(count):
            clients.append(socket.create_connection((OWN, port), timeout=PATIENCE_S))
        while sum(taken.values()) < count and (ready := select.select(both, [], [], PATIENCE_S)[0]):
            for one in ready:
                one.accept()[0].close()
                taken[one] += 1
        for one in clients:
            one.recv(9)
            one.close()
        return taken

    first = listener(0)
    port = first.getsockname()[1]
    both = [first, listener(port)]
    taken = served(40)
    say("both are given some", sum(taken.values()), min(taken.values()) > 0)
    say("who does not share", reason(listener, port, False))
    both.pop().close()
    say("when one has gone", list(served(10).values()))
    both.pop().close()
    alone = listener(port, False)
    say("who shares with one that does not", reason(listener, port))
    alone.close()


def families():
    """Any address of both families, or of one (IPV6_V6ONLY), beside any address of IPv4."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        for v6only in (1, 0):
            for first in (socket.AF_INET, socket.AF_INET6):
                with socket.socket(socket.AF_INET, kind) as four, socket.socket(socket.AF_INET6, kind) as six:
                    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
                    one, other = (four, six) if first == socket.AF_INET else (six, four)
                    one.bind(("", 0))
                    if kind == socket.SOCK_STREAM:
                        one.listen()
                    say("both at one port", kind, v6only, first, reason(other.bind, ("", one.getsockname()[1])))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("", 0))
        four.bind(("", six.getsockname()[1]))
        with datagram() as sender:
            sender.sendto(b"for one", (OWN, four.getsockname()[1]))
            mine, other = (four, six) if FAMILY == socket.AF_INET else (six, four)
            mine.settimeout(PATIENCE_S)
            say("each gets its own", mine.recv(99), reason(other.recv, 99, socket.MSG_DONTWAIT))


def interfaces():
    """netdevice(7), as those ask who know nothing of netlink: of IPv4's addresses only IPv4's sockets tell."""
    with datagram() as one, stream() as two:
        for it in (one, two):
            rows = ctypes.create_string_buffer(4096)
            octets, = struct.unpack("i12x", fcntl.ioctl(it, 0x8912, struct.pack("iP", 4096, ctypes.addressof(rows))))
            say("all interfaces", octets % 40, octets > 40, rows.raw[:2], rows.raw[20:24] == socket.inet_aton("127.0.0.1"))
            room, = struct.unpack("i12x", fcntl.ioctl(it, 0x8912, struct.pack("iP", 4096, 0)))
            say("the room they take", room == octets, reason(fcntl.ioctl, it, 0x8912, struct.pack("iP", 40, 1)))
        for request in (0x8915, 0x8917, 0x8919, 0x891B, 0x8913, 0x8921, 0x8933):    # ADDR to NETMASK, FLAGS, MTU, INDEX
            for name in (b"lo", b"no such"):
                asked = struct.pack("16s24x", name)
                answers = (reason(fcntl.ioctl, it, request, asked) for it in (one, two))
                say("of an interface", hex(request), name, *(it if isinstance(it, str) else it[:24] for it in answers))


def options():
    t = connected()
    for name in ("TCP_NODELAY", "TCP_QUICKACK", "TCP_CORK"):
        t.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 1)
    say("TCP_NODELAY", t.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    t.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    t.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    say("keepalive", t.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        t.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
    with stream() as fresh:
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
            number = getattr(socket, name)
            for one in (fresh, t):
                say(name, one is fresh and one.getsockopt(socket.IPPROTO_TCP, number),
                    [reason(one.setsockopt, socket.IPPROTO_TCP, number, value) for value in (0, -1, 128, 32767, 32768, 7)],
                    one.getsockopt(socket.IPPROTO_TCP, number))
    t.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    say("linger", struct.unpack("ii", t.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)))
    t.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100000))
    t.settimeout(None)
    say("SO_RCVTIMEO", reason(t.recv, 9))
    info = t.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    say("TCP_INFO: established, with a round trip", info[0], struct.unpack_from("=I", info, 68)[0] > 0)
    say("unknown", reason(t.setsockopt, socket.IPPROTO_TCP, 9999, 1), reason(t.getsockopt, socket.IPPROTO_TCP, 9999))
    say("not a socket", reason(socket.socket.getsockname, FakeSocket()))
    for name in (b"reno", b"nonsense"):
        say("congestion control", name, reason(t.setsockopt, socket.IPPROTO_TCP, socket.TCP_CONGESTION, name))
    say("it is", t.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0"))
    t.close()
    for one in (datagram(), stream()):
        say("of another kind", one.type, [reason(one.setsockopt, level, name, 1) for level, name in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.IPPROTO_UDP, 104), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS))])
        one.close()


def numbers():
    """A number that stands for something else by the next call, and a socket that is closed after one."""
    one, other = stream(), stream()
    other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    null = os.open("/dev/null", os.O_RDONLY)
    seen = []
    for change in (lambda: None, lambda: os.dup2(other.fileno(), one.fileno()), lambda: os.dup2(null, one.fileno()),
                   lambda: os.close(one.fileno())):
        change()
        seen.append(reason(one.getsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY))
    say("a number's socket, another, a file, nothing", seen)
    one.detach()
    s = stream()
    s.bind(("", 0))
    s.listen()
    c = socket.create_connection((OWN, s.getsockname()[1]), timeout=PATIENCE_S)
    conn, _ = s.accept()
    conn.settimeout(PATIENCE_S)
    c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    c.close()
    say("closed after a call about it", conn.recv(9))


def lengths():
    libc = ctypes.CDLL(None, use_errno=True)
    t = stream()

    def told(call, *arguments, room):
        value, length = ctypes.create_string_buffer(b"\xee" * 40, 40), ctypes.c_uint32(room)
        failed = call(t.fileno(), *arguments, value, ctypes.byref(length)) and errno.errorcode[ctypes.get_errno()]
        return failed, length.value, value.raw.hex()
    for room in (0, 3, 16, 28, 40, 0xFFFF_FFFF):
        say("getsockname", room, told(libc.getsockname, room=room))
    for room in (0, 3, 4, 5, 0xFFFF_FFFF):
        say("getsockopt", room, told(libc.getsockopt, socket.SOL_SOCKET, socket.SO_TYPE, room=room))


class FakeSocket(socket.socket):
    """A file that is no socket."""

    def __init__(self):
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0)
        file = os.open("/dev/null", os.O_RDONLY)
        os.dup2(file, self.fileno())
        os.close(file)


def loops():
    async def main():
        async def shout(reader, writer):
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()
        server = await asyncio.start_server(shout, OWN, 0)
        port = server.sockets[0].getsockname()[1]

        async def ask(word):
            reader, writer = await asyncio.open_connection(OWN, port)
            writer.write(word + b"\n")
            answer = await reader.read()
            writer.close()
            return answer
        answers = await asyncio.gather(*(ask(b"word %d" % i) for i in range(30)))
        say("asyncio, thirty at once", answers == [b"WORD %d\n" % i for i in range(30)])
        server.close()
    asyncio.run(main())


def churn():
    def some():
        for _ in range(50):
            with connected() as one:
                one.sendall(b"x")
                counts.append(one.recv(9) == b"X")
    counts = []
    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("two hundred connections by four threads", len(counts), all(counts))


for part in (udp_names, udp_connected, udp_addresses, tcp_connect, tcp_fails, tcp_nonblocking, descriptors, serving, sharing,
             families, interfaces, options, numbers, lengths, loops, churn):
    part()
say("done")
