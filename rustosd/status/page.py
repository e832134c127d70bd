"""The status page as HTML: the current state in a document that needs no JavaScript, which status.js then keeps current.

What JavaScript fills in is marked with `data-` attributes: `data-value="PATH"` and `data-format="NAME"` of a text,
`data-rows="PATH"` of a table's body, whose columns are the heads' `data-field` and `data-format`.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, Final, NamedTuple

from rustosd.status import words
from rustosd.status.document import Interface, Status, severities
from rustosd.status.recorder import POINTS

FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "text": lambda value: words.MISSING if value in (None, "") else str(value),
    "count": lambda value: words.MISSING if value is None else words.count(value),
    "octets": words.octets,
    "bits": words.bit_rate,
    "rate": words.rate,
    "frames": lambda value: words.rate(value).replace("/s", " frames/s"),
    "duration": words.duration,
    "ms": words.milliseconds,
    "list": lambda value: ", ".join(value) or words.MISSING,
    "limit": lambda value: f"of {words.octets(value)}" if value else "limit unknown",
}


class Column(NamedTuple):
    """One column of a table."""

    title: str
    field: str
    format: str = "text"

    @property
    def kind(self) -> str:
        """Its CSS class."""
        if self.format == "text":
            return "prose" if self.field == "help" else "word"
        return "number alone" if self.field == "connections" else "number"


_CONNECTIONS: Final = (
    Column("Local", "local"), Column("Remote", "remote"), Column("State", "state"), Column("Received", "rx_octets", "octets"),
    Column("Sent", "tx_octets", "octets"), Column("Round trip", "rtt_us", "ms"), Column("Sent again", "retransmits", "count"),
)
_DROPS: Final = (
    Column("Reason", "reason"), Column("Way", "direction"), Column("Frames", "frames", "count"),
    Column("Last minute", "frames_per_s", "rate"), Column("Meaning", "help"),
)
_SERVICES: Final = (
    Column("Service", "name"), Column("Where", "where"), Column("Connections", "connections", "count"),
    Column("Try it", "command"),
)

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>rustosd: {summary}</title>
<link rel="icon" href="/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/status.css?v={assets}">
<script src="/status.js?v={assets}" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to content</a>
<header>
<div>
<h1>rustosd</h1>
<p class="quiet">{tagline}</p>
</div>
<div class="live">
<p id="live" role="status">As of this moment</p>
<button id="pause" type="button" aria-pressed="false" hidden>Pause</button>
</div>
</header>
<noscript><p class="quiet">Without JavaScript this page does not follow what happens: reload it.</p></noscript>

<main id="main" tabindex="-1">

<dl class="facts">
<div><dt>Addresses</dt><dd data-value="addresses" data-format="list">{addresses}</dd></div>
<div><dt>Up for</dt><dd data-value="uptime_s" data-format="duration">{uptime}</dd></div>
<div><dt>Version</dt><dd data-value="version" data-format="text">{version}</dd></div>
</dl>

<section aria-labelledby="health">
<h2 id="health">Health</h2>
<p id="summary" role="status" class="summary {worst}">{summary}</p>
<ul id="notes" class="notes">
{notes}
</ul>
</section>

<section aria-labelledby="interfaces">
<h2 id="interfaces">Interfaces</h2>
<div id="cards" class="cards" data-points="{points}">
{cards}
</div>
<template id="card">
{card}
</template>
</section>

<section aria-labelledby="connections">
<h2 id="connections">Connections</h2>
<dl class="facts">
<div><dt>TCP connections</dt><dd><span data-value="connections.total" data-format="count">{total}</span>
<span class="quiet">of <span data-value="connections.limit" data-format="count">{limit}</span></span></dd></div>
<div><dt>Listening</dt><dd data-value="connections.listeners" data-format="count">{listeners}</dd></div>
<div><dt>By state</dt><dd id="states">{states}</dd></div>
</dl>
{connections}
</section>

<section aria-labelledby="drops">
<h2 id="drops">Dropped frames</h2>
{drops}
</section>

<section aria-labelledby="memory">
<h2 id="memory">Memory</h2>
<div class="meters">
{meters}
</div>
</section>

<section aria-labelledby="services">
<h2 id="services">Services</h2>
{services}
</section>

</main>

<footer>
<p><a href="/metrics">Metrics for Prometheus</a> <a href="/status.json">This page as JSON</a></p>
</footer>
</body>
</html>
"""

