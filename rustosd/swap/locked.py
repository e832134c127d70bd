"""A process that must go on while there is no memory: locked, spared by the OOM killer, and never made to write to get some."""

import ctypes
import os
from pathlib import Path
from typing import Final

_MCL_CURRENT_AND_FUTURE: Final = 3
_MCL_ONFAULT: Final = 4
_PR_SET_IO_FLUSHER: Final = 57      # linux/prctl.h; 5.6
_OOM: Final = Path("/proc/self/oom_score_adj")

_libc = ctypes.CDLL(None, use_errno=True)


class Locked:
    """This process while it serves swap. `begin` in the thread that serves; threads made after it are as it is."""

    def __init__(self) -> None:
        self._score: str | None = None

    def begin(self, score: int, *, whole: bool) -> None:
        """`score`: for the OOM killer, down to -1000, never. `whole`: also what was never touched, which must not be much.

        Raises OSError that says what to do; then nothing has changed.
        """
        if _libc.mlockall(_MCL_CURRENT_AND_FUTURE | (0 if whole else _MCL_ONFAULT)):
            error = ctypes.get_errno()
            raise OSError(error, f"who serves swap must be locked in memory: {os.strerror(error)}. "
                                 "Raise LimitMEMLOCK= in the unit, or `ulimit -l`")
        if _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
            error = ctypes.get_errno()
            _libc.munlockall()
            raise OSError(error, f"who serves swap must not wait for memory: {os.strerror(error)} (PR_SET_IO_FLUSHER needs "
                                 "CAP_SYS_RESOURCE and Linux 5.6)")
        self._score = _OOM.read_text()
        _OOM.write_text(str(score))

    def end(self) -> None:
        """As it was. May be called twice."""
        if self._score is not None:
            _OOM.write_text(self._score)
            self._score = None
            _libc.prctl(_PR_SET_IO_FLUSHER, 0, 0, 0, 0)
            _libc.munlockall()
