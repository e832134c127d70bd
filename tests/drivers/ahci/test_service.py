"""What a drive does besides reading and writing: SMART, self-tests, caches, standby, erasing; while requests go on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.ahci import smart
from drivers.ahci.options import Options
from drivers.ahci.port import Refused
from drivers.ahci.service import WrongToken, erase, power_mode, set_write_cache, standby
from drivers.ahci.smart import Attribute, SelfTest
from drivers.disk import Feature
from drivers.errors import DeviceError
from drivers.request import Operation
from tests.models.ahci import FLUSH, READ_FPDMA, SECTOR, Drive
from tests.models.ahci.commands import SECURITY_ERASE, SECURITY_FREEZE, SET_FEATURES, SMART, STANDBY_NOW
from tests.models.ahci.packet import Disc

READ, WRITE = Operation.READ, Operation.WRITE
OPEN = Options(security_freeze=False)


def codes(made):
    return [code for code, _, _ in made.drive.executed]


# SMART.

def test_what_a_drive_knows_of_its_health(rig):
    made = rig(Drive(full=True))
    found = made.perform(smart.read(made.disk))
    assert (found.healthy, found.celsius, found.hours, found.error_count) == (True, 31, 1234, 0)
    assert found.attributes[0] == Attribute(5, 100, 100, 10, 0, True)
    assert [attribute.number for attribute in found.attributes] == [5, 9, 12, 194, 197, 199]
    assert (found.test, found.test_left_percent, found.short_minutes, found.long_minutes) == ("passed", 0, 2, 10)
    assert made.read(made.memory(), 0) == bytes(SECTOR)         # it goes on


def test_a_drive_that_is_about_to_fail_says_so(rig):
    made = rig(Drive(full=True))
    made.drive.smart.failing = True
    made.drive.smart.attributes[5] = (9, 10, 4000)
    found = made.perform(smart.read(made.disk))
    assert found.healthy is False and [a.name for a in found.attributes if a.failed] == ["reallocated sectors"]


def test_self_tests_run_end_and_can_be_aborted(rig):
    made = rig(Drive(full=True))
    made.perform(smart.start_test(made.disk, "short"))
    found = made.perform(smart.read(made.disk))
    assert found.test_runs and found.test_left_percent == 20
    with pytest.raises(Refused):
        made.perform(smart.start_test(made.disk, "long"))
    while found.test_runs:
        found = made.perform(smart.read(made.disk))
    assert found.tests == (SelfTest("short", "passed", 1234),)
    made.perform(smart.start_test(made.disk, "long"))
    made.perform(smart.start_test(made.disk, "abort"))
    found = made.perform(smart.read(made.disk))
    assert found.tests == (SelfTest("long", "aborted by the host", 1234), SelfTest("short", "passed", 1234))
    assert made.read(made.memory(), 0) == bytes(SECTOR)


def test_smart_that_is_off_is_switched_on_and_a_drive_without_it_refuses(rig):
    made = rig(Drive(full=True))
    made.drive.smart.enabled = False
    assert made.perform(smart.read(made.disk)).healthy
    disc = rig(Disc(bytes(4096)))
    with pytest.raises(Refused, match="no SMART"):
        disc.perform(smart.read(disc.disk))


@given(st.binary(max_size=520), st.binary(max_size=520), st.binary(max_size=520))
def test_damaged_pages_say_nothing(data, errors, tests):
    pages = [bytes(page[:511].ljust(511, b"\0")) for page in (data, errors, tests)]
    whole = [page + bytes([-sum(page) & 0xFF]) for page in pages]
    found = smart.parse(None, whole[0], whole[0], whole[1], whole[2])
    assert found.celsius is None or 0 < found.celsius < 100
    assert all(0 < attribute.number < 256 for attribute in found.attributes) and found.test_left_percent <= 150
    assert smart.parse(None, data, data, errors, tests).healthy is None


# While requests go on.

def test_requests_wait_for_it_and_it_waits_for_them(rig):
    made = rig(Drive(full=True), lazy=True)
    memory, ended = made.memory(), []
    before = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(5)]
    made.look()
    made.disk.perform(smart.read(made.disk), lambda value, error: ended.append((value, error)))
    after = [made.ask(READ, n, 1, [(memory, 0, SECTOR)]) for n in range(5)]
    made.look(50)
    assert not made.ended and SMART not in codes(made)
    made.model.lazy = False
    made.model.run()
    made.finish(*before, *after)
    assert ended[0][0].healthy and ended[0][1] is None
    order = codes(made)
    first, last = order.index(SMART), len(order) - 1 - order[::-1].index(SMART)
    assert order[:first].count(READ_FPDMA) == 5 and order[last:].count(READ_FPDMA) == 5
    assert all(code in (SMART, 0x2F) for code in order[first:last + 1])


def test_a_disk_that_is_gone_answers_with_an_error(rig):
    made = rig(Drive(full=True))
    made.model.gone = True
    with pytest.raises(DeviceError, match="gone"):
        made.perform(smart.read(made.disk))
    with pytest.raises(DeviceError, match="there is no disk"):
        made.perform(smart.read(made.disk))


def test_a_service_that_hangs_costs_a_reset_and_no_request(rig):
    made = rig(Drive(full=True, broken={SMART: "hang"}))
    for _ in range(5):
        with pytest.raises(DeviceError, match="SMART ENABLE"):
            made.perform(smart.read(made.disk))
    assert made.model.resets == 5 and made.read(made.memory(), 0) == bytes(SECTOR)


# Cache and standby.

def test_the_write_cache_is_switched_and_stays_so_over_resets(rig):
    made = rig(Drive(full=True))
    memory = made.memory()
    made.do(WRITE, 1, 1, [(memory, 0, SECTOR)])
    made.perform(set_write_cache(made.disk, False))
    assert not made.drive.cache and 1 in made.drive.durable and Feature.WRITE_CACHE not in made.disk.info.features
    made.do(WRITE, 2, 1, [(memory, 0, SECTOR)])
    assert 2 in made.drive.durable
    made.drive.fail[9] = "link"
    made.drive.cache = True         # as a reset leaves it
    made.do(READ, 9, 1, [(memory, 0, SECTOR)])
    assert made.model.resets and not made.drive.cache and Feature.WRITE_CACHE not in made.disk.info.features
    made.perform(set_write_cache(made.disk, True))
    assert made.drive.cache and Feature.WRITE_CACHE in made.disk.info.features


def test_the_configured_write_cache_is_set_when_the_drive_comes(rig):
    made = rig(Drive(full=True), options=Options(write_cache=False))
    assert not made.drive.cache and Feature.WRITE_CACHE not in made.disk.info.features
    assert SET_FEATURES in codes(made)
    refusing = rig(Drive(full=True, broken={SET_FEATURES: 0x04}), options=Options(write_cache=False))
    assert Feature.WRITE_CACHE in refusing.disk.info.features
    assert "setting refused" in [event.what for event in refusing.disk.life.events]


def test_standby_empties_the_cache_and_the_next_request_wakes(rig):
    made = rig(Drive(full=True))
    memory = made.memory()
    made.do(WRITE, 1, 1, [(memory, 0, SECTOR)])
    made.perform(standby(made.disk))
    assert STANDBY_NOW in codes(made) and made.drive.standby and 1 in made.drive.durable
    assert made.perform(power_mode(made.disk)) == "standby"
    assert made.read(memory, 1) == made.drive.sector(1)
    assert made.perform(power_mode(made.disk)) == "active or idle"


# Security and what destroys.

def test_security_is_frozen_when_the_drive_comes_unless_told_not_to(rig):
    made = rig(Drive(full=True))
    assert made.drive.security.frozen and SECURITY_FREEZE in codes(made)
    assert not rig(Drive(full=True), options=OPEN).drive.security.frozen
    plain = rig()
    assert SECURITY_FREEZE not in codes(plain)


def test_erasing_needs_the_drives_name(rig):
    made = rig(Drive(full=True), options=OPEN)
    made.drive.media = {0: b"x" * SECTOR}
    for token in ("", "s-1", "yes", made.disk.name):
        with pytest.raises(WrongToken, match="repeat its serial number, S-1,"):
            made.perform(erase(made.disk, token))
    assert made.drive.media and SECURITY_ERASE not in codes(made)
    made.perform(erase(made.disk, "S-1", enhanced=True))
    assert not made.drive.media and not made.drive.security.enabled
    assert made.read(made.memory(), 0) == bytes(SECTOR)


def test_a_frozen_drive_says_what_to_do(rig):
    made = rig(Drive(full=True))
    with pytest.raises(Refused, match="security_freeze = false"):
        made.perform(erase(made.disk, "S-1"))
    with pytest.raises(Refused, match="cannot erase itself"):
        plain = rig()
        plain.perform(erase(plain.disk, "S-1"))


def test_an_erasing_that_is_refused_leaves_no_password(rig):
    made = rig(Drive(full=True, broken={SECURITY_ERASE: 0x04}), options=OPEN)
    made.drive.media = {0: b"x" * SECTOR}
    with pytest.raises(Refused, match="SECURITY ERASE UNIT"):
        made.perform(erase(made.disk, "S-1"))
    assert not made.drive.security.enabled and made.read(made.memory(), 0) == b"x" * SECTOR
    assert FLUSH == 0xEA
