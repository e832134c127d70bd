"""An asyncio program that knows nothing of rustosd: `run(asyncio, host)` is the same on the kernel's sockets and ours."""

import hashlib


async def _serve(reader, writer):
    while octets := await reader.read(65536):
        writer.write(octets)
        await writer.drain()
    writer.close()


def run(asyncio, host):
    """Facts that do not depend on the network: what went there and back, and how errors look."""
    async def one(port, k):
        reader, writer = await asyncio.open_connection(host, port)
        octets = bytes([k]) * 200_000
        writer.write(octets)
        await writer.drain()
        writer.write_eof()
        answer = await reader.read(-1)
        names = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        writer.close()
        await writer.wait_closed()
        return hashlib.sha256(answer).hexdigest(), len(names[0]), names[1] == (host, port, 0, 0)[:len(names[1])]

    async def main():
        facts = []
        async with await asyncio.start_server(_serve, host, 0) as server:
            port = server.sockets[0].getsockname()[1]
            facts += await asyncio.gather(*(one(port, k) for k in range(20)))
            facts.append(server.is_serving())
        await asyncio.wait_for(server.wait_closed(), 10)
        try:
            await asyncio.open_connection(host, port)
        except OSError as error:
            facts.append(type(error).__name__)
        try:
            await asyncio.wait_for(asyncio.sleep(10), 0.01)
        except asyncio.TimeoutError:
            facts.append("timeout")
        return facts

    return asyncio.run(main())
