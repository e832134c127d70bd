"""`rustosctl acpi`: what the firmware's tables say."""

from typing import Annotated, Any

import typer

from rustosd.cli import tables
from rustosd.cli.calls import Json, call, known
from rustosd.cli.tables import Column, Listing, octets, plain
from rustosd.control import device_protocol as p


def _verdict(problem: str | None) -> str:
    return "good" if problem is None else problem


TABLES = Listing("tables", "table", "tables", (
    Column("TABLE", "name"), Column("LENGTH", "octets", True, octets), Column("REVISION", "revision", True),
    Column("MAKER", "oem"), Column("DECODED", "decoded"), Column("CHECK", "problem", text=_verdict, folds=True),
))


def _complete(incomplete: str) -> list[str]:
    return known("acpi.list", lambda rows: [row.name for row in rows], incomplete)


def acpi(
    table: Annotated[str | None, typer.Argument(help="APIC, FACP, MCFG, DMAR, ...; none for the list.",
                                                autocompletion=_complete)] = None,
    json: Json = False,
) -> None:
    """The firmware's ACPI tables: CPUs, interrupt controllers, configuration windows, IOMMUs."""
    if table is None:
        tables.show(TABLES, call("acpi.list"), json)
        return
    details: p.AcpiDetails = call("acpi.show", p.AcpiQuery(table=table))
    if json:
        tables.print_json("table", details)
        return
    row = details.table
    tables.show_facts((
        ("table", row.name), ("length", octets(row.octets)), ("revision", plain(row.revision)), ("maker", plain(row.oem)),
        ("check", _verdict(row.problem)), *((_words(name), plain(value)) for name, value in details.facts.items()),
    ))
    for name, rows in details.sections.items():
        if rows:
            print(f"\n{_words(name)}:")
            tables.print_table([_column(rows, key) for key in rows[0]], rows)


def _column(rows: list[dict[str, Any]], key: str) -> Column:
    numbers = all(isinstance(row[key], int) and not isinstance(row[key], bool) for row in rows)
    return Column(_words(key).upper(), "", numbers, lambda row: plain(row[key]), folds=key == "scopes")


def _words(name: str) -> str:
    return name.replace("_", " ")
