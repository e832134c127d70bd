"""One program of the configuration, with supervisors that come to nothing."""

import asyncio
import os
import subprocess

from rustosd import programs
from rustosd.program_config import ProgramConfig
from rustosd.programs import Runner, State


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_why_it_did_not_begin_is_told_while_it_is_tried_again(monkeypatch):
    tries = []

    def spawn(wanted, socket):
        tries.append(wanted.name)
        if len(tries) == 1:
            raise programs._NotExecuted("there is no user web", 1)
        made = subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE)
        os.set_blocking(made.stdout.fileno(), False)
        return made

    monkeypatch.setattr(programs, "_spawn", spawn)
    runner = Runner(ProgramConfig(name="web", command=("web",), restart_delay_s=0.01), "", lambda after: "")
    runner.start()
    await until(lambda: len(tries) == 2)
    row = runner.row()
    assert (row["state"], row["status"], row["detail"]) == ("starting", 1, "there is no user web")
    await runner.stop()
    assert runner.state == State.STOPPED
