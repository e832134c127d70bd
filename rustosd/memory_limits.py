"""How much private memory a program, and all that it starts, may have; what is above goes to swap."""

from typing import Final, NamedTuple

from rustosd.values import Size

LEAST: Final = 4 << 20
"""Octets of the smallest limit."""
_UNTOLD_MOST: Final = 1 << 20


class Limits(NamedTuple):
    """In octets of private anonymous memory, of all processes of a group together."""

    soft: int               # what is above goes to swap
    hard: int               # above it, who needs more waits

    @property
    def untold(self) -> int:
        """How much more a group may map before its pager must hear of it; it is as good as in memory until then."""
        return min(_UNTOLD_MOST, (self.hard - self.soft) // 8)


class WrongLimit(ValueError):
    """What is wrong with a limit; `which` by the name that the caller has given it."""

    def __init__(self, which: str, why: str) -> None:
        super().__init__(why)
        self.which = which


def limits(memory: Size | None, memory_max: Size | None, names: tuple[str, str] = ("memory", "memory_max")) -> Limits | None:
    """None: without a limit. `names`: what people call the two. Raises WrongLimit."""
    soft, hard = names
    if memory is None:
        if memory_max is not None:
            raise WrongLimit(hard, f"goes with {soft}")
        return None
    most = memory_max.octets if memory_max is not None else memory.octets + memory.octets // 4
    if memory.octets < LEAST:
        raise WrongLimit(soft, f"{memory}: at least {LEAST >> 20}M, or nothing would ever be done but swapping")
    if most <= memory.octets:
        raise WrongLimit(hard, f"{memory_max} is not more than {soft} {memory}")
    return Limits(memory.octets, most)
