"""Registers of the 8254x family and of the 82574. One map per kind of chip; offsets in octets from BAR 0."""

from enum import IntEnum
from typing import Final

from drivers.registers import RC, RCW1C, RO, W1S, WO, Bits, Reg, RegisterMap


class Speed(IntEnum):
    """Of the link, in Mb/s."""

    MB10 = 0
    MB100 = 1
    MB1000 = 2
    MB1000_TOO = 3


class BufferSize(IntEnum):
    """RCTL.BSIZE with BSEX 0."""

    B2048 = 0
    B1024 = 1
    B512 = 2
    B256 = 3


class MdiOperation(IntEnum):
    """MDIC.OP."""

    WRITE = 1
    READ = 2


# General

class CTRL(Reg, at=0x0000, spec="8254x 13.4.1; 82574 10.2.2"):
    """Device control."""

    FD = Bits(0, doc="full duplex")
    MASTER_DISABLE = Bits(2, doc="82574: start no more DMA")
    LRST = Bits(3, doc="8254x: hold the link in reset")
    ASDE = Bits(5, doc="detect the speed")
    SLU = Bits(6, doc="set link up")
    ILOS = Bits(7, doc="invert loss of signal")
    SPEED = Bits(9, 8, Speed)
    FRCSPD = Bits(11, doc="force the speed")
    FRCDPLX = Bits(12, doc="force the duplex")
    RST = Bits(26, doc="reset; clears itself")
    RFCE = Bits(27, doc="obey PAUSE")
    TFCE = Bits(28, doc="send PAUSE")
    VME = Bits(30, doc="strip and insert VLAN tags")
    PHY_RST = Bits(31, doc="hold the PHY in reset")


class STATUS(Reg, at=0x0008, access=RO, spec="8254x 13.4.2; 82574 10.2.2"):
    """Device status."""

    FD = Bits(0, doc="full duplex")
    LU = Bits(1, doc="link up")
    FUNCTION = Bits(3, 2)
    TXOFF = Bits(4, doc="the peer's PAUSE holds transmission")
    TBIMODE = Bits(5)
    SPEED = Bits(7, 6, Speed)
    ASDV = Bits(9, 8, Speed, doc="the speed that was detected")
    PHYRA = Bits(10, doc="82574: the PHY was reset")
    MASTER_ENABLE = Bits(19, doc="82574: DMA may be under way")


class EECD(Reg, at=0x0010, spec="8254x 13.4.3; 82574 10.2.2"):
    """EEPROM control."""

    PRESENT = Bits(8)
    AUTO_READ = Bits(9, access=RO, doc="82574: the NVM was read after reset")


class CTRL_EXT(Reg, at=0x0018, spec="8254x 13.4.6; 82574 10.2.2"):
    """Extended device control."""

    EE_RST = Bits(13, doc="load from the EEPROM again; clears itself")
    RO_DIS = Bits(17, doc="82574: no relaxed ordering")
    EIAME = Bits(24, doc="82574: an MSI-X message masks what IAM says")
    IAME = Bits(27, doc="82574: reading ICR masks what IAM says")
    PBA_SUPPORT = Bits(31, doc="82574: unmasking clears the pending bit")


class MDIC(Reg, at=0x0020, spec="8254x 13.4.7; 82574 10.2.2"):
    """MDI control: the PHY's registers."""

    DATA = Bits(15, 0)
    REGADD = Bits(20, 16)
    PHYADD = Bits(25, 21)
    OP = Bits(27, 26, MdiOperation)
    READY = Bits(28)
    INTERRUPT = Bits(29)
    ERROR = Bits(30)


class FCAL(Reg, at=0x0028, spec="8254x 13.4.8"):
    """Flow control address, low."""


class FCAH(Reg, at=0x002C, spec="8254x 13.4.9"):
    """Flow control address, high."""


class FCT(Reg, at=0x0030, spec="8254x 13.4.10"):
    """Flow control type."""


