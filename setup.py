"""Builds the compiled modules: every `.py` that has a `.pxd` of the same name beside it."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# "address,undefined": an instrumented build of what meets frames; tests/fuzz/sanitize.py makes it and runs it.
SANITIZE = os.environ.get("RUSTOSD_SANITIZE", "")
PACKAGES = ["netstack", "mm", "drivers/block", "rustosd/nbd"] if SANITIZE else ["rustosd", "drivers", "netstack", "mm"]
SINGLE = [Path("drivers/request.pxd")] if SANITIZE else []
JOBS = int(os.environ.get("RUSTOSD_JOBS", os.cpu_count() or 1))
SHARED = "mm._cyutility"
CFLAGS = ["-O3", "-g1", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unreachable-code"]
LDFLAGS = []
if SANITIZE:
    # -fno-wrapv: CPython's own flags would otherwise hide signed overflow from UBSan
    CFLAGS = ["-O1", "-g1", "-fno-strict-aliasing", "-fno-wrapv", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}",
              "-fno-sanitize-recover=all"]
    LDFLAGS = [f"-fsanitize={SANITIZE}"]
DIRECTIVES = {
    "language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True,
    "initializedcheck": False, "binding": True, "embedsignature": True,
}
BUILD_DIR = "build/cython-sanitize" if SANITIZE else "build/cython"


def modules():
    for pxd in [*SINGLE, *(pxd for package in PACKAGES for pxd in sorted(Path(package).rglob("*.pxd")))]:
        if (source := pxd.with_suffix(".py")).exists():
            yield Extension(".".join(source.with_suffix("").parts), [str(source)],
                            extra_compile_args=CFLAGS, extra_link_args=LDFLAGS)


# "no": the package without its compiled modules, for an editable install that build_ext --inplace completes.
EXTENSIONS = os.environ.get("RUSTOSD_EXTENSIONS", "yes") != "no"
shared = Extension(SHARED, ["mm/_cyutility.c"], extra_compile_args=CFLAGS, extra_link_args=LDFLAGS)
extensions = [*modules(), shared] if EXTENSIONS else []
setup(
    ext_modules=cythonize(extensions, build_dir=BUILD_DIR, nthreads=JOBS, compiler_directives=DIRECTIVES,
                          shared_utility_qualified_name=SHARED, emit_linenums=True),
    options={"build_ext": {"parallel": JOBS}},
)
