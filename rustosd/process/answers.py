"""Answers to the calls about sockets that are there: what each asks is read once, and the socket does it.

What they raise as OSError is the caller's errno. Compiled: one of them runs per call.
"""

import errno
import socket

from cython.cimports.rustosd.process.call import Call

from rustosd.policy import PORTS_OF_ROOT
from rustosd.process import interfaces, inventory
from rustosd.process import syscalls as nr
from rustosd.process.notify import LONGEST
from rustosd.process.options import get_option, set_option
from rustosd.process.sockaddr import family_of, parse
from rustosd.process.sockets import GuestSocket, error


def connect(one: GuestSocket, call: Call) -> None:
    octets = call.read_name(call.pointer(1), call.int(2))
    unspecified = family_of(octets) == socket.AF_UNSPEC
    one.connect(call, None if unspecified else parse(octets, one.family))


def bind(one: GuestSocket, call: Call) -> None:
    endpoint = parse(call.read_name(call.pointer(1), call.int(2)), one.family)
    if one.loop.roots_own and 0 < endpoint.port < PORTS_OF_ROOT and not inventory.may_bind_ports_of_root(call.thread):
        raise error(errno.EACCES)
    one.bind(call, endpoint)


def listen(one: GuestSocket, call: Call) -> None:
    one.listen(call, call.int(1))


def accept(one: GuestSocket, call: Call) -> None:
    one.accept(call, 0)


def accept4(one: GuestSocket, call: Call) -> None:
    one.accept(call, call.int(3))


def getsockname(one: GuestSocket, call: Call) -> None:
    call.write_name(one.name(), one.family)
    call.answer()


def getpeername(one: GuestSocket, call: Call) -> None:
    one.settle()
    if one.remote is None or not one.connected:
        raise error(errno.ENOTCONN)
    call.write_name(one.remote, one.family)
    call.answer()


def sendto(one: GuestSocket, call: Call) -> None:
    endpoint = parse(call.read_name(call.pointer(4), call.int(5)), one.family)
    if call.pointer(2) > LONGEST:
        raise error(errno.EMSGSIZE)
    one.send_to(call, endpoint, call.read(call.pointer(1), call.pointer(2)), call.int(3))


def recvfrom(one: GuestSocket, call: Call) -> None:
    one.receive_from(call, call.pointer(2), call.int(3))


def sendmsg(one: GuestSocket, call: Call) -> None:
    one.send_message(call)


def recvmsg(one: GuestSocket, call: Call) -> None:
    one.receive_message(call)


def sendmmsg(one: GuestSocket, call: Call) -> None:
    one.send_messages(call)


def recvmmsg(one: GuestSocket, call: Call) -> None:
    one.receive_messages(call)


HANDLERS = {
    nr.CONNECT: connect, nr.BIND: bind, nr.LISTEN: listen, nr.ACCEPT: accept, nr.ACCEPT4: accept4,
    nr.GETSOCKNAME: getsockname, nr.GETPEERNAME: getpeername, nr.SETSOCKOPT: set_option, nr.GETSOCKOPT: get_option,
    nr.SENDTO: sendto, nr.RECVFROM: recvfrom, nr.SENDMSG: sendmsg, nr.RECVMSG: recvmsg, nr.SENDMMSG: sendmmsg,
    nr.RECVMMSG: recvmmsg, nr.IOCTL: interfaces.ioctl,
}
