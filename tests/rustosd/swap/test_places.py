"""A place for every program's swap: files without a name, and parts of an export that are nobody else's."""

import asyncio
import errno
import os
import stat
import threading

import msgspec
import pytest

from drivers.block.ram import RamDisk
from rustosd.config import default
from rustosd.nbd.export import Export
from rustosd.nbd.server import NbdServer
from rustosd.swap.opening import open_store
from rustosd.swap.place import Place, from_builtins
from rustosd.swap.places import Places
from rustosd.values import ExportName, FilePath, Size

PAGE = 4096


def config(path, **changed):
    return msgspec.structs.replace(default().swap, path=FilePath(str(path)), size=Size("1MiB"), **changed)


def none(name):
    raise OSError(errno.ENOENT, f"there is no export {name}")


def round_trip(store):
    first = store.allocate(3)
    written = os.urandom(3 * PAGE)
    store.write(first, written)
    memory = bytearray(3 * PAGE)
    store.read_into(first, 3, memory)
    return memory == written


@pytest.mark.parametrize("changed", [{}, {"compression": "lz4"}, {"compression": "zstd"}, {"encryption": False},
                                     {"direct": True}])
def test_a_file_has_no_name_is_its_owners_and_as_large_as_was_said(tmp_path, changed):
    path = tmp_path / "var" / "swap"
    places = Places(lambda: config(path, **changed), none)
    place, end = places.take(900)
    with end:
        fd = os.dup(end.fileno())
    status = os.fstat(fd)
    assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_size) == (0, 0o600, 1 << 20)
    assert list(tmp_path.iterdir()) == []               # nor is there a directory that was made for it
    store = open_store(from_builtins(msgspec.to_builtins(place)), fd)
    assert store.sealer.encrypts is changed.get("encryption", True)
    assert (store.packer is None) is ("compression" not in changed)
    assert store.device.direct is changed.get("direct", False)
    assert round_trip(store)
    store.close()


def test_a_directory_that_is_there_stays(tmp_path):
    _, end = Places(lambda: config(tmp_path / "swap" / "below"), none).take(900)
    end.close()
    assert tmp_path.is_dir() and list(tmp_path.iterdir()) == []
    (tmp_path / "swap").mkdir()
    _, end = Places(lambda: config(tmp_path / "swap"), none).take(900)
    end.close()
    assert list((tmp_path / "swap").iterdir()) == [] and (tmp_path / "swap").is_dir()


@pytest.mark.parametrize("wanted", [True, False])
def test_whether_processors_are_kept_awake_is_passed_on(tmp_path, wanted):
    place, end = Places(lambda: config(tmp_path), none, lambda: wanted).take(900)
    with end:
        assert place.keep_awake is wanted


def test_a_directory_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no swap in .*file/swap: Not a directory; choose another path under \[swap\]"):
        Places(lambda: config(tmp_path / "file" / "swap"), none).take(900)


@pytest.fixture
async def served(tmp_path):
    """An NBD server with an export of 4 MiB, and places on it of 1 MiB each."""
    server = NbdServer(asyncio.get_running_loop())
    server.listen_unix(tmp_path / "nbd.sock")
    server.add(Export("swap0", RamDisk("swap0", 4 << 20)))
    places = Places(lambda: config(tmp_path, export=ExportName("swap0")), lambda name: (str(tmp_path / "nbd.sock"), 4 << 20))
    yield places
    places.close()
    await server.stop(0)


async def test_parts_of_an_export_do_not_touch_and_are_free_again_with_their_program(served):
    ends, stores, begins = [], [], []
    for pid in (1, 2):
        place, end = served.take(pid)
        ends.append(end)
        begins.append(place.begin)
        stores.append(await asyncio.to_thread(open_store, place, -1))
    assert begins == [0, 2 << 20]
    assert await asyncio.gather(*(asyncio.to_thread(round_trip, store) for store in stores)) == [True, True]
    with pytest.raises(OSError, match="of the 4 MiB of export swap0, 2 are other programs' swap, and 1 in"):
        served.take(3)
    ends[0].close()
    await asyncio.sleep(0.01)
    place, end = served.take(4)
    assert place.begin == 0
    for each in (end, ends[1]):
        each.close()
    await asyncio.gather(*(asyncio.to_thread(store.close) for store in stores))


async def test_an_export_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OSError, match="no export swap9"):
        Places(lambda: config(tmp_path, export=ExportName("swap9")), none).take(900)


def test_a_library_that_is_missing_is_said_with_what_to_do(tmp_path, monkeypatch):
    from mm.swap import seal

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(seal.ctypes, "CDLL", missing)
    place, end = Places(lambda: config(tmp_path), none).take(900)
    with end:
        fd = os.dup(end.fileno())
    with pytest.raises(OSError, match=r"libcrypto.so.3: .*apt-get install libssl3.*encryption = false under \[swap\]"):
        open_store(place, fd)


def test_threads_may_use_a_store_of_a_place_at_once(tmp_path):
    place, end = Places(lambda: config(tmp_path, compression="lz4"), none).take(900)
    with end:
        store = open_store(place, os.dup(end.fileno()))
    found = []
    threads = [threading.Thread(target=lambda: found.append(all(round_trip(store) for _ in range(20)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3


def test_what_another_version_says_is_refused():
    with pytest.raises(ValueError):
        from_builtins({"kind": "tape", "name": "x", "octets": 1})
    assert from_builtins(msgspec.to_builtins(Place(kind="file", name="x", octets=PAGE))).encryption
