# cython: language_level=3
# The only place with C text: byte order, fences, volatile access, the clock.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #ifndef RUSTOSD_HW_H
    #define RUSTOSD_HW_H
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define HW_SWAP16(v) __builtin_bswap16(v)
    #define HW_SWAP32(v) __builtin_bswap32(v)
    #define HW_SWAP64(v) __builtin_bswap64(v)
    #else
    #define HW_SWAP16(v) (v)
    #define HW_SWAP32(v) (v)
    #define HW_SWAP64(v) (v)
    #endif
    static inline uint16_t hw_load16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
    static inline uint32_t hw_load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline uint64_t hw_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline void hw_store16(void *p, uint16_t v) { memcpy(p, &v, 2); }
    static inline void hw_store32(void *p, uint32_t v) { memcpy(p, &v, 4); }
    static inline void hw_store64(void *p, uint64_t v) { memcpy(p, &v, 8); }
    static inline uint16_t hw_get16(const void *p) { return HW_SWAP16(hw_load16(p)); }
    static inline uint32_t hw_get32(const void *p) { return HW_SWAP32(hw_load32(p)); }
    static inline uint64_t hw_get64(const void *p) { return HW_SWAP64(hw_load64(p)); }
    static inline void hw_put16(void *p, uint16_t v) { hw_store16(p, HW_SWAP16(v)); }
    static inline void hw_put32(void *p, uint32_t v) { hw_store32(p, HW_SWAP32(v)); }
    static inline void hw_put64(void *p, uint64_t v) { hw_store64(p, HW_SWAP64(v)); }
    static inline int64_t hw_now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000ll + t.tv_nsec; }
    #endif
    """
    # Host order, any alignment.
    uint16_t load16 "hw_load16"(const void *p) noexcept
    uint32_t load32 "hw_load32"(const void *p) noexcept
    uint64_t load64 "hw_load64"(const void *p) noexcept
    void store16 "hw_store16"(void *p, uint16_t v) noexcept
    void store32 "hw_store32"(void *p, uint32_t v) noexcept
    void store64 "hw_store64"(void *p, uint64_t v) noexcept
    # Network order, any alignment.
    uint16_t get16 "hw_get16"(const void *p) noexcept
    uint32_t get32 "hw_get32"(const void *p) noexcept
    uint64_t get64 "hw_get64"(const void *p) noexcept
    void put16 "hw_put16"(void *p, uint16_t v) noexcept
    void put32 "hw_put32"(void *p, uint32_t v) noexcept
    void put64 "hw_put64"(void *p, uint64_t v) noexcept
    # CLOCK_MONOTONIC in nanoseconds.
    int64_t now_ns "hw_now_ns"() noexcept