_CARD: Final = """\
<article class="card" data-nic="{name}" aria-label="Interface {name}">
<h3><span data-field="name">{name}</span> <span class="badge {link}" data-field="link">{link}</span></h3>
<p class="quiet"><span data-field="kind">{kind}</span>, MTU <span data-field="mtu">{mtu}</span>,
<span data-field="mac" data-format="text">{mac}</span></p>
<p class="addresses" data-field="addresses" data-format="list">{addresses}</p>
<div class="plots">
{rx}
{tx}
</div>
<dl class="totals">
<div><dt>Received</dt><dd><span data-field="rx_octets" data-format="octets">{rx_octets}</span>
<span class="quiet">in <span data-field="rx_frames" data-format="count">{rx_frames}</span> frames</span></dd></div>
<div><dt>Sent</dt><dd><span data-field="tx_octets" data-format="octets">{tx_octets}</span>
<span class="quiet">in <span data-field="tx_frames" data-format="count">{tx_frames}</span> frames</span></dd></div>
<div><dt>Lost by the device</dt><dd><span data-field="rx_dropped" data-format="count">{rx_dropped}</span>
<span class="quiet">in,</span> <span data-field="tx_dropped" data-format="count">{tx_dropped}</span>
<span class="quiet">out</span></dd></div>
</dl>
</article>"""

_PLOT: Final = """\
<figure class="plot {way}">
<figcaption><span>{verb}</span> <strong data-field="{way}_bits_per_s" data-format="bits">{rate}</strong>
<span class="quiet" data-field="{way}_frames_per_s" data-format="frames">{frames}</span>
<span class="quiet peak">peak <span data-peak="{way}_history">{peak}</span></span></figcaption>
<svg data-plot="{way}_history" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img"
 aria-label="{verb}: {label}">
<path class="area" d="{area}"/>
<path class="line" d="{line}"/>
</svg>
</figure>"""


def render(status: Status, assets: str, *, own_stack: bool = True) -> bytes:
    """The page as UTF-8; all that comes from outside is escaped. `assets` names the version of CSS and JavaScript."""
    text = {name: escape(value) for name, value in {
        "tagline": "A TCP/IP host in user space." + (" Every packet of this page went through its own stack."
                                                     if own_stack else " This page comes by the kernel's stack."),
        "assets": assets, "points": str(POINTS), "summary": severities(status.health),
        "worst": status.health[0].severity if status.health else "well",
        "addresses": FORMATS["list"](status.addresses), "uptime": words.duration(status.uptime_s), "version": status.version,
        "total": words.count(status.connections.total), "limit": words.count(status.connections.limit),
        "listeners": words.count(status.connections.listeners), "states": states(status.connections.states),
    }.items()}
    connections = status.connections
    return _PAGE.format_map(text | {
        "notes": "\n".join(map(_note, status.health)),
        "cards": "\n".join(_card(each) for each in status.interfaces if is_shown(each)),
        "card": _card(_BLANK),
        "connections": _table("connections.busiest", "The busiest connections", _CONNECTIONS, connections.busiest,
                              "No connections." if connections.listed else "The configuration keeps them to itself."),
        "drops": _table("drops", "Dropped frames by reason, the busiest first", _DROPS, status.drops, "No frame was dropped."),
        "meters": "\n".join((
            _meter("memory.buffer_octets", "memory.buffer_limit_octets", "TCP buffers",
                   status.memory.buffer_octets, status.memory.buffer_limit_octets),
            _meter("memory.resident_octets", "memory.resident_limit_octets", "The whole process",
                   status.memory.resident_octets, status.memory.resident_limit_octets))),
        "services": _table("services", "Services of this host", _SERVICES, status.services, "No service runs."),
    }).encode()


def is_shown(interface: Interface) -> bool:
    """Whether an interface has a card: loopback only once it is used."""
    return interface.kind != "loopback" or interface.rx_frames > 0


