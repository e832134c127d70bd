"""`rustosctl memory`: the limits of programs' memory, and the memory that devices reach."""

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call
from rustosd.cli.tables import Column, Listing, octets
from rustosd.control import memory_protocol as p

_PROCESSES = Listing("memory", "process", "processes", (
    Column("PID", "pid", True), Column("IN MEMORY", "resident_octets", True, octets),
    Column("IN SWAP", "swapped_octets", True, octets), Column("FAULTS", "faults", True), Column("AGAIN", "again", True),
    Column("WAITED", "waited", True), Column("IN", "in_octets", True, octets), Column("OUT", "out_octets", True, octets),
    Column("CLEAN", "clean_octets", True, octets),
    Column("AHEAD", "", True, lambda row: f"{row.ahead_used / row.ahead_pages:.0%}" if row.ahead_pages else tables.MISSING),
))
_DMA = Listing("dma", "owner", "owners", (
    Column("DEVICE", "device"), Column("OWNER", "owner"), Column("BLOCKS", "blocks", True),
    Column("SIZE", "octets", True, octets),
))
app = typer.Typer(help="Limits of programs' memory, and memory for devices.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _memory(context: typer.Context, as_json: Json = False) -> None:
    """Limits of programs' memory, and memory for devices."""
    if context.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The programs whose memory is limited (`run --memory`), and each of their processes.

    AGAIN counts faults of pages that had left not long ago, WAITED those that waited because all was used that may be: if they
    grow fast, the limit is too low. CLEAN left without being written. Figures are up to a second old.
    """
    programs: list[p.ProgramMemory] = call("memory.list")
    if as_json:
        return tables.print_json("memory", programs)
    if not programs:
        print("no program has a limit; see: rustosctl run --memory")
    for one in programs:
        lowered = f", lowered to {octets(one.lowered_octets)}: the host is short of memory" if (
            one.lowered_octets < one.limit_octets) else ""
        print(f"{one.program or one.group}: {octets(one.resident_octets)} in memory, at most {octets(one.peak_octets)} so far; "
              f"limit {octets(one.limit_octets)}, {octets(one.most_octets)} for a moment{lowered}")
        if one.failure:
            print(f"  pages could not leave: {one.failure}")
        tables.show(_PROCESSES, one.spaces, False)


@app.command()
def dma(as_json: Json = False) -> None:
    """The memory that devices reach, and what it is for; what a driver leaves behind is a warning in the log, and freed."""
    tables.show(_DMA, call("memory.dma"), as_json)
