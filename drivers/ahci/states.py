"""The life of a port as data: which state follows which, and on what."""

from enum import Enum, IntEnum, auto
from typing import Final


class State(IntEnum):
    """Where a port is. From LOST on its disks take requests, which are done sooner or later."""

    GONE = 0
    """The controller has left."""
    FAILED = 1
    """Its drive cannot be used; `AhciPort.reason` says why."""
    ABSENT = 2
    """Nothing is attached, or no disk."""
    LOST = 3
    """The link went or came: is anybody there, and stays?"""
    RESETTING = 4
    """The link is set up, and the device starts."""
    IDENTIFYING = 5
    READY = 6
    RECOVERING = 7
    """A command failed; the command engine is restarted."""
    SERVING = 8
    """A command of our own runs, alone."""


class Event(Enum):
    """What happens to a port."""

    NO_DISK = auto()
    STARTED = auto()
    """The device is there and idle, and says that it is a disk."""
    IDENTIFIED = auto()
    ERROR = auto()
    RECOVERED = auto()
    RESET = auto()
    """COMRESET: nothing milder helps."""
    GIVE_UP = auto()
    PLUG = auto()
    """Something was plugged or unplugged."""
    SERVE = auto()
    SERVED = auto()
    LEFT = auto()
    """All ones."""


class ImpossibleTransition(Exception):
    """An event in a state in which it cannot happen: the driver is wrong."""


TRANSITIONS: Final = {
    (State.RESETTING, Event.NO_DISK): State.ABSENT,
    (State.IDENTIFYING, Event.NO_DISK): State.ABSENT,
    (State.LOST, Event.NO_DISK): State.ABSENT,
    (State.RESETTING, Event.STARTED): State.IDENTIFYING,
    (State.IDENTIFYING, Event.IDENTIFIED): State.READY,
    (State.READY, Event.ERROR): State.RECOVERING,
    (State.RECOVERING, Event.RECOVERED): State.READY,
    (State.READY, Event.SERVE): State.SERVING,
    (State.SERVING, Event.SERVED): State.READY,
    (State.READY, Event.RESET): State.RESETTING,
    (State.RECOVERING, Event.RESET): State.RESETTING,
    (State.SERVING, Event.RESET): State.RESETTING,
    (State.IDENTIFYING, Event.RESET): State.RESETTING,
    (State.RESETTING, Event.RESET): State.RESETTING,
    (State.LOST, Event.RESET): State.RESETTING,
    (State.RESETTING, Event.GIVE_UP): State.FAILED,
    (State.IDENTIFYING, Event.GIVE_UP): State.FAILED,
    (State.RECOVERING, Event.GIVE_UP): State.FAILED,
    (State.SERVING, Event.GIVE_UP): State.FAILED,
    (State.READY, Event.GIVE_UP): State.FAILED,
    # The ways back.
    (State.ABSENT, Event.PLUG): State.LOST,
    (State.FAILED, Event.PLUG): State.LOST,
    (State.READY, Event.PLUG): State.LOST,
} | {(state, Event.LEFT): State.GONE for state in State}


def after(state: State, event: Event) -> State:
    """The state that follows. Raises ImpossibleTransition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{event.name} in {state.name}") from None
