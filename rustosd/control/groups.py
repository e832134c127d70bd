"""Which groups of the host may use the control socket, and for what."""

import grp
from collections.abc import Container
from typing import Final, NamedTuple

from rustosd.config import Config
from rustosd.control.base import Right


class Groups(NamedTuple):
    """Whose members may do what, by number; None: nobody but root. Those who may change may look, too."""

    read: int | None = None
    change: int | None = None
    sockets: int | None = None

    def rights(self, member_of: Container[int]) -> frozenset[Right]:
        """What somebody in these groups may do."""
        may = {right for right, group in zip(("read", "change", "sockets"), self, strict=True)
               if group is not None and group in member_of}
        return frozenset(may | {"read"} if "change" in may else may)


ROOT_ONLY: Final = Groups()


def groups_of(config: Config) -> Groups:
    """As a configuration names them. Raises ValueError when there is none of a name."""
    control, sockets = config.control, config.sockets
    return Groups(
        _number(control.read_group, "read_group", "control"), _number(control.change_group, "change_group", "control"),
        _number(sockets.group if sockets.enabled else "", "group", "sockets"))


def _number(name: str, key: str, section: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name}, which {key} = ... under [{section}] names; "
                         f"make it: groupadd {name}") from None
