from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from drivers.mmio cimport Mmio
from drivers.request cimport Completion, CompletionBurst, Request, RequestBurst, Segment

cdef enum:
    SLOTS = 32
    PRDS = 248                  # a table with them is a page
    LONGEST_PRD = 1 << 22
    MAX_SECTORS = 65536         # a count of 0 says that many
    ENDED = 128                 # requests that wait to be told: all slots' and two bursts' refusals fit

# Of the port's memory, which all devices behind it share.
cdef enum:
    LIST_AT = 0                 # 1024 octets, so aligned
    FIS_AT = 1024               # 256, so aligned
    SCRATCH_AT = 2048           # what internal commands read and write
    SCRATCH_OCTETS = 2048
    INTERNAL_AT = 4096          # the table of internal commands
    PORT_OCTETS_SHARED = 8192

# Of a queue's own memory.
cdef enum:
    TABLE_OCTETS = 4096         # one for each slot
    RANGES_AT = SLOTS * TABLE_OCTETS
    RANGES_OCTETS = 512         # what TRIM sends, for each slot
    RANGES = 64                 # in them
    RANGE_SECTORS = 65535
    MAX_TRIM = RANGES * RANGE_SECTORS
    QUEUE_OCTETS = RANGES_AT + SLOTS * RANGES_OCTETS

# Command header, AHCI 4.2.2; the PRD count and the octets done follow the flags.
cdef packed struct CommandHeader:
    uint16_t flags
    uint16_t prds
    uint32_t octets_done
    uint64_t table
    uint8_t reserved[16]

# Register FIS, host to device, SATA 10.5.5.
cdef packed struct CommandFis:
    uint8_t type
    uint8_t flags
    uint8_t command
    uint8_t features_low
    uint8_t lba_low[3]
    uint8_t device
    uint8_t lba_high[3]
    uint8_t features_high
    uint8_t count_low
    uint8_t count_high
    uint8_t icc
    uint8_t control
    uint8_t auxiliary[4]

# Physical region descriptor, AHCI 4.2.3.3.
cdef packed struct Prd:
    uint64_t address
    uint32_t reserved
    uint32_t octets             # less one

cdef packed struct CommandTable:
    CommandFis fis
    uint8_t rest_of_fis[44]
    uint8_t packet[16]
    uint8_t reserved[48]
    Prd prds[PRDS]

cdef enum:
    FIS_H2D = 0x27
    FIS_D2H = 0x34
    FIS_SDB = 0xA1              # set device bits: queued commands are done
    FIS_COMMAND = 0x80          # of flags: the command register is written
    RECEIVED_D2H = 0x40         # where the HBA puts them, AHCI 4.2.1
    RECEIVED_SDB = 0x58
    STATUS_ERR = 0x01
    STATUS_DF = 0x20
    HEADER_PACKET = 1 << 5
    HEADER_WRITE = 1 << 6
    HEADER_PM_SHIFT = 12
    FIS_DWORDS = 5
    DEVICE_LBA = 0x40
    DEVICE_FUA = 0x80
    DEVICE_PACKET = 0xA0
    AUXILIARY_TRIM = 1          # of SEND FPDMA QUEUED, ACS-3 7.62.3

# Commands, ACS-3 7.
cdef enum:
    DATA_SET_MANAGEMENT = 0x06
    READ_DMA_EXT = 0x25
    WRITE_DMA_EXT = 0x35
    WRITE_DMA_FUA_EXT = 0x3D
    READ_FPDMA_QUEUED = 0x60
    WRITE_FPDMA_QUEUED = 0x61
    SEND_FPDMA_QUEUED = 0x64
    PACKET = 0xA0
    FLUSH_CACHE_EXT = 0xEA
    FEATURE_TRIM = 1            # of DATA SET MANAGEMENT
    FEATURE_DMA = 1             # of PACKET
    FEATURE_TO_HOST = 4

# Packets, MMC-6 6.
cdef enum:
    READ_10 = 0x28
    READ_12 = 0xA8

