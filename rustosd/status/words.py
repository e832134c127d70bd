"""Numbers as people read them. status.js says the same words; a test in a browser compares the two."""

from collections.abc import Sequence

from rustosd.cli.tables import MISSING, duration, milliseconds, octets

__all__ = ["MISSING", "PLOT_HEIGHT", "PLOT_WIDTH", "bit_rate", "count", "duration", "milliseconds", "octets", "plot",
           "rate"]

PLOT_WIDTH = 240
PLOT_HEIGHT = 48


def count(value: float) -> str:
    """A number with commas: 65,536."""
    return f"{value:,}"


def bit_rate(value: float) -> str:
    """Bits a second with a decimal unit: 1.5 Mbit/s."""
    amount, unit = float(value), "bit/s"
    for larger in ("kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{value:.0f} bit/s" if unit == "bit/s" else f"{amount:.1f} {unit}"


def rate(value: float) -> str:
    """So many a second: 1,234/s; with one digit below ten."""
    return f"{value:.1f}/s" if 0 < value < 10 else f"{value:,.0f}/s"


def plot(values: Sequence[float], points: int) -> tuple[str, str]:
    """The paths of a plot's line and of the area under it, PLOT_WIDTH by PLOT_HEIGHT, the newest value at the right.

    The scale begins at 0 and ends with the largest value. Empty without two values.
    """
    shown = values[-points:]
    if len(shown) < 2:
        return "", ""
    top, step = max(1, *shown), PLOT_WIDTH / (points - 1)
    first = points - len(shown)
    heights = [PLOT_HEIGHT - 1 - value / top * (PLOT_HEIGHT - 2) for value in shown]
    spots = [f"{(first + i) * step:.0f} {height:.1f}" for i, height in enumerate(heights)]
    line = "M" + "\nL".join(" L".join(spots[i:i + 16]) for i in range(0, len(spots), 16))
    return line, f"{line}\nV{PLOT_HEIGHT} H{first * step:.0f} Z"
