/*
 * Cgroups that go at once: in each a process lives and ends, is reaped, and the cgroup is removed in the same breath.
 *
 * race SHORTEST_NS LONGEST_NS [PID]: reads from stdin, one a line, "oom CGROUP", where the process takes memory until it
 * is killed for that, or "end CGROUP", where it ends by itself. Ahead of each comes a pause, evenly spread between the
 * two. With a PID that one is stopped (SIGSTOP) as long as a race lasts.
 * Prints for each, in nanoseconds of CLOCK_MONOTONIC, when the process got its last page (or, without an OOM, when it
 * was started), when it was reaped, and when the cgroup was removed.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MEMORY (64 << 20) /* bytes: more than any limit here */
#define PAGE 4096
#define STOPPED_NS 5000000 /* after which all threads of who was stopped are */
#define LONGEST_NS 5000000000LL /* for which rmdir(2) may be refused; then something is wrong */

struct race {
    char *cgroup;
    int is_oom;
    long long last_page, reaped, removed;
};

static struct race races[MOST];

/* Shared, and so in the parent's cgroup: what who is killed has to say outlives it, and takes no page of its own. */
static _Atomic(long long) *last_page;
static char *memory;

static _Noreturn void live(const char *procs, int is_oom)
{
    const int fd = must(open(procs, O_WRONLY | O_CLOEXEC), procs);

    must((int)write(fd, "0", 1), procs);
    for (size_t at = 0; is_oom && at < MEMORY; at += PAGE) {
        memory[at] = 1;
        *last_page = now_ns();
    }
    _exit(0);
}

static void run(struct race *race, pid_t watcher)
{
    const struct timespec stopped = {.tv_nsec = STOPPED_NS};
    char procs[PATH_MAX];
    int status;
    pid_t pid;

    snprintf(procs, sizeof(procs), "%s/cgroup.procs", race->cgroup);
    if (watcher) {
        must(kill(watcher, SIGSTOP), "stop");
        nanosleep(&stopped, NULL);
    }
    *last_page = now_ns();
    pid = must(fork(), "fork");
    if (pid == 0)
        live(procs, race->is_oom);
    must(waitpid(pid, &status, 0), "waitpid");
    race->reaped = now_ns();
    while (rmdir(race->cgroup) < 0)
        if (errno != EBUSY || now_ns() - race->reaped > LONGEST_NS) /* EBUSY: it has something left of the process */
            err(1, "%s", race->cgroup);
    race->removed = now_ns();
    if (watcher)
        must(kill(watcher, SIGCONT), "continue");
    race->last_page = *last_page;
    if (race->is_oom ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : status != 0)
        errx(1, "%s: the process ended with status %d", race->cgroup, status);
}

int main(int argc, char **argv)
{
    size_t count = 0;
    char *line;

    if (argc != 3 && argc != 4)
        errx(2, "usage: race SHORTEST_NS LONGEST_NS [PID]");
    for (; count < MOST && (line = read_line()); free(line), count++) {
        races[count].is_oom = strncmp(line, "oom ", 4) == 0;
        races[count].cgroup = strdup(line + strlen("oom "));
        if (!races[count].cgroup)
            err(1, "path");
    }
    last_page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (last_page == MAP_FAILED || memory == MAP_FAILED)
        err(1, "mmap");
    must(madvise(memory, MEMORY, MADV_NOHUGEPAGE), "madvise");

    for (size_t i = 0; i < count; i++) {
        const long shortest = atol(argv[1]), longest = atol(argv[2]);
        const struct timespec pause = {.tv_nsec = shortest + random() % (longest - shortest + 1)};

        nanosleep(&pause, NULL);
        run(&races[i], argc == 4 ? atoi(argv[3]) : 0);
    }
    /* Only now: a write to the pipe would wake its reader in the middle of a race. */
    for (size_t i = 0; i < count; i++)
        printf("%lld %lld %lld\n", races[i].last_page, races[i].reaped, races[i].removed);
    return 0;
}
