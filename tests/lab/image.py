"""Kernels for the guest, unpacked under build/lab so that the host's own boot is not touched, and the initrd.

Debian's is what the lab boots. Ubuntu's is for what Debian builds no kernel with: iommufd, and VFIO without an IOMMU.
Deleting build/lab fetches the newest kernels again. Nothing is installed here: scripts/lab does that.
"""

import compileall
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.packages import CACHE, ROOT, LabUnavailable, alone, apt, debian, run_apt, unpack

HERE = Path(__file__).resolve().parent

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio", "depmod": "kmod",
         "ip": "iproute2", "setpriv": "util-linux", "dpkg-deb": "dpkg"}
"""Commands the lab needs, each with the package it comes in."""
_IN_INITRD = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_APPLETS = ("sh", "mount", "mkdir", "insmod", "switch_root", "cat", "cp", "echo", "grep", "reboot")
_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
_UBUNTU = "noble"
_UNWANTED = ("drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/staging", "drivers/iio", "sound")
"""Two thirds of Debian's modules; nobody needs them here."""


@dataclass(frozen=True)
class Image:
    """A kernel that QEMU can boot, with its modules."""

    version: str
    kernel: Path
    modules: Path


def environment() -> dict[str, str]:
    """The environment with the directories where administrators' tools live on Debian."""
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


def image() -> Image:
    """The guest's kernel, Debian's, fetched and unpacked when it is not there yet. Raises LabUnavailable."""
    return _image("kernel-", _fetch_debian)


def ubuntu_image() -> Image:
    """The same of Ubuntu, which has CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV and CONFIG_VFIO_NOIOMMU. Raises LabUnavailable."""
    if not shutil.which("zstd"):
        raise LabUnavailable("Ubuntu's kernel comes packed with zstd: apt-get install zstd")
    return _image("ubuntu-", _fetch_ubuntu)


def _image(prefix: str, fetch: Callable[[Path], str]) -> Image:
    """The newest kernel in the cache, or what `fetch` puts into a directory as packages; it says which version that is."""
    path = environment()["PATH"]
    if lacking := [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]:
        raise LabUnavailable(f"the lab needs {' '.join(lacking)}: apt-get install --no-install-recommends "
                             f"{' '.join(lacking)}")
    if os.geteuid():
        raise LabUnavailable("the lab needs root, for network namespaces and to share the host's root with the guest")
    with alone():
        found = sorted(CACHE.glob(f"{prefix}*/vmlinux"), key=lambda path: path.stat().st_mtime)
        home = found[-1].parent if found else _unpack(prefix, fetch)
    version = home.name.removeprefix(prefix)
    return Image(version, home / "vmlinux", home / "lib" / "modules" / version)


