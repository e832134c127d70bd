"""The part of the protocol that is about policies of programs; see `rustosd.control.protocol`."""

from rustosd.control.base import Method, Nothing, Row


class Policy(Row):
    """What some programs may reach; null: everything."""

    name: str
    users: list[str]
    groups: list[str]
    connect: list[str] | None
    bind: list[str] | None
    denied: dict[str, int]      # how often, by what it was: connect, send, bind, listen


METHODS = (
    Method("policy.list", Nothing, list[Policy], False, "What programs may reach, and how often they were denied more."),
)
