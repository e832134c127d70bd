"""Swap as the daemon offers it: a place for each program's, what is told of it, and Linux's own swap on a disk of ours."""