# A port's registers, AHCI 3.3.
cdef enum:
    P_IS = 0x10
    P_IE = 0x14
    P_TFD = 0x20
    P_SACT = 0x34
    P_CI = 0x38

cdef struct Slot:
    uint64_t tag
    uint64_t lba
    uint32_t sectors
    uint64_t serial             # the order of submission
    uint8_t operation
    uint8_t flags
    uint8_t tries
    uint16_t prds
    uint16_t header             # flags of the command header
    bint then_flush             # a plain write with FUA, on a drive that has none

cdef struct Counters:
    uint64_t reads, writes, flushes, trims, sectors_read, sectors_written, sectors_trimmed
    uint64_t failed             # requests that ended with an error of the disk's
    uint64_t refused            # requests that made no sense
    uint64_t doorbells, looks

cdef class CommandQueue:
    cdef Mmio mmio
    cdef uint32_t port          # the port's registers in the BAR
    cdef uint8_t *base          # the port's memory
    cdef uint8_t *tables        # the queue's own
    cdef uint64_t iova          # of the queue's own
    cdef uint64_t reach         # the first address the controller does not reach
    cdef object port_memory, memory
    cdef uint32_t pm            # the device's port behind a multiplier
    cdef bint shared            # others use the port's command list, too
    cdef public bint held       # issue nothing for now; what runs runs on
    cdef Slot slots[SLOTS]
    cdef uint8_t free[SLOTS]            # a queue in a circle: who ended last is used again last
    cdef int free_first, free_count
    cdef readonly int depth
    cdef readonly bint queued   # READ and WRITE go by NCQ
    cdef bint plain_fua
    cdef bint trims, queued_trims, zeroes   # it has TRIM; by NCQ; and zeros are what is read afterwards
    cdef bint packet            # a packet device: it reads, by READ (10) and READ (12)
    cdef uint64_t sectors
    cdef uint32_t sector_octets
    cdef readonly uint32_t active       # slots that the device has
    cdef readonly uint32_t waiting      # slots that are filled and not issued
    cdef uint32_t unsure                # the slot whose end a FIS alone has told, until PxSACT agrees
    cdef readonly uint32_t plain        # slots, active or waiting, whose command is not a queued one
    cdef readonly bint frozen           # nothing is issued
    cdef public bint dirty              # something was written since the last flush
    cdef readonly int dead              # not 0: every request ends with this errno
    cdef uint64_t serial
    cdef Completion ended[ENDED]        # a queue in a circle
    cdef int ended_first, ended_count
    cdef Counters counters

    cdef bint _accepts(self) noexcept nogil
    cdef void _take(self, RequestBurst burst) noexcept nogil
    cdef int _check(self, const Request *r, const Segment *segments) noexcept nogil
    cdef void _fill(self, const Request *r, const Segment *segments) noexcept nogil
    cdef bint _queues(self, const Request *r) noexcept nogil
    cdef void _command(self, uint32_t slot, bint queued) noexcept nogil
    cdef void _trim(self, uint32_t slot, bint queued) noexcept nogil
    cdef void _packet(self, uint32_t slot) noexcept nogil
    cdef void _header(self, uint32_t slot, uint32_t prds, uint32_t flags) noexcept nogil
    cdef void _headers(self, uint32_t mask) noexcept nogil
    cdef bint _flush_after(self, uint32_t bit) noexcept nogil
    cdef void _end(self, uint64_t tag, int error) noexcept nogil
    cdef void _finish(self, uint32_t mask, int error) noexcept nogil
    cdef void _tell(self, CompletionBurst out) noexcept nogil
    cdef uint32_t _oldest(self, uint32_t mask) noexcept nogil
    cdef uint64_t _received(self, bint plain) noexcept nogil
    cdef bint _tells_all(self, uint64_t received, bint plain) noexcept nogil
    cdef int _look(self, bint closely, bint trust) except? 1
    cdef int64_t _pending(self, bint plain) except? -1
    cdef int _make_sure(self) except? -1
    cdef int _issue(self) except? -1
    cdef CommandTable *_table(self, uint32_t index) noexcept nogil
