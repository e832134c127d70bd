"""How many descriptors a process of ours may have open: it needs some for each program that it looks after."""

import resource


def raise_limit(wanted: int) -> None:
    """To so many at least, as far as we are allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
