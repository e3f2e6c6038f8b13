/*
 * What others do to be told of many cgroups, in its smallest form: for what it costs while nothing happens.
 *
 * designs epoll: an eventfd each, and one thread that waits for all of them.
 * designs threads: an eventfd each, and a thread each that reads it.
 * designs processes: a process each that reads its eventfd, executed anew, as a helper of its own.
 * designs process CGROUP: such a one.
 * designs inotify: one inotify instance with a watch on a file in each. On cgroup v1 the kernel tells nothing by it;
 * what it holds is the same.
 *
 * Each reads paths of cgroups from stdin, one a line, until an empty one, and prints "empty". At the next line it sets
 * everything up and prints "ready". SIGTERM ends it.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define STACK 16384 /* bytes: the least that pthreads take. What is not touched takes no memory in any case. */

static char *paths[MOST];
static struct watch watches[MOST];
static pid_t processes[MOST];
static size_t count;

static void set_up_epoll(void)
{
    const int epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");

    for (size_t i = 0; i < count; i++)
        add(epoll_fd, paths[i], &watches[i]);
}

static void *read_for_ever(void *watch)
{
    eventfd_t signals;

    while (eventfd_read(((struct watch *)watch)->eventfd, &signals) == 0)
        ;
    return NULL;
}

static void set_up_threads(void)
{
    pthread_attr_t small;
    pthread_t thread;

    errno = pthread_attr_init(&small);
    if (!errno)
        errno = pthread_attr_setstacksize(&small, STACK);
    for (size_t i = 0; !errno && i < count; i++) {
        set_up(paths[i], &watches[i], EFD_CLOEXEC);
        errno = pthread_create(&thread, &small, read_for_ever, &watches[i]);
    }
    if (errno)
        err(1, "thread");
}

static void be_process(char *cgroup)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    set_up(cgroup, &watches[0], EFD_CLOEXEC);
    say("ready");
    read_for_ever(&watches[0]);
}

static void set_up_processes(void)
{
    char ready[sizeof("ready\n")] = "";

    for (size_t i = 0; i < count; i++) {
        int fds[2];

        must(pipe2(fds, O_CLOEXEC), "pipe");
        processes[i] = must(fork(), "fork");
        if (processes[i] == 0) {
            must(dup2(fds[1], STDOUT_FILENO), "dup2");
            execl("/proc/self/exe", "designs", "process", paths[i], NULL);
            err(1, "exec");
        }
        close(fds[1]);
        if (read(fds[0], ready, sizeof(ready) - 1) <= 0)
            errx(1, "a process did not start");
        close(fds[0]);
    }
}

static void set_up_inotify(void)
{
    const int fd = must(inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify");

    for (size_t i = 0; i < count; i++) {
        char path[PATH_MAX];

        snprintf(path, sizeof(path), "%s/memory.oom_control", paths[i]);
        must(inotify_add_watch(fd, path, IN_MODIFY), path);
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*set_up)(void);
    } designs[] = {
        {"epoll", set_up_epoll},
        {"threads", set_up_threads},
        {"processes", set_up_processes},
        {"inotify", set_up_inotify},
    };

    sigset_t end;
    int signal;

    if (argc == 3 && strcmp(argv[1], "process") == 0)
        be_process(argv[2]);
    allow_all_fds();
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    must(sigprocmask(SIG_BLOCK, &end, NULL), "sigprocmask");
    must(prctl(PR_SET_PDEATHSIG, SIGTERM), "prctl");
    for (size_t i = 0; argc == 2 && i < sizeof(designs) / sizeof(*designs); i++) {
        if (strcmp(argv[1], designs[i].name) != 0)
            continue;
        while (count < MOST && (paths[count] = read_line()) && *paths[count])
            count++;
        say("empty");
        free(read_line());
        designs[i].set_up();
        say("ready");
        sigwait(&end, &signal);
        /* None may be left in the cgroup that all of them are in, or that could not be removed. */
        for (size_t j = 0; j < count && processes[j]; j++) {
            must(kill(processes[j], SIGKILL), "kill");
            must(waitpid(processes[j], NULL, 0), "waitpid");
        }
        return 0;
    }
    errx(2, "usage: designs epoll, designs threads, designs processes, designs inotify");
}
