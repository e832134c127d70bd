# The numbers of NBD's transmission phase, all in network order on the wire.
cpdef enum:
    REQUEST_MAGIC = 0x25609513
    EXTENDED_REQUEST_MAGIC = 0x21e41c71
    SIMPLE_REPLY_MAGIC = 0x67446698
    STRUCTURED_REPLY_MAGIC = 0x668e33ef
    EXTENDED_REPLY_MAGIC = 0x6e8a278c

cpdef enum:
    CMD_READ = 0
    CMD_WRITE = 1
    CMD_DISC = 2
    CMD_FLUSH = 3
    CMD_TRIM = 4
    CMD_CACHE = 5
    CMD_WRITE_ZEROES = 6
    CMD_BLOCK_STATUS = 7

cpdef enum:
    CMD_FLAG_FUA = 0x01
    CMD_FLAG_NO_HOLE = 0x02
    CMD_FLAG_DF = 0x04
    CMD_FLAG_REQ_ONE = 0x08
    CMD_FLAG_FAST_ZERO = 0x10
    CMD_FLAG_PAYLOAD_LEN = 0x20

# What an export can do, as it is told to the client at the end of the handshake.
cpdef enum:
    FLAG_HAS_FLAGS = 0x0001
    FLAG_READ_ONLY = 0x0002
    FLAG_SEND_FLUSH = 0x0004
    FLAG_SEND_FUA = 0x0008
    FLAG_ROTATIONAL = 0x0010
    FLAG_SEND_TRIM = 0x0020
    FLAG_SEND_WRITE_ZEROES = 0x0040
    FLAG_SEND_DF = 0x0080
    FLAG_CAN_MULTI_CONN = 0x0100
    FLAG_SEND_CACHE = 0x0400
    FLAG_SEND_FAST_ZERO = 0x0800
    FLAG_BLOCK_STATUS_PAYLOAD = 0x1000

cpdef enum:
    REPLY_FLAG_DONE = 1
    CHUNK_NONE = 0
    CHUNK_OFFSET_DATA = 1
    CHUNK_OFFSET_HOLE = 2
    CHUNK_BLOCK_STATUS = 5
    CHUNK_BLOCK_STATUS_EXT = 6
    CHUNK_ERROR = 0x8001

cpdef enum:
    STATE_HOLE = 1              # not backed by storage
    STATE_ZERO = 2              # reads as zeros

cpdef enum:
    NBD_OK = 0
    NBD_EPERM = 1
    NBD_EIO = 5
    NBD_ENOMEM = 12
    NBD_EINVAL = 22
    NBD_ENOSPC = 28
    NBD_EOVERFLOW = 75
    NBD_ENOTSUP = 95
    NBD_ESHUTDOWN = 108

cpdef enum:
    REQUEST_OCTETS = 28
    EXTENDED_REQUEST_OCTETS = 32
    SIMPLE_REPLY_OCTETS = 16
    STRUCTURED_REPLY_OCTETS = 20
    EXTENDED_REPLY_OCTETS = 32