class VET(Reg, at=0x0038, spec="8254x 13.4.11; 82574 10.2.2"):
    """The EtherType by which tagged frames are known."""

    TYPE = Bits(15, 0)


class FCTTV(Reg, at=0x0170, spec="8254x 13.4.12"):
    """Flow control transmit timer."""


class PBA(Reg, at=0x1000, spec="8254x 13.4.16"):
    """Packet buffer allocation."""

    RX_KB = Bits(15, 0)
    TX_KB = Bits(31, 16)


# Interrupts

class Cause(Reg):
    """What an interrupt came for."""

    TXDW = Bits(0, doc="transmit descriptor written back")
    TXQE = Bits(1, doc="transmit queue empty")
    LSC = Bits(2, doc="link status change")
    RXSEQ = Bits(3, doc="8254x: receive sequence error")
    RXDMT0 = Bits(4, doc="receive descriptors run low")
    RXO = Bits(6, doc="receiver overrun")
    RXT0 = Bits(7, doc="frames received")
    MDAC = Bits(9, doc="MDI access done")
    TXD_LOW = Bits(15, doc="transmit descriptors run low")
    SRPD = Bits(16, doc="small frame received")
    ACK = Bits(17, doc="82574: TCP ACK received")
    RXQ0 = Bits(20, doc="82574: frames in receive queue 0")
    RXQ1 = Bits(21)
    TXQ0 = Bits(22, doc="82574: frames of transmit queue 0 sent")
    TXQ1 = Bits(23)
    OTHER = Bits(24, doc="82574: any cause that has no queue")
    ASSERTED = Bits(31, doc="82574: an interrupt was sent")


class ICR(Cause, at=0x00C0, access=RCW1C, spec="8254x 13.4.17; 82574 10.2.4"):
    """Interrupt cause. With MSI-X only writing ones clears."""


class ITR(Reg, at=0x00C4, spec="8254x 13.4.18; 82574 10.2.4"):
    """Interrupt throttling."""

    INTERVAL = Bits(15, 0, doc="least distance of two interrupts, in 256 ns; 0: none")


class ICS(Cause, at=0x00C8, access=WO, spec="8254x 13.4.19"):
    """Interrupt cause set: as if it had happened."""


class IMS(Cause, at=0x00D0, access=W1S, spec="8254x 13.4.20; 82574 10.2.4"):
    """Interrupt mask set, and read."""


class IMC(Cause, at=0x00D8, access=WO, spec="8254x 13.4.21; 82574 10.2.4"):
    """Interrupt mask clear."""


# Receive

class RCTL(Reg, at=0x0100, spec="8254x 13.4.22; 82574 10.2.5"):
    """Receive control."""

    EN = Bits(1)
    SBP = Bits(2, doc="store bad frames")
    UPE = Bits(3, doc="all unicast")
    MPE = Bits(4, doc="all multicast")
    LPE = Bits(5, doc="long frames")
    LBM = Bits(7, 6, doc="loopback")
    RDMTS = Bits(9, 8)
    DTYP = Bits(11, 10, doc="82574: descriptor type")
    MO = Bits(13, 12, doc="which address bits index MTA")
    BAM = Bits(15, doc="broadcast")
    BSIZE = Bits(17, 16, BufferSize)
    VFE = Bits(18, doc="VLAN filter")
    BSEX = Bits(25, doc="buffer size times 16")
    SECRC = Bits(26, doc="strip the FCS")


class RDBAL(Reg, at=0x2800, spec="8254x 13.4.25"):
    """Receive descriptor base, low."""


class RDBAH(Reg, at=0x2804, spec="8254x 13.4.26"):
    """Receive descriptor base, high."""


class RDLEN(Reg, at=0x2808, spec="8254x 13.4.27"):
    """Octets of the receive ring, a multiple of 128."""


class RDH(Reg, at=0x2810, spec="8254x 13.4.28"):
    """Receive head: the device's next."""


class RDT(Reg, at=0x2818, spec="8254x 13.4.29"):
    """Receive tail: the first the device does not have."""


