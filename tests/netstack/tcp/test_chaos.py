"""Applications, links and memory at their worst: nothing may crash, leak, spin or hang, and all of it ends."""

from contextlib import suppress

import pytest

from tests.netstack.tcp.world import ACCEPTED, ADDRESSES, ALL_FEATURES, CLOSED, MS, S, World


class Mob:
    """An application that opens, writes, reads, closes and aborts without sense."""

    def __init__(self, world, number):
        self.host, self.tcp, self.dice = world.hosts[number], world.hosts[number].stack.tcp, world.dice
        self.world, self.held = world, set()

    def act(self, wild=True):
        """Once through the news and all connections."""
        for handle, news, _error in self.tcp.ready():
            if news & ACCEPTED:
                self.held.add(handle)
            if news & CLOSED and handle in self.held:
                self.let_go(handle)
        for handle in list(self.held) if wild else ():
            with suppress(BrokenPipeError):
                self.pick()(handle)

    def pick(self):
        """Something to do with a connection; the gentle things more often."""
        tcp, dice = self.tcp, self.dice
        return dice.choices([
            lambda h: tcp.write(h, bytes(dice.choice([1, 1000, 30_000]))),
            lambda h: tcp.read(h, dice.choice([100, 1 << 20])),
            tcp.shutdown, self.let_go,
            lambda h: tcp.set_nodelay(h, dice.random() < 0.5),
            lambda h: tcp.set_keepalive(h, dice.random() < 0.5),
            lambda h: tcp.set_keepalive_idle(h, dice.choice([1, 60])),
            lambda h: tcp.set_user_timeout(h, dice.choice([0, 30_000])),
            lambda h: None], [20, 30, 3, 3, 1, 1, 1, 1, 40])[0]

    def let_go(self, handle):
        """Release or abort."""
        self.dice.choice([self.tcp.release, self.tcp.abort])(handle)
        self.held.discard(handle)

    def connect(self):
        """One more, unless there is no room or no way."""
        with suppress(OSError):
            self.held.add(self.tcp.connect(self.world.now, ADDRESSES[self.world.family][1], 80))


def mend(world):
    """Bring both links up."""
    for i, host in enumerate(world.hosts):
        host.stack.set_link(host.interface, True)
        host.stack.set_neighbor(host.interface, ADDRESSES[world.family][1 - i], bytes([2, 0, 0, 0, 0, 2 - i]).hex(":"))


@pytest.mark.parametrize("seed", range(20))
def test_chaos_ends_clean(seed):
    pick = World(seed).dice.choice
    features = pick([0, ALL_FEATURES])
    world = World(seed, family=pick([4, 6]), features=(features, features), delay=pick([0, 5 * MS, 50 * MS]),
                  jitter=pick([0, 5 * MS]), loss=pick([0, 0.02, 0.1, 0.3]), duplicate=0.05,
                  memory=pick([8192, 65536, 1 << 20]), connections=pick([4, 20, 100]), time_wait=pick([1, 5, 100]),
                  embryos=pick([1, 4, 100]), send_buffer=pick([2000, 50_000]), receive_buffer=pick([2000, 50_000]),
                  retransmissions=pick([3, 15]))
    mobs = [Mob(world, 0), Mob(world, 1)]
    for host in world.hosts:
        host.work = lambda: None
    listener = mobs[1].tcp.listen(None, 80, pick([1, 5, 100]))
    end, dice = world.now + 30 * S, world.dice
    while world.now < end:
        for mob in mobs:
            mob.act()
        if dice.random() < 0.3:
            mobs[0].connect()
        if dice.random() < 0.01:
            host = dice.choice(world.hosts)
            host.stack.set_link(host.interface, False)
        if dice.random() < 0.05:
            mend(world)
        world.run(lambda: False, dice.choice([MS, 20 * MS, 500 * MS]))
    mend(world)
    mobs[1].tcp.close_listener(listener)
    for mob in mobs:
        mob.act(wild=False)
        for handle in list(mob.held):
            mob.let_go(handle)
        mob.host.work = mob.tcp.ready
    world.settle()
