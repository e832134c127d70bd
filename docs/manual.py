"""The manual pages, from the commands' own help: one page for each program, in man(7) that groff and mandoc take."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from rustosd.cli import control, daemon

EXITS = {0: "Done.", 1: "It could not be done; standard error says why and what to do.", 2: "Wrong usage or configuration.",
         3: "No daemon answers (rustosctl)."}

DATE = "2026-11-28"
"""Of the last change that matters to a reader."""
TYPERS_OWN = ("install_completion", "show_completion")


def rustosctl() -> str:
    """rustosctl(1)."""
    return _page("rustosctl", 1, "steer a running rustosd", typer.main.get_command(control.app), (
        ("ENVIRONMENT", [(".B RUSTOSD_SOCKET", "The control socket, if it is not /run/rustosd/control.sock."),
                         (".B NO_COLOR", "No colours, on terminals too.")]),
        ("FILES", [(".I /run/rustosd/control.sock", "Where the daemon listens: for root, and for the groups that its "
                    "configuration names.")]),
        ("EXAMPLES", [(".B rustosctl status", "What it does, and what needs attention."),
                      (".B rustosctl reload \\-\\-check", "What a changed configuration would change."),
                      (".B rustosctl drops", "Every frame that was not used, and why."),
                      (".B rustosctl nic \\-\\-json", "The same for programs, as for every other list.")]),
        ("COMPLETION", "scripts/install puts completion for bash, zsh and fish in place. After pip install there is "
         "rustosctl --install-completion."),
        ("SEE ALSO", "rustosd(8)")))


def rustosd() -> str:
    """rustosd(8)."""
    return _page("rustosd", 8, "network and disks in user space", typer.main.get_command(daemon.app), (
        ("SIGNALS", [(".B SIGTERM, SIGINT", "Give every device back and end; a second one does it at once."),
                     (".B SIGHUP", "Read the configuration again, as rustosctl reload does.")]),
        ("FILES", [(".I /etc/rustosd/rustosd.toml", "The configuration of the service; rustosd config default explains every "
                    "key."),
                   (".I /run/rustosd/journal.jsonl", "What was taken from the host and is to be given back."),
                   (".I /var/lib/rustosd/crash", "Reports of daemons that died.")]),
        ("SEE ALSO", "rustosctl(1), systemctl(1), journalctl(1)")))


def _page(name: str, section: int, what: str, command: Any, more: tuple[tuple[str, Any], ...]) -> str:
    lines = [f'.TH {name.upper()} {section} "{DATE}" "rustosd" "rustosd"', ".SH NAME", f"{name} \\- {what}", ".SH SYNOPSIS",
             f".B {name}", "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]", ".SH DESCRIPTION",
             _text(command.help or what), ".SH OPTIONS", *_options(command), ".SH COMMANDS", *_commands(command, ())]
    for title, content in more:
        lines.append(f".SH {_literal(title)}")
        if isinstance(content, str):
            lines.append(_text(content))
        for term, text in content if not isinstance(content, str) else ():
            lines += [".TP", term, _text(text)]
        if title in ("ENVIRONMENT", "SIGNALS"):
            lines.append(".SH EXIT STATUS")
            for status, text in EXITS.items():
                lines += [".TP", f".B {status}", _text(text)]
    return "\n".join(lines) + "\n"


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    """The commands below one, each group in front of what is in it."""
    for name, inner in command.commands.items():
        here = (*path, name)
        if getattr(inner, "commands", None):
            yield from (f".SS {_literal(' '.join(here))}", _text(inner.help or ""))
            if inner.invoke_without_command:
                yield ".PP"
                yield f"Alone it is \\fB{_literal(' '.join((*here, next(iter(inner.commands)))))}\\fR."
            yield from _commands(inner, here)
        else:
            arguments = "".join(f" \\fI{_literal(_metavar(each))}\\fR" for each in inner.params if not _is_option(each))
            yield from (".TP", f"\\fB{_literal(' '.join(here))}\\fR{arguments}", _text(inner.help or "", ".IP"))
            options = list(_options(inner))
            if options:
                yield from (".RS", *options, ".RE")


def _options(command: Any) -> Iterator[str]:
    for each in command.params:
        if each.name in TYPERS_OWN:
            continue
        words = ", ".join(f"\\fB{_literal(option)}\\fR" for option in sorted(each.opts, key=len))
        if _is_option(each):
            value = "" if each.is_flag else f" \\fI{_literal(_metavar(each))}\\fR"
            yield from (".TP", f"{words}{value}", _text((each.help or "") + _default(each)))
        elif getattr(each, "help", None):
            yield from (".TP", f"\\fI{_literal(_metavar(each))}\\fR", _text(each.help))


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")


def _metavar(parameter: Any) -> str:
    """What a value is called. Typer's own word for its type changes between versions."""
    if parameter.metavar:
        return parameter.metavar
    name = "SECONDS" if parameter.name.endswith("_s") else parameter.name.upper()
    return name if parameter.required or _is_option(parameter) else f"[{name}]"


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return f" Default: {value}." if plain and value != "" else ""


def _text(words: str, between: str = ".PP") -> str:
    """Prose: its paragraphs, with nothing in it that roff would take as its own."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", words.strip())]
    return f"\n{between}\n".join(_literal(part) for part in paragraphs if part)


def _literal(words: str) -> str:
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