class RDTR(Reg, at=0x2820, spec="8254x 13.4.30"):
    """Receive delay."""


class RXDCTL(Reg, at=0x2828, spec="8254x 13.4.46; 82574 10.2.5"):
    """Receive descriptor control."""

    PTHRESH = Bits(5, 0)
    HTHRESH = Bits(13, 8)
    WTHRESH = Bits(21, 16)
    GRAN = Bits(24, doc="thresholds count descriptors, not cache lines")


class RADV(Reg, at=0x282C, spec="8254x 13.4.31"):
    """Receive delay at most."""


class RXCSUM(Reg, at=0x5000, spec="8254x 13.4.47; 82574 10.2.5"):
    """Receive checksum control."""

    PCSS = Bits(7, 0)
    IPOFL = Bits(8, doc="verify IPv4 headers")
    TUOFL = Bits(9, doc="verify TCP and UDP")
    IPV6OFL = Bits(10, doc="8254x: verify over IPv6")
    PCSD = Bits(13, doc="82574: report the RSS hash in place of checksum and IP ID")


class MTA(Reg, at=0x5200, count=128, spec="8254x 13.5.1"):
    """Multicast table: one bit for each value of 12 address bits."""


class RAL(Reg, at=0x5400, count=16, stride=8, all_ones=True, spec="8254x 13.5.2"):
    """Receive address, first four octets."""


class RAH(Reg, at=0x5404, count=16, stride=8, spec="8254x 13.5.3"):
    """Receive address, last two octets."""

    ADDRESS = Bits(15, 0)
    SELECT = Bits(17, 16)
    AV = Bits(31, doc="valid")


class VFTA(Reg, at=0x5600, count=128, all_ones=True, spec="8254x 13.5.4"):
    """VLAN filter table: one bit for each VLAN."""


# Transmit

class TCTL(Reg, at=0x0400, spec="8254x 13.4.33; 82574 10.2.6"):
    """Transmit control."""

    EN = Bits(1)
    PSP = Bits(3, doc="pad short frames")
    CT = Bits(11, 4, doc="collision threshold")
    COLD = Bits(21, 12, doc="collision distance")
    RTLC = Bits(24, doc="retransmit on late collision")
    MULR = Bits(28, doc="82574: several read requests at once")


class TIPG(Reg, at=0x0410, spec="8254x 13.4.34; 82574 10.2.6"):
    """Transmit inter-packet gap."""

    IPGT = Bits(9, 0)
    IPGR1 = Bits(19, 10)
    IPGR2 = Bits(29, 20)


class TDBAL(Reg, at=0x3800, spec="8254x 13.4.36"):
    """Transmit descriptor base, low."""


class TDBAH(Reg, at=0x3804, spec="8254x 13.4.37"):
    """Transmit descriptor base, high."""


class TDLEN(Reg, at=0x3808, spec="8254x 13.4.38"):
    """Octets of the transmit ring, a multiple of 128."""


class TDH(Reg, at=0x3810, spec="8254x 13.4.39"):
    """Transmit head: the device's next."""


class TDT(Reg, at=0x3818, spec="8254x 13.4.40"):
    """Transmit tail: the first the device does not have."""


class TIDV(Reg, at=0x3820, spec="8254x 13.4.41"):
    """Transmit interrupt delay."""


class TXDCTL(Reg, at=0x3828, spec="8254x 13.4.43; 82574 10.2.6"):
    """Transmit descriptor control."""

    PTHRESH = Bits(5, 0)
    HTHRESH = Bits(13, 8)
    WTHRESH = Bits(21, 16)
    ONE = Bits(22, doc="82574: must be 1")
    GRAN = Bits(24, doc="thresholds count descriptors, not cache lines")


class TADV(Reg, at=0x382C, spec="8254x 13.4.44"):
    """Transmit interrupt delay at most."""


class Classic:
    """What only the 8254x have so."""

    class EERD(Reg, at=0x0014, spec="8254x 13.4.4"):
        """EEPROM read."""

        START = Bits(0)
        DONE = Bits(4)
        ADDRESS = Bits(15, 8)
        DATA = Bits(31, 16)


