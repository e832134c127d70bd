"""Policies as unmodified programs see them: what Linux says, EACCES, at the call itself."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.peers.conftest import CONTROL, Peer
from tests.peers.test_programs import run

POLICIES = """
[[policy]]
name = "web"
users = ["nobody"]
connect = ["tcp 10.77.0.1 9000-9999", "udp 10.77.0.1 9001"]
bind = ["tcp 88", "8000-8999"]
[[policy]]
name = "silent"
connect = []
bind = []
"""
TRY = """
import errno, os, socket
def tried(what, act):
    try:
        act()
        print(what, "ok")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
def new(kind=socket.SOCK_STREAM):
    return socket.socket(socket.AF_INET, kind)
def listen(port):
    one = new()
    one.bind(("", port))
    one.listen()
DGRAM = socket.SOCK_DGRAM
"""
AS_NOBODY = ("--user", "nobody")


@pytest.fixture(scope="module")
def more_config() -> str:
    return POLICIES


def tries(peer: Peer, script: str, *options: str) -> list[str]:
    python = "/usr/bin/python3" if shutil.which("/usr/bin/python3") else sys.executable     # one that nobody can read
    done = run(peer, python, "-c", TRY + script, options=options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_connect_bind_listen_and_send(peer: Peer) -> None:
    said = tries(peer, """
tried("elsewhere", lambda: new().connect(("10.77.0.1", 22)))
tried("there", lambda: new().connect(("10.77.0.1", 9999)))
waiting = new(); waiting.setblocking(False)
tried("without waiting", lambda: waiting.connect(("10.77.0.1", 22)))
for port in (88, 8080, 81, 9000, 0):
    tried(port, lambda: listen(port))
udp = new(DGRAM)
tried("datagram elsewhere", lambda: udp.sendto(b"x", ("10.77.0.1", 53)))
tried("datagram there", lambda: udp.sendto(b"x", ("10.77.0.1", 9001)))
tried("message elsewhere", lambda: udp.sendmsg([b"x"], [], 0, ("10.77.0.1", 53)))
tried("peer elsewhere", lambda: udp.connect(("10.77.0.1", 53)))
""", *AS_NOBODY)
    assert said == ["elsewhere EACCES", "there ECONNREFUSED", "without waiting EACCES", "88 ok", "8080 ok", "81 EACCES",
                    "9000 EACCES", "0 EACCES", "datagram elsewhere EACCES", "datagram there ok", "message elsewhere EACCES",
                    "peer elsewhere EACCES"]
    (web,) = [row for row in peer.ctl("policy")["policies"] if row["name"] == "web"]
    assert web["denied"] == {"bind": 2, "connect": 3, "listen": 1, "send": 2}
    assert peer.metrics()['rustos_policy_denied_total{policy="web",what="connect"}'] == 3
    lines = [json.loads(line) for line in (peer.control.parent / "crash" / "audit.jsonl").read_text().splitlines()]
    denied = [line for line in lines if line["reason"] == "policy_denied"]
    assert len(denied) == 8 and denied[0] | {"policy": "web", "what": "connect", "uid": 65534, "host": "10.77.0.1",
                                             "port": 22} == denied[0]


def test_a_policy_that_is_asked_for_only_takes_away(peer: Peer) -> None:
    assert tries(peer, 'tried("root", lambda: listen(82))') == ["root ok"]
    assert tries(peer, 'tried("root", lambda: listen(8082))', "--policy", "silent") == ["root EACCES"]
    assert tries(peer, 'tried("root", lambda: listen(82))', "--policy", "web") == ["root EACCES"]
    assert "there is no policy x; there is web, silent" in run(peer, "true", options=("--policy", "x")).stderr


def test_who_gives_up_roots_rights_gives_up_low_ports(peer: Peer) -> None:
    said = tries(peer, """
tried("root", lambda: listen(83))
os.setuid(65534)
tried("low", lambda: listen(84))
tried("high", lambda: listen(8084))
""")
    assert said == ["root ok", "low EACCES", "high ok"]


def test_a_reload_is_for_all_that_follows(peer: Peer, tmp_path: Path) -> None:
    config = peer.control.with_name("rustosd.toml")
    text = config.read_text()
    script = f"""
import time
tried("before", lambda: new().connect(("10.77.0.1", 22)))
open({str(tmp_path / "seen")!r}, "w").close()
while os.path.exists({str(tmp_path / "seen")!r}):
    time.sleep(0.05)
tried("after", lambda: new().connect(("10.77.0.1", 22)))
"""
    os.chmod(tmp_path, 0o777)
    for directory in list(tmp_path.parents)[:3]:
        os.chmod(directory, os.stat(directory).st_mode | 0o011)
    argv = [sys.executable, "-c", CONTROL, "--socket", str(peer.control), "run", *AS_NOBODY, "--", "/usr/bin/python3", "-c",
            TRY + script]
    process = peer.netns.popen(*argv, stdout=-1, text=True)
    while not (tmp_path / "seen").exists():
        assert process.poll() is None
    config.write_text(text.replace('connect = ["tcp 10.77.0.1 9000-9999"', 'connect = ["tcp any"'))
    peer.netns.run(sys.executable, "-c", CONTROL, "--socket", str(peer.control), "reload")
    (tmp_path / "seen").unlink()
    assert process.communicate(timeout=60)[0].split("\n") == ["before EACCES", "after ECONNREFUSED", ""]


def test_options_that_were_set_before_a_bind_that_is_denied_are_there_for_the_next(peer: Peer) -> None:
    said = tries(peer, """
def sharing():
    one = new()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return one
first, second = sharing(), sharing()
tried("denied", lambda: first.bind(("", 9000)))
for one in (first, second):
    tried("allowed", lambda: one.bind(("", 8081)))
    tried("shared", one.listen)
""", *AS_NOBODY)
    assert said == ["denied EACCES", "allowed ok", "shared ok", "allowed ok", "shared ok"]
