/* Starts processes and threads in the way that its first argument names. Ends with status 0 if all went as on Linux. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char **self;

static int ended_with(pid_t child, int expected)
{
    int status;

    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == expected;
}

static int child_of_clone(void *argument)
{
    return *(int *)argument;
}

static void *execute(void *unused)
{
    execl(self[0], self[0], "nothing", (char *)0);
    return unused;
}

static void *sleep_long(void *unused)
{
    sleep(100);
    return unused;
}

static int clones(void)
{
    static char stack[65536];
    int value = 5;
    pid_t child = clone(child_of_clone, stack + sizeof stack, CLONE_VM | SIGCHLD, &value);

    return ended_with(child, 5);
}

static int threads(void)
{
    pthread_t some[20];

    for (int i = 0; i < 20; i++)
        if (pthread_create(&some[i], 0, (void *(*)(void *))pthread_self, 0))
            return 0;
    for (int i = 0; i < 20; i++)
        pthread_join(some[i], 0);
    return 1;
}

static int executes_in_a_thread(void)
{
    pthread_t sleeper, executer;

    pthread_create(&sleeper, 0, sleep_long, 0);
    pthread_create(&executer, 0, execute, 0);
    sleep(100);
    return 0;
}

static int orphans(void)
{
    if (!fork()) {
        if (!fork()) {
            setsid();
            usleep(100000);
            _exit(9);
        }
        _exit(0);
    }
    wait(0);
    return 1;
}

static int zombies(void)
{
    for (int i = 0; i < 50; i++)
        if (!fork())
            _exit(i);
    usleep(100000);
    return 1;
}

static int many(int count)
{
    for (int i = 0; i < count; i++) {
        pid_t child = vfork();

        if (!child) {
            execl(self[0], self[0], "nothing", (char *)0);
            _exit(127);
        }
        if (!ended_with(child, 0))
            return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    const char *what = argv[1];
    int fine = 1;

    self = argv;
    if (!strcmp(what, "fork"))
        fine = ended_with(fork() ?: (_exit(3), 0), 3);
    else if (!strcmp(what, "vfork"))
        fine = ended_with(vfork() ?: (_exit(4), 0), 4);
    else if (!strcmp(what, "clone"))
        fine = clones();
    else if (!strcmp(what, "threads"))
        fine = threads();
    else if (!strcmp(what, "exec-in-thread"))
        fine = executes_in_a_thread();
    else if (!strcmp(what, "orphan"))
        fine = orphans();
    else if (!strcmp(what, "zombies"))
        fine = zombies();
    else if (!strcmp(what, "many"))
        fine = many(atoi(argv[2]));
    else if (strcmp(what, "nothing"))
        fine = 0;
    return !fine;
}
