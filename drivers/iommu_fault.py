"""Accesses that an IOMMU has stopped, out of what the kernel says of them: Intel VT-d (DMAR) and AMD-Vi.

A fault is a device that reached for memory nobody gave it: a bug of its driver, a broken device, or an attack.
The lines are those of the kernel's drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c, from 4.19 on.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

_LONGEST: Final = 1024
_BDF: Final = r"(?P<bdf>(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])"
_INTEL: Final = re.compile(
    r"DMAR:\s?\[(?P<what>DMA Read|DMA Write|INTR-REMAP)(?: NO_PASID| PASID 0x[0-9a-f]{1,8})?\] "
    r"Request device \[(?P<bus>(?:0x)?[0-9a-f]{2}):(?P<slot>(?:0x)?[01][0-9a-f]\.[0-7])\] (?:PASID [0-9a-f]{1,8} )?"
    r"fault (?:addr|index) (?:0x)?(?P<address>[0-9a-f]{1,16}) "
    r"\[fault reason (?P<reason>(?:0x)?[0-9a-f]{1,4})\] ?(?P<text>[^\n]{0,200})", re.ASCII)
_AMD: Final = re.compile(
    rf"(?:(?P<driver>[\w.+-]{{1,64}}) {_BDF.replace('<bdf>', '<of>')}: )?AMD-Vi: Event logged \[(?P<what>[A-Z_]{{1,40}}) "
    rf"(?:device={_BDF} )?(?P<rest>[^\]\n]{{0,200}})\]", re.ASCII)
_AMD_FIELD: Final = re.compile(r"(\w{1,16})=0x([0-9a-f]{1,16})", re.ASCII)
_AMD_INTERRUPT: Final = 0x008       # flags of an event: I and RW; AMD IOMMU specification 48882, 2.5.3
_AMD_WRITE: Final = 0x020


class Access(Enum):
    """What the device wanted."""

    READ = "read"
    WRITE = "write"
    INTERRUPT = "interrupt"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class IommuFault:
    """One access that was stopped."""

    bdf: str
    """The function that asked, as "0000:03:00.0". Intel's lines name no segment: it is taken to be 0."""
    access: Access
    address: int
    """I/O virtual address; of an interrupt the index of its remapping table entry."""
    reason: str
    iommu: str
    """"intel" or "amd"."""


def parse(text: str) -> IommuFault | None:
    """The fault a line of the kernel's tells of; None for any other text."""
    if len(text) > _LONGEST:
        return None
    if match := _INTEL.match(text):
        access = {"DMA Read": Access.READ, "DMA Write": Access.WRITE}.get(match["what"], Access.INTERRUPT)
        reason = match["text"].strip() or f"reason {match['reason']}"
        bdf = f"{match['bus']}:{match['slot']}".replace("0x", "")      # written so by 5.14 to 5.17
        return IommuFault(_with_segment(bdf), access, int(match["address"], 16), reason, "intel")
    if (match := _AMD.match(text)) and (bdf := match["bdf"] or match["of"]):
        fields = {name: int(value, 16) for name, value in _AMD_FIELD.findall(match["rest"])}
        reason = match["what"].lower().replace("_", " ")
        return IommuFault(_with_segment(bdf), _amd_access(match["what"], fields.get("flags")), fields.get("address", 0),
                          reason, "amd")
    return None


def _amd_access(what: str, flags: int | None) -> Access:
    if flags is None or what not in ("IO_PAGE_FAULT", "RMP_PAGE_FAULT"):
        return Access.OTHER
    if flags & _AMD_INTERRUPT:
        return Access.INTERRUPT
    return Access.WRITE if flags & _AMD_WRITE else Access.READ


def _with_segment(bdf: str) -> str:
    return bdf if bdf.count(":") == 2 else f"0000:{bdf}"
