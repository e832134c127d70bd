"""Devices that come and go while we run.

    uevent      the kernel's messages about them: a socket, and a parser that trusts none of it
    tracker     what to make of them, without clock or I/O: when a device is there to be taken, and when it is gone
"""
