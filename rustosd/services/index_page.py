"""The index page: one quiet, self-contained document that reads well in a browser and in curl."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Entry(NamedTuple):
    """One service: what it is called, where it listens, and a command or link to try."""

    name: str
    where: str
    try_it: str
    link: str = ""


class About(NamedTuple):
    """What the index page says about this host."""

    host: str
    addresses: Sequence[str]
    services: Sequence[Entry]


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{host}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 42rem; margin: 12vh auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.4rem; font-weight: 600; margin-bottom: .25rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin-top: 2rem; }}
p, li, td {{ overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ padding: .3rem .75rem .3rem 0; vertical-align: top; }}
tr + tr td {{ border-top: 1px solid color-mix(in srgb, currentColor 18%, transparent); }}
code {{ font: .9em ui-monospace, monospace; }}
ul {{ padding-left: 1.1rem; }}
a {{ color: inherit; text-underline-offset: .2em; }}
</style>
</head>
<body>

<h1>{host}</h1>
<p>A TCP/IP host in user space. Every packet of this page went through its own stack.</p>

<h2>Addresses</h2>
<ul>
{addresses}
</ul>

<h2>Services</h2>
<table>
{services}
</table>

</body>
</html>
"""


def render(about: About) -> bytes:
    """The page as UTF-8; everything that comes from outside is escaped."""
    addresses = "\n".join(f"<li><code>{escape(address)}</code></li>" for address in about.addresses)
    services = "\n".join(_row(entry) for entry in about.services)
    return _PAGE.format(host=escape(about.host), addresses=addresses, services=services).encode()


def _row(entry: Entry) -> str:
    name = escape(entry.name)
    if entry.link:
        name = f'<a href="{escape(entry.link)}">{name}</a>'
    return f"<tr><td>{name}</td><td>{escape(entry.where)}</td><td><code>{escape(entry.try_it)}</code></td></tr>"
