"""The state machine as data: every arrow of RFC 9293 figure 5 and no other."""

import itertools

import pytest

from netstack.tcp.state import NAMES, Event, ImpossibleTransition, State, transition

ARROWS = """
CLOSED        ACTIVE_OPEN             SYN_SENT
LISTEN        RCV_SYN                 SYN_RECEIVED
SYN_SENT      RCV_SYN                 SYN_RECEIVED
SYN_SENT      RCV_SYN_ACK             ESTABLISHED
SYN_RECEIVED  RCV_ACK_OF_SYN          ESTABLISHED
SYN_RECEIVED  SEND_FIN                FIN_WAIT_1
ESTABLISHED   SEND_FIN                FIN_WAIT_1
ESTABLISHED   RCV_FIN                 CLOSE_WAIT
FIN_WAIT_1    RCV_FIN                 CLOSING
FIN_WAIT_1    RCV_ACK_OF_FIN          FIN_WAIT_2
FIN_WAIT_1    RCV_FIN_AND_ACK_OF_FIN  TIME_WAIT
FIN_WAIT_2    RCV_FIN                 TIME_WAIT
CLOSE_WAIT    SEND_FIN                LAST_ACK
CLOSING       RCV_ACK_OF_FIN          TIME_WAIT
LAST_ACK      RCV_ACK_OF_FIN          CLOSED
TIME_WAIT     TIMEOUT_2MSL            CLOSED
"""
TABLE = {(start, event): end for start, event, end in map(str.split, ARROWS.strip().splitlines())}
EVENTS = [event.name for event in Event if event.name != "EVENTS"]


@pytest.mark.parametrize("start, event", list(itertools.product(NAMES, EVENTS)))
def test_any_event_leads_where_the_figure_says_or_nowhere(start, event):
    if event == "RESET":
        assert transition(State[start], Event[event]) == State.CLOSED
    elif (start, event) in TABLE:
        assert transition(State[start], Event[event]) == State[TABLE[start, event]]
    else:
        with pytest.raises(ImpossibleTransition, match=start):
            transition(State[start], Event[event])
