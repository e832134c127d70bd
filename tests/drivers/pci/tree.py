"""Made-up machines: directories that look like /sys and /proc."""

from pathlib import Path


class Machine:
    """A root directory with PCI functions, interfaces, disks and mounts, put together by a test."""

    def __init__(self, root: Path):
        self.root = root
        self.mounts = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]
        self.swaps = ["Filename\tType\tSize\tUsed\tPriority"]
        self.next_index = 1
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/slots", "sys/class/net", "sys/class/block", "proc/self", "proc/1",
                       "sys/class/iommu"):
            (root / folder).mkdir(parents=True)
        self.mount()
        self.swap()

    def write(self, path: str | Path, text: str | bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else (text + "\n").encode())

    def link(self, path: str | Path, target: Path) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def pci(self, bdf: str, *, below: Path | None = None, vendor=0x8086, device=0x10D3, code=0x020000,
            driver: str | None = None, group: int | None = None, resource: str = "", **attributes) -> Path:
        """A function; its real directory."""
        path = (below or self.root / "sys/devices/pci0000:00") / bdf
        path.mkdir(parents=True)
        values = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{code:#08x}", "revision": "0x03",
                  "subsystem_vendor": "0x8086", "subsystem_device": "0xa01f", "numa_node": "-1", "irq": "16",
                  "resource": resource, "driver_override": "(null)"} | attributes
        for name, value in values.items():
            self.write(path / name, value)
        self.link(f"sys/bus/pci/devices/{bdf}", path)
        if driver:
            self.link(path / "driver", self.root / "sys/bus/pci/drivers" / driver)
        if group is not None:
            self.link(path / "iommu_group", self.root / f"sys/kernel/iommu_groups/{group}")
            self.link(f"sys/kernel/iommu_groups/{group}/devices/{bdf}", path)
            (self.root / "sys/class/iommu/dmar0").mkdir(exist_ok=True)
        return path

    def net(self, name: str, below: Path | None = None, *, lower: tuple[str, ...] = (), master: str | None = None) -> int:
        """An interface on a function, or a virtual one on others; its index."""
        path = (below or self.root / "sys/devices/virtual") / "net" / name
        index, self.next_index = self.next_index, self.next_index + 1
        for attribute, value in (("address", f"52:54:00:00:00:{index:02x}"), ("operstate", "up"), ("mtu", "1500"),
                                 ("ifindex", str(index))):
            self.write(path / attribute, value)
        self.link(f"sys/class/net/{name}", path)
        for other in lower:
            below_path = (self.root / "sys/class/net" / other).resolve()
            self.link(path / f"lower_{other}", below_path)
            self.link(below_path / f"upper_{name}", path)
            if master:
                self.link(below_path / "master", path)
        return index

    def block(self, name: str, number: str, below: Path | None = None, *, of: Path | None = None, sectors=2048,
              holds: tuple[Path, ...] = (), **attributes) -> Path:
        """A disk below a function, a partition `of` a disk, or a virtual one that `holds` others; its directory."""
        path = of / name if of else (below / "block" if below else self.root / "sys/devices/virtual/block") / name
        self.write(path / "dev", number)
        self.write(path / "size", str(sectors))
        if of:
            self.write(path / "partition", "1")
        for attribute, value in attributes.items():
            self.write(path / attribute.replace("__", "/"), value)
        self.link(f"sys/class/block/{name}", path)
        for held in holds:
            self.link(held / "holders" / name, path)
        return path

    def mount(self, number: str = "", point: str = "", filesystem: str = "ext4", source: str = "none") -> None:
        if number:
            self.mounts.append(f"36 27 {number} / {point} rw,noatime shared:1 - {filesystem} {source} rw")
        for process in ("self", "1"):
            self.write(f"proc/{process}/mountinfo", "\n".join(self.mounts))

    def swap(self, name: str = "", kind: str = "partition") -> None:
        if name:
            self.swaps.append(f"{name} {kind}\t1048572\t0\t-2")
        self.write("proc/swaps", "\n".join(self.swaps))
