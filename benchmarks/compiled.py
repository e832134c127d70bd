"""Builds the compiled helpers of the measurements under build/, when they are first asked for."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType

from benchmarks.lab import ROOT, BenchError

_SOURCES = Path(__file__).parent
_BUILD = ROOT / "build" / "bench"


def compiled(name: str) -> ModuleType:
    """The module `name`.py of this directory, compiled. Raises BenchError when the compiler refuses."""
    source = _SOURCES / f"{name}.py"
    built = _BUILD / "benchmarks" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(path.stat().st_mtime for path in (source, *(ROOT / "netstack").rglob("*.pxd")))
    if not built.exists() or built.stat().st_mtime < newest:
        _build(name, source)
    spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(name: str, source: Path) -> None:
    from Cython.Build import cythonize
    from Cython.Compiler.Errors import CompileError
    from setuptools import Distribution, Extension
    from setuptools.errors import BaseError

    _BUILD.mkdir(parents=True, exist_ok=True)
    extension = Extension(f"benchmarks.{name}", [os.path.relpath(source)], extra_compile_args=["-O3"])
    try:
        modules = cythonize(extension, build_dir=str(_BUILD), include_path=[str(ROOT)], quiet=True, force=True,
                            compiler_directives={"language_level": 3})
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = command.build_temp = str(_BUILD)
        command.ensure_finalized()
        command.run()
    except (BaseError, CompileError) as error:
        raise BenchError(f"{source.name} does not compile: {error}") from None
