from collections.abc import Callable
from typing import Protocol

from mm.frame import RxBurst, TxBurst

GONE: int

class Nic:
    name: str
    mac: bytes
    mtu: int
    features: int
    link_up: bool
    def receive(self, burst: RxBurst) -> int: ...
    def transmit(self, burst: TxBurst) -> int: ...
    def room(self) -> int: ...
    def fileno(self) -> int: ...
    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None: ...

class LinkTeller(Protocol):
    on_link_change: Callable[[], None] | None
