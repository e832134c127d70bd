"""Signals by the names that people use."""

import signal


def signal_name(number: int) -> str:
    """SIGSEGV and its like, and SIGRTMIN+3."""
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
