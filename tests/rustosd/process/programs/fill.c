/* Fills memory as fast as it can, each way that there is to get some.
 *
 *   fill HOW MEBIBYTES
 *
 * Prints how many octets of private memory it has had at most, as the kernel saw it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define MORE (1ul << 20)
#ifndef STATIC
#define STATIC 4096 /* else it could fill very much from its first instruction on */
#endif

static char variable[STATIC];
static size_t octets;

static void *map(size_t size, int flags)
{
    void *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED) { perror("mmap"); exit(2); }
    return at;
}

static void in_pieces(size_t size)
{
    for (size_t done = 0; done < octets; done += size)
        memset(map(size, 0), 'x', size);
}

static void *allocate(void *unused)
{
    for (size_t done = 0; done < octets; done += 64000)
        memset(malloc(64000), 'x', 64000);
    return unused;
}

static void in_a_threads_heap(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, allocate, 0);
    pthread_join(thread, 0);
}

static void by_protection(void)
{
    char *at = mmap(0, octets, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t done = 0; done < octets; done += 16 * PAGE) {
        if (mprotect(at + done, 16 * PAGE, PROT_READ | PROT_WRITE)) { perror("mprotect"); exit(2); }
        memset(at + done, 'x', 16 * PAGE);
    }
}

static void after_reading(void)
{
    volatile char *at = map(octets, 0);
    long sum = 0;
    for (size_t done = 0; done < octets; done += PAGE)
        sum += at[done];
    for (size_t done = 0; done < octets; done += PAGE)
        at[done] = 'x' + sum;
}

static void at_once_in_many(void)
{
    for (int i = 0; i < 8; i++)
        if (!fork()) {
            octets /= 8;
            in_pieces(16 * PAGE);
            exit(0);
        }
    while (wait(0) > 0)
        ;
}

static long field_of(int pid, const char *name)
{
    char line[256];
    long found = 0;
    FILE *status;
    snprintf(line, sizeof line, "/proc/%d/status", pid);
    status = fopen(line, "r");
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            found = atol(line + strlen(name));
    fclose(status);
    return found << 10;
}

static long field(const char *name) { return field_of(getpid(), name); }

/* No page is one word all over: those leave memory even when swap cannot be written. */
static void write_all(char *at, char with)
{
    for (size_t done = 0; done < octets; done += PAGE) {
        at[done] = with + 1;
        memset(at + done + 1, with, PAGE - 1);
    }
}

static int has_all(const char *at, char with)
{
    for (size_t done = 0; done < octets; done++)
        if (at[done] != with + (done % PAGE == 0)) return 0;
    return 1;
}

/* A child writes all that it shares with its parent; with `more`, it needs new memory then, too: for that it may have to wait. */
static void in_a_child(int more)
{
    int status;
    char *at = map(octets, 0);
    write_all(at, 'x');
    printf("%ld ", field("RssAnon:"));
    fflush(stdout);
    if (!fork()) {
        write_all(at, 'y');
        if (more)
            memset(map(MORE, 0), 'z', MORE);
        printf("%ld ", field("RssAnon:") + (more ? field_of(getppid(), "RssAnon:") : 0));
        exit(has_all(at, 'y') ? 0 : 1);
    }
    wait(&status);
    if (!has_all(at, 'x')) exit(1);
    if (status) exit(3);
}

int main(int count, char **argument)
{
    const char *how = count == 3 ? argument[1] : "";
    octets = (size_t)atol(argument[count - 1]) << 20;
    if (!strcmp(how, "whole")) in_pieces(octets);
    else if (!strcmp(how, "pieces")) in_pieces(300 << 10);
    else if (!strcmp(how, "crumbs")) in_pieces(16 * PAGE);
    else if (!strcmp(how, "heap")) allocate(0);
    else if (!strcmp(how, "thread")) in_a_threads_heap();
    else if (!strcmp(how, "protection")) by_protection();
    else if (!strcmp(how, "read")) after_reading();
    else if (!strcmp(how, "populate")) memset(map(octets, MAP_POPULATE), 'x', octets);
    else if (!strcmp(how, "brk")) memset(sbrk(octets), 'x', octets);
    else if (!strcmp(how, "many")) at_once_in_many();
    else if (!strcmp(how, "copy")) in_a_child(0);
    else if (!strcmp(how, "copy-more")) in_a_child(1);
    else if (!strcmp(how, "static")) memset(variable, 'x', octets < STATIC ? octets : STATIC);
    else return 2;
    printf("%ld\n", field("VmHWM:") - field("RssFile:"));
    return 0;
}
