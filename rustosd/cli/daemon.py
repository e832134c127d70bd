"""`rustosd`: run the daemon, look at its configuration, give back what a killed one left."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rustosd import config as configuration
from rustosd.cli import shell
from rustosd.config import Config, ConfigError

app = typer.Typer(help="A TCP/IP host in user space.", rich_markup_mode=None, pretty_exceptions_enable=False)
config_app = typer.Typer(help="Print and check configurations.", rich_markup_mode=None)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML; else the built-in one.")]


def _loaded(path: Path | None) -> Config:
    try:
        return configuration.load(path)
    except ConfigError as error:
        raise shell.Stop(str(error), shell.USAGE) from None


@app.command()
def run(
    config: ConfigFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not print what to try next.")] = False,
) -> None:
    """Run in the foreground until SIGTERM or Ctrl-C."""
    settings = _loaded(config)
    from rustosd import log
    logs = log.configure(settings.log.level, settings.log.format, levels=settings.log.levels)
    from rustosd import daemon  # late: `rustosd config` needs none of it
    try:
        daemon.serve(settings, announce=not quiet, logs=logs, path=None if config is None else config.absolute())
    except daemon.StartFailed as error:
        raise shell.Stop(getattr(error, "strerror", None) or str(error)) from None


@config_app.command("default")
def config_default() -> None:
    """Print the built-in configuration, with its comments."""
    sys.stdout.write(configuration.default_text())


@config_app.command("check")
def config_check(file: Path) -> None:
    """Check a file. Exit status 2 and one line for what is wrong."""
    settings = _loaded(file)
    what = [*(interface.name for interface in settings.interface), *(device.which for device in settings.device)]
    print(f"{file}: good; {', '.join(what)}; {len(settings.route)} static routes")


@config_app.command("show")
def config_show(config: ConfigFile = None) -> None:
    """Print what a file amounts to, every default spelled out."""
    sys.stdout.write(configuration.to_toml(_loaded(config)))


@app.command()
def recover(config: ConfigFile = None) -> None:
    """Give back to the host what a killed daemon left; the next `rustosd run` does the same."""
    settings = _loaded(config)
    from rustosd.devices.kernel import undo
    from rustosd.journal import Journal, JournalError
    try:
        with Journal(Path(settings.host.journal)) as journal:
            pending = list(journal.pending.values())
            failed = journal.give_back_all(undo)
    except JournalError as error:
        raise shell.Stop(str(error)) from None
    for entry, error in failed:
        print(f"not given back: {entry}: {error}", file=sys.stderr)
    print(f"{len(pending) - len(failed)} of {len(pending)} given back" if pending else "nothing was left to give back")
    if failed:
        raise typer.Exit(shell.FAILED)


@app.command()
def version() -> None:
    """Print the version."""
    from rustosd.control.names import version as installed
    print(f"rustosd {installed()}")


def main() -> None:
    """The entry point of the `rustosd` command."""
    sys.exit(shell.run(app, "rustosd"))
