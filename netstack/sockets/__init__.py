"""Sockets of the stack for asyncio programs: what an event loop offers for the network, on our own TCP and UDP."""

from netstack.sockets.datagram import DatagramTransport
from netstack.sockets.server import Server
from netstack.sockets.stack import AsyncStack
from netstack.sockets.transport import StreamTransport
from netstack.sockets.view import SocketView

__all__ = ["AsyncStack", "DatagramTransport", "Server", "SocketView", "StreamTransport"]
