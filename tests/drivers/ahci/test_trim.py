"""TRIM and WRITE_ZEROES: by which command, of what, and refused where the drive does not have them."""

import errno
import struct

import pytest

from drivers.ahci.options import Options, ZeroingTrim
from drivers.ahci.queue import MAX_TRIM_SECTORS
from drivers.disk import Feature
from drivers.request import Flag, Operation
from tests.models.ahci import FLUSH, SECTOR, Drive, identification
from tests.models.ahci.commands import DATA_SET_MANAGEMENT, SEND_FPDMA

TRIM, ZEROES = Operation.TRIM, Operation.WRITE_ZEROES
ZEROING = Options(zeroing_trim=ZeroingTrim.ALWAYS)


def codes(made):
    return [code for code, _, _ in made.drive.executed]


def filled(**options):
    drive = Drive(full=True, **options)
    drive.media = {lba: b"x" * SECTOR for lba in range(100)}
    drive.durable = dict(drive.media)
    return drive


@pytest.mark.parametrize(("queued", "command"), [(True, SEND_FPDMA), (False, DATA_SET_MANAGEMENT)])
def test_trim_goes_by_the_best_command_the_drive_has(rig, queued, command):
    made = rig(filled(queued_trim=queued))
    assert Feature.TRIM in made.disk.info.features and made.disk.info.max_trim_sectors == MAX_TRIM_SECTORS
    assert made.do(TRIM, 10, 20) == 0
    assert made.drive.trimmed == [(10, 20)] and command in codes(made)
    statistics = made.disk.statistics()
    assert (statistics["trims"], statistics["sectors_trimmed"], statistics["flushes"]) == (1, 20, 0)


def test_a_long_trim_is_cut_into_the_ranges_that_the_command_can_say(rig):
    drive = Drive(full=True, identity=identification(sectors=1 << 32))
    made = rig(drive)
    assert made.do(TRIM, 1000, 200_000) == 0
    assert drive.trimmed == [(1000, 65535), (66535, 65535), (132070, 65535), (197605, 3395)]
    drive.trimmed.clear()
    assert made.do(TRIM, 5, MAX_TRIM_SECTORS) == 0
    assert len(drive.trimmed) == 64 and sum(count for _, count in drive.trimmed) == MAX_TRIM_SECTORS
    assert made.do(TRIM, 5, MAX_TRIM_SECTORS + 1) == errno.EINVAL


def test_trim_with_fua_is_flushed_and_without_ncq_it_runs_alone(rig):
    made = rig(filled())
    assert made.do(TRIM, 10, 20, fua=True) == 0
    assert codes(made)[-2:] == [DATA_SET_MANAGEMENT, FLUSH] and 10 not in made.drive.durable
    plain = rig(filled(), queued=False)
    assert plain.do(TRIM, 10, 20) == 0 and codes(plain)[-1] == DATA_SET_MANAGEMENT


def test_trims_among_reads_and_writes_agree_with_a_model(rig):
    made = rig(filled(), lazy=True)
    memory = made.memory()
    tags = [made.ask(Operation.READ, n, 1, [(memory, n * SECTOR, SECTOR)]) for n in range(10)]
    tags += [made.ask(TRIM, 50, 10), made.ask(Operation.WRITE, 70, 1, [(memory, 20 * SECTOR, SECTOR)]), made.ask(TRIM, 90, 5)]
    made.look()
    made.model.lazy = False
    made.model.run()
    assert made.finish(*tags) == [0] * 13
    assert sorted(lba for lba, _ in made.drive.trimmed) == [50, 90]
    assert bytes(memory.view()[:10 * SECTOR]) == b"x" * 10 * SECTOR


def test_a_trim_that_fails_fails_alone(rig):
    made = rig(filled(broken={SEND_FPDMA: 0x04}), lazy=True)
    memory = made.memory()
    tags = [made.ask(Operation.READ, 1, 1, [(memory, 0, SECTOR)]), made.ask(TRIM, 50, 10),
            made.ask(Operation.READ, 2, 1, [(memory, 0, SECTOR)])]
    made.look()
    made.model.lazy = False
    made.model.run()
    assert made.finish(*tags) == [0, errno.EIO, 0]


def test_a_drive_without_trim_refuses_and_says_so_before(rig):
    made = rig()
    assert not made.disk.info.features & (Feature.TRIM | Feature.WRITE_ZEROES) and made.disk.info.max_trim_sectors == 0
    assert made.do(TRIM, 0, 1) == made.do(ZEROES, 0, 1) == errno.EOPNOTSUPP


def test_zeros_are_written_by_trim_only_if_the_drives_word_is_taken(rig):
    made = rig(filled())
    assert Feature.WRITE_ZEROES not in made.disk.info.features and made.do(ZEROES, 3, 4) == errno.EOPNOTSUPP
    made = rig(filled(model="Samsung SSD 860"))
    assert Feature.WRITE_ZEROES | Feature.FAST_ZEROES in made.disk.info.features
    made = rig(filled(model="Samsung SSD 860"), options=Options(zeroing_trim=ZeroingTrim.NEVER))
    assert made.do(ZEROES, 3, 4) == errno.EOPNOTSUPP
    made = rig(filled(), options=ZEROING)
    assert made.requests.append(ZEROES, 99, 3, 4, flags=Flag.FAST | Flag.KEEP_ALLOCATED)
    assert made.finish(99) == [0] and made.read(made.memory(), 3, 4) == bytes(4 * SECTOR)
    assert made.read(made.memory(), 7) == b"x" * SECTOR


def test_what_makes_no_sense_is_refused(rig):
    made = rig(filled())
    memory = made.memory()
    cases = [(TRIM, 0, 0), (TRIM, 4096, 1), (TRIM, 4000, 97), (TRIM, 0, 1, [(memory, 0, SECTOR)])]
    assert [made.do(*case) for case in cases] == [errno.EINVAL] * 4
    assert made.drive.trimmed == [] and struct.calcsize("<Q") * 64 == 512