def states(counts: dict[str, int]) -> str:
    """How many connections are in which state, in words."""
    return ", ".join(f"{words.count(count)} {state}" for state, count in counts.items()) or words.MISSING


_BLANK: Final = Interface("", "", "", None, 0, [], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, [], [])


def _note(note: Any) -> str:
    return (f'<li class="note {escape(note.severity)}"><strong>{escape(note.severity.capitalize())}</strong>\n'
            f"<p>{escape(note.text)}</p>\n<p class=\"quiet\">{escape(note.advice)}</p>\n<code>{escape(note.code)}</code></li>")


def _card(interface: Interface) -> str:
    fields = {name: escape(FORMATS[format](getattr(interface, name))) for name, format in (
        ("name", "text"), ("link", "text"), ("kind", "text"), ("mtu", "text"), ("mac", "text"), ("addresses", "list"),
        ("rx_octets", "octets"), ("tx_octets", "octets"), ("rx_frames", "count"), ("tx_frames", "count"),
        ("rx_dropped", "count"), ("tx_dropped", "count"))}
    return _CARD.format_map(fields | {
        "rx": _plot("rx", "Receiving", interface.rx_bits_per_s, interface.rx_frames_per_s, interface.rx_history),
        "tx": _plot("tx", "Sending", interface.tx_bits_per_s, interface.tx_frames_per_s, interface.tx_history)})


def _plot(way: str, verb: str, bits: int, frames: float, history: Sequence[int]) -> str:
    line, area = words.plot(history, POINTS)
    peak = words.bit_rate(max(history, default=0))
    return _PLOT.format(way=way, verb=verb, rate=words.bit_rate(bits), frames=FORMATS["frames"](frames), peak=peak, line=line,
                        area=area, width=words.PLOT_WIDTH, height=words.PLOT_HEIGHT,
                        label=f"{words.bit_rate(bits)} now, at most {peak} in the last two minutes")


def _table(path: str, caption: str, columns: Sequence[Column], rows: Iterable[Any], none: str) -> str:
    """A table, and the sentence that stands for an empty one. The roles keep it a table where CSS stacks its cells."""
    rows = list(rows)
    heads = "\n".join(f'<th role="columnheader" scope="col" class="{column.kind}" data-field="{column.field}"'
                      f' data-format="{column.format}">{escape(column.title)}</th>' for column in columns)
    body = "\n".join(_row(columns, row) for row in rows)
    return (f'<table role="table"{"" if rows else " hidden"}>\n<caption>{escape(caption)}</caption>\n'
            f'<thead role="rowgroup"><tr role="row">\n{heads}\n</tr></thead>\n'
            f'<tbody role="rowgroup" data-rows="{path}">\n{body}\n</tbody>\n</table>\n'
            f'<p class="none"{" hidden" if rows else ""}>{escape(none)}</p>')


def _row(columns: Sequence[Column], row: Any) -> str:
    cells = []
    for column in columns:
        text = escape(FORMATS[column.format](getattr(row, column.field)))
        if column.field == "command":
            text = f"<code>{text}</code>"
        elif column.field == "name" and row.link:
            text = f'<a href="{escape(row.link)}">{text}</a>'
        cells.append(f'<td role="cell" class="{column.kind}" data-label="{escape(column.title)}">{text}</td>')
    return "<tr role=\"row\">\n" + "\n".join(cells) + "\n</tr>"


def _meter(path: str, limit_path: str, title: str, used: int, limit: int) -> str:
    """How much of something is used, as words and as a bar."""
    key = path.rpartition(".")[2]
    share = min(1.0, used / limit) if limit else 0.0
    return (f'<div class="meter"><span id="{key}">{escape(title)}</span>\n'
            f'<span><strong data-value="{path}" data-format="octets">{words.octets(used)}</strong>\n'
            f'<span class="quiet" data-value="{limit_path}" data-format="limit">{FORMATS["limit"](limit)}</span></span>\n'
            f'<meter aria-labelledby="{key}" data-meter="{path}" data-limit="{limit_path}" min="0" max="1" high="0.9"'
            f' value="{share:.4f}">{share:.0%}</meter></div>')
