"""An AHCI host bus adapter with SATA devices, as strict as its specification: what a driver must not do raises Misuse.

    commands    command codes, what a slot holds, how a command ends
    identity    IDENTIFY DEVICE data
    drive       a disk: contents, what it answers, and what shall go wrong; with logs, smart and security
    packet      a CD drive with its disc
    multiplier  a port multiplier with its devices
    link        PHY and link of a port: presence, plugging, reset, speed, sleep, errors
    port        a port's registers, its engines and its received FISes
    adapter     `Model`: the adapter's registers, its interrupt and its ports; BAR 5 of a device
    card        the adapter as a PCI function behind a vfio-user server
"""

from tests.models.ahci.adapter import Model
from tests.models.ahci.commands import (
    FLUSH,
    IDENTIFY,
    QUEUED,
    READ_DMA,
    READ_FPDMA,
    READ_LOG,
    WRITE_DMA,
    WRITE_FPDMA,
    WRITE_FUA,
    Command,
)
from tests.models.ahci.drive import SECTOR, Drive
from tests.models.ahci.identity import identification

__all__ = ["FLUSH", "IDENTIFY", "QUEUED", "READ_DMA", "READ_FPDMA", "READ_LOG", "SECTOR", "WRITE_DMA", "WRITE_FPDMA",
           "WRITE_FUA", "Command", "Drive", "Model", "identification"]
