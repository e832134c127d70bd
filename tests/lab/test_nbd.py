"""Linux's own NBD client against our server: a filesystem on /dev/nbd0 is made, used, trimmed, checked, and found again."""

import shutil

import pytest

from tests.lab import inside_nbd as inside

OCTETS = 256 << 20
SOCKET, IMAGE, MOUNT = "/tmp/nbd.sock", "/tmp/nbd.img", "/tmp/nbd-mount"


@pytest.fixture(autouse=True, scope="module")
def prepared(guest):
    if not shutil.which("nbd-client", path="/usr/sbin:/usr/bin"):
        pytest.skip("needs nbd-client: scripts/test installs it when run as root")
    guest.preload("tests.lab.inside_nbd")
    guest.run("modprobe nbd nbds_max=2 && modprobe ext4 && mkdir -p " + MOUNT)


def connected(guest):
    """The server, with /dev/nbd0 on it by two connections."""
    serving = guest.start(inside.serve, SOCKET, IMAGE, OCTETS, timeout=300)
    assert serving.next() == "up"
    guest.run(f"nbd-client -N disk -C 2 -unix {SOCKET} /dev/nbd0", timeout=60)
    return serving


def test_a_filesystem_on_linux_s_nbd(guest):
    serving = connected(guest)
    assert int(guest.run("blockdev --getsize64 /dev/nbd0").stdout) == OCTETS
    guest.run("mkfs.ext4 -q -E nodiscard /dev/nbd0", timeout=120)
    guest.run(f"mount -o discard /dev/nbd0 {MOUNT} && head -c 20000000 /dev/urandom > {MOUNT}/file && sync && "
              f"sha256sum < {MOUNT}/file > /tmp/nbd.sum && cp {MOUNT}/file {MOUNT}/other && sync", timeout=120)
    before = int(guest.run(f"stat -c %b {IMAGE}").stdout)
    guest.run(f"rm {MOUNT}/other && sync && fstrim {MOUNT} && umount {MOUNT}", timeout=120)
    assert int(guest.run(f"stat -c %b {IMAGE}").stdout) < before - 30000        # trimmed: at least 15 MB of storage are free
    guest.run("e2fsck -f -n /dev/nbd0", timeout=120)
    guest.run("nbd-client -d /dev/nbd0", timeout=60)
    told = serving.result()
    requests = told["requests"]
    assert all(requests[name] for name in ("read", "write", "flush", "trim")) and not sum(told["errors"].values())
    assert told["ended"]["disconnect"] and sum(told["ended"].values()) == 2

    serving = connected(guest)          # another server on the same file has all of it
    guest.run(f"mount -o ro /dev/nbd0 {MOUNT} && sha256sum < {MOUNT}/file | cmp - /tmp/nbd.sum && umount {MOUNT}", timeout=120)
    guest.run("nbd-client -d /dev/nbd0", timeout=60)
    serving.result()
    guest.run(f"rm {IMAGE}")
