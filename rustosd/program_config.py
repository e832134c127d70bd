"""`[[program]]`: what is run on the stack as long as the daemon runs, and what is wrong with such tables."""

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from rustosd.memory_limits import WrongLimit, limits
from rustosd.scheduling.settings import ClassName, Priority
from rustosd.values import CpuQuota, FilePath, Processors, Size

PROGRAMS_MOST = 256
STOP_MOST_S = 60

ProgramName = Annotated[str, msgspec.Meta(pattern=r"^(?![0-9]+$)[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}\Z")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Word = Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*\Z")]
Variable = Annotated[str, msgspec.Meta(pattern=r"^[^=\x00]+\Z", max_length=256)]


class ProgramConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One program."""

    name: ProgramName
    command: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]
    enabled: bool = True
    user: str = ""
    directory: FilePath = FilePath("/")
    environment: dict[Variable, Word] = {}
    after: tuple[str, ...] = ()
    restart: Literal["no", "on-failure", "always"] = "on-failure"
    restart_delay_s: Seconds = 1.0
    restart_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 5
    restart_window_s: Seconds = 60.0
    stop_s: Annotated[float, msgspec.Meta(ge=0, le=STOP_MOST_S)] = 10.0
    host_network: bool = False
    policy: str = ""
    sched_class: ClassName | None = None
    priority: Priority | None = None
    processors: Processors | None = None
    cpu_quota: CpuQuota | None = None
    memory: Size | None = None
    memory_max: Size | None = None


def mistakes(programs: Sequence[ProgramConfig], interfaces: Collection[str], unnamed: bool,
             policies: Collection[str]) -> Iterator[tuple[tuple, str]]:
    """(path, what is wrong) of what no single field can tell. `unnamed`: a device may bring an interface of any name."""
    if len(programs) > PROGRAMS_MOST:
        yield (PROGRAMS_MOST,), f"at most {PROGRAMS_MOST} programs"
    names: dict[str, int] = {}
    for i, program in enumerate(programs):
        if program.name in names:
            yield (i, "name"), f"{program.name} is the name of another program already"
        if program.name in interfaces:
            yield (i, "name"), f"{program.name} is the name of an interface; after = ... could mean either"
        if not program.command[0]:
            yield (i, "command", 0), "is empty; it is the program's file"
        if program.policy and program.policy not in policies:
            yield (i, "policy"), f"there is no policy {program.policy}; there is {', '.join(policies) or 'none'}"
        try:
            limits(program.memory, program.memory_max)
        except WrongLimit as wrong:
            yield (i, wrong.which), str(wrong)
        names[program.name] = i
    for i, program in enumerate(programs):
        for j, other in enumerate(program.after):
            if other not in names and other not in interfaces and not unnamed:
                known = ", ".join(sorted({*interfaces, *names} - {program.name}))
                yield (i, "after", j), f"there is no interface and no program {other}; there is {known}"
        if _waits_for_itself(program.name, programs):
            yield (i, "after"), f"{program.name} waits for itself in the end"


def _waits_for_itself(name: str, programs: Sequence[ProgramConfig]) -> bool:
    after = {program.name: program.after for program in programs}
    seen: set[str] = set()
    unseen = list(after.get(name, ()))
    while unseen:
        one = unseen.pop()
        if one == name:
            return True
        if one not in seen:
            seen.add(one)
            unseen += after.get(one, ())
    return False
