"""`rustosctl disk`: what is shown, octets that come and go as they are, what is refused before anything is written."""

import asyncio
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from drivers.errors import DeviceError
from rustosd.cli import disk as command
from rustosd.cli import plots
from rustosd.control import disk_protocol as p
from rustosd.control.operations import Operations
from rustosd.control.protocol import MAX_REQUEST_OCTETS
from rustosd.control.server import OperationFailed
from rustosd.disk_content import LOOKED_AT, MAGICS, recognise
from rustosd.values import parse_size
from tests.rustosd.fake_devices import OUR_AHCI
from tests.rustosd.goldens import reads_as_promised
from tests.rustosd.terminal import on_a_terminal, rustosctl_command

GOLDEN = Path(__file__).with_name("golden")
SIZE = 2048 * 512
SHOWN = {
    "disk-list": ("disk",), "disk-show": ("disk", "show", "LAB-DISK0"),
    "disk-exports": ("disk", "exports"),
    "disk-bench": ("disk", "bench", "LAB-DISK1", "--seconds", "2.5", "--depth", "32"),
}


@pytest.fixture
def disk(core):
    """LAB-DISK0, full of octets that no two sectors have alike."""
    made = core.devices.held[OUR_AHCI].disks[f"{OUR_AHCI}/0"]
    made.octets[:] = pattern(SIZE)
    return made


def pattern(length, seed=b"disk"):
    return hashlib.shake_128(seed).digest(length)