def initrd(kernel: Image, directory: Path) -> Path:
    """Write the initrd into `directory`: busybox, the modules that reach the host's root, and where everything is."""
    tree = directory / "initrd"
    for name in ("bin", "proc", "sys", "dev", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(shutil.which("busybox"), tree / "bin" / "busybox")
    for applet in _APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    shutil.copy2(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    modules = list(dict.fromkeys(path for name in _IN_INITRD for path in _with_dependencies(kernel, name)))
    for module in modules:
        (tree / "modules" / module.name).write_bytes(_decompressed(module))
    (tree / "modules" / "order").write_text("".join(f"{module.name}\n" for module in modules))
    bin_directory = Path(sys.executable).parent
    settings = {"LAB_ROOT": ROOT, "LAB_PYTHON": sys.executable, "LAB_KERNEL": kernel.version, "LAB_MODULES": kernel.modules,
                "PATH": f"{bin_directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    (tree / "lab.env").write_text("".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items()))
    target = directory / "initrd.cpio"
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with target.open("wb") as out:
        subprocess.run(["cpio", "--create", "--format=newc", "--quiet"], cwd=tree, input=names.encode(), stdout=out,
                       env=environment(), check=True)
    shutil.rmtree(tree)
    return target


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage compressed with xz, which QEMU boots by PVH three seconds faster.

    Raises ValueError for another compression. Offsets: Linux, Documentation/arch/x86/boot.rst.
    """
    if bzimage[0x202:0x206] != b"HdrS":
        raise ValueError("this is no bzImage")
    start = (bzimage[0x1F1] + 1) * 512 + int.from_bytes(bzimage[0x248:0x24C], "little")
    payload = bzimage[start:start + int.from_bytes(bzimage[0x24C:0x250], "little")]
    if not payload.startswith(b"\xfd7zXZ\0"):
        raise ValueError("the kernel is not compressed with xz")
    return lzma.LZMADecompressor().decompress(payload)


def compile_sources() -> None:
    """Bytecode of ours beside its sources: every Python of a guest's would make it anew, twenty times as slowly."""
    for package in ("drivers", "mm", "netstack", "rustosd", "tests"):
        compileall.compile_dir(ROOT / package, quiet=2)


def _fetch_debian(directory: Path) -> str:
    """The package that `linux-image-amd64` stands for today."""
    return _download(directory, [], "linux-image-amd64", "on Debian run `apt-get update`; elsewhere unpack that "
                     "package's boot/ and lib/ under build/lab/kernel-VERSION yourself")


def _fetch_ubuntu(directory: Path) -> str:
    """The packages that `linux-image-generic` stands for today, from Ubuntu's archive, checked by the keys Debian has of it."""
    keyring = _KEYRING
    if not keyring.exists():
        trixie = apt(directory / "debian", debian("trixie"))
        run_apt(directory, trixie, "download", "ubuntu-keyring")
        subprocess.run(["dpkg-deb", "-x", next(directory.glob("ubuntu-keyring*.deb")), directory / "keys"], check=True)
        next(directory.glob("ubuntu-keyring*.deb")).unlink()
        keyring = directory / "keys" / _KEYRING.relative_to("/")
    source = f"deb [arch=amd64 signed-by={keyring}] http://archive.ubuntu.com/ubuntu"
    ubuntu = apt(directory / "ubuntu", f"{source} {_UBUNTU} main", f"{source} {_UBUNTU}-updates main")
    version = _download(directory, ubuntu, "linux-image-generic", "is Ubuntu's archive within reach?")
    run_apt(directory, ubuntu, "download", f"linux-modules-{version}")
    return version


def _download(directory: Path, options: list[str], name: str, advice: str) -> str:
    """Fetch what a package that stands for the newest kernel depends on; its version."""
    try:
        return _download_now(directory, options, name, advice)
    except LabUnavailable:
        if options:     # these lists are fresh
            raise
        run_apt(directory, options, "update")      # a fresh machine has none, an old one the names of former kernels
        return _download_now(directory, options, name, advice)


def _download_now(directory: Path, options: list[str], name: str, advice: str) -> str:
    found = subprocess.run(["apt-cache", *options, "depends", name], capture_output=True, text=True, check=False)
    match = re.search(r"Depends: linux-image-([0-9]\S+)", found.stdout)
    if not match:
        raise LabUnavailable(f"apt knows no {name}: {advice}")
    run_apt(directory, options, "download", f"linux-image-{match[1]}")
    return match[1]


def _unpack(prefix: str, fetch: Callable[[Path], str]) -> Path:
    """Fetch a kernel's packages and put what the guest needs of them under CACHE; never half of it."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        directory = Path(scratch)
        version = fetch(directory)
        home = directory / "home"
        home.mkdir()
        exclude = [f"./lib/modules/*/kernel/{name}" for name in _UNWANTED]
        for archive in directory.glob("*.deb"):
            unpack(archive, home, *exclude, "./usr/share")
        subprocess.run(["depmod", "-b", home, version], env=environment(), check=True)
        bzimage = home / "boot" / f"vmlinuz-{version}"
        try:
            (home / "vmlinux").write_bytes(extract_vmlinux(bzimage.read_bytes()))
        except ValueError:
            shutil.copy2(bzimage, home / "vmlinux")
        return home.rename(CACHE / f"{prefix}{version}")


def _decompressed(module: Path) -> bytes:
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-qdc", module], capture_output=True, check=True).stdout
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def _with_dependencies(kernel: Image, module: str) -> list[Path]:
    """The files to load for a module, in order."""
    base = kernel.modules.parents[2]
    listed = subprocess.run(["modprobe", "-d", base, "-S", kernel.version, "--show-depends", module],
                            env=environment(), capture_output=True, text=True, check=True)
    return [Path(line.split()[1]) for line in listed.stdout.splitlines() if line.startswith("insmod ")]
