"""The supervisor of one `[[program]]`, a child of the daemon: `python -m rustosd.process.service`.

What to run comes as JSON on standard input, how it began goes as JSON to standard output; the exit status is the program's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from rustosd.control.sched_protocol import SchedChange
from rustosd.memory_limits import limits
from rustosd.process.entry import enter
from rustosd.process.launch import LaunchFailed, Program
from rustosd.process.link import Link
from rustosd.process.output import NameTaken, Output
from rustosd.process.supervisor import Supervisor
from rustosd.values import CpuQuota, Processors, Size

NAME_TAKEN: Final = 75
"""EX_TEMPFAIL: a former run has not quite ended."""
_NOT_FOUND: Final = 127


def main() -> NoReturn:
    """Run it to its end."""
    wanted = json.load(sys.stdin)
    with contextlib.suppress(OSError):      # the service manager's word is for the daemon
        Path("/proc/self/oom_score_adj").write_text("0")
    report = os.dup(1)
    os.set_inheritable(report, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    def tell(**facts: Any) -> None:
        nonlocal report
        if report < 0:              # it had begun: the daemon's log is all there is
            print(f"rustosd: {wanted['name']}: {facts.get('error')}", file=sys.stderr)
            return
        os.write(report, json.dumps(facts).encode() + b"\n")
        os.close(report)
        report = -1

    try:
        status = _run(wanted, tell)
    except NameTaken as taken:
        tell(error=str(taken))
        status = NAME_TAKEN
    except LaunchFailed as failed:
        tell(error=f"{failed}{_hint(failed.status != _NOT_FOUND)}")
        status = failed.status
    except OSError as failed:
        tell(error=f"{failed.strerror or failed}{_hint(failed.errno in (errno.EPERM, errno.EACCES))}")
        status = 1
    sys.exit(status)


def _hint(refused: bool) -> str:
    """What may help under a service manager that gives the daemon few rights."""
    if not refused or "INVOCATION_ID" not in os.environ:
        return ""
    return "; under systemd programs need the drop-in systemd/programs.conf, see docs/programs.md"


def _run(wanted: dict[str, Any], tell: Any) -> int:
    output = Output(wanted["name"])
    link = Link(wanted["socket"])
    memory, memory_max = (None if size is None else Size(size) for size in (wanted["memory"], wanted["memory_max"]))
    supervisor = Supervisor(link, wanted["name"], output, wanted["stop_s"], limits=limits(memory, memory_max))
    supervisor.dies_with_daemon = True
    supervisor.before_exec = enter(link.path, SchedChange(
        pid=1, sched_class=wanted["sched_class"], priority=wanted["priority"],
        processors=None if wanted["processors"] is None else Processors(wanted["processors"]),
        cpu_quota=None if wanted["cpu_quota"] is None else CpuQuota(wanted["cpu_quota"])))
    program = Program(wanted["command"], wanted["environment"], wanted["directory"], wanted["user"] or None,
                      own_network=not wanted["host_network"], addresses=link.ask("addresses")["addresses"],
                      policy=wanted["policy"])
    try:
        return supervisor.run(program, lambda pid: tell(pid=pid))
    except LaunchFailed:
        output.discard()
        raise


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the daemon says when it ends
    main()
