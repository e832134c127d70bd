"""The wheel: it has all that runs, and runs where there is neither the checkout nor a compiler."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """\
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from rustosd.cli import daemon, shell
status = shell.run(daemon.app, "rustosd", ["config", "default"])
print(importlib.import_module("rustosd").__file__)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked. It is built from the modules that are compiled already, so it takes some seconds."""
    place = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", str(place), str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "unpacked")
    return place / "unpacked"


def modules(suffix):
    return {path.with_suffix("") for package in ("rustosd", "drivers", "netstack", "mm")
            for path in (ROOT / package).rglob(f"*{suffix}")}


def test_it_runs_without_checkout_and_compiler(installed):
    # pump and daemon pull in nearly everything else
    names = ["rustosd.daemon", "rustosd.cli.control", "netstack.stack", "netstack.sockets", "drivers.tap"]
    environment = {"PATH": "/nonexistent", "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, *names], cwd="/", env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# rustosd") and done.stdout.splitlines()[-1].startswith(str(installed))


def test_it_has_what_the_tree_has(installed):
    compiled = modules(".pxd") & modules(".py")
    for module in compiled:
        assert list((installed / module.relative_to(ROOT)).parent.glob(f"{module.name}.*.so")), module
    for suffix in (".py", ".pxd", ".pyi", ".toml", ".css", ".js", ".svg"):
        for module in modules(suffix):
            assert (installed / module.relative_to(ROOT)).with_suffix(suffix).exists(), f"{module}{suffix}"
    for package in ("rustosd", "drivers", "netstack", "mm"):
        assert (installed / package / "py.typed").exists()


def test_it_has_the_licence_and_the_two_commands(installed):
    (metadata,) = installed.glob("rustosd-*.dist-info")
    assert (metadata / "licenses" / "LICENSE").read_text().startswith("MIT License")
    entries = (metadata / "entry_points.txt").read_text()
    assert "rustosd = rustosd.cli.daemon:main" in entries and "rustosctl = rustosd.cli.control:main" in entries
    assert {path.name for path in installed.rglob("share/man/man?/*")} == {"rustosctl.1", "rustosd.8"}
    assert not any("tests" in path.parts for path in installed.rglob("*"))
    assert os.path.getsize(metadata / "RECORD") > 0
