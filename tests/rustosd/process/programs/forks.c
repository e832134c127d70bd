/* Forks while another thread writes to memory, most of which is in swap.
 *
 *   forks MEBIBYTES
 *
 * Each child looks at the page that was being written when it was forked. Ends when one has found it to be another. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 512 /* of a page */

static uint64_t *block;
static size_t pages;
static volatile size_t at;

static void *write_here_and_there(void *unused)
{
    for (uint64_t x = 88172645463325252ull;;) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        at = x % pages;
        block[at * WORDS + 1] = x;
    }
    return unused;
}

int main(int count, char **argument)
{
    pthread_t thread;
    int status = 0;
    pages = count == 2 ? (size_t)atoi(argument[1]) * 256 : 0;
    block = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t page = 0; page < pages; page++)
        block[page * WORDS] = page + 1;
    pthread_create(&thread, 0, write_here_and_there, 0);
    while (!status) {
        pid_t child = fork();
        if (!child)
            _exit(block[at * WORDS] != at + 1);
        waitpid(child, &status, 0);
    }
    return 1;
}
