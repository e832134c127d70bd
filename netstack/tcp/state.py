"""The TCP state machine as data (RFC 9293 figure 5)."""

import cython
from cython.cimports.libc.stdint import int8_t

# Figure 5's arrows. RESET leads to CLOSED from everywhere and is added below.
TRANSITIONS = {
    (CLOSED, ACTIVE_OPEN): SYN_SENT,
    (LISTEN, RCV_SYN): SYN_RECEIVED,
    (SYN_SENT, RCV_SYN): SYN_RECEIVED,              # simultaneous open
    (SYN_SENT, RCV_SYN_ACK): ESTABLISHED,
    (SYN_RECEIVED, RCV_ACK_OF_SYN): ESTABLISHED,
    (SYN_RECEIVED, SEND_FIN): FIN_WAIT_1,
    (ESTABLISHED, SEND_FIN): FIN_WAIT_1,
    (ESTABLISHED, RCV_FIN): CLOSE_WAIT,
    (FIN_WAIT_1, RCV_FIN): CLOSING,
    (FIN_WAIT_1, RCV_ACK_OF_FIN): FIN_WAIT_2,
    (FIN_WAIT_1, RCV_FIN_AND_ACK_OF_FIN): TIME_WAIT,
    (FIN_WAIT_2, RCV_FIN): TIME_WAIT,
    (CLOSE_WAIT, SEND_FIN): LAST_ACK,
    (CLOSING, RCV_ACK_OF_FIN): TIME_WAIT,
    (LAST_ACK, RCV_ACK_OF_FIN): CLOSED,
    (TIME_WAIT, TIMEOUT_2MSL): CLOSED,
}
TRANSITIONS |= {(state, RESET): CLOSED for state in range(STATES)}

NAMES = ("CLOSED", "LISTEN", "SYN_SENT", "SYN_RECEIVED", "ESTABLISHED", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSE_WAIT",
         "CLOSING", "LAST_ACK", "TIME_WAIT")

_next = cython.declare(int8_t[11 * 10])


class ImpossibleTransition(ValueError):
    """The state machine has no such arrow; nothing was changed."""


def transition(state: int, event: int) -> int:
    """The state after `event`. Raises ImpossibleTransition where RFC 9293 draws no arrow."""
    if (state, event) not in TRANSITIONS:
        raise ImpossibleTransition(f"no arrow leaves {NAMES[state]} on {Event(event).name}")
    return TRANSITIONS[state, event]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def next_state(state: cython.int, event: cython.int) -> cython.int:
    """`transition` without Python: -1 for an impossible one."""
    return _next[state * EVENTS + event]


def _compile() -> None:
    for cell in range(STATES * EVENTS):
        _next[cell] = -1
    for (state, event), to in TRANSITIONS.items():
        _next[state * EVENTS + event] = to


assert STATES == 11 and EVENTS == 10, "the table's size is spelled out above"
_compile()
