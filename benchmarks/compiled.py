"""Builds the compiled helper of the measurements when it is first asked for, under build/."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType

from benchmarks.lab import ROOT

_SOURCE = Path(__file__).with_name("route_loop.py")
_BUILD = ROOT / "build" / "bench"


def route_loop() -> ModuleType:
    """The module route_loop.py, compiled."""
    built = _BUILD / f"route_loop{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(path.stat().st_mtime for path in (_SOURCE, *(ROOT / "netstack").glob("*.pxd")))
    if not built.exists() or built.stat().st_mtime < newest:
        _build()
    spec = importlib.util.spec_from_file_location("route_loop", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build() -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    _BUILD.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        modules = cythonize(Extension("route_loop", [os.path.relpath(_SOURCE)], extra_compile_args=["-O3"]),
                            build_dir=str(_BUILD), include_path=[str(ROOT)], quiet=True, force=True,
                            compiler_directives={"language_level": 3})
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = str(_BUILD)
        command.build_temp = str(_BUILD)
        command.ensure_finalized()
        command.run()
