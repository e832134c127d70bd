"""One program of the configuration, with supervisors that come to nothing."""

import asyncio
import os
import subprocess

from rustosd import programs
from rustosd.program_config import ProgramConfig
from rustosd.programs import Programs, Runner, State


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def supervisor(script):
    made = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    os.set_blocking(made.stdout.fileno(), False)
    return made


async def test_who_starts_what_is_being_stopped_has_it_started(monkeypatch):
    made = []
    monkeypatch.setattr(programs, "_spawn", lambda wanted, socket: made.append(supervisor(
        "trap 'sleep 0.2; exit 0' TERM; while :; do sleep 0.01; done")) or made[-1])
    all_of_them = Programs("", lambda: [{"name": "rustos0", "up": True}])
    all_of_them.start([ProgramConfig(name="web", command=("web",))])
    runner = all_of_them.find("web")
    await until(lambda: made)
    await asyncio.sleep(0.1)        # its trap is set
    stop = runner.stop()
    await until(lambda: runner.state == State.STOPPING)
    await all_of_them.begin("web")
    assert stop.done() and runner.alive
    await until(lambda: len(made) == 2)
    await all_of_them.close()
    assert runner.state == State.STOPPED


async def test_why_it_did_not_begin_is_told_while_it_is_tried_again(monkeypatch):
    tries = []

    def spawn(wanted, socket):
        tries.append(wanted.name)
        if len(tries) == 1:
            raise programs._NotExecuted("there is no user web", 1)
        return supervisor("exec sleep 1000")

    monkeypatch.setattr(programs, "_spawn", spawn)
    runner = Runner(ProgramConfig(name="web", command=("web",), restart_delay_s=0.01), "", lambda after: "")
    runner.start()
    await until(lambda: len(tries) == 2)
    row = runner.row()
    assert (row["state"], row["status"], row["detail"]) == ("starting", 1, "there is no user web")
    await runner.stop()
    assert runner.state == State.STOPPED
