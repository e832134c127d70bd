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
    #define HW_LITTLE32(v) (v)
    #define HW_LITTLE64(v) (v)
    #else
    #define HW_SWAP16(v) (v)
    #define HW_SWAP32(v) (v)
    #define HW_SWAP64(v) (v)
    #define HW_LITTLE32(v) __builtin_bswap32(v)
    #define HW_LITTLE64(v) __builtin_bswap64(v)
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
    static inline unsigned hw_trailing_zeros(uint64_t v) { return (unsigned)__builtin_ctzll(v); }
    static inline unsigned hw_log2_ceil(uint64_t v) { return v < 2 ? 0 : 64 - (unsigned)__builtin_clzll(v - 1); }
    /* x86 keeps the order of loads and of stores, also between ordinary and uncached memory: only the compiler is held
       back. On ARM a device is an observer outside the inner shareable domain. */
    #if defined(__x86_64__) || defined(__i386__)
    #define HW_READ_FENCE() __asm__ __volatile__("" ::: "memory")
    #define HW_WRITE_FENCE() __asm__ __volatile__("" ::: "memory")
    #elif defined(__aarch64__)
    #define HW_READ_FENCE() __asm__ __volatile__("dmb oshld" ::: "memory")
    #define HW_WRITE_FENCE() __asm__ __volatile__("dmb oshst" ::: "memory")
    #else
    #define HW_READ_FENCE() __sync_synchronize()
    #define HW_WRITE_FENCE() __sync_synchronize()
    #endif
    static inline void hw_read_fence(void) { HW_READ_FENCE(); }
    static inline void hw_write_fence(void) { HW_WRITE_FENCE(); }
    static inline uint32_t hw_mmio_read32(const void *p) {
        uint32_t v = *(const volatile uint32_t *)p; HW_READ_FENCE(); return HW_LITTLE32(v); }
    static inline void hw_mmio_write32(void *p, uint32_t v) {
        HW_WRITE_FENCE(); *(volatile uint32_t *)p = HW_LITTLE32(v); }
    static inline uint32_t hw_dma_load32(const void *p) {
        uint32_t v = *(const volatile uint32_t *)p; return HW_LITTLE32(v); }
    static inline uint32_t hw_load_acquire32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void hw_store_release32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline uint32_t hw_exchange32(void *p, uint32_t v) { return __atomic_exchange_n((uint32_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline void hw_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void hw_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }
    static inline void hw_dma_store64(void *p, uint64_t v) { *(volatile uint64_t *)p = HW_LITTLE64(v); }
    static inline uint64_t hw_dma_load64(const void *p) {
        uint64_t v = *(const volatile uint64_t *)p; return HW_LITTLE64(v); }
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
    # The smallest k with v <= 2**k, 0 to 64.
    unsigned log2_ceil "hw_log2_ceil"(uint64_t v) noexcept
    # Of a value that is not 0: how many zero bits are below its lowest one.
    unsigned trailing_zeros "hw_trailing_zeros"(uint64_t v) noexcept
    # Device registers: one access, little-endian, after all earlier stores to DMA memory; a read before all later loads.
    uint32_t mmio_read32 "hw_mmio_read32"(const void *p) noexcept
    void mmio_write32 "hw_mmio_write32"(void *p, uint32_t v) noexcept
    # Words of DMA memory, aligned and little-endian, which a device reads and writes meanwhile: one access each.
    uint32_t dma_load32 "hw_dma_load32"(const void *p) noexcept
    uint64_t dma_load64 "hw_dma_load64"(const void *p) noexcept
    void dma_store64 "hw_dma_store64"(void *p, uint64_t v) noexcept
    # Between the word by which a device says "done" and the loads of what it wrote before.
    void read_fence "hw_read_fence"() noexcept
    # Between stores to DMA memory and the store that hands them to the device.
    void write_fence "hw_write_fence"() noexcept
    # Words that the kernel or another thread shares with us.
    uint32_t load_acquire32 "hw_load_acquire32"(const void *p) noexcept
    void store_release32 "hw_store_release32"(void *p, uint32_t v) noexcept
    uint32_t exchange32 "hw_exchange32"(void *p, uint32_t v) noexcept
    void full_fence "hw_full_fence"() noexcept
    # In a loop that waits for another thread.
    void relax "hw_relax"() noexcept
