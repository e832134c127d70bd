"""Packet devices: a disc is a read-only disk of 2048-octet sectors, which comes and goes."""

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.ahci.identify import IdentifyError
from drivers.ahci.packet import AGAIN, Sense, parse_packet
from drivers.ahci.states import State
from drivers.disk import GONE, DiskInfo, Feature
from drivers.request import Operation
from tests.models.ahci.packet import SECTOR, Disc

READ, WRITE, FLUSH = Operation.READ, Operation.WRITE, Operation.FLUSH
BLOCKS = 300


def disc(seed=1, blocks=BLOCKS):
    return random.Random(seed).randbytes(SECTOR * blocks)


def read(made, lba, sectors=1):
    memory = made.memory(1 << 20)
    code = made.do(READ, lba, sectors, [(memory, 0, SECTOR * sectors)])
    return code or bytes(memory.view()[:SECTOR * sectors])


def test_a_disc_is_a_disk_that_reads(rig):
    made = rig(Disc(disc()))
    assert made.disk.info == DiskInfo("0000:00:1f.2/0", "STRICT CD-ROM", "C-1", "1.0", BLOCKS, SECTOR, SECTOR, 1,
                                      Feature.READ_ONLY, 65536, 248)
    assert read(made, 0) == disc()[:SECTOR] and read(made, BLOCKS - 200, 200) == disc()[-200 * SECTOR:]
    statistics = made.disk.statistics()
    assert (statistics["reads"], statistics["sectors_read"], statistics["failed"]) == (2, 201, 0)


def test_it_cannot_be_written_and_a_flush_has_nothing_to_do(rig):
    made = rig(Disc(disc()))
    memory = made.memory()
    assert made.do(WRITE, 0, 1, [(memory, 0, SECTOR)]) == errno.EROFS
    assert made.do(Operation.TRIM, 0, 1) == made.do(Operation.WRITE_ZEROES, 0, 1) == errno.EROFS
    assert made.do(FLUSH) == 0 and made.do(READ, BLOCKS, 1, [(memory, 0, SECTOR)]) == errno.EINVAL


def test_a_sector_that_cannot_be_read_says_so_and_the_others_can(rig):
    made = rig(Disc(disc(), unreadable={7}))
    assert read(made, 7) == errno.ENODATA and read(made, 6, 4) == errno.ENODATA
    assert read(made, 8) == disc()[8 * SECTOR:9 * SECTOR] and made.model.resets == 0


def test_a_unit_attention_is_taken_and_the_read_tried_again(rig):
    made = rig(Disc(disc()))
    made.drive.attention = 0x2900
    assert read(made, 3) == disc()[3 * SECTOR:4 * SECTOR]


def test_without_a_disc_there_is_no_disk_until_one_is_inserted(rig):
    made = rig(Disc())
    port = made.controller.ports[0]
    assert made.controller.disks == [] and (port.state, port.reason) == (State.READY, "no medium is in the drive")
    came = []
    made.controller.on_disk = lambda disk, there: came.append((disk, there))
    made.wait(5)
    assert came == []
    made.drive.insert(disc())
    made.until(lambda: came)
    made.use(came[0][0])
    assert came[0][1] and read(made, 9) == disc()[9 * SECTOR:10 * SECTOR]


def test_a_disc_that_is_taken_out_ends_its_disk_and_the_next_is_another(rig):
    made = rig(Disc(disc()))
    came = []
    made.controller.on_disk = lambda disk, there: came.append(there)
    made.drive.insert(None)
    assert read(made, 0) == errno.ENOMEDIUM
    made.until(lambda: made.disk.gone)
    assert made.disk.complete(made.completions) == GONE and made.disk.reason == "its medium was taken out"
    made.disk.close()
    made.drive.insert(disc(2, 50))
    made.until(lambda: len(came) == 2)
    made.use(made.controller.disks[0])
    assert made.disk.info.sectors == 50 and read(made, 1) == disc(2)[SECTOR:2 * SECTOR]
    ours = [block.owner for block in made.device.bus.blocks if block.owner.startswith("ahci") and not block.freed]
    assert len(ours) == 2       # the port's and this disc's: the one before has left nothing


def test_a_disc_exchanged_between_two_looks_is_noticed(rig):
    made = rig(Disc(disc()))
    made.drive.insert(disc(2))
    made.until(lambda: made.disk.gone)
    made.until(lambda: made.controller.disks)
    made.disk.close()
    made.use(made.controller.disks[0])
    assert read(made, 1) == disc(2)[SECTOR:2 * SECTOR]


@pytest.mark.parametrize(("sense", "code"), [
    (Sense(2, 0x3A, 0), errno.ENOMEDIUM), (Sense(6, 0x28, 0), errno.ENOMEDIUM), (Sense(6, 0x29, 0), AGAIN),
    (Sense(3, 0x11, 0), errno.ENODATA), (Sense(5, 0x21, 0), errno.EINVAL), (Sense(5, 0x20, 0), errno.EIO),
    (Sense(7, 0x27, 0), errno.EROFS), (Sense(4, 0x44, 0), errno.EIO), (Sense(0, 0, 0), errno.EIO)])
def test_senses_and_what_they_mean_for_a_read(sense, code):
    assert sense.errno == code


@given(st.binary(max_size=600))
def test_whatever_a_packet_device_says_there_is_an_answer(data):
    try:
        found = parse_packet(data)
    except IdentifyError:
        return
    assert found.packet_octets in (12, 16) and found.model.isprintable()
