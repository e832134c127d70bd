"""Registers of an AHCI host bus adapter, in BAR 5, and of its ports; one map for as many ports as it has.

"AHCI" is the Serial ATA Advanced Host Controller Interface specification, revision 1.3.1.
"""

from enum import IntEnum
from functools import cache
from typing import Any, Final

from drivers.registers import RO, W1C, W1S, Bits, Reg, RegisterFile, RegisterMap

PORTS_AT: Final = 0x100
PORT_OCTETS: Final = 0x80
MAX_PORTS: Final = 32


class Detection(IntEnum):
    """PxSSTS.DET."""

    NOTHING = 0
    PRESENT = 1
    """A device, but no communication yet."""
    UP = 3
    OFFLINE = 4


class Signature(IntEnum):
    """What a device says it is in its first register FIS. AHCI 3.3.9, Serial ATA 3.x 11.4."""

    DISK = 0x0000_0101
    PACKET = 0xEB14_0101
    ENCLOSURE = 0xC33C_0101
    PORT_MULTIPLIER = 0x9669_0101
    NONE = 0xFFFF_FFFF


class Transition(IntEnum):
    """PxCMD.ICC."""

    NONE = 0
    ACTIVE = 1
    PARTIAL = 2
    SLUMBER = 6
    DEVSLEEP = 8


# The host bus adapter

class CAP(Reg, at=0x00, access=RO, spec="AHCI 3.1.1"):
    """What it can do."""

    NP = Bits(4, 0, doc="ports, less one")
    SXS = Bits(5, doc="external ports")
    EMS = Bits(6, doc="enclosure management")
    CCCS = Bits(7, doc="completions coalesced")
    NCS = Bits(12, 8, doc="command slots, less one")
    PSC = Bits(13, doc="partial state")
    SSC = Bits(14, doc="slumber state")
    PMD = Bits(15, doc="several DRQ blocks in one PIO")
    FBSS = Bits(16, doc="FIS-based switching")
    SPM = Bits(17, doc="port multipliers")
    SAM = Bits(18, doc="AHCI only")
    ISS = Bits(23, 20, doc="fastest generation of the link")
    SCLO = Bits(24, doc="command list override")
    SAL = Bits(25, doc="activity LED")
    SALP = Bits(26, doc="aggressive link power management")
    SSS = Bits(27, doc="staggered spin-up")
    SMPS = Bits(28, doc="mechanical presence switches")
    SSNTF = Bits(29, doc="SNotification")
    SNCQ = Bits(30, doc="native command queuing")
    S64A = Bits(31, doc="64-bit addresses")


class GHC(Reg, at=0x04, spec="AHCI 3.1.2"):
    """Global control."""

    HR = Bits(0, access=W1S, doc="reset; clears itself")
    IE = Bits(1, doc="interrupts")
    MRSM = Bits(2, access=RO, doc="one MSI message for all ports after all")
    AE = Bits(31, doc="AHCI, not legacy")


class IS(Reg, at=0x08, access=W1C, all_ones=True, spec="AHCI 3.1.3"):
    """Ports with an interrupt, a bit each."""


class PI(Reg, at=0x0C, spec="AHCI 3.1.4"):
    """Ports there are, a bit each; written by firmware."""


class VS(Reg, at=0x10, access=RO, spec="AHCI 3.1.5"):
    """Version."""

    MNR = Bits(15, 0)
    MJR = Bits(31, 16)


class CCC_CTL(Reg, at=0x14, spec="AHCI 3.1.6"):
    """Completions coalesced: how."""


class CCC_PORTS(Reg, at=0x18, spec="AHCI 3.1.7"):
    """Completions coalesced: on which ports."""


class EM_LOC(Reg, at=0x1C, access=RO, spec="AHCI 3.1.8"):
    """Enclosure management: where."""


class EM_CTL(Reg, at=0x20, spec="AHCI 3.1.9"):
    """Enclosure management: how."""


class CAP2(Reg, at=0x24, access=RO, spec="AHCI 3.1.10"):
    """What else it can do."""

    BOH = Bits(0, doc="handoff between firmware and operating system")
    NVMP = Bits(1)
    APST = Bits(2, doc="partial to slumber by itself")
    SDS = Bits(3, doc="device sleep")
    SADM = Bits(4)
    DESO = Bits(5)


