"""Completion in the real bash, zsh and fish, from the files that scripts/install puts in place."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


NAMES = {"bash": "rustosctl", "zsh": "_rustosctl", "fish": "rustosctl.fish"}


def installed(shell, place):
    """What scripts/install writes for a shell."""
    command = f"source scripts/environment; completion {shell} {place}/bin/rustosctl"
    made = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (place / NAMES[shell]).write_text(made)
    return place / NAMES[shell]


@pytest.fixture
def place(tmp_path, socket_path):
    """A directory with a rustosctl in it, to be in front of the PATH."""
    program = tmp_path / "bin" / "rustosctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from rustosd.cli.control import main; main()' \"$@\"\n")
    program.chmod(0o755)
    return tmp_path


def typed(argv, keys, wanted, place, socket_path):
    """What a shell on a terminal shows until `wanted` is among it."""
    main, peer = pty.openpty()
    environment = {"PATH": f"{place}/bin:/usr/bin:/bin", "TERM": "dumb", "HOME": str(place), "RUSTOSD_SOCKET": socket_path,
                   "PYTHONPATH": str(ROOT), "PS1": "$ ", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(argv, stdin=peer, stdout=peer, stderr=peer, env=environment, cwd=place,
                          start_new_session=True) as child:
        os.close(peer)
        shown, deadline, sent = "", time.monotonic() + 50, False
        while not re.search(wanted, shown) and time.monotonic() < deadline:
            if select.select([main], [], [], 1.0)[0]:
                shown += os.read(main, 4096).decode(errors="replace")
            elif not sent:      # quiet: it waits for us
                os.write(main, keys.encode())
                sent = True
        child.kill()
    os.close(main)
    return shown


def need(shell):
    return pytest.mark.skipif(not shutil.which(shell), reason=f"{shell} is not installed: scripts/test installs it")


CASES = [("rustosctl relo", r"rustosctl reload"), ("rustosctl nic sho", r"rustosctl nic show"),
         ("rustosctl crash show cra", r"crash-20261128T180000Z-4711\.txt")]


@need("bash")
@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_bash_completes(place, socket_path, line, wanted):
    file = installed("bash", place)
    words = line.split(" ")
    code = (f"source {file}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            "_rustosctl_completion rustosctl; printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p rustosctl")
    environment = {"PATH": f"{place}/bin:/usr/bin:/bin", "RUSTOSD_SOCKET": socket_path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.splitlines()[0] == wanted.split()[-1].replace("\\", "") and "complete -o default" in done.stdout


@need("zsh")
@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_zsh_completes_at_the_first_tab(place, socket_path, line, wanted):
    file = installed("zsh", place)
    (place / ".zshrc").write_text(f"fpath=({file.parent} $fpath)\nautoload -Uz compinit\ncompinit -u -D\n")
    shown = typed(["zsh", "-i"], f"{line}\t", wanted, place, socket_path)
    assert re.search(wanted, shown), shown


@need("fish")
@pytest.mark.parametrize(("line", "wanted"), CASES)
def test_fish_completes(place, socket_path, line, wanted):
    file = installed("fish", place)
    environment = {"PATH": f"{place}/bin:/usr/bin:/bin", "RUSTOSD_SOCKET": socket_path, "PYTHONPATH": str(ROOT),
                   "HOME": str(place)}
    done = subprocess.run(["fish", "--no-config", "-c", f"source {file}; complete --do-complete '{line}'"], capture_output=True,
                          text=True, env=environment, timeout=60)
    assert re.match(wanted.split()[-1], done.stdout), done.stdout + done.stderr
