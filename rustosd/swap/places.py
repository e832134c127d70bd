"""The daemon's side of swap: a place for every program that asks, as [swap] says."""

import asyncio
import contextlib
import errno
import io
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from mm.swap.device import nameless
from rustosd.config import SwapConfig
from rustosd.swap.place import Place

_PAGE: Final = 4096
_PIECE: Final = 2 << 20

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """It is there for a moment at least: files without a name go on without it. Raises OSError."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):      # somebody uses it by now
                folder.rmdir()


class Places:
    """Files without a name, or parts of one export, which are free again when their program's pager has ended."""

    def __init__(self, config: Callable[[], SwapConfig], export: Callable[[str], tuple[str, int]],
                 keep_awake: Callable[[], bool] = lambda: True) -> None:
        """`config`, `keep_awake`: as they are now. `export(name)`: where it is served and its octets; raises OSError."""
        self._config, self._export, self._keep_awake = config, export, keep_awake
        self._leases: dict[tuple[str, int, int], socket.socket] = {}      # export, first octet, octets: our end

    def take(self, pid: int) -> tuple[Place, socket.socket | io.FileIO]:
        """A place for the programs of the supervisor `pid`, and the descriptor to be handed over. Raises OSError."""
        config = self._config()
        octets = config.size.octets // _PAGE * _PAGE
        common: dict[str, Any] = {"compression": config.compression, "encryption": config.encryption,
                                  "keep_awake": self._keep_awake()}
        if config.export is not None:
            return self._part(str(config.export), octets, pid, common)
        name = str(Path(config.path) / f"{pid}.swap")
        try:
            with _directory(Path(config.path)):
                fd = nameless(name)
        except OSError as error:
            raise OSError(error.errno,
                          f"no swap in {config.path}: {error.strerror}; choose another path under [swap]") from None
        os.ftruncate(fd, octets)
        return Place(kind="file", name=name, octets=octets, direct=config.direct, **common), io.FileIO(fd, "r+")

    def _part(self, export: str, octets: int, pid: int, common: dict[str, Any]) -> tuple[Place, socket.socket]:
        path, there = self._export(export)
        octets = min(octets, there // _PAGE * _PAGE)
        begin = self._gap(export, octets, there)
        if begin is None:
            held = sum(size for name, _, size in self._leases if name == export)
            raise OSError(errno.ENOSPC,
                          f"of the {there >> 20} MiB of export {export}, {held >> 20} are other programs' "
                          f"swap, and {octets >> 20} in one piece are not left: choose a smaller size under [swap]")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        lease = (export, begin, octets)
        self._leases[lease] = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._left, lease)
        log.info("swap_given", export=export, begin_octets=begin, octets=octets, supervisor=pid)
        return Place(kind="export", name=export, octets=octets, begin=begin, socket=path, **common), theirs

    def _gap(self, export: str, octets: int, there: int) -> int | None:
        """Where so many octets in a row are nobody's."""
        begin = 0
        for _, first, size in sorted(lease for lease in self._leases if lease[0] == export):
            if first - begin >= octets:
                break
            begin = (first + size + _PIECE - 1) // _PIECE * _PIECE
        return begin if begin + octets <= there else None

    def _left(self, lease: tuple[str, int, int]) -> None:
        """The last who had the descriptor has ended: nothing else is ever said on it."""
        end = self._leases.pop(lease)
        asyncio.get_running_loop().remove_reader(end.fileno())
        end.close()
        log.info("swap_given_back", export=lease[0], begin_octets=lease[1], octets=lease[2])

    def close(self) -> None:
        """Forget who has what."""
        for lease in list(self._leases):
            self._left(lease)
