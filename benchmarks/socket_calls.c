#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>
enum { ROUNDS = 2000 };
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
static int order(const void *a, const void *b) { long x = *(long *)a - *(long *)b; return x < 0 ? -1 : x > 0; }
static void tell(const char *name, long *took) { qsort(took, ROUNDS, sizeof *took, order); printf("%s %ld\n", name, took[ROUNDS / 2]); }
int main(void) {
    static long took[5][ROUNDS];
    struct sockaddr_in at = { .sin_family = AF_INET };
    for (int i = 0; i < ROUNDS; i++) {
        int one = 1, kind; socklen_t n = sizeof at, k = sizeof kind;
        struct sockaddr_in name; long t = now();
        int fd = socket(AF_INET, SOCK_STREAM, 0); took[0][i] = now() - t; t = now();
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); took[1][i] = now() - t; t = now();
        bind(fd, (struct sockaddr *)&at, sizeof at); took[2][i] = now() - t; t = now();
        getsockname(fd, (struct sockaddr *)&name, &n); took[3][i] = now() - t; t = now();
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &kind, &k); took[4][i] = now() - t;
        close(fd);
    }
    const char *names[] = { "socket", "setsockopt", "bind", "getsockname", "getsockopt" };
    for (int i = 0; i < 5; i++) tell(names[i], took[i]);
}
