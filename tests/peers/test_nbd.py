"""The daemon's disk, served on its own stack, on the kernel's TCP and on a unix socket, to Linux's clients; see docs/nbd.md."""

import json
import random

import pytest

from tests.peers.conftest import V4, V6, need

OCTETS = 64 << 20
CONFIG = """
[nbd]
listen = ["127.0.0.1:10810"]
[[disk]]
name = "memory"
kind = "ram"
size = "16MiB"
[[export]]
name = "disk0"
disk = "disk0"
[[export]]
name = "late"
disk = "disk0/p7"
"""


@pytest.fixture(scope="module")
def more_config():
    for tool in ("nbdinfo", "nbdcopy", "qemu-img", "fio"):
        need(tool)
    return CONFIG


@pytest.fixture
def uris(peer):
    """One for each way in."""
    return [f"nbd://{V4}/disk0", f"nbd://[{V6}]/disk0", "nbd://127.0.0.1:10810/disk0",
            f"nbd+unix:///disk0?socket={peer.control.with_name('nbd.sock')}"]


def test_every_way_in_leads_to_the_same_disk(peer, uris, tmp_path):
    image, back = tmp_path / "image", tmp_path / "back"
    for number, uri in enumerate(uris):
        image.write_bytes(random.Random(number).randbytes(4 << 20) + bytes(OCTETS - (4 << 20)))
        peer.netns.run("nbdcopy", "--destination-is-zero" if not number else "--synchronous", str(image), uri)
        peer.netns.run("nbdcopy", uris[number - 1], str(back))
        assert back.read_bytes() == image.read_bytes()
    told = json.loads(peer.netns.run("nbdinfo", "--json", "--list", f"nbd://{V4}/").stdout)
    assert [export["export-name"] for export in told["exports"]] == ["disk0"]
    peer.netns.run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), uris[0])


def test_fio_on_the_stack_verifies_what_it_wrote(peer, uris):
    said = peer.netns.run("fio", "--name=v", "--thread", "--ioengine=nbd", f"--uri={uris[0]}", "--rw=randwrite", "--bs=4k",
                          "--iodepth=32", "--size=16m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                          "--output-format=json").stdout
    assert json.loads(said[said.index("{"):])["jobs"][0]["error"] == 0


def test_octets_need_not_be_whole_sectors(peer, uris):
    need("qemu-io")
    said = peer.netns.run("qemu-io", "-f", "raw", "-c", "write -P 5 1000 3", "-c", "read -P 5 1000 3", uris[0]).stdout
    assert "failed" not in said


def test_the_operator_exports_and_unexports(peer):
    row = peer.ctl("disk", "export", "memory", "--name", "scratch", "--read-only", "--description", "for a while")["export"]
    assert (row["name"], row["disk"], row["octets"], row["read_only"]) == ("scratch", "memory", 16 << 20, True)
    told = json.loads(peer.netns.run("nbdinfo", "--json", f"nbd://{V4}/scratch").stdout)["exports"][0]
    assert (told["is_read_only"], told["description"]) == (True, "for a while")
    listed = peer.ctl("disk", "exports")["nbd"]
    assert [export["name"] for export in listed["exports"]] == ["disk0", "scratch"] and f"nbd://{V4}/" in listed["uris"]
    with peer.netns.popen(need("qemu-io"), "-r", "-f", "raw", "-c", "sleep 8000", f"nbd://{V4}/scratch") as holder:
        while not peer.ctl("disk", "exports")["nbd"]["exports"][1]["clients"]:
            assert holder.poll() is None
        peer.ctl("disk", "unexport", "scratch")         # with a client on it
        holder.kill()
    assert peer.netns.run("nbdinfo", f"nbd://{V4}/scratch", check=False).returncode != 0
    assert peer.netns.run("nbdinfo", f"nbd://{V4}/disk0").returncode == 0


def test_it_is_counted_and_shown(peer):
    metrics = peer.metrics()
    assert metrics['rustos_nbd_requests_total{command="write",export="disk0"}'] > 0
    assert metrics['rustos_nbd_written_octets_total{export="disk0"}'] > 4 << 20
    status = json.loads(peer.netns.run("curl", "-s", f"http://{V4}/status.json").stdout)
    (row,) = [service for service in status["services"] if service["name"] == "nbd"]
    assert (row["where"], row["command"]) == ("port 10809", f"nbdinfo nbd://{V4}/")
