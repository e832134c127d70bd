"""Capturing frames: what operators and Wireshark see of the interfaces, with how each frame ended."""
