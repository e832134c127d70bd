"""What the tests of exceptions run in the guest: the fault programs, under a monitor."""

from typing import Any

from rustosd.process.backtrace import Unwinder
from tests.rustosd.process.test_exceptions import Judged


def raised(program: str, kinds: list[str]) -> list[dict[str, Any]]:
    """What was told of each."""
    told = []
    for kind in kinds:
        names: list[str] = []
        run = Judged(program, kind, told=lambda fault, names=names: names.extend(
            frame.function for frame in Unwinder(fault.tid, fault.registers, fault.maps).frames()))
        told.append({"status": run.status, "names": names, "told": [
            [fault.kind, fault.trap, fault.error_code, fault.words] for fault in run.faults]})
    return told
