"""Exceptions of C programs on Debian's kernel: the same are told apart as on the host.

QEMU's emulated processor raises no #AC and no #XM, and #GP in place of #SS: those are for the host alone.
"""

import subprocess

from tests.lab import inside_faults as inside
from tests.rustosd.process.test_exceptions import CASES, SOURCE

NOT_EMULATED = {"alignment", "simd", "stack"}
PROGRAM = "/run/faults"


def test_exceptions_are_told_apart_on_debians_kernel(guest, tmp_path):
    made = tmp_path / "faults"
    subprocess.run(["gcc", "-O1", "-static", "-fomit-frame-pointer", "-pthread", "-o", str(made), str(SOURCE)], check=True)
    guest.put(PROGRAM, made.read_bytes())
    guest.run(f"chmod 755 {PROGRAM}")
    kinds = sorted(CASES.keys() - NOT_EMULATED)
    try:
        seen = dict(zip(kinds, guest.call(inside.raised, PROGRAM, kinds), strict=True))
    finally:
        guest.run(f"rm {PROGRAM}")
    assert {what: [run["status"], *[told[:2] for told in run["told"]]] for what, run in seen.items()} == {
        what: [-CASES[what][3], list(CASES[what][:2])] for what in kinds}
    for what, run in seen.items():
        _, _, code, _, words = CASES[what]
        assert words in run["told"][0][3] and code in (None, run["told"][0][2]), what
        assert what in ("handler-stack", "no-execute") or {"main", "deeper"} & set(run["names"]), what
