"""The server of server.py on the published Python stack, run by the virtual environment that pmd-pytcp is installed in.

`python pytcp_server.py TAP MAC ADDRESS`. Prints "ready", and ends with its standard input. What is written without
anybody reading it piles up inside pmd-pytcp, so the source looks at how much waits there.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from pmd_net_addr import Ip4IfAddr, MacAddress
from pmd_pytcp import stack
from pmd_pytcp.socket import AddressFamily, SocketType, socket

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ports import DOOR, ECHO, SINK, SOURCE

BLOCK = bytes(1 << 16)
MOST_QUEUED = 1 << 18
PROBING_S = 15


async def door(connection):
    while data := await connection.recv():
        await connection.send(data)


async def sink(connection):
    count = 0
    while data := await connection.recv():
        count += len(data)
    await connection.send(count.to_bytes(8, "big"))


async def source(connection):
    while True:
        if len(connection.tcp_session._tx.buffer) < MOST_QUEUED:
            await connection.send(BLOCK)
        await asyncio.sleep(0)


async def bound(kind, host, port):
    """A socket on an address of ours, which the stack first probes for other owners for some seconds (RFC 5227)."""
    one = socket(AddressFamily.INET4, kind)
    for _ in range(PROBING_S * 10):
        with contextlib.suppress(OSError):
            one.bind((host, port))
            return one
        await asyncio.sleep(0.1)
    raise SystemExit(f"pmd-pytcp does not take {host} for its own")


async def echo(endpoint):
    while True:
        await endpoint.sendto(*await endpoint.recvfrom())


async def until_lost(service, connection):
    try:
        await service(connection)
    except OSError:
        pass
    finally:
        connection.close()


async def listen(listener, service):
    listener.listen(backlog=1024)
    tasks = set()
    while True:
        connection, _ = await listener.accept()
        tasks.add(task := asyncio.ensure_future(until_lost(service, connection)))
        task.add_done_callback(tasks.discard)


async def main(tap, mac, address):
    stack.init()
    stack.add_interface(**stack.initialize_interface__tap(tap, mac_address=MacAddress(mac)), ip4_support=True,
                        ip4_host=Ip4IfAddr(address), ip4_dhcp=False, ip6_support=False)
    await stack.start()
    host = address.split("/")[0]
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, done.set)
    services = [echo(await bound(SocketType.DGRAM, host, ECHO))]
    for port, service in ((DOOR, door), (SINK, sink), (SOURCE, source)):
        services.append(listen(await bound(SocketType.STREAM, host, port), service))
    tasks = [asyncio.ensure_future(service) for service in services]
    print("ready", flush=True)
    await asyncio.wait([*tasks, asyncio.ensure_future(done.wait())], return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
