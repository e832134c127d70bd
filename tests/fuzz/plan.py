"""What happens to a World next: random operations, all of them decided by one seed."""

import random
from collections import deque
from collections.abc import Iterator

from mm.frame import BURST
from tests.fuzz.mutate import mutate
from tests.fuzz.peers import OPEN_PORTS, Peers
from tests.fuzz.world import KINDS, Operation, World, v4_of, v6_of

POOL = 256          # recent frames that mutations splice from
US, MS, S = 1_000, 1_000_000, 1_000_000_000


def setting_of(rng: random.Random) -> dict:
    """A stack with tables so small that they fill up."""
    buffers = rng.choice((4096, 16384, 65536, 1 << 20))
    return {
        "secret": rng.randbytes(16).hex(),
        "now": rng.choice((1, 10**9, 1 << 40, 1 << 61)),
        "interfaces": [[1500, 0], [rng.choice((1500, 9000, 65535)), 15],
                       [rng.choice((1280, 1280, 1400, 576, 68)), rng.choice((0, 0, 1, 2, 15))]],
        "stack": {"neighbors": rng.choice((4, 8, 16, 64)), "routes": 32,
                  "icmp_errors_per_second": rng.choice((1, 1000, 1000)), "challenge_acks_per_second": rng.choice((1, 1000))},
        "tcp": {"connections": rng.choice((4, 16, 64)), "listeners": 6, "embryos": rng.choice((2, 8)),
                "time_wait": rng.choice((1, 4, 16)),
                "send_buffer": buffers, "receive_buffer": rng.choice((buffers, 4096, 1 << 20)),
                "memory": rng.choice((1 << 16, 1 << 20, 1 << 24)), "retransmissions": rng.choice((3, 15)),
                "time_wait_ns": rng.choice((S, 60 * S))},
        "udp": {"limit": rng.choice((2, 12))},
    }


