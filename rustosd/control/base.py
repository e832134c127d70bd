"""What all methods of the control socket are made of: rows, parameters, and the description of a method."""

from typing import Any, Literal

import msgspec

Right = Literal["read", "change", "sockets"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a table; its field names are the keys of the JSON."""


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a method takes; anything else is refused by name."""


class Nothing(Parameters):
    """No parameters."""


class Done(Row):
    """It is done."""


class Method(msgspec.Struct, frozen=True):
    """A method: its name, its types, whether it changes the configuration (then it is logged), and what it does."""

    name: str
    takes: type
    gives: Any
    changes: bool
    help: str
    for_programs: bool = False
    """May also be called by those who may use sockets and nothing else; the handler is told who asks."""
    guarded: bool = False
    """Not for those who may only look, although it changes no configuration: it acts, or shows what passes or lies on disks."""

    @property
    def right(self) -> Right:
        """What a client needs to call it."""
        return "sockets" if self.for_programs else "change" if self.changes or self.guarded else "read"

    @property
    def handler(self) -> str:
        """The name of the function that carries it out."""
        return self.name.replace(".", "_")
