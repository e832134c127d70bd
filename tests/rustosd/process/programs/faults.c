/* Raises one exception of the processor, named by its first argument, in a place named by its second: here, thread, fork,
   handler (one that ends with status 42), blocked, ignored. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NON_CANONICAL 0x8000000000000000ul

static const char *kind;

static void segment_not_present(void)
{
    struct user_desc absent = {.entry_number = 0, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .seg_not_present = 1};

    if (syscall(SYS_modify_ldt, 1, &absent, sizeof absent))
        exit(3);
    __asm__ volatile("mov %0, %%es" : : "r"(0x7));
}

static void unaligned(void)
{
    __asm__ volatile("pushf; orl $0x40000, (%%rsp); popf; lea -128(%%rsp), %%rax; or $1, %%rax; movl $1, (%%rax)"
                     : : : "rax", "memory");
}

static void truncated_file(void)
{
    FILE *file = tmpfile();
    volatile char *page = mmap(0, 4096, PROT_READ, MAP_SHARED, fileno(file), 0);

    (void)page[0];
}

static int deeper(int depth)
{
    volatile char frame[4096];

    frame[depth % 4096] = 1;
    return deeper(depth + 1) + frame[0];
}

static void invalid_handler_stack(void)
{
    stack_t none = {.ss_sp = (void *)0x10000, .ss_size = 65536};
    struct sigaction to_it = {.sa_handler = _exit, .sa_flags = SA_ONSTACK};

    sigaltstack(&none, 0);
    sigaction(SIGUSR1, &to_it, 0);
    raise(SIGUSR1);
}

__attribute__((noinline)) static void raise_it(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;

    if (!strcmp(kind, "divide"))
        __asm__ volatile("xor %%ecx, %%ecx; mov $1, %%eax; cdq; idivl %%ecx" : : : "eax", "ecx", "edx");
    else if (!strcmp(kind, "breakpoint"))
        __asm__ volatile("int3");
    else if (!strcmp(kind, "overflow"))
        __asm__ volatile("int $4");
    else if (!strcmp(kind, "opcode"))
        __asm__ volatile("ud2");
    else if (!strcmp(kind, "segment"))
        segment_not_present();
    else if (!strcmp(kind, "stack"))
        __asm__ volatile("mov %0, %%rsp; push %%rax" : : "r"(NON_CANONICAL) : "memory");
    else if (!strcmp(kind, "privileged"))
        __asm__ volatile("hlt");
    else if (!strcmp(kind, "non-canonical"))
        *(volatile char *)NON_CANONICAL = 1;
    else if (!strcmp(kind, "alignment"))
        unaligned();
    else if (!strcmp(kind, "simd"))
        __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; mov $1, %%eax; cvtsi2ss %%eax, %%xmm1; divss %%xmm0, %%xmm1"
                         : : "m"((unsigned){0x1d80}) : "eax", "xmm0", "xmm1");
    else if (!strcmp(kind, "null"))
        *(volatile int *)8;
    else if (!strcmp(kind, "unmapped"))
        *(volatile int *)0x123456 = 1;
    else if (!strcmp(kind, "read-only"))
        *(volatile char *)mmap(0, 4096, PROT_READ, flags, -1, 0) = 1;
    else if (!strcmp(kind, "no-execute"))
        ((void (*)(void))mmap(0, 4096, PROT_READ | PROT_WRITE, flags, -1, 0))();
    else if (!strcmp(kind, "truncated"))
        truncated_file();
    else if (!strcmp(kind, "overflowing-stack"))
        exit(deeper(0));
    else if (!strcmp(kind, "handler-stack"))
        invalid_handler_stack();
    else if (!strcmp(kind, "sent"))
        kill(getpid(), SIGSEGV);
    else if (!strcmp(kind, "wait"))
        pause();
    else
        exit(2);
}

static void *thread(void *unused)
{
    raise_it();
    return unused;
}

static void handler(int number, siginfo_t *info, void *unused)
{
    (void)unused;
    if (number == SIGBUS && info->si_code == BUS_ADRERR)
        printf("%p\n", info->si_addr), fflush(stdout);
    _exit(42);
}

int main(int argc, char **argv)
{
    const char *place = argc > 2 ? argv[2] : "here";
    static const int numbers[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGTRAP};
    struct sigaction to_handler = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigset_t all;
    pthread_t one;
    int status;

    kind = argv[1];
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(place, "handler") || !strcmp(place, "blocked"))
            sigaction(numbers[i], &to_handler, 0);
        else if (!strcmp(place, "ignored"))
            signal(numbers[i], SIG_IGN);
    if (!strcmp(place, "blocked")) {
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, 0);
    }
    if (!strcmp(place, "thread")) {
        pthread_create(&one, 0, thread, 0);
        pthread_join(one, 0);
    } else if (!strcmp(place, "fork") && fork()) {
        wait(&status);
        printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        return 0;
    } else {
        raise_it();
    }
    return 1;
}
