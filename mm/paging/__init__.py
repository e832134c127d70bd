"""Paging by userfaultfd: what an address space has too much of goes to swap, and comes back when it is touched.

`userfault` is the kernel's interface, `table` says where each page is, `space` is one address space, `faults` brings pages in
(`writers` knows who will write them) and `pager` takes them out. None of it waits for the GIL: who touches a page may hold it.
"""
