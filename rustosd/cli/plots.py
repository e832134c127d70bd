"""Numbers as pictures of characters: sparklines, bars, hexadecimal."""

import sys
from collections.abc import Iterator, Sequence
from typing import Final

LEVELS: Final = "▁▂▃▄▅▆▇█"
PLAIN_LEVELS: Final = "_.-=+*%#"
"""For an output that cannot show the others."""
BAR_WIDTH: Final = 40
PROGRESS_WIDTH: Final = 20
_PER_LINE: Final = 16


def _levels() -> str:
    try:
        LEVELS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_LEVELS
    return LEVELS


def sparkline(values: Sequence[float]) -> str:
    """A character for each value, the higher the larger; none of them negative."""
    levels, most = _levels(), max(values, default=0)
    return "".join(levels[min(int(value / most * len(levels)), len(levels) - 1)] if most else levels[0] for value in values)


def progress(share: float, width: int = PROGRESS_WIDTH) -> str:
    """A bar of which this share, 0 to 1, is filled."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return f"[{_levels()[-1] * filled}{' ' * (width - filled)}]"


def bars(rows: Sequence[tuple[str, int]], width: int = BAR_WIDTH) -> Iterator[str]:
    """A line for each (label, amount), without those before the first and after the last that is not zero."""
    filled = [i for i, (_, amount) in enumerate(rows) if amount]
    if not filled:
        return
    shown = rows[filled[0]:filled[-1] + 1]
    block, most = _levels()[-1], max(amount for _, amount in shown)
    labels = max(len(label) for label, _ in shown)
    for label, amount in shown:
        length = max(round(amount / most * width), 1 if amount else 0)
        yield f"{label:>{labels}}  {block * length:<{width}}  {amount}"


def hexdump(at: int, octets: bytes) -> str:
    """Lines as of `hexdump -C`, the first at offset `at`."""
    lines = []
    for begin in range(0, len(octets), _PER_LINE):
        part = octets[begin:begin + _PER_LINE]
        text = "".join(chr(octet) if 32 <= octet < 127 else "." for octet in part)
        halves = f"{part[:8].hex(' '):<23}  {part[8:].hex(' '):<23}"
        lines.append(f"{at + begin:08x}  {halves}  |{text}|\n")
    return "".join(lines)
