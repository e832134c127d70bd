"""Register maps: what a declaration forbids, what the verbs put on the bus, what trace and dump show."""

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import DeviceError, DeviceGone, DeviceTimeout
from drivers.registers import (
    MS,
    RC,
    RCW1C,
    RO,
    W1C,
    WO,
    Bits,
    DeclarationError,
    Reg,
    RegisterFile,
    RegisterMap,
    RegisterRow,
    wait_until,
)


class Speed(IntEnum):
    MB10 = 0
    MB100 = 1
    MB1000 = 2


class CTRL(Reg, at=0x0000, spec="8254x 13.4.1", reset=0x0000_0201):
    """Device control."""

    FD = Bits(0, doc="full duplex")
    SLU = Bits(6, doc="set link up")
    SPEED = Bits(9, 8, Speed)
    RST = Bits(26, doc="reset")


class STATUS(Reg, at=0x0008, access=RO):
    """Device status."""

    LU = Bits(1)
    FUNCTION = Bits(3, 2)
    SPEED = Bits(7, 6, Speed)


class ICR(Reg, at=0x00C0, access=RCW1C):
    LSC = Bits(2)


class IMC(Reg, at=0x00D8, access=WO):
    LSC = Bits(2)


class RAL(Reg, at=0x0100, count=4, stride=8):
    pass


class RAH(Reg, at=0x0104, count=4, stride=8):
    AV = Bits(31)


class CRCERRS(Reg, at=0x0140, access=RC):
    pass


class GORC(Reg, at=0x0148, access=RO, width=64):
    pass


class SLOTCTL(Reg, at=0x0150, width=16):
    POWER = Bits(1)
    CHANGED = Bits(8, access=W1C)
    FAULT = Bits(9, access=W1C)


MAP = RegisterMap.of("test card", globals())


class FakeBar:
    """Memory that writes down every access; `reads` gives values to be answered in order."""

    size = 0x1000
    address = 0

    def __init__(self):
        self.memory = bytearray(self.size)
        self.log = []
        self.answers = {}

    def _read(self, offset, octets):
        queue = self.answers.get(offset)
        value = queue.pop(0) if queue else int.from_bytes(self.memory[offset:offset + octets], "little")
        self.log.append(("r", offset, octets, value))
        return value

    def _write(self, offset, octets, value):
        assert type(value) is int
        self.log.append(("w", offset, octets, value))
        self.memory[offset:offset + octets] = value.to_bytes(octets, "little")

    def read8(self, offset): return self._read(offset, 1)
    def read16(self, offset): return self._read(offset, 2)
    def read32(self, offset): return self._read(offset, 4)
    def write8(self, offset, value): self._write(offset, 1, value)
    def write16(self, offset, value): self._write(offset, 2, value)
    def write32(self, offset, value): self._write(offset, 4, value)


class Clock:
    """A clock that only sleeping and looking move."""

    def __init__(self, look_ns=1000):
        self.now, self.look_ns, self.naps = 0, look_ns, []

    def __call__(self):
        self.now += self.look_ns
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += round(seconds * 1e9)


@pytest.fixture
def bar():
    return FakeBar()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def regs(bar, clock):
    return RegisterFile(bar, MAP, "0000:03:00.0", clock=clock, sleep=clock.sleep)


# Declarations

def test_a_field_on_the_class_is_an_integer_mask():
    assert (STATUS.LU.mask, STATUS.SPEED.mask, STATUS.SPEED.low, STATUS.SPEED.width) == (2, 0xC0, 6, 2)
    assert type(STATUS.LU.mask) is int and STATUS.at == 8 and repr(STATUS.SPEED) == "STATUS.SPEED[7:6]"


def test_a_field_on_a_value_is_what_the_value_says():
    value = STATUS(0x82)
    assert value.LU is True and value.SPEED is Speed.MB1000 and value == 0x82 and value & STATUS.LU.mask == 2


def test_a_value_without_a_name_stays_a_number():
    assert STATUS(0xC0).SPEED == 3 and not isinstance(STATUS(0xC0).SPEED, Speed)


def test_unknown_bits_are_shown():
    assert str(STATUS(0x8000_0086)) == "LU FUNCTION=1 SPEED=MB1000 ?0x80000000"
    assert repr(STATUS(0x8000_0002)) == "STATUS(0x80000002: LU SPEED=MB10 ?0x80000000)"
    assert str(RAL(0x12)) == "0x12" and str(RAH(0)) == "0"


