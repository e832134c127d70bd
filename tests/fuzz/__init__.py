"""Fuzzing the whole stack: mutated frames, random calls, invariants after each; `python -m tests.fuzz --help`."""