def run(socket_path, *words, **options):
    """A process, for its standard input and output are octets."""
    argv = rustosctl_command("--socket", socket_path, "disk", *words)
    return subprocess.run(argv, capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("name", SHOWN)
def test_text_and_json_read_as_promised(rustosctl, name):
    reads_as_promised(rustosctl, name, SHOWN[name])


def test_a_noun_alone_is_its_list(rustosctl):
    assert rustosctl("disk") == rustosctl("disk", "list")
    assert rustosctl("disk", "--json") == rustosctl("disk", "list", "--json")


@pytest.mark.parametrize("name", [f"{OUR_AHCI}/0", "LAB-DISK0"])
def test_a_disk_goes_by_its_name_or_its_serial_number(rustosctl, name):
    assert json.loads(rustosctl("disk", "show", name, "--json")[1])["disk"]["disk"]["name"] == f"{OUR_AHCI}/0"


def test_a_beginning_is_enough_when_it_is_unique(rustosctl, core):
    assert rustosctl("disk", "show", "LAB-")[2] == f"rustosctl: LAB- can be {OUR_AHCI}/0 or {OUR_AHCI}/1; say which\n"
    del core.devices.held[OUR_AHCI].disks[f"{OUR_AHCI}/1"]
    assert rustosctl("disk", "show", "LAB-")[0] == rustosctl("disk", "show", "0000:")[0] == 0


def test_without_a_controller_of_ours_there_is_no_disk(rustosctl, core):
    core.devices.held.clear()
    assert rustosctl("disk") == (0, "DISK  MODEL  SERIAL  SIZE  SECTOR  DEPTH\n0 disks\n", "")
    status, _, err = rustosctl("disk", "show", "x")
    assert status == 1 and "none is ours: name one under [[disk]] in the configuration, or take a controller" in err
    core.devices = None
    assert rustosctl("disk", "list")[1].endswith("0 disks\n")


# Reading

@pytest.mark.parametrize(("offset", "length"), [
    ("0", str(SIZE)), ("0", "1"), ("511", "2"), ("512", "512"), ("1K", "64K"), ("100", "300KiB"), (str(SIZE - 1), "1"),
    ("0x200", "0x1000"),
])
def test_what_is_read_is_what_is_there(socket_path, disk, tmp_path, offset, length):
    begin, octets = parse_size(offset), parse_size(length)
    target = tmp_path / "out"
    done = run(socket_path, "read", "LAB-DISK0", "--offset", offset, "--length", length, "-o", str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert target.read_bytes() == pattern(SIZE)[begin:begin + octets]


def test_without_a_length_it_is_read_to_its_end_and_without_a_file_to_standard_output(socket_path, disk):
    done = run(socket_path, "read", "LAB-DISK0", "--offset", "1000")
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == pattern(SIZE)[1000:]


def test_both_sides_hold_only_a_chunk(socket_path, disk):
    run(socket_path, "read", "LAB-DISK0")
    assert all(sectors * 512 <= p.MAX_READ_OCTETS for verb, lba, sectors in disk.log[1:])
    assert len(disk.log) == 1 + SIZE // p.MAX_READ_OCTETS


def test_a_terminal_gets_hexadecimal(socket_path, disk):
    disk.octets[:16] = b"\x00\x7f\xffHello, disk!\n"
    shown = on_a_terminal(socket_path, 100, "disk", "read", "LAB-DISK0")
    lines = re.sub(r"\x1b\[[0-9;]*[mK]", "", shown).splitlines()
    assert len(lines) == 32
    assert lines[0] == "00000000  00 7f ff 48 65 6c 6c 6f  2c 20 64 69 73 6b 21 0a  |...Hello, disk!.|"
    done = run(socket_path, "read", "LAB-DISK0", "--hex", "--offset", "3", "--length", "9")
    assert done.stdout == b"00000003  48 65 6c 6c 6f 2c 20 64  69                       |Hello, di|\n"


def test_a_reader_that_leaves_is_no_traceback(socket_path, disk):
    with subprocess.Popen(rustosctl_command("--socket", socket_path, "disk", "read", "LAB-DISK0"), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait(60) == 1


# Writing

@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 1), (511, 2), (512, 1024), (700, 100_000), (SIZE - 5, 5)])
@pytest.mark.parametrize("piped", [False, True])
def test_what_is_written_is_there_and_nothing_else_is_touched(socket_path, disk, tmp_path, offset, length, piped):
    fresh = pattern(length, b"fresh")
    (tmp_path / "in").write_bytes(fresh)
    source, options = ("-", {"input": fresh}) if piped else (str(tmp_path / "in"), {})
    done = run(socket_path, "write", "LAB-DISK0", "--offset", str(offset), "-i", source, "--yes", **options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith(("1.0 MiB", f"{length} B", "1.0 KiB", "97.7 KiB"))
    assert disk.octets == pattern(SIZE)[:offset] + fresh + pattern(SIZE)[offset + length:]
    assert disk.log[-1] == ("flush",)


def test_without_yes_nothing_is_written_and_what_would_be_is_named(rustosctl, disk, tmp_path):
    (tmp_path / "in").write_bytes(bytes(1000))
    disk.octets[510:512] = b"\x55\xaa"
    status, out, err = rustosctl("disk", "write", "LAB-DISK0", "--offset", "4K", "-i", str(tmp_path / "in"))
    assert (status, out) == (2, "")
    assert err == ("rustosctl: this overwrites the 1000 octets from 4096 to 5096 of 0000:00:04.0/0 (QEMU HARDDISK, serial "
                   "LAB-DISK0, 1.0 MiB), which begins with an MBR partition table; say --yes to do it\n")
    assert not any(entry[0] == "write" for entry in disk.log)


def test_a_pipe_that_is_longer_than_the_disk_says_how_far_it_got(socket_path, disk):
    done = run(socket_path, "write", "LAB-DISK0", "--yes", "--offset", str(SIZE - 32768), input=bytes(32769))
    assert done.returncode == 1 and b"32768 octets were written before" in done.stderr and b"beyond its end" in done.stderr
    assert disk.octets[:-32768] == pattern(SIZE)[:-32768] and not any(disk.octets[-32768:])


def test_a_disk_that_fails_says_so(socket_path, disk, tmp_path):
    disk.fails = DeviceError(f"{OUR_AHCI}/0", "write of 64 sectors at 0 failed: the disk is write-protected")
    done = run(socket_path, "write", "LAB-DISK0", "--yes", input=bytes(40000))
    assert done.returncode == 1 and b"is write-protected; 0 octets were written before" in done.stderr


async def test_parts_of_sectors_written_at_the_same_time_do_not_undo_each_other(core, disk):
    operations = Operations(core)
    await asyncio.gather(*(operations.disk_write(p.DiskWrite(disk="LAB-DISK0", token="LAB-DISK0", offset=i * 100,
                                                             octets=bytes([i]) * 100)) for i in range(5)))
    assert disk.octets[:500] == b"".join(bytes([i]) * 100 for i in range(5)) and disk.octets[500:] == pattern(SIZE)[500:]


@pytest.mark.parametrize("token", ["", "LAB-DISK1", "lab-disk0", f"{OUR_AHCI}/0"])
async def test_only_who_names_the_very_disk_writes_to_it(core, disk, token):
    with pytest.raises(OperationFailed, match="repeat LAB-DISK0 as the token"):
        await Operations(core).disk_write(p.DiskWrite(disk="LAB-DISK0", token=token, offset=0, octets=b"x"))
    disk.info.serial = ""
    await Operations(core).disk_write(p.DiskWrite(disk=f"{OUR_AHCI}/0", token=f"{OUR_AHCI}/0", offset=0, octets=b"x"))
    assert disk.octets == b"x" + pattern(SIZE)[1:]


def test_the_longest_write_fits_a_request():
    assert p.MAX_WRITE_OCTETS * 4 / 3 + 1024 < MAX_REQUEST_OCTETS


@pytest.mark.parametrize(("words", "status", "message"), [
    (("disk", "show"), 2, "Missing argument"),
    (("disk", "show", ""), 2, "is no name of a disk"),
    (("disk", "show", "x" * 129), 2, "is no name of a disk"),
    (("disk", "show", "sda"), 1, f"there is no disk sda; there is {OUR_AHCI}/0, {OUR_AHCI}/1"),
    (("disk", "read", "LAB-DISK0", "--offset", "-1"), 2, "'-1' is no amount of octets, such as 4096, 64K or 1MiB"),
    (("disk", "read", "LAB-DISK0", "--offset", "1.5K"), 2, "is no amount of octets"),
    (("disk", "read", "LAB-DISK0", "--offset", "9" * 30), 2, "is more octets than any disk has"),
    (("disk", "read", "LAB-DISK0", "--length", "0"), 2, "--length is at least 1 octet"),
    (("disk", "read", "LAB-DISK0", "--offset", "1M"), 1, "ends at 1048576: there are no 1 octets from 1048576 on"),
    (("disk", "read", "LAB-DISK0", "--length", "2M"), 1, "there are no 2097152 octets from 0 on"),
    (("disk", "read", "LAB-DISK0", "-o", "/nowhere/file"), 1, "cannot write /nowhere/file: No such file or directory"),
    (("disk", "write", "LAB-DISK0", "-i", "/nowhere/file", "--yes"), 1, "cannot read /nowhere/file: No such file"),
    (("disk", "write", "LAB-DISK0", "-i", "/", "--yes"), 1, "cannot read /: Is a directory"),
    (("disk", "write", "LAB-DISK0", "-i", __file__, "--offset", "1020K", "--yes"), 1, "does not fit from 1044480 on; nothing"),
    (("disk", "write", "LAB-DISK0", "-i", __file__, "--offset", "1M", "--yes"), 1, "does not fit from 1048576 on; nothing"),
    (("disk", "write", "LAB-DISK0", "-i", os.devnull), 2, "this overwrites everything from 0 on of"),
    (("disk", "bench", "LAB-DISK0", "--pattern", "zigzag"), 2, "'zigzag' is not one of 'random', 'sequential'"),
    (("disk", "bench", "LAB-DISK0", "--block", "100"), 2, "--block is from 512 octets to 1 MiB, not 100"),
    (("disk", "bench", "LAB-DISK0", "--block", "1000"), 1, "has sectors of 512 octets: a block is a multiple of that"),
    (("disk", "bench", "LAB-DISK0", "--depth", "129"), 2, "Invalid value for '--depth'"),
    (("disk", "bench", "LAB-DISK0", "--seconds", "0"), 2, "Invalid value for '--seconds'"),
    (("disk", "bench", "LAB"), 1, "say which"),
])
def test_what_is_wrong_is_one_line_and_a_status(rustosctl, core, words, status, message):
    got, out, err = rustosctl(*words)
    assert (got, out) == (status, "")
    assert message in err and err.count("\n") == 1 and err.startswith("rustosctl: ")
    assert not any(entry[0] == "write" for disk in core.devices.held[OUR_AHCI].disks.values() for entry in disk.log)


def test_an_empty_file_is_no_write(rustosctl, disk, tmp_path):
    (tmp_path / "in").touch()
    assert "there is nothing to write" in rustosctl("disk", "write", "LAB-DISK0", "-i", str(tmp_path / "in"), "--yes")[2]
    assert not any(entry[0] == "write" for entry in disk.log)


# Measuring

def test_a_benchmark_goes_in_rounds_no_deeper_than_the_disk(rustosctl, disk):
    disk.info.queue_depth = 8
    document = json.loads(rustosctl("disk", "bench", "LAB-DISK0", "--seconds", "2.5", "--depth", "32", "--json")[1])["bench"]
    assert [entry[1:] for entry in disk.log] == [("random", 4096, 8, 1.0), ("random", 4096, 8, 1.0), ("random", 4096, 8, 0.5)]
    assert (document["depth"], document["requests"], document["rounds"]) == (8, 2500, [1000.0] * 3)


def test_a_terminal_sees_a_benchmark_go_on_and_then_its_result(socket_path, disk):
    shown = on_a_terminal(socket_path, 100, "disk", "bench", "LAB-DISK1", "--seconds", "2.5", "--depth", "32", progress=True)
    *reports, result = shown.split("\x1b[K")
    assert [report for report in reports if report] == [
        "[████████            ] 1 of 2.5 s  1000 requests/s  █", "[████████████████    ] 2 of 2.5 s  1000 requests/s  ██",
        "[████████████████████] 2.5 of 2.5 s  1000 requests/s  ███"]
    assert result == (GOLDEN / "disk-bench.txt").read_text()


def test_rounds_add_up():
    def one(requests, mean_us, longest_us, *buckets, errors=0):
        histogram = [p.LatencyBucket(below_us=below, requests=count) for below, count in buckets]
        return p.BenchRound(disk="d", pattern="random", block_octets=4096, depth=1, seconds=1.0, requests=requests,
                            errors=errors, mean_us=mean_us, longest_us=longest_us, histogram=histogram)
    result = command.report([one(90, 10.0, 12.0, (12.0, 90)), one(10, 110.0, 500.0, (12.0, 5), (500.0, 5), errors=2)])
    assert (result.requests, result.errors, result.seconds, result.mean_us, result.longest_us) == (100, 2, 2.0, 20.0, 500.0)
    assert (result.requests_per_second, result.octets_per_second) == (50.0, 50 * 4096)
    assert result.percentiles_us == {"50": 12.0, "90": 12.0, "99": 500.0, "99.9": 500.0}
    assert [(bucket.below_us, bucket.requests) for bucket in result.histogram] == [(12.0, 95), (500.0, 5)]
    nothing = command.report([one(0, 0.0, 0.0)])
    assert nothing.percentiles_us == {} and nothing.mean_us == 0.0


def test_errors_fail_a_benchmark(rustosctl, disk, monkeypatch):
    async def bench(*arguments):
        from tests.rustosd.fake_devices import Result
        return Result(1.0, errors=3)
    monkeypatch.setattr(disk, "bench", bench)
    status, out, _ = rustosctl("disk", "bench", "LAB-DISK0", "--seconds", "1")
    assert status == 1 and "1000 requests, 3 errors" in out


def test_pictures():
    assert plots.sparkline([0, 1, 4, 8]) == "▁▂▅█" and plots.sparkline([]) == "" and plots.sparkline([0, 0]) == "▁▁"
    assert list(plots.bars([("a", 0), ("b", 4), ("c", 0), ("d", 1), ("e", 0)], width=4)) == [
        "b  ████  4", "c        0", "d  █     1"]
    assert list(plots.bars([("a", 0)])) == []


def test_an_output_without_these_letters_gets_plain_ones(monkeypatch):
    class Ascii:
        encoding = "ascii"
    monkeypatch.setattr(plots.sys, "stdout", Ascii())
    assert plots.sparkline([0, 8]).isascii() and next(plots.bars([("a", 1)])).isascii()


# What is on a disk

@pytest.mark.parametrize("magic", MAGICS, ids=lambda magic: f"{magic.name}@{magic.offset}")
def test_each_magic_is_recognised(magic):
    octets = bytearray(LOOKED_AT)
    octets[magic.offset:magic.offset + len(magic.octets)] = magic.octets
    assert recognise(bytes(octets)) == [magic.name]
    assert recognise(bytes(octets[:magic.offset])) in (["zeros"], [])


def test_an_mbr_is_not_what_protects_a_gpt_nor_a_boot_sector():
    mbr = bytearray(LOOKED_AT)
    mbr[510:512] = b"\x55\xaa"
    assert recognise(bytes(mbr)) == []
    mbr[450] = 0x83
    assert recognise(bytes(mbr)) == ["an MBR partition table"]
    mbr[450], mbr[512:520] = 0xEE, b"EFI PART"
    assert recognise(bytes(mbr)) == ["a GPT partition table"]
    mbr[450], mbr[512:520], mbr[82:90] = 0x83, bytes(8), b"FAT32   "
    assert recognise(bytes(mbr)) == ["a FAT filesystem"]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("4096", 4096), ("4096B", 4096), ("64k", 65536), ("64KiB", 65536),
                                             ("1m", 1 << 20), ("2 GiB", None), ("3T", 3 << 40), ("0x10", 16), ("0xfB", 0xFB),
                                             ("", None), ("K", None), ("1Ki", None), ("\u0661", None), ("1e3", None)])
def test_sizes(text, value):
    if value is None:
        with pytest.raises(ValueError, match="is no amount of octets"):
            parse_size(text)
    else:
        assert parse_size(text) == value