def test_a_value_is_built_from_fields_or_from_another():
    assert CTRL(SLU=1, SPEED=Speed.MB1000) == 0x240
    assert CTRL(CTRL(0x240), SLU=0, RST=True) == 0x400_0200


@pytest.mark.parametrize("build", [
    lambda: CTRL(SPEED=4), lambda: CTRL(FD=2), lambda: CTRL(FD=-1), lambda: CTRL(1 << 32), lambda: CTRL(-1),
])
def test_what_does_not_fit_is_refused(build):
    with pytest.raises(ValueError, match="does not fit"):
        build()


def test_a_wrong_field_name_gets_the_nearest():
    with pytest.raises(AttributeError, match="CTRL has no field RTS; did you mean RST"):
        CTRL(RTS=1)


def declare(**members):
    keywords = {k: members.pop(k) for k in tuple(members) if k.islower()}
    return type("X", (Reg,), members, **({"at": 0} | keywords))


@pytest.mark.parametrize(("members", "message"), [
    ({"A": Bits(3, 0), "B": Bits(3)}, r"X\.B overlaps A"),
    ({"A": Bits(32)}, "beyond 32 bits"),
    ({"A": Bits(8), "width": 8}, "beyond 8 bits"),
    ({"width": 24}, "width 24"),
    ({"at": -4}, "negative"),
    ({"count": 0}, "1 to 4096"),
    ({"count": 2, "stride": 0}, "stride above zero"),
    ({"reset": 0x100, "width": 8}, "reset value"),
])
def test_an_impossible_register_fails_when_it_is_declared(members, message):
    with pytest.raises(DeclarationError, match=message):
        declare(**members)


def test_a_field_cannot_take_the_name_of_an_attribute():
    with pytest.raises(DeclarationError, match="attribute of that name"):
        type("X", (Reg,), {"real": Bits(0)}, at=0)


@pytest.mark.parametrize("arguments", [(1, 2), (-1,), (0, 0, Speed)])
def test_an_impossible_field_fails_when_it_is_declared(arguments):
    with pytest.raises(DeclarationError):
        Bits(*arguments)


def test_a_layout_is_inherited_and_extended():
    class Layout(Reg, width=16, access=RO):
        A = Bits(0)

    class First(Layout, at=0x10):
        pass

    class Second(Layout, at=0x12):
        B = Bits(1)

    assert First(1).A and Second(3).B and Second.access is RO and Second.width == 16
    assert list(RegisterMap.of("m", {"a": Layout, "b": First, "c": Second}).registers) == ["First", "Second"]
    with pytest.raises(DeclarationError, match="overlaps A"):
        class Third(Layout):
            C = Bits(0)


def registers(*declarations):
    return [type(name, (Reg,), {}, **keywords) for name, keywords in declarations]


@pytest.mark.parametrize(("declarations", "message"), [
    ([("A", {"at": 0}), ("B", {"at": 2, "width": 16})], "B overlaps A at 0x2"),
    ([("A", {"at": 0, "count": 3}), ("B", {"at": 8})], r"B overlaps A\[2\]|A\[2\] overlaps B"),
    ([("A", {"at": 0, "count": 2, "stride": 2})], "not aligned|overlaps"),
    ([("A", {"at": 2})], "not aligned"),
    ([("A", {"at": 0}), ("A", {"at": 4})], "two registers are called A"),
    ([("trace", {"at": 0})], "of its own"),
    ([("A", {})], "has no address"),
])
def test_an_impossible_map_is_refused(declarations, message):
    with pytest.raises(DeclarationError, match=message):
        RegisterMap("m", registers(*declarations))


def test_one_address_may_be_read_as_one_and_written_as_another():
    m = RegisterMap("m", registers(("DATA_IN", {"at": 0, "access": RO}), ("DATA_OUT", {"at": 0, "access": WO})))
    assert m.name_at(0) == "DATA_IN" and m.name_at(0, writing=True) == "DATA_OUT"


def test_addresses_may_count_words():
    m = RegisterMap("phy", registers(("BMCR", {"at": 0, "width": 16}), ("BMSR", {"at": 1, "width": 16})), unit=2)
    assert (m.name_at(1), m.end) == ("BMSR", 2)


def test_a_map_names_every_offset():
    assert [MAP.name_at(o) for o in (0x8, 0xA, 0x10C, 0x108, 0xFFC)] == ["STATUS", "STATUS+2", "RAH[1]", "RAL[1]", "?0xffc"]
    assert MAP.decode(0x8, 2) == "LU SPEED=MB10" and MAP.decode(0xA, 2) == "0x2" and MAP.decode(0xFFC, 7) == "0x7"
    assert MAP.decode(0x8, 2, width=16) == "0x2"


