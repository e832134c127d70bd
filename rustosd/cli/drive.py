"""What a drive behind a controller of ours says of itself, in words."""

from collections.abc import Iterator

from rustosd.cli.tables import plain
from rustosd.control import sata_protocol as p

GIGABITS = {1: "1.5 Gb/s", 2: "3 Gb/s", 3: "6 Gb/s"}
"""Generations of the link."""


def counts_text(counts: dict[str, int]) -> str:
    """Those that are not zero."""
    return plain([f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count])


def drive_facts(found: p.Drive) -> Iterator[tuple[str, str]]:
    """For `rustosctl disk show`."""
    speed, most = GIGABITS.get(found.generation or 0), GIGABITS.get(found.fastest_generation or 0)
    yield "link", plain(speed) + (f", {most} at most" if most and most != speed else "")
    yield "link power", found.link_power
    yield "write cache", {True: "on", False: "off", None: plain(None)}[found.write_cache]
    yield "trim", found.trim if found.trim == "none" else f"{found.trim}, then reads {found.after_trim}"
    yield "security", found.security
    if found.rotation_rpm:
        yield "rotation", f"{found.rotation_rpm} rpm"
    if found.form_factor or found.wwn:
        yield "form, WWN", f"{plain(found.form_factor)}, {plain(found.wwn)}"
    if found.aligned_at:
        yield "aligned at", f"sector {found.aligned_at}"
    health = {True: "good", False: "about to fail", None: plain(None)}[found.healthy]
    yield "health", health if found.celsius is None else f"{health}, {found.celsius} °C"
    yield "link and drive errors", counts_text(found.errors)
