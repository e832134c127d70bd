/* Does to its memory what programs do, from several threads, and knows what every word must be.
 *
 *   stress THREADS SECONDS MEBIBYTES [fork|often]
 *
 * Each block is filled with words made of its seed and their place. Prints one line, and ends with 1 when a word was wrong. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS 64
#define WORDS 512 /* of a page */

struct block { uint64_t *at; size_t pages; uint64_t seed; };
static volatile long wrong, operations, forks, zeros, moves;
static int forking; /* one of so many times that it could */
static size_t pages_most;
static double until;
static char *heap;
static size_t heap_pages;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static uint64_t word(const struct block *b, size_t i) { return (b->seed + i) * 0x9e3779b97f4a7c15ull; }

static void fill(struct block *b, size_t first, size_t end)
{
    for (size_t i = first * WORDS; i < end * WORDS; i++)
        b->at[i] = word(b, i);
}

static void check(const struct block *b, const char *when)
{
    for (size_t i = 0; i < b->pages * WORDS; i++)
        if (b->at[i] != word(b, i)) {
            if (__sync_add_and_fetch(&wrong, 1) < 8)
                fprintf(stderr, "%s: word %zu of %zu pages at %p is %lx, not %lx\n", when, i, b->pages, (void *)b->at,
                        (long)b->at[i], (long)word(b, i));
            return;
        }
}

static void expect_zero(const uint64_t *at, size_t pages, const char *when)
{
    for (size_t i = 0; i < pages * WORDS; i++)
        if (at[i]) {
            if (__sync_add_and_fetch(&wrong, 1) < 8)
                fprintf(stderr, "%s: word %zu at %p is %lx, not 0\n", when, i, (void *)at, (long)at[i]);
            return;
        }
    __sync_add_and_fetch(&zeros, 1);
}

static void one(struct block *all, struct block *b, uint64_t x)
{
    size_t n = 1 + (x >> 32) % pages_most, i, was;
    uint64_t *to;
    pid_t child;
    int status;
    if (!b->at) {
        b->pages = n;
        b->seed = x;
        b->at = mmap(0, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if ((x >> 50) % 4 == 0)
            expect_zero(b->at, n, "new");
        fill(b, 0, n);
        return;
    }
    switch ((x >> 20) % 12) {
    case 0: case 1: case 2: check(b, "read"); break;
    case 3: check(b, "before munmap"); munmap(b->at, b->pages * 4096); b->at = 0; break;
    case 4:     /* grow or shrink, perhaps elsewhere */
        was = b->pages;
        to = mremap(b->at, was * 4096, n * 4096, MREMAP_MAYMOVE);
        if (to == MAP_FAILED) { perror("mremap"); exit(2); }
        if (to != b->at) __sync_add_and_fetch(&moves, 1);
        b->at = to;
        b->pages = n;
        if (n > was) { expect_zero(to + was * WORDS, n - was, "grown"); fill(b, was, n); }
        check(b, "mremap");
        break;
    case 5:     /* discard a part */
        i = (x >> 32) % b->pages;
        n = 1 + (x >> 44) % (b->pages - i);
        madvise(b->at + i * WORDS, n * 4096, MADV_DONTNEED);
        expect_zero(b->at + i * WORDS, n, "discarded");
        fill(b, i, i + n);
        break;
    case 6: b->seed = x; fill(b, 0, b->pages); break;
    case 7:     /* map anew over a part */
        i = (x >> 32) % b->pages;
        n = 1 + (x >> 44) % (b->pages - i);
        if (mmap(b->at + i * WORDS, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
            perror("mmap"); exit(2);
        }
        expect_zero(b->at + i * WORDS, n, "mapped over");
        fill(b, i, i + n);
        /* mappings that were paged apart may not be one any more, and mremap wants one: start again */
        check(b, "around");
        munmap(b->at, b->pages * 4096);
        b->at = 0;
        break;
    case 8:     /* read-only for a while */
        mprotect(b->at, b->pages * 4096, PROT_READ);
        check(b, "read-only");
        mprotect(b->at, b->pages * 4096, PROT_READ | PROT_WRITE);
        fill(b, 0, b->pages);
        break;
    case 9:
        if (!forking || (x >> 40) % forking) { check(b, "read"); break; }
        child = fork();
        if (!child) {
            long before = wrong;
            for (i = 0; i < BLOCKS; i++)
                if (all[i].at) check(&all[i], "child");
            for (i = 0; i < BLOCKS; i++)
                if (all[i].at) { all[i].seed ^= 1; fill(&all[i], 0, all[i].pages); }
            for (i = 0; i < BLOCKS; i++)
                if (all[i].at) check(&all[i], "child wrote");
            for (i = 0; i < BLOCKS; i++)
                if (all[i].at) {
                    madvise(all[i].at, all[i].pages * 4096, MADV_DONTNEED);
                    expect_zero(all[i].at, all[i].pages, "child discarded");
                }
            _exit(wrong != before);
        }
        if (child < 0) { perror("fork"); break; }
        if ((x >> 50) % 2) fill(b, 0, b->pages);        /* the parent writes while the child reads */
        waitpid(child, &status, 0);
        if (status) { fprintf(stderr, "child: status %x\n", status); __sync_add_and_fetch(&wrong, 1); }
        __sync_add_and_fetch(&forks, 1);
        break;
    default: check(b, "read");
    }
}

static void *work(void *argument)
{
    uint64_t x = (uint64_t)argument * 7919 + 12345;
    struct block all[BLOCKS] = {0};
    while (now() < until) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        one(all, &all[x % BLOCKS], x);
        __sync_add_and_fetch(&operations, 1);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (all[i].at) check(&all[i], "at the end");
    return 0;
}

static void *grow_and_shrink(void *unused)
{
    uint64_t x = 88172645463325252ull;
    (void)unused;
    struct block b = {0};
    heap = sbrk(0);
    heap += -(uintptr_t)heap & 4095;
    while (now() < until) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        size_t n = 1 + (x >> 32) % pages_most;
        if (brk(heap + n * 4096)) { perror("brk"); exit(2); }
        if (n > heap_pages) expect_zero((uint64_t *)(heap + heap_pages * 4096), n - heap_pages, "brk");
        heap_pages = n;
        b = (struct block){(uint64_t *)heap, n, x};
        fill(&b, 0, n);
        usleep(1000);
        check(&b, "brk");
        __sync_add_and_fetch(&operations, 1);
    }
    return unused;
}

int main(int count, char **argument)
{
    pthread_t threads[17];
    static char bss[1 << 20];
    int n = atoi(argument[1]);
    until = now() + atof(argument[2]);
    pages_most = 2 * (size_t)atoi(argument[3]) * 256 / BLOCKS / n;
    forking = count > 4 ? strcmp(argument[4], "often") ? 8 : 1 : 0;
    struct block b = {(uint64_t *)(((uintptr_t)bss + 4095) & -4096), 255, 77};
    fill(&b, 0, 255);
    for (long i = 0; i < n; i++)
        pthread_create(&threads[i], 0, work, (void *)(i + 1));
    pthread_create(&threads[n], 0, grow_and_shrink, 0);
    for (int i = 0; i <= n; i++)
        pthread_join(threads[i], 0);
    check(&b, "bss");
    printf("operations %ld forks %ld zeros %ld moves %ld wrong %ld\n", operations, forks, zeros, moves, wrong);
    return wrong != 0;
}
