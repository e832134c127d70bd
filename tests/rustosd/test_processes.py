"""The process table, with supervisors that answer late, wrongly, or for what is not theirs."""

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rustosd import processes as module
from rustosd.audit import AuditLog
from rustosd.control.base import Nothing
from rustosd.control.process_operations import ProcessOperations
from rustosd.faults import Faults
from rustosd.process import inventory
from rustosd.processes import Processes

ROW = inventory.describe(os.getpid()) | {"sockets": 0, "started": 0, "wait_s": 0.0, "slices": 0}


@pytest.fixture
def processes(tmp_path) -> Processes:
    return Processes(Faults(AuditLog(tmp_path / "audit", 1 << 20, 1), tmp_path / "reports", 4))


@pytest.fixture
def child() -> Iterator[int]:
    """A process below this one."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def supervisor(processes: Processes, pid: int, answer: Callable[[dict[str, Any]], dict[str, Any] | None]):
    """One that answers at once; None: not at all. Its end, which its caller closes."""
    end = processes.attach(pid, 1000)
    end.setblocking(False)

    def asked() -> None:
        if (answered := answer(json.loads(end.recv(4096)))) is not None:
            end.send(json.dumps(answered).encode())

    asyncio.get_running_loop().add_reader(end.fileno(), asked)
    return end


def programs(processes: Processes) -> ProcessOperations:
    operations = ProcessOperations()
    operations.core = SimpleNamespace(processes=processes, scheduler=SimpleNamespace(programs={}))
    return operations


async def test_a_late_answer_is_nobody_elses_and_its_supervisor_stays(processes, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    late: list[dict[str, Any]] = []
    end = supervisor(processes, 900, lambda asked: late.append(asked))
    (group,) = processes.groups()
    with pytest.raises(OSError, match="the supervisor 900 does not answer"):
        await group.ask("figures")
    with pytest.raises(OSError, match="does not answer"):
        await group.ask("list")
    assert [asked["op"] for asked in late] == ["figures"] and processes.groups() == [group]
    monkeypatch.undo()
    end.send(b'{"figures": 1}')
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().remove_reader(end.fileno())
    answer = asyncio.ensure_future(group.ask("list"))
    await asyncio.sleep(0.01)
    end.send(b'{"list": 1}')
    assert await answer == {"list": 1}
    end.close()


async def test_one_that_answers_nonsense_keeps_nobody_from_being_seen(processes):
    nonsense = [{"processes": 7}, {"processes": [{"pid": "x"}]}, {"processes": [{**ROW, "pid": -1, "name": 5}]},
                {"errno": errno.EIO}, {"nothing": 1}]
    ends = [supervisor(processes, 900 + number, lambda _asked, answer=answer: answer) for number, answer in enumerate(nonsense)]
    ends.append(supervisor(processes, 800, lambda _asked: {"processes": [{**ROW, "pid": 801}], "total": 1}))
    assert [row.pid for row in await programs(processes).process_list(Nothing())] == [0, 801]
    for end in ends:
        end.close()


async def test_who_waits_for_a_number_that_nobody_has_is_told_so(processes):
    for number in ("4194304", "9" * 20):
        with pytest.raises(OSError, match=f"no program on the stack has the number {number}; see: rustosctl ps"):
            await processes.wait(number, 1)


async def test_nobody_is_asked_of_a_process_that_is_not_below_him(processes, child):
    asked: list[dict[str, Any]] = []
    liar = supervisor(processes, 900, lambda question: asked.append(question) or {})
    with pytest.raises(OSError, match=f"no program on the stack has the number {child}"):
        await processes.ask(child, "signal", number=9)
    ours = supervisor(processes, os.getpid(), lambda question: {"is": question["pid"]})
    assert await processes.ask(child, "show") == (os.getpid(), {"is": child}) and asked == []
    liar.close()
    ours.close()
