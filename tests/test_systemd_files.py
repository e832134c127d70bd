"""The unit files and the scripts that install them, judged by systemd's own analyser.

tests/lab/test_systemd.py runs them under a systemd.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path):
    """The units with a program that exists here."""
    for unit in ("rustosd.service", "rustosd.socket"):
        text = (ROOT / "systemd" / unit).read_text()
        (tmp_path / unit).write_text(re.sub(r"/usr/local/bin/rustos(d|ctl)\b", "/bin/true", text))
    return tmp_path


def analyse(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(units):
    done = analyse("verify", "--man=no", str(units / "rustosd.service"), str(units / "rustosd.socket"))
    said = [line for line in done.stderr.splitlines() if "rustosd" in line]
    assert done.returncode == 0 and not said, done.stderr


@needs_systemd
def test_systemd_takes_the_drop_in_for_programs(units):
    (units / "rustosd.service.d").mkdir()
    shutil.copy(ROOT / "systemd/programs.conf", units / "rustosd.service.d")
    done = analyse("verify", "--man=no", str(units / "rustosd.service"), str(units / "rustosd.socket"))
    said = [line for line in done.stderr.splitlines() if "rustosd" in line]
    assert done.returncode == 0 and not said, done.stderr


@needs_systemd
def test_what_the_service_may_not_do_is_enough(units):
    done = analyse("security", "--offline=true", "--no-pager", str(units / "rustosd.service"))
    if "offline" in done.stderr and done.returncode:
        pytest.skip("this systemd-analyze knows no --offline")
    score = re.search(r"Overall exposure level for rustosd.service: ([0-9.]+)", done.stdout)
    assert score and float(score[1]) < 4.0, done.stdout


def test_the_unit_and_the_installer_name_the_same_places():
    unit = (ROOT / "systemd/rustosd.service").read_text()
    install, uninstall = ((ROOT / "scripts" / name).read_text() for name in ("install", "uninstall"))
    assert "--config /etc/rustosd/rustosd.toml" in unit and "config=/etc/rustosd/rustosd.toml" in install
    for installed in re.findall(r"/etc/(?:sysusers|tmpfiles)\.d/[a-z.]+", install):
        assert installed in uninstall or installed.endswith(".d"), f"{installed} stays behind"


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_the_scripts_tell_how_they_are_used(script):
    done = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"scripts/{script} [--" in done.stdout
    wrong = subprocess.run([ROOT / "scripts" / script, "--nonsense"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1 and "--nonsense" in wrong.stderr
