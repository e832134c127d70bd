"""SATA disks behind AHCI host bus adapters: a request enters and leaves here.

    registers   the specification's register map
    commands    what we ask a drive besides reading and writing, as data
    identify    what a drive says of itself, and what of that can be true; smart does the same for its health
    options     what whoever takes a controller can choose
    steps       procedures that wait without blocking
    port        one port: its memory, and the procedures of the specification's checklists
    internal    the place for a command of our own in a port's memory, compiled
    queue       command slots, compiled: requests become commands, and commands end
    states      a port's life as data; ladder: what is done about errors that come again
    life        `AhciPort`: that life lived: plugging, turns, commands of our own; recovery from errors
    attach      who is at the other end: a disk (drive), a packet device (packet), a port multiplier (multiplier)
    disk        `AhciDisk`: a drive, or a medium in one, as a drivers.disk.Disk
    service     what an operator can have a drive do
    controller  `AhciController`: the adapter, its interrupt (line), its ports and disks

"AHCI" is the Serial ATA AHCI specification 1.3.1, "ACS-3" ATA/ATAPI Command Set 3, "SATA" Serial ATA 3.x.
"""
