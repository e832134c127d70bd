"""What programs without a terminal write: bounded, found by name, and nobody else's while they run."""

import os
import stat

import pytest

from rustosd.process import detached, output
from rustosd.process.launch import LaunchFailed
from rustosd.process.output import LOG_OCTETS, NameTaken, Output, check_name


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(output.ENVIRONMENT, str(tmp_path / "logs"))
    return tmp_path / "logs"


def began(name):
    made = Output(name)
    program = os.dup(made.end)
    made.began(4711, ["sh", "-c", "echo a b", "caf\udce9"])
    return made, program


def test_the_file_tells_what_ran_what_it_said_and_how_it_ended(folder):
    made, program = began("web")
    os.write(program, b"hello\nwithout end")
    os.close(program)
    made.ended(3)
    lines = (folder / "web.log").read_text(errors="surrogateescape").splitlines()
    assert lines[0].endswith("process 4711: sh -c 'echo a b' 'caf\udce9'") and lines[1] == "hello"
    assert lines[2].startswith("without end---") and lines[2].endswith("ended with status 3")
    assert stat.S_IMODE((folder / "web.log").stat().st_mode) & 0o007 == 0


def test_two_files_and_no_more_keep_the_newest(folder):
    made, program = began("chatty")
    line = b"x" * 1023 + b"\n"
    for number in range(3 * LOG_OCTETS // len(line)):
        os.write(program, b"%8d" % number + line[8:])
        assert made.written()
    os.close(program)
    assert not made.written()
    made.close()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {"chatty.log", "chatty.log.1"} and max(sizes.values()) <= LOG_OCTETS
    assert b"%8d" % number in (folder / "chatty.log").read_bytes()[-1024:]


def test_a_name_is_one_programs_also_after_its_file_was_turned_over(folder):
    made, program = began("one")
    with pytest.raises(NameTaken, match="--name"):
        Output("one")
    os.write(program, b"y" * 60000)
    while not (folder / "one.log.1").exists():
        made.written()
        os.write(program, b"y" * 60000)
    with pytest.raises(NameTaken):
        Output("one")
    assert detached.output_for("/usr/bin/one", None)[0] == "one-2"
    made.close()
    Output("one").close()


def test_a_program_that_never_ran_leaves_no_file(folder):
    Output("none").discard()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "4711", "a b"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="no name for a program"):
        check_name(name)


@pytest.mark.parametrize(("program", "name"), [("/usr/bin/nginx", "nginx"), ("./my prog", "my-prog"), ("/", "program"),
                                               ("/bin/4711", "4711-1"), ("/x/[", "program")])
def test_a_name_is_made_of_the_programs(program, name):
    made, kept = detached.output_for(program, None)
    kept.discard()
    assert made == name


def test_a_detached_process_is_alone_and_tells_once_it_runs():
    def run(executed):
        with open("/proc/self/stat") as file:
            session = int(file.read().rpartition(")")[2].split()[3])
        executed(session)
        return 0
    session = detached.detach(run)
    assert session not in (os.getsid(0), 0)


def test_what_keeps_it_from_running_is_told():
    def run(_executed):
        raise LaunchFailed("no such thing", 127)
    with pytest.raises(LaunchFailed, match="no such thing") as failed:
        detached.detach(run)
    assert failed.value.status == 127
