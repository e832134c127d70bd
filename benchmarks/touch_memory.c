// touch_memory MIB TOUCHES: fills memory, reads it in order, and touches pages at random; prints what each took.
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
enum { PAGE = 4096, FAULT_NS = 1500 };      // no page that is there takes so long
static uint64_t *memory, pages, state = 88172645463325252ull;
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
static uint64_t chance(void) { state ^= state << 13; state ^= state >> 7; return state ^= state << 17; }
static int order(const void *a, const void *b) { long x = *(long *)a - *(long *)b; return x < 0 ? -1 : x > 0; }
static uint64_t *at(uint64_t page) { return memory + page * (PAGE / 8); }
static void look(uint64_t page) {
    if (*at(page) != page + 1) { fprintf(stderr, "page %lu is wrong\n", page); exit(1); }
}
static void random_touches(const char *name, int touches, int writes) {
    long *took = malloc(sizeof *took * touches), begin = now(), faults = 0;
    for (int i = 0; i < touches; i++) {
        uint64_t page = chance() % pages;
        long t = now();
        look(page);
        if (writes) at(page)[1]++;
        t = now() - t;
        if (t > FAULT_NS) took[faults++] = t;
    }
    long all = now() - begin;
    qsort(took, faults, sizeof *took, order);
    printf("%s_touch_ns %ld\n%s_fault_p50_ns %ld\n%s_fault_p99_ns %ld\n%s_faults %ld\n", name, all / touches,
           name, faults ? took[faults / 2] : 0, name, faults ? took[faults * 99 / 100] : 0, name, faults);
    free(took);
}
int main(int argc, char **argv) {
    if (argc < 3) return 2;
    pages = strtoull(argv[1], 0, 10) << 8;
    static uint64_t content[PAGE / 8];
    for (int i = 0; i < PAGE / 8; i++) content[i] = chance();
    memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    long t = now();
    for (uint64_t page = 0; page < pages; page++) {
        memcpy(at(page), content, PAGE);
        *at(page) = page + 1;
    }
    printf("fill_ns %ld\n", now() - t);
    for (int round = 0; round < 2; round++) {
        t = now();
        for (uint64_t page = 0; page < pages; page++) look(page);
        printf("in_order_%d_ns %ld\n", round, now() - t);
    }
    random_touches("read", atoi(argv[2]), 0);
    random_touches("write", atoi(argv[2]), 1);
    return 0;
}
