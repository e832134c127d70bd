"""Names from pci.ids."""

import gzip

from hypothesis import given
from hypothesis import strategies as st

from drivers.pci.names import Names, parse, read_names

IDS = """\
# comment
10ec  Realtek Semiconductor Co., Ltd.
\t8168  RTL8111/8168/8411
8086  Intel Corporation
\t100e  82540EM Gigabit Ethernet Controller
\t\t8086 001e  PRO/1000 MT Desktop Adapter
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  Gigabit CT Desktop Adapter
\t\t8086 zzzz  nonsense
\tzzzz  nonsense
zzzz  nonsense
\t8168  RTL under nonsense

C 02  Network controller
\t00  Ethernet controller
\t80  Network controller
C 0c  Serial bus controller
\t03  USB controller
\t\t30  XHCI
"""
WANTED = [(0x8086, 0x10D3), (0x8086, 0xFFFF)]


def test_what_was_asked_for_is_named():
    names = parse(IDS.splitlines(), WANTED)
    assert names.full(0x8086, 0x10D3) == "Intel Corporation 82574L Gigabit Network Connection"
    assert names.subsystem(0x8086, 0x10D3, 0x8086, 0xA01F) == "Gigabit CT Desktop Adapter"
    assert names.class_name(0x020000) == "Ethernet controller" and names.class_name(0x0C0330) == "USB controller"
    assert names.class_name(0x0C9900) == "Serial bus controller"


def test_what_was_not_asked_for_is_not_kept():
    names = parse(IDS.splitlines(), WANTED)
    assert set(names.vendors) == {0x8086} and set(names.devices) == {(0x8086, 0x10D3)} and len(names.subsystems) == 1


def test_what_has_no_name_stays_a_number():
    names = parse(IDS.splitlines(), WANTED)
    assert names.full(0x8086, 0xFFFF) == "Intel Corporation [ffff]" and names.full(0x1234, 5) == "1234:0005"
    assert Names().full(0x8086, 0x10D3) == "8086:10d3"


def test_without_the_file_common_classes_still_have_names(tmp_path):
    names = read_names(WANTED, tmp_path)
    assert names.class_name(0x010601) == "SATA controller" and names.class_name(0xFE0000) is None


def test_the_file_is_found_packed_or_not(tmp_path):
    folder = tmp_path / "usr/share/misc"
    folder.mkdir(parents=True)
    (folder / "pci.ids.gz").write_bytes(gzip.compress(IDS.encode()))
    assert read_names(WANTED, tmp_path).vendor(0x8086) == "Intel Corporation"
    (folder / "pci.ids").write_text(IDS.replace("Intel Corporation", "Intel\x1b[31m"))
    assert read_names(WANTED, tmp_path).vendor(0x8086) == "Intel[31m"


def test_a_broken_archive_is_as_good_as_none(tmp_path):
    folder = tmp_path / "usr/share/misc"
    folder.mkdir(parents=True)
    (folder / "pci.ids.gz").write_bytes(gzip.compress(IDS.encode())[:40])
    assert read_names(WANTED, tmp_path).vendors == {}


@given(st.lists(st.text(alphabet="\t 08cC61edz#", max_size=20)))
def test_any_lines_are_survived(lines):
    names = parse(lines, WANTED)
    assert set(names.vendors) <= {0x8086}
