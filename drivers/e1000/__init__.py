"""Intel's gigabit Ethernet controllers of the 8254x family and the 82574: a frame enters and leaves here.

    registers   the datasheets' register maps
    chips       what differs between the controllers
    nvm, phy    the MAC address; the link
    controller  bring-up, filters, interrupts, statistics: everything but frames
    receive     the receive ring, compiled
    transmit    the transmit ring, compiled
    nic         `E1000`: the whole card as a drivers.nic.Nic

The datasheets: "8254x" is Intel 317453 (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual),
"82574" is Intel 317694 (82574 GbE Controller Family Datasheet).
"""
