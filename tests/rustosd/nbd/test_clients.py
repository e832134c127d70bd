"""Clients nobody here wrote, against the server: libnbd's tools and its Python, QEMU's, fio. See docs/nbd.md."""

import asyncio
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from drivers.block.file import FileDisk
from rustosd.nbd.server import Limits

PATIENCE_S = 60


async def run(*command, check=True) -> str:
    """What a client says, standard error included."""
    tool = shutil.which(command[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if tool is None:
        pytest.skip(f"needs {command[0]}: scripts/test installs it when run as root")
    process = await asyncio.create_subprocess_exec(tool, *map(str, command[1:]), stdout=asyncio.subprocess.PIPE,
                                                   stderr=asyncio.subprocess.STDOUT)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert not check or process.returncode == 0, said.decode()[-2000:]
    return said.decode()


async def libnbd(uri: str, script: str) -> str:
    """Run Python with libnbd's binding as nbdsh does: `h` is a connection. It comes with the system's own Python."""
    if not any(Path("/usr/lib/python3/dist-packages").glob("nbd.py")):
        pytest.skip("needs python3-libnbd: scripts/test installs it when run as root")
    return await run("/usr/bin/python3", "-c", f"import nbd\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\n"
                     f"h.connect_uri({uri!r})\n{script}")


@pytest.fixture
def image(tmp_path):
    """A file with data at both ends and a hole between them."""
    path = tmp_path / "image"
    data = random.Random(1).randbytes(1 << 20)
    with path.open("wb") as out:
        out.write(data)
        out.truncate(31 << 20)
        out.seek(31 << 20)
        out.write(data)
    return path


@pytest.fixture
async def filed(make, tmp_path):
    """A sparse file served."""
    made = make()
    made.export(disk=FileDisk.open(str(tmp_path / "disk"), create_octets=32 << 20), description="a sparse file")
    return made


async def test_nbdinfo(filed):
    told = json.loads(await run("nbdinfo", "--json", filed.uri()))
    export = told["exports"][0]
    assert (told["protocol"], told["structured"]) == ("newstyle-fixed", True)
    assert (export["export-size"], export["description"]) == (32 << 20, "a sparse file")
    assert export["contexts"] == ["base:allocation"]
    for able in ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert export[able], able
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, 32 << 20)
    listed = json.loads(await run("nbdinfo", "--list", "--json", filed.uri("")))
    assert [export["export-name"] for export in listed["exports"]] == ["disk"]
    assert "No such file" in await run("nbdinfo", filed.uri("nowhere"), check=False)


async def test_nbdcopy_there_and_back_keeps_the_holes(filed, image, tmp_path):
    await run("nbdcopy", image, filed.uri())
    back = tmp_path / "back"
    await run("nbdcopy", "--connections=4", filed.uri(), back)
    assert back.read_bytes() == image.read_bytes()
    assert back.stat().st_blocks * 512 < 4 << 20
    mapped = json.loads(await run("nbdinfo", "--map", "--json", filed.uri()))
    assert [(extent["offset"], extent["type"]) for extent in mapped] == [(0, 0), (1 << 20, 3), (31 << 20, 0)]


async def test_libnbd_in_python(filed):
    said = await libnbd(filed.uri(), """
h.pwrite(b"fua!" * 128, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(512, 4096) == b"fua!" * 128
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 4096); h.flush(); h.cache(1 << 20, 0)
chunks = []
h.pread_structured(65536, 0, lambda data, at, status, error: chunks.append((at, len(data), status)))
assert chunks == [(0, 65536, nbd.READ_HOLE)], chunks
found = []
h.block_status(h.get_size(), 0, lambda context, at, entries, error: found.append((context, at, entries)))
assert found[0][:2] == ("base:allocation", 0), found
for call in (lambda: h.pread(512, h.get_size()), lambda: h.pwrite(bytes(512), h.get_size()), lambda: h.pread(1, 0)):
    try:
        call()
    except nbd.Error as error:
        print(error.errno)
h.set_strict_mode(0)
for call in (lambda: h.pread(512, h.get_size()), lambda: h.pwrite(bytes(512), h.get_size()), lambda: h.pread(1, 0),
             lambda: h.zero(512, h.get_size()), lambda: h.trim(512, h.get_size())):
    try:
        call()
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
""")
    assert said.split() == ["EINVAL", "ENOSPC", "EINVAL", "EINVAL", "ENOSPC", "EINVAL", "ENOSPC", "EINVAL"]


async def test_qemu(filed, image, tmp_path):
    uri = filed.uri()
    await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
    said = await run("qemu-io", "-f", "raw", "-c", "write -P 7 2M 3M", "-c", "write -f -P 8 3M 4k", "-c", "read -P 8 3M 4k",
                     "-c", "write -z -u 2M 1M", "-c", "read -P 0 2M 1M", "-c", "discard 4M 1M", "-c", "flush",
                     "-c", "aio_write -P 9 10M 2M", "-c", "aio_write -P 9 12M 2M", "-c", "aio_flush",
                     "-c", "read -P 9 10M 4M", uri)
    assert "failed" not in said and "error" not in said
    await run("qemu-img", "create", "-f", "qcow2", uri, "24M")
    await run("qemu-io", "-f", "qcow2", "-c", "write -P 3 5M 7M", uri)
    assert "No errors" in await run("qemu-img", "check", "-f", "qcow2", uri)
    assert json.loads(await run("qemu-img", "map", "--output=json", "-f", "raw", uri))


async def test_fio_verifies_what_it_wrote(filed):
    for mode, block in (("randwrite", "4k"), ("write", "192k")):
        told = await run("fio", "--name=verify", "--thread", "--ioengine=nbd", f"--uri={filed.uri()}", f"--rw={mode}",
                         f"--bs={block}", "--iodepth=32", "--size=24m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
                         "--fsync=256", "--verify_state_save=0", "--output-format=json")
        job = json.loads(told[told.index("{"):])["jobs"][0]
        assert job["error"] == 0 and job["read"]["io_bytes"] == job["write"]["io_bytes"] > 23 << 20


async def test_nbdsh_s_library_on_many_connections_at_once(filed):
    """A flush on one covers what the others wrote; unmodified nbdcopy opens several when CAN_MULTI_CONN is set."""
    await libnbd(filed.uri(), f"""
others = []
for _ in range(8):
    other = nbd.NBD(); other.connect_uri({filed.uri()!r}); others.append(other)
assert h.can_multi_conn()
for index, other in enumerate(others):
    other.pwrite(bytes([index + 1]) * 4096, index * 4096)
h.flush()
assert h.pread(8 * 4096, 0) == b"".join(bytes([index + 1]) * 4096 for index in range(8))
""")


async def test_many_clients_and_one_too_many(make):
    made = make(Limits(connections=3))
    made.export()
    for _ in range(3):
        await made.client()
    assert "export=" not in await run("nbdinfo", made.uri(), check=False)
    assert made.server.refused["too_many_connections"] == 1
    await made.clients[0].close()
    await asyncio.sleep(0.1)
    await run("nbdinfo", made.uri())
