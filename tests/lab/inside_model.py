"""What our AHCI driver does in the guest with the AHCI model, through vfio-pci and an IOMMU."""

from typing import Any

from drivers.ahci.controller import AhciController
from drivers.request import Operation
from tests.lab.inside_ahci import SECTOR, Direct
from tests.lab.inside_vfio import opened

PAGE = 4096
COMMANDS = 32


def exercise(bdf: str, kinds: tuple[str, ...], octets: bytes, timeout_ns: int) -> dict[str, Any]:
    """Write pages side by side, flush, read them back twice; the errnos, and what was read."""
    with opened(bdf) as device:
        made = AhciController(device, interrupts=kinds, timeout_ns=timeout_ns)
        disk = made.disks[0]
        memory = disk.allocate(COMMANDS * PAGE, "exercise")
        places = [(n * PAGE // SECTOR, PAGE // SECTOR, [(memory, n * PAGE, PAGE)]) for n in range(COMMANDS)]
        with memory.view() as view:
            view[:] = octets
            seen: dict[str, Any] = {"kind": made.interrupt_kind, "serial": disk.info.serial}
            direct = Direct(disk)
            seen["written"] = direct.run(*((Operation.WRITE, *place) for place in places))
            seen["flushed"] = direct.run((Operation.FLUSH, 0, 0, []))
            for name in ("first", "again"):
                view[:] = bytes(len(octets))
                seen[name] = direct.run(*((Operation.READ, *place) for place in places)), bytes(view)
        seen["statistics"] = disk.statistics()
        memory.free()
        made.close()
        return seen
