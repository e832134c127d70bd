"""A program's side of swap: a place is asked for, and a store opened there."""

import os
from typing import Final

import msgspec

from mm.swap.device import Device, FileDevice
from mm.swap.pack import Lz4, Packer, Zstd
from mm.swap.seal import LibraryMissing
from mm.swap.store import SwapStore
from rustosd.client.session import DEFAULT_SOCKET, Door
from rustosd.nbd.device import NbdDevice
from rustosd.swap.place import Place
from rustosd.swap.sealing import sealer

_PACKERS: Final[dict[str, type[Packer]]] = {"lz4": Lz4, "zstd": Zstd}


def ask(path: str | None = None) -> tuple[Place, int]:
    """A place from the daemon, and its descriptor, the caller's. Raises OSError that says what to do."""
    result, fd = Door(path or os.environ.get("RUSTOSD_SOCKET") or DEFAULT_SOCKET, "swap.take", "no swap").take()
    try:
        return msgspec.convert(result, Place), fd
    except msgspec.ValidationError as error:
        os.close(fd)
        raise OSError(71, f"rustosd is of another version: {error}") from None


def open_store(place: Place, fd: int) -> SwapStore:
    """The store at a place. `fd` is the store's from now on: keep it open as long. Raises OSError, ValueError.

    Nobody else may open the same place.
    """
    try:
        return SwapStore(open_device(place, fd), sealer=sealer(place.encryption),
                         packer=None if place.compression == "none" else _PACKERS[place.compression]())
    except LibraryMissing as error:
        raise OSError(2, str(error)) from None


def open_device(place: Place, fd: int) -> Device:
    """The device alone. Raises OSError."""
    if place.kind == "file":
        return FileDevice(place.name, place.octets, direct=place.direct, fd=fd)
    return NbdDevice(place.socket, place.name, begin=place.begin, octets=place.octets)