def test_a_map_documents_itself():
    rows = {row.name: row for row in MAP.describe()}
    assert (rows["CTRL"].doc, rows["CTRL"].spec, rows["CTRL"].access) == ("Device control.", "8254x 13.4.1", "rw")
    assert (rows["CTRL.SPEED"].bits, rows["CTRL.SPEED"].doc) == ("9:8", "0 MB10, 1 MB100, 2 MB1000")
    assert rows["SLOTCTL.FAULT"].access == "w1c" and "RAL[4]" in rows


@given(st.integers(0, 0xFFFF_FFFF), st.booleans(), st.sampled_from(Speed))
def test_building_changes_the_named_fields_and_nothing_else(value, rst, speed):
    built = CTRL(value, RST=rst, SPEED=speed)
    assert built.RST is rst and built.SPEED is speed
    assert (built ^ value) & ~(CTRL.RST.mask | CTRL.SPEED.mask) == 0


# Verbs

def test_reading_is_one_access(regs, bar):
    bar.memory[8] = 0x82
    assert regs.STATUS.read().SPEED is Speed.MB1000
    assert bar.log == [("r", 8, 4, 0x82)]


def test_modify_reads_once_and_writes_once(regs, bar):
    bar.memory[0:4] = (0x1000_0001).to_bytes(4, "little")
    assert regs.CTRL.modify(SLU=1, FD=0) == 0x1000_0040
    assert bar.log == [("r", 0, 4, 0x1000_0001), ("w", 0, 4, 0x1000_0040)]


def test_modify_does_not_clear_what_it_does_not_name(regs, bar):
    bar.memory[0x150:0x152] = (0x0300).to_bytes(2, "little")
    regs.SLOTCTL.modify(POWER=1)
    assert bar.log[-1] == ("w", 0x150, 2, 0x0002)
    bar.memory[0x150:0x152] = (0x0300).to_bytes(2, "little")
    regs.SLOTCTL.modify(FAULT=1)
    assert bar.log[-1] == ("w", 0x150, 2, 0x0200)


def test_write_takes_a_value_fields_or_both(regs, bar):
    regs.CTRL.write(SLU=1)
    regs.CTRL.write(0x8000_0000, FD=1)
    regs.CTRL.write(CTRL(RST=1))
    regs.RAL[2].write(0xFFFF_FFFF)
    assert [(o, v) for _, o, _, v in bar.log] == [(0, 0x40), (0, 0x8000_0001), (0, 1 << 26), (0x110, 0xFFFF_FFFF)]


def test_sixty_four_bits_are_two_accesses_low_half_first(regs, bar):
    bar.memory[0x148:0x150] = (0x1122_3344_5566_7788).to_bytes(8, "little")
    assert regs.GORC.read() == 0x1122_3344_5566_7788
    assert [entry[1] for entry in bar.log] == [0x148, 0x14C]


@pytest.mark.parametrize("call", [
    lambda r: r.CTRL.write(1 << 32), lambda r: r.CTRL.write(-1), lambda r: r.SLOTCTL.write(0x1_0000),
    lambda r: r.CTRL.write(STATUS(1)), lambda r: r.CTRL.modify(SPEED=5),
])
def test_what_does_not_fit_never_reaches_the_device(regs, bar, call):
    with pytest.raises(ValueError):
        call(regs)
    assert not any(entry[0] == "w" for entry in bar.log)


@pytest.mark.parametrize(("register", "has"), [
    ("STATUS", {"read", "wait", "wait_until"}),
    ("CTRL", {"read", "write", "modify", "wait", "wait_until"}),
    ("IMC", {"write"}),
    ("ICR", {"read", "write"}),
    ("CRCERRS", {"read"}),
])
def test_the_access_mode_decides_which_verbs_exist(regs, register, has):
    verbs = {"read", "write", "modify", "wait", "wait_until"}
    assert {verb for verb in verbs if hasattr(getattr(regs, register), verb)} == has


def test_a_missing_verb_says_why(regs):
    with pytest.raises(AttributeError, match="STATUS is ro: it has no write"):
        regs.STATUS.write(1)


def test_a_wrong_register_name_gets_the_nearest(regs):
    with pytest.raises(AttributeError, match="test card has no register STATSU; did you mean STATUS"):
        _ = regs.STATSU


