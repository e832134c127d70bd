"""Tells callgrind when to count; does nothing outside it. Compiled by compiled.py where valgrind is installed."""


def toggle() -> None:
    """Begin to count instructions, or stop."""
    toggle_collection()  # noqa: F821 (declared in collect.pxd)
