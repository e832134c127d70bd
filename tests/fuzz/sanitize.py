"""The stack compiled with AddressSanitizer and UndefinedBehaviorSanitizer, beside the ordinary build."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
SANITIZERS = "address,undefined"


def runtime() -> Path | None:
    """gcc's AddressSanitizer library, which must be loaded before anything else; None: it is not installed."""
    compiler = shutil.which("gcc")
    if not compiler:
        return None
    answer = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = Path(answer.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def _fingerprint() -> str:
    """Of everything the build is made from."""
    digest = hashlib.sha256(f"{sys.version} {SANITIZERS}".encode())
    for path in sorted([ROOT / "setup.py", *(p for d in ("netstack", "mm", "drivers", "rustosd") for s in ("py", "pxd")
                                             for p in (ROOT / d).rglob(f"*.{s}"))]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build() -> Path:
    """Build what has changed, in build/sanitize; returns the directory that goes first on the module path.

    Raises RuntimeError with the compiler's words. About a minute of one core the first time.
    """
    library, stamp, wanted = BUILD / "lib", BUILD / "stamp", _fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return library
    environment = {**os.environ, "RUSTOSD_SANITIZE": SANITIZERS}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", library, "build_ext", "--build-lib", library,
         "--build-temp", BUILD / "tmp"], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the sanitized build failed:\n{done.stderr[-4000:]}")
    stamp.write_text(wanted)
    return library


def environment() -> dict[str, str]:
    """Environment variables under which Python runs on the sanitized modules. Raises RuntimeError."""
    library = runtime()
    if library is None:
        raise RuntimeError("gcc's libasan is not installed: on Debian it comes with the package gcc")
    return {
        **os.environ, "PYTHONPATH": f"{build()}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1", "LD_PRELOAD": str(library),
        # leaks are counted by the fuzzer itself: CPython leaves its own behind
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:halt_on_error=1:exitcode=99:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
    }
