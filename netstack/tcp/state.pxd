# RFC 9293 3.3.2, ordered so that `state >= ESTABLISHED` means synchronized.
cpdef enum State:
    CLOSED = 0
    LISTEN
    SYN_SENT
    SYN_RECEIVED
    ESTABLISHED
    FIN_WAIT_1
    FIN_WAIT_2
    CLOSE_WAIT
    CLOSING
    LAST_ACK
    TIME_WAIT
    STATES

cpdef enum Event:
    ACTIVE_OPEN = 0
    RCV_SYN             # on a listener, or a simultaneous open
    RCV_SYN_ACK
    RCV_ACK_OF_SYN
    SEND_FIN            # the application closes
    RCV_FIN
    RCV_ACK_OF_FIN
    RCV_FIN_AND_ACK_OF_FIN
    TIMEOUT_2MSL
    RESET               # received, sent, or the connection was given up
    EVENTS

# The next state; -1: there is none, and nothing changed.
cdef int next_state(int state, int event) noexcept nogil
