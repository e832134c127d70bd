# What a pump asks of a NIC, so that it can do so without Python objects in between.
from mm.frame cimport RxBurst, TxBurst

cdef class Nic:
    cpdef int receive(self, RxBurst burst) except? -2
    cpdef int transmit(self, TxBurst burst) except? -2
    cpdef int room(self) except? -2
