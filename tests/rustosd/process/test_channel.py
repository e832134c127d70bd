"""What a supervisor answers fits a packet, however much there is to tell, and whatever things are called."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from rustosd.process import inventory
from rustosd.process.channel import PACKET_MOST, ROWS_MOST, Channel
from rustosd.process.monitor import Monitor
from rustosd.process.sockets import Table
from rustosd.scheduling.waits import Meter

SLEEPER = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def children():
    """Processes whose command takes six octets of JSON for each of its own."""
    made = [subprocess.Popen([sys.executable, "-c", SLEEPER, b"\xff" * 2000], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(3)]
    for child in made:
        child.stdout.readline()
    yield [child.pid for child in made]
    for child in made:
        child.communicate()


@pytest.fixture
def ask(children):
    """Asks a channel whose supervisor has as many processes as an answer names: this one, and three again and again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = SimpleNamespace(
        table=Table(set), meter=Meter(), monitor=Monitor(), memory=None, calls=Counter(), refused=Counter(),
        programs=lambda: [os.getpid(), *children * ROWS_MOST][:ROWS_MOST], watch=lambda *_: None, forget=lambda *_: None)
    channel = Channel(supervisor, theirs)

    def ask(**question):
        ours.send(json.dumps(question).encode())
        channel._asked(0)
        packet = ours.recv(2 * PACKET_MOST)
        assert 0 < len(packet) <= PACKET_MOST
        return json.loads(packet)

    yield ask
    channel.close()
    ours.close()


def test_long_commands_are_cut_until_all_rows_fit(ask):
    rows = ask(op="list")["processes"]
    assert len(rows) == ROWS_MOST and all(row["command"] for row in rows)


def test_descriptors_are_told_as_far_as_they_fit(ask, tmp_path):
    folder = tmp_path / ("x" * 200) / ("y" * 200)
    folder.mkdir(parents=True)
    held = [os.open(folder / f"{number}", os.O_CREAT | os.O_RDWR) for number in range(400)]
    try:
        answer = ask(op="descriptors", pid=os.getpid())
    finally:
        for fd in held:
            os.close(fd)
    assert answer["total"] > 400 and answer["total"] > len(answer["descriptors"]) > 100


def test_files_whose_names_have_no_encoding_are_told(tmp_path):
    odd = os.open(os.fsencode(tmp_path) + b"/caf\xe9", os.O_CREAT | os.O_RDWR)
    targets = dict(inventory.descriptors(os.getpid()))
    os.close(odd)
    assert targets[odd] == f"{tmp_path}/caf\ufffd"