@pytest.mark.parametrize("index", [4, -1])
def test_an_array_has_an_end(regs, index):
    with pytest.raises(IndexError, match="RAL has 4 elements"):
        regs.RAL[index].read()


def test_a_part_begins_at_its_base(bar):
    RegisterFile(bar, MAP, base=0x200).CTRL.write(1)
    assert bar.log == [("w", 0x200, 4, 1)]


def test_a_bar_too_small_for_the_map_is_refused(bar):
    with pytest.raises(DeviceError, match="is this the device"):
        RegisterFile(bar, MAP, "0000:03:00.0", base=0xF00)


# Waiting

def test_wait_returns_the_value_that_satisfied_it(regs, bar):
    bar.answers[0] = [1 << 26, 1 << 26, 0x40]
    assert regs.CTRL.wait(RST=0, timeout_ns=MS) == 0x40


def test_wait_gives_up_by_name_with_the_last_value(regs, bar):
    bar.memory[3] = 4
    with pytest.raises(DeviceTimeout, match=r"0000:03:00\.0: CTRL\.RST=0 did not come") as caught:
        regs.CTRL.wait(RST=0, timeout_ns=5 * MS)
    assert caught.value.last_value == 1 << 26 and 0.005 <= caught.value.waited_s < 0.0051


def test_all_ones_are_absence_even_if_they_satisfy(regs, bar):
    bar.memory[8:12] = b"\xff" * 4
    with pytest.raises(DeviceGone):
        regs.STATUS.wait(LU=1, timeout_ns=MS)


def test_all_ones_may_be_declared_an_answer(bar, clock):
    class ACTIVE(Reg, at=0, all_ones=True):
        pass
    bar.answers[0] = [0xFFFF_FFFF, 0]
    file = RegisterFile(bar, RegisterMap("m", [ACTIVE]), clock=clock, sleep=clock.sleep)
    assert file.ACTIVE.wait_until(lambda v: v == 0, MS, "idle") == 0


def test_wait_looks_once_more_after_a_long_absence():
    """Whoever was not scheduled for a second must not blame the device."""
    clock, answers = Clock(look_ns=0), iter([0, 1])

    def read():
        value = next(answers)
        clock.now += 1000 * MS      # off the CPU between reading and looking at the clock
        return value

    assert wait_until(read, bool, MS, device="d", what="w", clock=clock, sleep=clock.sleep) == 1


def test_naps_grow_with_the_time_waited_and_end_with_it(regs, clock):
    with pytest.raises(DeviceTimeout):
        regs.STATUS.wait(LU=1, timeout_ns=50 * MS)
    assert 20e-6 <= clock.naps[0] < 30e-6 and max(clock.naps) == 1e-3 and len(clock.naps) < 120


# Trace and dump

def test_the_trace_decodes_what_happened(regs, bar):
    trace = regs.record()
    bar.memory[8] = 2
    for _ in range(3):
        regs.STATUS.read()
    regs.RAH[1].write(AV=1)
    rows = [(r.verb, r.name, r.text, r.times) for r in trace.rows(MAP)]
    assert rows == [("read", "STATUS", "LU SPEED=MB10", 3), ("write", "RAH[1]", "AV", 1)]
    regs.trace = None
    regs.STATUS.read()
    assert trace.total == 4


def test_the_trace_is_bounded_and_counts_what_it_lost(regs):
    trace = regs.record(2)
    for value in range(5):
        regs.CTRL.write(value)
    assert [e.value for e in trace.entries] == [3, 4] and trace.lost == 3


def test_a_dump_reads_nothing_that_reading_changes(regs, bar):
    bar.memory[0] = 1
    bar.memory[0x110] = 7
    rows = {row.name: row for row in regs.dump()}
    assert rows["CTRL"] == RegisterRow(0, "CTRL", "rw", 1, "FD SPEED=MB10")
    assert rows["ICR"].value is None and rows["IMC"].text == "write only" and "changes" in rows["CRCERRS"].text
    assert {offset for _, offset, _, _ in bar.log}.isdisjoint({0xC0, 0xD8, 0x140})
    assert all(entry[0] == "r" for entry in bar.log)


def test_a_dump_folds_equal_elements(regs, bar):
    bar.memory[0x110] = 7
    names = [row.name for row in regs.dump() if row.name.startswith("RAL")]
    assert names == ["RAL[0..1]", "RAL[2]", "RAL[3]"]
