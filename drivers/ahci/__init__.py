"""SATA disks behind AHCI host bus adapters: a request enters and leaves here.

    registers   the specification's register map
    identify    what a drive says of itself, and what of that can be true
    steps       procedures that wait without blocking
    port        one port: its memory, and the procedures of the specification's checklists
    queue       command slots, compiled: requests become commands, and commands end
    disk        `AhciDisk`: a drive as a drivers.disk.Disk, its life as a table of states, recovery from errors
    controller  `AhciController`: the adapter, its interrupt and its disks

"AHCI" is the Serial ATA AHCI specification 1.3.1, "ACS-3" ATA/ATAPI Command Set 3, "SATA" Serial ATA 3.x.
"""