class Plan:
    """An endless row of operations for a World; `mutated` counts the damaged frames among them."""

    def __init__(self, world: World, rng: random.Random):
        self.world, self.rng = world, rng
        self.peers = Peers(world, rng)
        self.pool: deque[bytes] = deque([bytes(60)], maxlen=POOL)
        self.mutated = 0
        self._calls = self._call_makers()

    def beginning(self) -> Iterator[Operation]:
        """Services, some traffic, and the second that duplicate address detection takes."""
        yield ["advance", self.world.now + MS]
        if self.rng.random() < 0.9:
            yield ["advance", self.world.now + 2 * S]
        for port in OPEN_PORTS[:2]:
            yield ["call", "listen_on", None, port, self.rng.choice((1, 4, 64))]
        yield ["call", "udp_bind", None, 7, False]
        yield ["call", "connect", v4_of(1, 10), 80, None, 0]
        yield ["call", "connect", v6_of(2, 11), 80, None, 0]

    def operations(self) -> Iterator[Operation]:
        """One breath after another: frames in, calls, time, frames out."""
        rng = self.rng
        yield from self.beginning()
        while True:
            yield from self._bursts(rng.choice((1, 2, 4, 8, 16, 32, BURST)))
            for _ in range(rng.choice((0, 0, 1, 2, 3))):
                yield rng.choice(self._calls)()
            yield ["call", "ready"]
            if rng.random() < 0.5:
                yield ["advance", self.world.now + self._step()]
            if rng.random() < 0.3:
                yield ["loop"]
            for interface in range(1, 1 + len(KINDS)):
                if rng.random() < 0.8:
                    yield ["transmit", interface, rng.choice((BURST, BURST, 8, 1, 0))]

    def _bursts(self, count: int) -> Iterator[Operation]:
        """`count` frames, most of them damaged, each on the interface it is for."""
        rng = self.rng
        bursts: dict[int, list] = {}
        for interface, frame in self.peers.frames(count):
            self.pool.append(frame)
            if rng.random() < 0.7:
                frame = mutate(frame, rng, self.pool)
                self.mutated += 1
            if rng.random() < 0.01:
                interface = rng.choice((1, 2, 3))
            segment_size, flags = 0, 0
            if interface == 2:
                segment_size = rng.choice((0, 0, 0, 1, 536, 1448, 65535))
                flags = int(rng.random() < 0.3)
            bursts.setdefault(interface, []).append([frame, segment_size, flags])
        for interface, frames in bursts.items():
            yield ["receive", interface, frames]

    def _step(self) -> int:
        """How much time passes: nothing, a little, until the stack wants to be woken, or long."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.6:
            return rng.choice((0, US, 50 * US, MS, 5 * MS))
        if choice < 0.9:
            at = self.world.stack.wake_at()
            return 0 if at is None else min(max(0, at - self.world.now + rng.choice((-1, 0, 0, 1))), 100 * S)
        if choice < 0.998:
            return rng.choice((50 * MS, 300 * MS, S, 2 * S, 5 * S, 31 * S, 70 * S))
        return rng.choice((3600 * S, 30 * 86400 * S))

    # -- calls -------------------------------------------------------------------------------------

    def _handle(self) -> int:
        world, rng = self.world, self.rng
        if world.gone and rng.random() < 0.03:
            return rng.choice(world.gone)
        return rng.choice(world.handles) if world.handles else rng.getrandbits(40)

    def _endpoint(self) -> int:
        return self.rng.choice(self.world.endpoints) if self.world.endpoints else self.rng.randrange(12)

    def _interface(self) -> int:
        return self.rng.choice((1, 2, 3))

    def _host(self) -> str:
        """Somewhere to send to: on a link, far away, ourselves, and where nobody is."""
        rng, i = self.rng, self._interface()
        return rng.choice((v4_of(i, 10), v4_of(i, 11), v6_of(i, 10), v6_of(i, 11), v4_of(i, rng.randrange(3, 255)),
                           "198.51.100.7", "2001:db8::7", v4_of(i, 2), v6_of(i, 2), "127.0.0.1", "::1", f"fe80::{i}",
                           v4_of(i, 255), "255.255.255.255", "224.0.0.1", "ff02::1", "0.0.0.0", "::"))

    def _own(self) -> str:
        i = self._interface()
        return self.rng.choice((v4_of(i, 2), v6_of(i, 2), v4_of(i, 3), v6_of(i, 3)))

    def _port(self) -> int:
        return self.rng.choice((7, 80, 5201, 9, 4000, 0))

    def _call_makers(self) -> list:
        rng, world = self.rng, self.world

        def maybe(value: object) -> object:
            return value if rng.random() < 0.5 else None

        often = [
            lambda: ["call", "write", self._handle(), rng.choice((1, 10, 1000, 5000, 70000))],
            lambda: ["call", "write", self._handle(), rng.choice((1, 10, 1000, 5000, 70000))],
            lambda: ["call", "write", self._handle(), rng.choice((1, 10, 1000, 5000, 70000))],
            lambda: ["call", "read", self._handle(), rng.choice((0, 1, 1000, 1 << 20))],
            lambda: ["call", "read", self._handle(), rng.choice((0, 1, 1000, 1 << 20))],
            lambda: ["call", "read_into", self._handle(), rng.choice((0, 1, 4096))],
            lambda: ["call", "connect", self._host(), self._port(), maybe(self._own()), rng.choice((0, 0, 0, 5000))],
            lambda: ["call", "udp_send", self._endpoint(), rng.choice((0, 1, 100, 1472, 1473, 9000, 65507)),
                     maybe(self._host()), self._port()],
            lambda: ["call", "udp_ready"],
            lambda: ["call", "ping", self._host(), rng.choice((1, 2, 77)), rng.getrandbits(16),
                     rng.choice((0, 56, 1472, 65507))],
        ]
        sometimes = [
            lambda: ["call", "shutdown", self._handle()],
            lambda: ["call", "release", self._handle()],
            lambda: ["call", "abort", self._handle()],
            lambda: ["call", "set_nodelay", self._handle(), rng.random() < 0.5],
            lambda: ["call", "set_keepalive", self._handle(), rng.random() < 0.5],
            lambda: ["call", "listen_on", maybe(self._own()), rng.choice((*OPEN_PORTS, 0)), rng.choice((1, 4, 64))],
            lambda: ["call", "udp_bind", maybe(self._own()), rng.choice((7, 53, 0)), rng.random() < 0.5],
            lambda: ["call", "udp_connect", self._endpoint(), self._host(), self._port()],
            lambda: ["call", "ping_replies"],
        ]
        rarely = [
            lambda: ["call", "close_listener", rng.choice(world.listeners) if world.listeners else 0],
            lambda: ["call", "udp_close", self._endpoint()],
            lambda: ["call", "set_link", self._interface(), False],
            *[lambda: ["call", "set_link", self._interface(), True]] * 12,
            lambda: ["call", "remove_interface", self._interface()],
            *[lambda: ["call", "add_interface", rng.randrange(3)]] * 8,
            lambda: ["call", "add_address", self._interface(), f"{self._own()}/{rng.choice((24, 31, 64, 128))}"],
            lambda: ["call", "add_address", self._interface(), f"{self._own()}/{rng.choice((24, 32, 64))}"],
            lambda: ["call", "remove_address", self._interface(), self._own()],
            lambda: ["call", "add_route", rng.choice(("0.0.0.0/0", "::/0", "198.51.100.0/24", "10.0.0.0/8", "2001:db8::/32")),
                     maybe(rng.choice((v4_of(1, 1), v4_of(2, 1), v6_of(2, 1), "fe80::1"))), maybe(self._interface()),
                     rng.randrange(3)],
            lambda: ["call", "remove_route", rng.choice(("0.0.0.0/0", "::/0", "198.51.100.0/24", "10.0.0.0/8", "10.0.1.0/24")),
                     rng.choice((-1, 1, 2))],
            lambda: ["call", "set_neighbor", self._interface(), self._host(), "02:00:00:00:01:0a"],
            lambda: ["call", "remove_neighbor", self._interface(), self._host()],
            lambda: ["call", "facts"],
        ]
        return often * 24 + sometimes * 6 + rarely
