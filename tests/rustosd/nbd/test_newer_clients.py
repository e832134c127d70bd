"""Extended headers, judged by clients that speak them: libnbd 1.22 and QEMU 10, from Debian's stable release.

They are fetched with all their libraries (25 MB, 80 unpacked) into build/lab/nbd-clients and run from there by their own
dynamic loader; deleting that directory fetches the newest again.
"""

import asyncio
import json
import os
import random
import tempfile
from pathlib import Path

import pytest

from drivers.block.file import FileDisk
from drivers.block.ram import RamDisk
from tests.lab.packages import CACHE, LabUnavailable, alone, apt, closure, debian, unpack

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
HOME = CACHE / "nbd-clients"
PACKAGES = ("libnbd-bin", "python3-libnbd", "qemu-utils")
UNWANTED = ("./usr/share/doc", "./usr/share/locale", "./usr/share/man")
PATIENCE_S = 120
GIB = 1 << 30


def fetch() -> None:
    """Put them under HOME, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archives, home = Path(scratch) / "archives", Path(scratch) / "home"
        archives.mkdir()
        home.mkdir()
        for archive in closure(archives, apt(archives, debian("trixie")), *PACKAGES):
            unpack(archive, home, *UNWANTED)
        home.rename(HOME)


@pytest.fixture(scope="module")
def newer():
    """Runs one of their programs; what it says, standard error included."""
    if os.uname().machine != "x86_64":
        pytest.skip("they are fetched for x86-64 machines only")
    try:
        with alone():
            if not HOME.exists():
                fetch()
    except LabUnavailable as why:
        pytest.skip(str(why))

    async def run(program, *arguments) -> str:
        process = await asyncio.create_subprocess_exec(
            HOME / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", HOME / "usr/lib/x86_64-linux-gnu",
            HOME / "usr/bin" / program, *map(str, arguments), env=os.environ | {"PYTHONHOME": f"{HOME}/usr"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        try:
            said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, said.decode()[-2000:]
        return said.decode()
    return run


@pytest.fixture
async def large(make):
    """A disk of 64 GiB in memory."""
    made = make()
    made.export(disk=RamDisk("disk", 64 * GIB))
    return made


async def libnbd(newer, uri, script):
    """Python with libnbd's binding; `h` is a connection by extended headers."""
    return await newer("python3.13", "-c", f"import nbd\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\n"
                       f"h.connect_uri({uri!r})\nassert h.get_extended_headers_negotiated()\n{script}")


async def test_nbdinfo_and_nbdcopy_use_them(make, newer, tmp_path):
    made = make()
    made.export(disk=FileDisk.open(str(tmp_path / "disk"), create_octets=32 << 20))
    told = json.loads(await newer("nbdinfo", "--json", made.uri()))
    assert told["extended"] is True and told["exports"][0]["contexts"] == ["base:allocation"]
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(random.Random(1).randbytes(3 << 20) + bytes(28 << 20) + random.Random(2).randbytes(1 << 20))
    await newer("nbdcopy", image, made.uri())
    await newer("nbdcopy", "--connections=4", made.uri(), back)
    assert back.read_bytes() == image.read_bytes()
    mapped = json.loads(await newer("nbdinfo", "--map", "--json", made.uri()))
    assert [(extent["offset"], extent["type"]) for extent in mapped] == [(0, 0), (3 << 20, 3), (31 << 20, 0)]


async def test_lengths_beyond_32_bits(large, newer):
    said = await libnbd(newer, large.uri(), f"""
places = (0, 20 * {GIB} + 512, 64 * {GIB} - 4096)
for place in places:
    h.pwrite(b"x" * 512, place, nbd.CMD_FLAG_FUA)
found = []
def extents(context, at, entries, error):
    found.extend(entries)
    return 0
h.block_status_64(h.get_size(), 0, extents)
assert found[0] == (4096, 0) and found[1] == (20 * {GIB} - 4096, 3) and sum(size for size, _ in found) == h.get_size(), found
h.zero(40 * {GIB}, 0)
assert h.pread(512, 0) == bytes(512) == h.pread(512, places[1])
assert h.pread(512, places[2]) == b"x" * 512
h.trim(24 * {GIB}, 40 * {GIB})
assert h.pread(512, places[2]) == bytes(512)
h.flush()
h.cache(5 * {GIB}, 0)
chunks = []
h.pread_structured(1 << 20, 0, lambda data, at, status, error: chunks.append((at, len(data), status)))
assert chunks == [(0, 1 << 20, nbd.READ_HOLE)], chunks
h.set_strict_mode(nbd.STRICT_AUTO_FLAG)
for call in (lambda: h.pread(512, h.get_size()), lambda: h.pwrite(bytes(512), h.get_size()), lambda: h.pread(1, 0),
             lambda: h.zero(5 * {GIB}, 60 * {GIB}), lambda: h.trim(5 * {GIB}, 60 * {GIB})):
    try:
        call()
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
""")
    assert said.split() == ["EINVAL", "ENOSPC", "EINVAL", "ENOSPC", "EINVAL"]


async def test_qemu_uses_them(large, newer, tmp_path):
    uri = large.uri()
    said = await newer("qemu-io", "-f", "raw", "-c", "write -P 7 2M 3M", "-c", "write -f -P 8 3M 4k", "-c", "read -P 8 3M 4k",
                       "-c", "write -z -u -n 2M 8G", "-c", "read -P 0 2M 1M", "-c", "discard 0 1G", "-c", "flush", uri)
    assert "failed" not in said and "error" not in said
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(5 << 20))
    await newer("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    mapped = json.loads(await newer("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert [(extent["start"], extent["data"]) for extent in mapped] == [(0, True), (5 << 20, False)]
    assert mapped[1]["length"] == 64 * GIB - (5 << 20)