class BOHC(Reg, at=0x28, spec="AHCI 3.1.11"):
    """Handoff between firmware and operating system."""

    BOS = Bits(0, doc="firmware owns it")
    OOS = Bits(1, doc="the operating system owns it")
    SOOE = Bits(2, doc="SMI when that changes")
    OOC = Bits(3, access=W1C, doc="it has changed")
    BB = Bits(4, access=RO, doc="firmware is busy")


# A port: offsets from its first register.

class PxCLB(Reg, at=0x00, spec="AHCI 3.3.1"):
    """Command list, low half of its address, a multiple of 1024."""


class PxCLBU(Reg, at=0x04, spec="AHCI 3.3.2"):
    """Command list, high half."""


class PxFB(Reg, at=0x08, spec="AHCI 3.3.3"):
    """Received FISes, low half of their address, a multiple of 256."""


class PxFBU(Reg, at=0x0C, spec="AHCI 3.3.4"):
    """Received FISes, high half."""


class PortCause(Reg):
    """Why a port interrupts."""

    DHRS = Bits(0, doc="a command is done, not queued")
    PSS = Bits(1, doc="PIO setup")
    DSS = Bits(2, doc="DMA setup")
    SDBS = Bits(3, doc="queued commands are done")
    UFS = Bits(4, doc="unknown FIS")
    DPS = Bits(5, doc="a descriptor with the interrupt bit is done")
    PCS = Bits(6, doc="something was plugged")
    DMPS = Bits(7, doc="mechanical presence switch")
    PRCS = Bits(22, doc="the PHY lost its link, or found it")
    IPMS = Bits(23, doc="FIS from the wrong port of a multiplier")
    OFS = Bits(24, doc="more data than memory for it")
    INFS = Bits(26, doc="interface error, not fatal")
    IFS = Bits(27, doc="interface error, fatal")
    HBDS = Bits(28, doc="host bus data error")
    HBFS = Bits(29, doc="host bus error, fatal")
    TFES = Bits(30, doc="the device reports an error")
    CPDS = Bits(31, doc="cold presence")


class PxIS(PortCause, at=0x10, access=W1C, spec="AHCI 3.3.5"):
    """Interrupt status. PCS and PRCS clear with PxSERR.X and PxSERR.N."""


class PxIE(PortCause, at=0x14, spec="AHCI 3.3.6"):
    """Interrupts that come."""


class PxCMD(Reg, at=0x18, spec="AHCI 3.3.7"):
    """Command and status."""

    ST = Bits(0, doc="process the command list")
    SUD = Bits(1, doc="spin up")
    POD = Bits(2, doc="power on")
    CLO = Bits(3, access=W1S, doc="forget BSY and DRQ; clears itself")
    FRE = Bits(4, doc="receive FISes into memory")
    CCS = Bits(12, 8, access=RO, doc="current command slot")
    MPSS = Bits(13, access=RO)
    FR = Bits(14, access=RO, doc="receiving FISes")
    CR = Bits(15, access=RO, doc="processing the command list")
    CPS = Bits(16, access=RO, doc="cold presence")
    PMA = Bits(17, doc="a port multiplier is attached")
    HPCP = Bits(18, access=RO, doc="hot plug capable")
    MPSP = Bits(19, access=RO)
    CPD = Bits(20, access=RO, doc="cold presence detection")
    ESP = Bits(21, access=RO, doc="external")
    FBSCP = Bits(22, access=RO)
    APSTE = Bits(23)
    ATAPI = Bits(24)
    DLAE = Bits(25)
    ALPE = Bits(26)
    ASP = Bits(27)
    ICC = Bits(31, 28, Transition, doc="link power")


class PxTFD(Reg, at=0x20, access=RO, spec="AHCI 3.3.8"):
    """Task file: the device's status and error."""

    ERR = Bits(0)
    DRQ = Bits(3, doc="data to be moved")
    DF = Bits(5, doc="device fault")
    DRDY = Bits(6)
    BSY = Bits(7)
    ERROR = Bits(15, 8)


class PxSIG(Reg, at=0x24, access=RO, all_ones=True, spec="AHCI 3.3.9"):
    """What the device is."""


