"""The house rules a linter can hold: ruff is clean, and what it cannot see in compiled modules is checked here."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rustosd", "drivers", "netstack", "mm")
LONGEST = 800


def ruff(*arguments):
    return subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True)


def python_files():
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def undefined_names(files):
    """(path, name) for every name that is used and never bound, whatever pyproject.toml ignores."""
    found = ruff("check", "--isolated", "--select", "F821", "--output-format", "json", *map(str, files))
    for finding in json.loads(found.stdout):
        yield Path(finding["filename"]), re.search(r"`(\w+)`", finding["message"])[1]


def test_ruff_is_clean():
    result = ruff("check", "--output-format", "concise", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_undefined_names_are_those_of_the_modules_own_pxd():
    wrong = []
    for path, name in undefined_names(python_files()):
        pxd = path.with_suffix(".pxd")
        declared_here = pxd.exists() and re.search(rf"^ +{name}: ", path.read_text(), re.MULTILINE)     # a C local
        if not declared_here and not (pxd.exists() and re.search(rf"\b{name}\b", pxd.read_text())):
            wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_no_file_is_too_long():
    tracked = [p for p in ROOT.rglob("*.p*") if p.suffix in (".py", ".pxd", ".pyi")
               and p.relative_to(ROOT).parts[0] in (*PACKAGES, "tests")]
    assert [f"{p.relative_to(ROOT)}" for p in tracked if len(p.read_text().splitlines()) >= LONGEST] == []


def test_shell_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    scripts = [p for p in [*(ROOT / "scripts").iterdir(), *(ROOT / ".ci").iterdir()]
               if p.is_file() and (p.name == "environment" or p.read_text().startswith("#!/usr/bin/env bash"))]
    result = subprocess.run(["shellcheck", "-x", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