class Express:
    """What only the 82574 has so."""

    class EERD(Reg, at=0x0014, spec="82574 10.2.2"):
        """NVM read."""

        START = Bits(0)
        DONE = Bits(1)
        ADDRESS = Bits(15, 2)
        DATA = Bits(31, 16)

    class EIAC(Reg, at=0x00DC, spec="82574 10.2.4"):
        """Causes that an MSI-X message clears."""

        QUEUES = Bits(24, 20)

    class IVAR(Reg, at=0x00E4, spec="82574 10.2.4"):
        """Which MSI-X vector each cause has."""

        RXQ0 = Bits(2, 0)
        RXQ0_VALID = Bits(3)
        RXQ1 = Bits(6, 4)
        RXQ1_VALID = Bits(7)
        TXQ0 = Bits(10, 8)
        TXQ0_VALID = Bits(11)
        TXQ1 = Bits(14, 12)
        TXQ1_VALID = Bits(15)
        OTHER = Bits(18, 16)
        OTHER_VALID = Bits(19)
        EVERY_WRITEBACK = Bits(31)

    class EITR(Reg, at=0x00E8, count=5, spec="82574 10.2.4"):
        """Throttling of each MSI-X vector."""

        INTERVAL = Bits(15, 0)

    class EXTCNF_CTRL(Reg, at=0x0F00, spec="82574 10.2.2"):
        """Extended configuration; who may use MDIC."""

        MDIO_SW = Bits(5, doc="ours, once it reads back as 1")

    class RFCTL(Reg, at=0x5008, spec="82574 10.2.5"):
        """Receive filter control."""

        EXSTEN = Bits(15, doc="extended receive descriptors")


def _statistic(name: str, at: int, doc: str, width: int = 32) -> type[Reg]:
    return type(name, (Reg,), {"__doc__": doc}, at=at, width=width, access=RC, spec="8254x 13.7")


STATISTICS: Final = {row[0]: _statistic(row[1], *row[2:]) for row in (
    ("crc_errors", "CRCERRS", 0x4000, "Frames with a wrong FCS."),
    ("alignment_errors", "ALGNERRC", 0x4004, "Frames that are no whole number of octets."),
    ("symbol_errors", "SYMERRS", 0x4008, "Symbols that are none."),
    ("receive_errors", "RXERRC", 0x400C, "Frames in which the PHY signalled an error."),
    ("missed_frames", "MPC", 0x4010, "Frames dropped for lack of descriptors or FIFO."),
    ("single_collisions", "SCC", 0x4014, "Frames sent after one collision."),
    ("excessive_collisions", "ECOL", 0x4018, "Frames given up after 16 collisions."),
    ("multiple_collisions", "MCC", 0x401C, "Frames sent after more than one collision."),
    ("late_collisions", "LATECOL", 0x4020, "Collisions after the first 64 octets: a duplex mismatch."),
    ("collisions", "COLC", 0x4028, "Collisions."),
    ("deferred", "DC", 0x4030, "Frames that had to wait for the medium."),
    ("no_carrier_sense", "TNCRS", 0x4034, "Frames sent without carrier."),
    ("carrier_extension_errors", "CEXTERR", 0x403C, "Wrong carrier extensions."),
    ("length_errors", "RLEC", 0x4040, "Frames of undersize or oversize."),
    ("pause_received", "XOFFRXC", 0x4050, "PAUSE frames received."),
    ("pause_sent", "XOFFTXC", 0x4054, "PAUSE frames sent."),
    ("good_frames_received", "GPRC", 0x4074, "Good frames received."),
    ("broadcasts_received", "BPRC", 0x4078, "Good broadcasts received."),
    ("multicasts_received", "MPRC", 0x407C, "Good multicasts received."),
    ("good_frames_sent", "GPTC", 0x4080, "Good frames sent."),
    ("good_octets_received", "GORC", 0x4088, "Octets of good frames received, FCS included.", 64),
    ("good_octets_sent", "GOTC", 0x4090, "Octets of good frames sent, FCS included.", 64),
    ("no_receive_buffers", "RNBC", 0x40A0, "Frames that found no descriptor and had to wait in the FIFO."),
    ("undersize", "RUC", 0x40A4, "Good frames shorter than 64 octets."),
    ("fragments", "RFC", 0x40A8, "Shorter than 64 octets with a wrong FCS."),
    ("oversize", "ROC", 0x40AC, "Good frames longer than allowed: dropped."),
    ("jabbers", "RJC", 0x40B0, "Longer than allowed with a wrong FCS."),
    ("octets_received", "TOR", 0x40C0, "Octets of all frames received.", 64),
    ("octets_sent", "TOT", 0x40C8, "Octets of all frames sent.", 64),
    ("frames_received", "TPR", 0x40D0, "All frames received."),
    ("frames_sent", "TPT", 0x40D4, "All frames sent."),
    ("multicasts_sent", "MPTC", 0x40F0, "Multicasts sent."),
    ("broadcasts_sent", "BPTC", 0x40F4, "Broadcasts sent."),
    ("super_segments_sent", "TSCTC", 0x40F8, "TCP super-segments split."),
    ("super_segments_failed", "TSCTFC", 0x40FC, "TCP super-segments that could not be split."),
)}
"""What the device counts. Each register starts anew when it is read."""