class PxSSTS(Reg, at=0x28, access=RO, spec="AHCI 3.3.10"):
    """Link status."""

    DET = Bits(3, 0, Detection)
    SPD = Bits(7, 4, doc="generation: 1.5, 3, 6 Gb/s")
    IPM = Bits(11, 8)


class PxSCTL(Reg, at=0x2C, spec="AHCI 3.3.11"):
    """Link control."""

    DET = Bits(3, 0, doc="1: COMRESET while it stands; 4: off")
    SPD = Bits(7, 4, doc="no faster than this generation; 0: as fast as possible")
    IPM = Bits(11, 8, doc="1: not to partial, 2: not to slumber, 4: not to device sleep")


class PxSERR(Reg, at=0x30, access=W1C, spec="AHCI 3.3.12"):
    """Link errors since they were cleared."""

    RECOVERED_DATA = Bits(0)
    RECOVERED_LINK = Bits(1)
    TRANSIENT = Bits(8, doc="data integrity")
    PERSISTENT = Bits(9, doc="communication or data integrity")
    PROTOCOL = Bits(10)
    INTERNAL = Bits(11)
    N = Bits(16, doc="PhyRdy changed")
    I = Bits(17, doc="PHY internal error")      # noqa: E741
    W = Bits(18, doc="COMWAKE")
    B = Bits(19, doc="10b to 8b decoding")
    D = Bits(20, doc="disparity")
    C = Bits(21, doc="CRC")
    H = Bits(22, doc="handshake")
    S = Bits(23, doc="link sequence")
    T = Bits(24, doc="transport state")
    F = Bits(25, doc="unknown FIS")
    X = Bits(26, doc="COMINIT: something was plugged")


class PxSACT(Reg, at=0x34, access=W1S, all_ones=True, spec="AHCI 3.3.13"):
    """Queued commands that are not done, a bit each."""


class PxCI(Reg, at=0x38, access=W1S, all_ones=True, spec="AHCI 3.3.14"):
    """Commands issued, a bit each."""


class PxSNTF(Reg, at=0x3C, access=W1C, spec="AHCI 3.3.15"):
    """Notifications from behind a port multiplier."""


class PxFBS(Reg, at=0x40, spec="AHCI 3.3.16"):
    """FIS-based switching."""


class PxDEVSLP(Reg, at=0x44, spec="AHCI 3.3.17"):
    """Device sleep."""


_ADAPTER: Final = (CAP, GHC, IS, PI, VS, CCC_CTL, CCC_PORTS, EM_LOC, EM_CTL, CAP2, BOHC)
_PORT: Final = (PxCLB, PxCLBU, PxFB, PxFBU, PxIS, PxIE, PxCMD, PxTFD, PxSIG, PxSSTS, PxSCTL, PxSERR, PxSACT, PxCI, PxSNTF,
                PxFBS, PxDEVSLP)

ERRORS: Final = (PxIS.TFES.mask | PxIS.HBFS.mask | PxIS.HBDS.mask | PxIS.IFS.mask | PxIS.OFS.mask | PxIS.UFS.mask
                 | PxIS.PRCS.mask | PxIS.PCS.mask | PxIS.CPDS.mask)
"""What of PxIS needs attention. INFS does not: the controller went on by itself."""
DONE: Final = PxIS.DHRS.mask | PxIS.SDBS.mask | PxIS.PSS.mask | PxIS.DSS.mask
"""What of PxIS says that commands are done, or on their way."""


@cache
def ahci_map(ports: int) -> RegisterMap:
    """The registers of an adapter whose highest port is `ports` - 1: those of ports are arrays, `regs.PxCI[port]`."""
    arrays = [type(reg.__name__, (reg,), {"__doc__": reg.__doc__}, at=PORTS_AT + reg.at, count=ports, stride=PORT_OCTETS)
              for reg in _PORT]
    return RegisterMap("AHCI", [*_ADAPTER, *arrays])


class PortRegisters:
    """The registers of one port by their short names: `CI` is PxCI."""

    def __init__(self, file: RegisterFile, port: int) -> None:
        self.sleep = file.sleep
        for reg in _PORT:
            setattr(self, reg.__name__.removeprefix("Px"), getattr(file, reg.__name__)[port])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a port has no register Px{name}")
