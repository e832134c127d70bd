"""How many descriptors a process of ours may have open: it needs some for each program that it looks after."""

import os
import resource


def raise_limit(wanted: int) -> int:
    """To so many at least, as far as we are allowed to; how many it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def room() -> int:
    """How many more we may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, soft - len(os.listdir("/proc/self/fd"))) if soft != resource.RLIM_INFINITY else 1 << 20
