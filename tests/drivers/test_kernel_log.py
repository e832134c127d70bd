"""Records of the kernel's log, and IOMMU faults in them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import iommu_fault, kernel_log
from drivers.iommu_fault import Access, IommuFault
from drivers.kernel_log import KernelLog, Record


@pytest.mark.parametrize(("octets", "record"), [
    (b"3,1187,98765432,-;DMAR: DRHD: handling fault status\n", Record(1187, 98765432, 3, "DMAR: DRHD: handling fault status")),
    (b"6,1,2,-,caller=T1;text;with=more\n SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n", Record(1, 2, 6, "text;with=more")),
    (b"4,1,2,c;a tab\\x09 and \\x5c\n", Record(1, 2, 4, "a tab\t and \\")),
    (b"12,1187,98765432,-;DMAR: a user says so\n", None),       # facility 1: a process wrote it
    (b"30,1,2,-;systemd\n", None),
    (b"3,1187,98765432,-\n", None),
    (b"3,1187;text\n", None),
    (b"", None),
    (b"99999999999,1,2,-;text\n", None),
    (b"3,1,2,-;" + b"x" * kernel_log.LONGEST, None),
])
def test_a_record_is_the_kernels_own_or_none(octets, record):
    assert kernel_log.parse(octets) == record


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda text: b"3,1,2,-;" + text))
def test_any_octets_are_a_record_or_none(octets):
    record = kernel_log.parse(octets)
    assert record is None or "\n" not in record.text
    if record is not None:
        iommu_fault.parse(record.text)


NOT_SET = "PTE Read access is not set"


@pytest.mark.parametrize(("text", "fault"), [
    # 6.1
    (f"DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0x70000000 [fault reason 0x06] {NOT_SET}",
     IommuFault("0000:01:00.0", Access.READ, 0x7000_0000, NOT_SET, "intel")),
    ("DMAR: [DMA Write PASID 0x1f] Request device [af:1f.7] fault addr 0xffffc000 [fault reason 0x71] SM: Present bit",
     IommuFault("0000:af:1f.7", Access.WRITE, 0xFFFF_C000, "SM: Present bit", "intel")),
    ("DMAR: [INTR-REMAP] Request device [00:02.0] fault index 0x4c [fault reason 0x22] Present field in the IRTE is clear",
     IommuFault("0000:00:02.0", Access.INTERRUPT, 0x4C, "Present field in the IRTE is clear", "intel")),
    # 5.14
    (f"DMAR: [DMA Read NO_PASID] Request device [0x01:0x00.0] fault addr 0x7000 [fault reason 0x06] {NOT_SET}",
     IommuFault("0000:01:00.0", Access.READ, 0x7000, NOT_SET, "intel")),
    # 5.10, 4.19
    (f"DMAR: [DMA Read] Request device [01:00.0] PASID ffffffff fault addr 70000000 [fault reason 06] {NOT_SET}",
     IommuFault("0000:01:00.0", Access.READ, 0x7000_0000, NOT_SET, "intel")),
    ("DMAR: [DMA Write] Request device [01:00.0] fault addr 0 [fault reason 05]",
     IommuFault("0000:01:00.0", Access.WRITE, 0, "reason 05", "intel")),
    ("vfio-pci 0000:04:10.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0037 address=0x7b657064 flags=0x0000]",
     IommuFault("0000:04:10.0", Access.READ, 0x7B65_7064, "io page fault", "amd")),
    ("vfio-pci 0000:04:10.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0037 address=0x7b657064 flags=0x0020]",
     IommuFault("0000:04:10.0", Access.WRITE, 0x7B65_7064, "io page fault", "amd")),
    ("AMD-Vi: Event logged [IO_PAGE_FAULT device=07:00.0 domain=0x0007 address=0xffffc02000 flags=0x0008]",
     IommuFault("0000:07:00.0", Access.INTERRUPT, 0xFF_FFC0_2000, "io page fault", "amd")),
    ("AMD-Vi: Event logged [ILLEGAL_DEV_TABLE_ENTRY device=0001:07:00.0 pasid=0x00000 address=0xf8 flags=0x0080]",
     IommuFault("0001:07:00.0", Access.OTHER, 0xF8, "illegal dev table entry", "amd")),
    ("AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0x0 flags=0x0000]", None),      # whose?
    ("DMAR: DRHD: handling fault status reg 2", None),
    ("e1000e 0000:01:00.0: said DMAR: [DMA Read] Request device [01:00.0] fault addr 0 [fault reason 05]", None),
    (f"DMAR: [DMA Read NO_PASID] Request device [01:40.0] fault addr 0x0 [fault reason 0x06] {NOT_SET}", None),
    ("DMAR: [DMA Read] Request device [01:00.0] fault addr " + "f" * 1100, None),
    ("", None),
])
def test_a_line_tells_of_a_fault_or_not(text, fault):
    assert iommu_fault.parse(text) == fault


@given(st.text(max_size=200) | st.lists(st.sampled_from(
    ["DMAR: ", "[DMA Read]", " Request device [", "01:00.0", "] fault addr ", "ffff", " [fault reason ", "06", "] ", "AMD-Vi: ",
     "Event logged [", "IO_PAGE_FAULT ", "device=", "flags=0x20", "]"]), max_size=20).map("".join))
def test_any_text_is_a_fault_or_none(text):
    assert iommu_fault.parse(text) is None or isinstance(iommu_fault.parse(text), IommuFault)


def opened():
    try:
        return KernelLog()
    except OSError as error:
        pytest.skip(f"the kernel's log is not for us: {error}")


def test_the_log_is_read_from_now_on_and_without_waiting():
    log = opened()
    assert log.read() == []
    assert log.fileno() >= 0
    log.close()
    log.close()
    assert log.fileno() == -1


def test_records_are_counted_and_the_limit_holds(tmp_path, monkeypatch):
    (tmp_path / "kmsg").touch()
    waiting = [b"3,1,2,-;one\n", b"12,2,2,-;not the kernel\n", BrokenPipeError(32, "overwritten"), b"3,9,2,-;two\n",
               b"3,10,2,-;x\n"]

    def read(_fd, _size):
        if not waiting:
            raise BlockingIOError
        if isinstance(waiting[0], Exception):
            raise waiting.pop(0)
        return waiting.pop(0)

    log = KernelLog(str(tmp_path / "kmsg"))
    monkeypatch.setattr(os, "read", read)
    assert [record.text for record in log.read(4)] == ["one", "two"]
    assert [record.text for record in log.read(4)] == ["x"]
    monkeypatch.undo()
    assert log.counts == {"read": 3, "skipped": 1, "overwritten": 1}
    log.close()
