"""What an operator can see of single frames."""

from difflib import get_close_matches
from typing import Any, Protocol

from rustosd.control import capture_protocol as p
from rustosd.control.names import USEFUL_ENDS
from rustosd.control.server import Handed, OperationFailed


class CaptureCore(Protocol):
    """What these operations need of the daemon."""

    verdict_help: Any
    """Every verdict's label."""
    captures: Any
    """`rustosd.capture.captures.Captures`; None where nothing can be captured."""


class CaptureOperations:
    """The methods of `capture_protocol.METHODS`."""

    core: CaptureCore

    def capture_start(self, request: p.CaptureRequest) -> Handed:
        from rustosd.capture.captures import Wish
        buffer_octets = 1 << (1024 * request.buffer_kib - 1).bit_length()
        names, end = self.core.captures.start(Wish(
            interfaces=tuple(map(str, request.interfaces)), program=request.program, expression=request.expression,
            snap_octets=request.snap_octets, incoming=request.direction != "out", outgoing=request.direction != "in",
            reasons=self._reasons(request), count=request.count, buffer_octets=buffer_octets,
            duration_s=None if request.duration_ms is None else request.duration_ms / 1000))
        return Handed(p.CaptureStarted(interfaces=names), end)

    def _reasons(self, request: p.CaptureRequest) -> frozenset[str] | None:
        known = [label for label in self.core.verdict_help if label not in USEFUL_ENDS]
        for reason in request.reasons:
            if reason not in known:
                near = get_close_matches(reason, known, 1)
                raise OperationFailed(f"no frame is dropped as {reason}; " + (
                    f"did you mean {near[0]}?" if near else "see: rustosctl drops --all"))
        if request.reasons:
            return frozenset(request.reasons)
        return frozenset(known) if request.drops else None
