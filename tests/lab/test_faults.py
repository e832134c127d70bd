"""Exceptions of C programs on Debian's kernel: the same are told apart as on the host.

QEMU's emulated processor raises no #AC, and #GP in place of #SS: those are for the host alone.
"""

import subprocess

from tests.lab import inside_faults as inside
from tests.rustosd.process.test_exceptions import CASES, SOURCE

NOT_EMULATED = {"alignment", "stack"}
PROGRAM = "/run/faults"


def test_exceptions_are_told_apart_on_debians_kernel(guest, tmp_path):
    made = tmp_path / "faults"
    subprocess.run(["gcc", "-O1", "-static", "-fomit-frame-pointer", "-pthread", "-o", str(made), str(SOURCE)], check=True)
    guest.put(PROGRAM, made.read_bytes())
    guest.run(f"chmod 755 {PROGRAM}")
    kinds = sorted(CASES.keys() - NOT_EMULATED)
    try:
        for what, seen in zip(kinds, guest.call(inside.raised, PROGRAM, kinds), strict=True):
            kind, trap, code, number, words = CASES[what]
            ((told_kind, told_trap, told_code, told_words),) = seen["told"]
            assert (seen["status"], told_kind, told_trap) == (-number, kind, trap), what
            assert words in told_words and code in (None, told_code), what
            assert what in ("handler-stack", "no-execute") or "main" in seen["names"] or "deeper" in seen["names"], what
    finally:
        guest.run(f"rm {PROGRAM}")
