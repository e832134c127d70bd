"""The exceptions behind a Verdict: why a packet of ours could not go, for those who called us from Python."""

import errno

from netstack.verdict import HELP, Verdict

_ERRNO = {
    Verdict.NO_ROUTE: errno.ENETUNREACH,
    Verdict.NO_SOURCE_ADDRESS: errno.EADDRNOTAVAIL,
    Verdict.NEIGHBOR_FAILED: errno.EHOSTUNREACH,
    Verdict.NEIGHBOR_QUEUE_FULL: errno.ENOBUFS,
    Verdict.INTERFACE_DOWN: errno.ENETDOWN,
    Verdict.INTERFACE_QUEUE_FULL: errno.EAGAIN,
    Verdict.TOO_BIG: errno.EMSGSIZE,
    Verdict.NO_MEMORY: errno.ENOMEM,
}


def unsent_error(verdict: int, host: object = None) -> OSError:
    """The exception for a packet to `host` that ended with `verdict`, of the subclass OSError has for its errno.

    A full output queue is a BlockingIOError: try again once the device has taken some.
    """
    what = f"{host}: {HELP[verdict]}" if host else HELP[verdict]
    return OSError(_ERRNO.get(Verdict(verdict), errno.EIO), what)
