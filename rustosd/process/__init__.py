"""Unmodified Linux programs on the stack: their socket calls are answered here, everything else is the kernel's.

`supervisor` starts a program under a seccomp filter (`filter`, `launch`) and answers the calls that the filter hands over
(`notify`): `streams` and `datagrams` give the program ends of socketpairs in place of TCP and UDP sockets, which the daemon
joins to the stack as it does for `rustosd.client`. Reading, writing and polling are then the kernel's own.
"""