_COMMON = {**globals(), **STATISTICS}
MAP_8254X: Final = RegisterMap.of("8254x", _COMMON | vars(Classic))
MAP_82574: Final = RegisterMap.of("82574", _COMMON | vars(Express))


# The PHY, by MDIO: addresses count 16-bit words.

class Phy:
    """Clause 22 registers of the PHY."""

    class BMCR(Reg, at=0, width=16, spec="IEEE 802.3 22.2.4.1"):
        """Basic mode control."""

        DUPLEX = Bits(8)
        RESTART = Bits(9, doc="restart auto-negotiation; clears itself")
        ISOLATE = Bits(10)
        POWER_DOWN = Bits(11)
        ANENABLE = Bits(12, doc="auto-negotiate")
        LOOPBACK = Bits(14)
        RESET = Bits(15, doc="clears itself")

    class BMSR(Reg, at=1, width=16, access=RO, spec="IEEE 802.3 22.2.4.2"):
        """Basic mode status."""

        LINK = Bits(2, doc="link up; keeps a loss until it is read")
        ANCAPABLE = Bits(3)
        FAULT = Bits(4)
        ANCOMPLETE = Bits(5)

    class PHYID1(Reg, at=2, width=16, access=RO, spec="IEEE 802.3 22.2.4.3.1"):
        """Its maker."""

    class PHYID2(Reg, at=3, width=16, access=RO, spec="IEEE 802.3 22.2.4.3.1"):
        """Its maker and model."""

    class ANAR(Reg, at=4, width=16, spec="IEEE 802.3 28.2.4.1.3"):
        """What we advertise."""

        SELECTOR = Bits(4, 0, doc="1: IEEE 802.3")
        T10 = Bits(5)
        T10_FD = Bits(6)
        TX100 = Bits(7)
        TX100_FD = Bits(8)
        PAUSE = Bits(10)
        ASYMMETRIC_PAUSE = Bits(11)

    class ANLPAR(Reg, at=5, width=16, access=RO, spec="IEEE 802.3 28.2.4.1.4"):
        """What the peer advertises."""

    class GBCR(Reg, at=9, width=16, spec="IEEE 802.3 40.5.1.1"):
        """1000BASE-T control."""

        T1000 = Bits(8)
        T1000_FD = Bits(9)

    class GBSR(Reg, at=10, width=16, access=RO, spec="IEEE 802.3 40.5.1.1"):
        """1000BASE-T status."""

        T1000 = Bits(10, doc="the peer can")
        T1000_FD = Bits(11, doc="the peer can")


MAP_PHY: Final = RegisterMap.of("PHY", vars(Phy), unit=2)
