"""Episodes and their traces: runs that a seed decides, written down so that they replay, and made small."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

from tests.fuzz.plan import Plan, setting_of
from tests.fuzz.world import Operation, World

EPISODE_FRAMES = 4000


def run_episode(seed: str, number: int, frames: int = EPISODE_FRAMES, record: TextIO | None = None) -> tuple[World, int]:
    """Make a world, let `frames` frames happen to it, close it; returns it and how many were damaged ones.

    `record`: a file to which each operation is written before it is carried out. Raises Violation.
    """
    rng = random.Random(f"{seed}/{number}")
    setting = setting_of(rng)
    if record:
        print(json.dumps({"setting": setting}), file=record, flush=True)
    world = World(setting)
    plan = Plan(world, rng)
    for operation in plan.operations():
        _apply(world, operation, record)
        if world.received >= frames:
            break
    _apply(world, ["finish"], record)
    return world, plan.mutated


def _apply(world: World, operation: Operation, record: TextIO | None) -> None:
    if record:
        print(json.dumps(operation, default=bytes.hex), file=record, flush=True)
    world.apply(operation)


def load(path: Path) -> tuple[dict, list[Operation]]:
    """The setting and the operations of a trace."""
    lines = path.read_text().splitlines()
    operations = [json.loads(line) for line in lines[1:]]
    for operation in operations:
        if operation[0] == "receive":
            operation[2] = [[bytes.fromhex(octets), *rest] for octets, *rest in operation[2]]
    return json.loads(lines[0])["setting"], operations


def save(path: Path, setting: dict, operations: list[Operation]) -> None:
    with path.open("w") as file:
        print(json.dumps({"setting": setting}), file=file)
        for operation in operations:
            print(json.dumps(operation, default=bytes.hex), file=file)


def carry_out(setting: dict, operations: list[Operation]) -> World:
    """Let operations happen to a new world. Raises Violation."""
    world = World(setting)
    for operation in operations:
        world.apply(operation)
    return world


def replay(path: Path) -> World:
    """Let a trace happen again. Raises Violation."""
    return carry_out(*load(path))


def minimize(operations: list[Operation], fails: Callable[[list[Operation]], bool]) -> list[Operation]:
    """Leave out operations, then frames, as long as `fails` says that it still goes wrong (Zeller's ddmin, simplified)."""
    operations = _reduce(operations, fails)
    for i in range(len(operations)):
        if operations[i][0] == "receive" and len(operations[i][2]) > 1:
            operations = _with_frames(operations, i, _reduce(operations[i][2], partial(_still_fails, operations, i, fails)))
    return _reduce(operations, fails)


def _with_frames(operations: list[Operation], i: int, frames: list) -> list[Operation]:
    return [*operations[:i], [*operations[i][:2], frames], *operations[i + 1:]]


def _still_fails(operations: list[Operation], i: int, fails: Callable[[list[Operation]], bool], frames: list) -> bool:
    return fails(_with_frames(operations, i, frames))


def _reduce(items: list, fails: Callable[[list], bool]) -> list:
    size = len(items) // 2
    while size:
        at = 0
        while at < len(items):
            without = items[:at] + items[at + size:]
            if fails(without):
                items = without
            else:
                at += size
        size //= 2
    return items
