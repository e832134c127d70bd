"""E1000 against a strict model of the controllers: order of writes, rings, offloads, interrupts, recovery, the end."""

import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from drivers.e1000.controller import multicast_table, vlan_table
from drivers.e1000.nic import E1000
from drivers.errors import DeviceError, DeviceGone, DeviceRefused, DeviceTimeout
from drivers.nic import GONE, Nic
from mm.frame import BURST, Feature, RxBurst, TxBurst
from tests.models.device import FakeDevice
from tests.models.e1000 import MAC, Model
from tests.support.offload import offloaded

CHIPS = {"82540EM": 0x100E, "82545EM": 0x100F, "82574L": 0x10D3}
KINDS = [("82540EM", "intx"), ("82574L", "intx"), ("82574L", "msi"), ("82574L", "msix")]
PEER = bytes.fromhex("020000000001")
GOOD, BAD_TCP, BAD_IP, IGNORE = 1 << 5 | 1 << 6, 1 << 5, 1 << 6, 1 << 2


class Card:
    """A model with its driver."""

    def __init__(self, chip="82540EM", kind="intx", **options):
        self.now = 1_000_000_000_000
        self.model = Model(CHIPS[chip])
        self.model.clock = lambda: self.now / 1e9
        self.device = FakeDevice(self.model, kinds=(kind,))
        options = {"rx_ring": 64, "tx_ring": 64} | options
        self.nic = E1000(self.device, clock=self.clock, sleep=self.sleep, **options)
        self.rx, self.tx = RxBurst(), TxBurst()

    def clock(self):
        self.now += 1000
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)

    def receive(self):
        count = self.nic.receive(self.rx)
        assert count == len(self.rx) or count == GONE
        return self.rx.frames_bytes()

    def readable(self):
        """Whether the loop would wake."""
        try:
            value = os.eventfd_read(self.nic.fileno())
        except BlockingIOError:
            return False
        os.eventfd_write(self.nic.fileno(), value)
        return True

    def send(self, *frames, **offload):
        for frame in frames:
            assert self.tx.append(frame[:64], frame[64:], **offload)
        refused = self.nic.transmit(self.tx)
        assert len(self.tx) == 0
        return refused


@pytest.fixture(params=KINDS, ids=lambda p: "-".join(p))
def card(request):
    made = Card(*request.param)
    yield made
    made.nic.close()


