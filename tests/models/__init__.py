"""Strict models of devices, in process: what a datasheet forbids raises, where hardware would merely misbehave."""