def frame(number, length=60):
    return (MAC + PEER + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(length, bytes([number & 0xFF]))


def test_a_card_is_a_nic(card):
    assert isinstance(card.nic, Nic)
    assert {name for name in vars(Nic) if not name.startswith("_")} <= vars(type(card.nic)).keys()
    assert (card.nic.name, card.nic.mac, card.nic.mtu, card.nic.link_up) == ("0000:03:00.0", MAC, 1500, True)
    express = card.model.chip.express
    assert card.nic.features == Feature.RX_CHECKSUM | Feature.TX_CHECKSUM | Feature.TSO4 | (Feature.TSO6 if express else 0)


def test_bring_up_keeps_the_datasheets_order(card):
    names = [name for name, _ in card.model.writes]
    def first(name, after=0):
        return names.index(name, after)
    reset = next(i for i, (name, value) in enumerate(card.model.writes) if name == "CTRL" and value >> 26 & 1)
    assert first("IMC") < first("RCTL") < reset
    assert reset < first("EERD") < first("MDIC") < first("RAL[0]") < first("RDBAL", reset) < first("RDH", reset)
    enabled = next(i for i, (name, value) in enumerate(card.model.writes) if name == "RCTL" and value & 2)
    assert first("RDT", reset) < enabled < max(i for i, name in enumerate(names) if name == "RDT")
    sending = next(i for i, (name, value) in enumerate(card.model.writes) if name == "TCTL" and value & 2)
    assert enabled < sending < first("ITR") < first("IMS")
    assert {name for name in names if name.startswith("MTA")} == {f"MTA[{i}]" for i in range(128)}


def test_frames_come_in_order_and_the_ring_wraps(card):
    numbers = iter(range(1000))
    for _ in range(20):
        sent = [frame(next(numbers), 60 + 7 * i) for i in range(23)]
        assert all(card.model.deliver(f) for f in sent)
        assert card.receive() == sent
        assert card.receive() == []
    assert card.nic.statistics()["rx_frames"] == 460
    assert card.nic.statistics()["rx_octets"] == sum(60 + 7 * i for i in range(23)) * 20


def test_the_device_keeps_half_the_ring_while_a_burst_is_read_and_then_all_but_one(card):
    for number in range(63):
        assert card.model.deliver(frame(number))
    assert not card.model.deliver(frame(99))
    assert card.receive() == [frame(n) for n in range(32)]
    assert card.model.free() == 0                   # these octets are still being read
    assert card.receive() == [frame(n) for n in range(32, 63)]
    assert card.model.free() == 32
    assert card.receive() == []
    assert card.model.free() == 63
    assert card.nic.statistics()["rx_dropped"] == card.nic.statistics()["hw_missed_frames"] == 1


@pytest.mark.parametrize(("chip", "legacy"), [("82540EM", False), ("82545EM", False), ("82574L", False), ("82574L", True)])
def test_long_frames_come_and_go_whole_wherever_the_ring_wraps(chip, legacy):
    card = Card(chip, legacy=legacy, mtu=9000)
    for number in range(60):
        sent = [frame(number, 9018), frame(number + 1, 60), frame(number + 2, 2048), frame(number + 3, 2049)]
        assert all(card.model.deliver(f) for f in sent)
        assert card.receive() == sent and card.receive() == []
        assert card.send(*sent) == 0 and card.model.wire[-4:] == sent
    assert card.send(frame(1, 9019)) == 1
    assert card.nic.statistics()["rx_dropped"] == 0
    card.nic.close()


def test_a_long_frame_waits_until_it_is_all_there():
    card = Card("82574L", "msix", mtu=9000)
    bus, ring, octets = card.model.bus, card.model._base(card.model.map.registers["RDBAL"]), frame(2, 3000)
    buffers = [int.from_bytes(bus.read(ring + 16 * i, 8), "little") for i in range(2)]
    for i, (part, status) in enumerate(((octets[:2048], 1), (octets[2048:], 3))):
        assert card.receive() == [] and not card.readable()
        bus.write(buffers[i], part)
        bus.write(ring + 16 * i, struct.pack("<QIHH", 0, status, len(part), 0))
    card.model.memory[0x2810] = 2
    assert card.receive() == [octets]
    card.nic.close()


@pytest.mark.parametrize(("chip", "most", "split"), [("82540EM", 16106, 32), ("82574L", 9212, 20)])
def test_the_mtu_changes_by_a_reset_and_knows_what_the_chip_can(chip, most, split):
    card = Card(chip)
    assert not card.model.deliver(frame(1, 1519)) and card.send(frame(1, 1519)) == 1
    card.nic.set_mtu(most)
    assert card.nic.mtu == most and card.model.memory[0x1000] & 0xFFFF == split
    assert card.model.deliver(frame(2, most + 18)) and card.receive() == [frame(2, most + 18)]
    assert card.send(frame(3, most + 18)) == 0 and card.model.wire == [frame(3, most + 18)]
    for wrong in (67, most + 1):
        with pytest.raises(ValueError, match=f"68 to {most} are"):
            card.nic.set_mtu(wrong)
    assert card.nic.mtu == most and card.nic.statistics()["resets"] == 1
    card.nic.close()


def test_a_polling_card_never_interrupts(card):
    card.nic.polling = True
    card.model.deliver(frame(1))
    card.model.cause(1 << 2 | 1 << 24)
    assert not card.readable()
    assert card.receive() == [frame(1)] and card.receive() == []
    card.nic.reset()
    card.model.deliver(frame(2))
    assert not card.readable() and card.receive() == [frame(2)]
    card.nic.polling = False
    card.receive()
    card.model.deliver(frame(3))
    assert card.readable() and card.receive() == [frame(3)]


def test_one_doorbell_gives_a_whole_burst_back(card):
    for number in range(30):
        card.model.deliver(frame(number))
    card.model.writes.clear()
    card.receive()
    card.receive()
    assert [name for name, _ in card.model.writes].count("RDT") == 1


@pytest.mark.parametrize(("status", "errors", "packet", "vouched"), [
    (GOOD, 0, Ether() / IP() / TCP(), True),
    (GOOD, 0x20, Ether() / IP() / TCP(), False),
    (GOOD, 0x40, Ether() / IP() / TCP(), False),
    (BAD_TCP, 0, Ether() / IP() / TCP(), False),            # the header was not looked at
    (BAD_IP, 0, Ether() / IP() / TCP(), False),
    (0, 0, Ether() / IP() / TCP(), False),
    (BAD_TCP, 0, Ether() / IPv6() / TCP(), True),           # IPv6 has no header checksum
    (BAD_TCP, 0, Ether() / Dot1Q(vlan=7) / IP() / UDP(), False),
    (GOOD, 0, Ether() / Dot1Q(vlan=7) / IP() / UDP(), True),
])
def test_a_checksum_counts_only_when_the_device_says_all_of_it(card, status, errors, packet, vouched):
    card.model.deliver(bytes(packet).ljust(60, b"\0"), status, errors)
    assert len(card.receive()) == 1
    assert card.rx.flags() == [int(Feature.RX_CHECKSUM) if vouched else 0]


def test_ignore_checksums_is_obeyed():
    card = Card("82540EM")
    card.model.deliver(bytes(Ether() / IP() / TCP()).ljust(60, b"\0"), GOOD | IGNORE)
    card.receive()
    assert card.rx.flags() == [0]
    card.nic.close()


@pytest.mark.parametrize(("spoil", "counter"), [
    (lambda m: m.deliver(frame(1), errors=1), "rx_dropped_error"),
    (lambda m: m.deliver(frame(1), errors=0x80), "rx_dropped_error"),
    (lambda m: m.deliver(frame(1)[:13]), "rx_dropped_length"),
    (lambda m: m.deliver(frame(1, 1500), piece=500), "rx_dropped_length"),
    (lambda m: m.deliver(frame(1, 1500), piece=150), "rx_dropped_long"),
])
def test_what_is_dropped_is_counted_and_the_rest_goes_on(card, spoil, counter):
    assert spoil(card.model)
    card.model.deliver(frame(2))
    assert card.receive() == [frame(2)]
    statistics = card.nic.statistics()
    assert (statistics[counter], statistics["rx_dropped"], statistics["rx_frames"]) == (1, 1, 1)


def test_a_ring_of_nothing_but_dropped_frames_does_not_put_us_to_sleep(card):
    for number in range(63):
        card.model.deliver(frame(number), errors=1)
    card.model.writes.clear()
    assert card.receive() == []
    card.model.deliver(frame(7))
    assert card.readable() or card.receive() == [frame(7)]


def test_more_dropped_frames_than_one_call_looks_at_wake_us_again():
    card = Card("82574L", "msix", rx_ring=1024)
    for number in range(900):
        assert card.model.deliver(frame(number), errors=1)
    assert card.model.deliver(frame(7))
    assert card.receive() == [] and card.readable()
    assert card.receive() == [frame(7)]
    card.nic.close()


def test_frames_go_out_whole_with_one_doorbell(card):
    frames = [frame(n, 60 + 100 * (n % 15)) for n in range(20)]
    card.model.writes.clear()
    assert card.send(*frames) == 0
    assert card.model.wire == frames
    assert [name for name, _ in card.model.writes].count("TDT") == 1


def test_transmission_wraps_and_reports_room(card):
    for round_ in range(40):
        assert card.nic.room() == 6         # 63 descriptors, ten for the largest frame
        assert card.send(*[frame(round_ * 6 + i, 900) for i in range(6)]) == 0
    assert card.model.wire == [frame(n, 900) for n in range(240)]
    assert card.nic.statistics()["tx_frames"] == 240


def layers(vlan, family):
    base = Ether(src=MAC, dst=PEER)
    base = base / Dot1Q(vlan=5) if vlan else base
    ip = IP(src="192.0.2.1", dst="192.0.2.9", id=65530) if family == 4 else IPv6(src="2001:db8::1", dst="2001:db8::9")
    return base / ip


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("transport", [TCP(sport=1, dport=2, seq=7), UDP(sport=1, dport=2)])
def test_checksums_are_completed(card, family, vlan, transport):
    packet = layers(vlan, family) / transport / (b"some octets of data" * 9)
    octets, offload = offloaded(packet)
    assert card.send(octets, octets, **offload) == 0
    assert card.model.wire == [bytes(packet)] * 2
    assert card.nic.statistics()["tx_contexts"] == 1        # the second frame needs none


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("length", [1449, 2896, 9000, 60000])
def test_a_super_segment_leaves_as_the_segments_scapy_builds(card, family, vlan, length):
    data = bytes(i * 7 & 0xFF for i in range(length))
    size = 1448 if family == 4 else 1428
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    def segment(offset, octets, flags, number):
        base = layers(vlan, family)
        if family == 4:
            base[IP].id = (65530 + number) & 0xFFFF
        return base / TCP(sport=1, dport=2, seq=0xFFFF_F000 + offset & 0xFFFF_FFFF, flags=flags, options=options) / octets
    octets, offload = offloaded(segment(0, data, "PA", 0))
    assert card.send(octets, segment_size=size, **offload) == 0
    cuts = [data[i:i + size] for i in range(0, length, size)]
    assert card.model.wire == [bytes(segment(size * i, cut, "PA" if i == len(cuts) - 1 else "A", i))
                               for i, cut in enumerate(cuts)]
    assert card.nic.statistics()["hw_super_segments_sent"] == card.nic.statistics()["tx_super_segments"] == 1


def test_plain_frames_and_both_offloads_mix(card):
    tcp = layers(False, 4) / TCP(seq=1) / (b"x" * 3000)
    udp = layers(False, 4) / UDP() / b"datagram"
    for _ in range(3):
        octets, offload = offloaded(tcp)
        assert card.tx.append(octets, segment_size=1000, **offload) if len(octets) <= 128 else \
            card.tx.append(octets[:54], octets[54:], segment_size=1000, **offload)
        octets, offload = offloaded(udp)
        assert card.tx.append(octets, **offload)
        assert card.tx.append(frame(3))
        assert card.nic.transmit(card.tx) == 0
    assert len(card.model.wire) == 15 and card.model.wire[3] == bytes(udp) and card.model.wire[4] == frame(3)


def test_super_segments_of_different_lengths_follow_each_other(card):
    for length, size in ((3000, 1000), (2500, 1000), (2500, 900)):
        octets, offload = offloaded(layers(False, 4) / TCP(seq=1) / (b"x" * length))
        assert card.send(octets, segment_size=size, **offload) == 0
    assert [len(f) - 54 for f in card.model.wire] == [1000, 1000, 1000, 1000, 1000, 500, 900, 900, 700]


def test_the_memory_of_frames_under_way_is_never_handed_out_again():
    card = Card("82540EM", tx_ring=1024)
    card.model.hung = True
    sent, number = [], 0
    for _ in range(40):
        while True:
            data = number.to_bytes(4, "big") * (5000 + number * 977 % 11000)
            octets, offload = offloaded(layers(False, 4) / TCP(seq=1) / data)
            if card.send(octets, segment_size=1448, **offload):
                break
            sent.append(data)
            number += 1
        card.model.run_transmit(25)
    card.model.run_transmit()
    assert number > 130
    assert b"".join(f[54:] for f in card.model.wire) == b"".join(sent)
    card.nic.close()


@pytest.mark.parametrize(("octets", "offload", "counter"), [
    (b"x" * 13, {}, "tx_dropped_too_short"),
    (frame(1, 1519), {}, "tx_dropped_too_long"),
    (frame(1), {"segment_size": 100}, "tx_dropped_offload"),
    (frame(1), {"checksum_start": 34, "checksum_offset": 60}, "tx_dropped_offload"),
    (frame(1), {"checksum_start": 10, "checksum_offset": 16}, "tx_dropped_offload"),
    (frame(1), {"checksum_start": 34, "checksum_offset": 6, "family": 4, "segment_size": 9}, "tx_dropped_offload"),
    (bytes(60), {"checksum_start": 34, "checksum_offset": 16, "family": 4, "segment_size": 9}, "tx_dropped_offload"),
])
def test_what_the_device_could_not_do_is_refused_and_counted(card, octets, offload, counter):
    assert card.send(octets, **offload) == 1
    assert card.tx.refused == 1
    card.tx.forget_refused()
    assert card.send(frame(2)) == 0 and card.tx.refused == 0
    assert card.model.wire == [frame(2)]
    statistics = card.nic.statistics()
    assert (statistics[counter], statistics["tx_dropped"], statistics["tx_frames"]) == (1, 1, 1)


def test_a_full_ring_refuses_and_an_interrupt_tells_of_room(card):
    card.model.hung = True
    assert card.send(*[frame(n, 1000) for n in range(60)]) == 0
    assert card.send(*[frame(n, 1000) for n in range(4)]) == 2      # a frame counts for two: it may need a context
    assert card.tx.refused == 0b1100
    assert card.receive() == [] and not card.readable()
    assert card.nic.room() == 0
    card.model.run_transmit()
    assert card.readable()
    assert card.receive() == [] and card.nic.room() == 6
    assert not card.readable()
    assert card.nic.statistics()["tx_dropped_no_room"] == 2


def test_an_idle_card_sleeps_until_a_frame_comes(card):
    assert card.receive() == [] and not card.readable()
    card.model.deliver(frame(1))
    assert card.readable()
    assert card.receive() == [frame(1)]
    sent = card.device.interrupt.sent
    for number in range(50):                            # under load there are no interrupts
        card.model.deliver(frame(number))
        assert card.receive() == [frame(number)]
    assert card.device.interrupt.sent == sent
    assert card.receive() == [] and not card.readable()
    card.model.deliver(frame(2))
    assert card.readable() and card.receive() == [frame(2)]


def test_a_link_change_wakes_and_is_counted(card):
    card.receive()
    card.model.negotiated = False
    told = []
    card.nic.on_link_change = lambda: told.append("changed")
    card.model.cause(1 << 2 | 1 << 24)
    assert card.readable()
    assert card.receive() == [] and not card.readable()
    assert told == ["changed"]
    assert not card.nic.link_up and card.nic.statistics()["link_changes"] == 1 and card.nic.link is None
    card.model.negotiated = True
    assert card.nic.link_up and card.nic.link == (1000, True)


def test_a_card_that_was_pulled_out_is_gone(card):
    card.receive()
    card.model.gone = True
    assert not card.nic.link_up
    assert card.nic.receive(card.rx) == GONE and len(card.rx) == 0
    assert card.send(frame(1), frame(2)) == 2 and card.tx.refused == 3 and card.nic.link is None
    assert card.nic.statistics()["tx_frames"] == 0
    card.nic.close()
    assert card.device.closed == 1


def test_zeros_in_place_of_ones_are_gone_too(card):
    card.model.zeros = True
    assert not card.nic.link_up
    assert card.nic.receive(card.rx) == GONE


def test_a_hang_is_reset_and_traffic_goes_on(card):
    card.model.hung = True
    card.send(frame(1))
    assert card.nic.link_up
    card.now += 3_000_000_000
    card.model.hung = False
    assert not card.nic.link_up
    assert card.nic.link_up
    assert card.nic.statistics()["resets"] == 1
    assert card.send(frame(2)) == 0 and card.model.wire == [frame(2)]
    card.model.deliver(frame(3))
    assert card.receive() == [frame(3)]


def test_a_slow_ring_is_no_hang(card):
    card.model.hung = True
    card.send(*[frame(n) for n in range(6)])
    for _ in range(6):
        assert card.nic.link_up
        card.now += 1_500_000_000
        card.model.run_transmit(1)
    assert card.nic.statistics()["resets"] == 0


def test_rings_change_size_while_frames_flow(card):
    before = len([b for b in card.device.bus.blocks if not b.freed])
    card.model.deliver(frame(1))
    assert card.receive() == [frame(1)]
    card.nic.resize(128, 256)
    assert card.nic.rings == (128, 256)
    for number in range(100):
        assert card.model.deliver(frame(number))
    assert card.receive() == [frame(n) for n in range(BURST)]
    assert card.send(*[frame(n) for n in range(25)]) == 0
    assert len([b for b in card.device.bus.blocks if not b.freed]) == before
    statistics = card.nic.statistics()
    assert (statistics["rx_frames"], statistics["tx_frames"], statistics["hw_good_frames_received"]) == (65, 25, 101)
    with pytest.raises(ValueError, match="multiple of 8"):
        card.nic.resize(100, 256)
    assert card.nic.rings == (128, 256)


def test_closing_stops_dma_before_memory_goes(card):
    card.nic.close()
    card.nic.close()
    assert not card.device.bus.master and card.device.closed == 1
    assert [v for n, v in card.model.writes if n in ("RCTL", "TCTL")][-2:] == [0, 8]
    assert card.nic.receive(card.rx) == GONE and card.nic.room() == 0 and card.nic.fileno() == -1
    assert card.send(frame(1), frame(2)) == 2 and card.nic.statistics()["tx_dropped"] == 2


def test_its_registers_can_be_shown_and_traced(card):
    trace = card.nic.registers.record()
    assert {"CTRL", "RCTL", "TDT"} <= {row.name for row in card.nic.registers.dump()}
    assert card.nic.link_up
    assert any(row.name == "STATUS" and "LU" in row.text for row in trace.rows(card.nic.registers.map))


def test_filters(card):
    assert card.model.memory[0x38] == 0x8100        # without which no tag is one
    group = bytes.fromhex("01005e000001")
    card.nic.set_filters(multicast=[group], vlans=[5])
    control = card.model.memory[0x100]
    assert control & (1 << 18 | 1 << 4 | 1 << 3) == 1 << 18
    assert [card.model.memory[0x5200 + 4 * i] for i in range(128)] == multicast_table([group])
    assert card.model.memory[0x5600] == 1 << 5 and sum(vlan_table([5])) == 32
    card.nic.set_filters(promiscuous=True)
    assert card.model.memory[0x100] & (1 << 18 | 1 << 4 | 1 << 3) == 1 << 4 | 1 << 3
    with pytest.raises(ValueError, match="no multicast"):
        card.nic.set_filters(multicast=[MAC])
    with pytest.raises(ValueError, match="no VLAN"):
        card.nic.set_filters(vlans=[4096])


def test_multicast_hash_is_the_datasheets():
    table = multicast_table([bytes.fromhex("12345678 9abc".replace(" ", ""))])
    index = 0xBC9          # bits 47:36 of the address, whose last octet is the highest: 8254x 13.5.1
    assert table[index >> 5] == 1 << (index & 31)


@pytest.mark.parametrize(("spoil", "error", "message"), [
    (lambda m: m.nvm.__setitem__(5, 0), DeviceError, "0xbaba"),
    (lambda m: setattr(m, "gone", True), DeviceGone, "gone"),
    (lambda m: setattr(m, "zeros", True), DeviceTimeout, "did not come"),
    (lambda m: setattr(m, "phy_answers", False), DeviceError, "PHY"),
])
@pytest.mark.parametrize("chip", CHIPS)
def test_bring_up_that_fails_says_why_and_leaves_no_dma(chip, spoil, error, message):
    model = Model(CHIPS[chip])
    device = FakeDevice(model)
    spoil(model)
    with pytest.raises(error, match=message):
        E1000(device, rx_ring=64, tx_ring=64)
    assert not device.bus.master and all(block.freed for block in device.bus.blocks)


def test_an_address_of_the_operators_goes_before_the_nvms():
    model = Model()
    model.nvm[5] = 0
    nic = E1000(FakeDevice(model), mac=PEER, rx_ring=64, tx_ring=64)
    assert nic.mac == PEER and model.memory[0x5400] == int.from_bytes(PEER[:4], "little")
    nic.close()


def test_another_chip_is_refused_by_name():
    device = FakeDevice(Model())
    device.config.words[2] = 0x1533
    with pytest.raises(DeviceRefused, match=r"8086:1533 is none of .*82574L"):
        E1000(device)


def test_a_reset_that_never_ends_is_a_timeout(monkeypatch):
    model = Model()
    monkeypatch.setattr(model, "_read_CTRL", lambda: 1 << 26)
    with pytest.raises(DeviceTimeout, match=r"CTRL\.RST=0"):
        E1000(FakeDevice(model))


class Rings(RuleBasedStateMachine):
    """Whatever order things happen in, no frame is lost, doubled or damaged, and the loop never sleeps on a frame."""

    kind = KINDS[0]

    def __init__(self):
        super().__init__()
        self.card = Card(*self.kind)
        self.number = 0
        self.coming, self.going = [], []

    def _new(self, length):
        self.number += 1
        return frame(self.number, length)

    @rule(lengths=st.lists(st.integers(60, 1518), max_size=40))
    def deliver(self, lengths):
        for length in lengths:
            octets = self._new(length)
            if self.card.model.deliver(octets):
                self.coming.append(octets)

    @rule()
    def receive(self):
        got = self.card.receive()
        assert got == self.coming[:len(got)]
        del self.coming[:len(got)]
        if not got:
            assert not self.coming

    @rule(lengths=st.lists(st.integers(60, 1518), max_size=BURST))
    def transmit(self, lengths):
        frames = [self._new(length) for length in lengths[:self.card.nic.room()]]
        assert self.card.send(*frames) == 0
        self.going += frames

    @rule(count=st.integers(1, 60))
    @precondition(lambda self: self.card.model.hung)
    def work_off(self, count):
        self.card.model.run_transmit(count)

    @rule(hung=st.booleans())
    def pace(self, hung):
        self.card.model.hung = hung
        if not hung:
            self.card.model.run_transmit()

    @invariant()
    def what_went_out_is_what_was_sent(self):
        wire = self.card.model.wire
        assert wire == self.going[:len(wire)]

    @invariant()
    def nobody_sleeps_on_a_frame(self):
        if self.coming and self.card.nic._armed:
            assert self.card.readable()

    def teardown(self):
        self.pace(hung=False)
        assert self.card.model.wire == self.going
        while self.coming:
            self.receive()
        self.card.nic.close()


class ExpressRings(Rings):
    kind = KINDS[3]


TestRings = Rings.TestCase
TestExpressRings = ExpressRings.TestCase
TestRings.settings = TestExpressRings.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
