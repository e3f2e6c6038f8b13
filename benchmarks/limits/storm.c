/*
 * How soon a broadcast can be known: one thread, nothing that a Monitor does not do as well.
 *
 * storm watch: reads paths of cgroups from stdin, one a line, that of the victim first, and registers them all. Then it
 * looks at each cgroup that signals, by its identity, and when nothing is left to read at the victim alone, again and
 * again until its counter moves. When nothing has come for QUIET_MS it prints the moment when the last OOM was known
 * and that when the kill was, how many OOMs were signalled, by how many cgroups, and how many were killed.
 *
 * storm clock CGROUP...: the reference. Notes when each of them is signalled first, and prints that when stdin ends.
 *
 * Both print "ready" when they are. Moments are nanoseconds of CLOCK_MONOTONIC.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <sched.h>

#define BATCH 1024 /* as many as a Monitor reads at once */
#define QUIET_MS 1000
#define LONGEST_MS 60000 /* without a signal, or from it without a kill; then something is wrong */

struct cgroup {
    struct watch watch; /* first, so that what epoll names is this as well */
    eventfd_t signals;  /* that came until now */
    long long first;    /* when the first of them came; clock() alone asks */
};

/* By how much the counter of that very cgroup rose. */
static long long rise(int mount_fd, struct watch *watch)
{
    long long before = watch->kills;

    watch->kills = look(mount_fd, &watch->control);
    return watch->kills - before;
}

static struct cgroup cgroups[MOST];

static int watch_all(int epoll_fd)
{
    static struct epoll_event events[BATCH];
    struct cgroup *const victim = &cgroups[0];
    long long kills = 0, last_oom = 0, last_kill = 0, start = 0;
    eventfd_t ooms = 0;
    size_t count = 0, signalled = 0;
    char *line;
    int mount_fd = -1, found;

    while ((line = read_line())) {
        if (count == MOST)
            errx(1, "more than %d cgroups", MOST);
        if (mount_fd < 0) /* any directory of the file system */
            mount_fd = must(open(line, O_RDONLY | O_DIRECTORY | O_CLOEXEC), line);
        add(epoll_fd, line, &cgroups[count++].watch);
        free(line);
    }
    if (!count)
        errx(1, "no cgroups");
    say("ready");

    for (;;) {
        const int awaited = !start ? LONGEST_MS : kills ? QUIET_MS : 0;

        found = must(epoll_wait(epoll_fd, events, BATCH, awaited), "epoll_wait");
        if (!found && kills)
            break;
        if (!found && (!start || now_ns() - start > LONGEST_MS * 1000000LL))
            errx(1, start ? "a signal and no kill" : "no signal");
        if (!start)
            start = now_ns();
        for (int i = 0; i < found; i++) {
            struct cgroup *cgroup = events[i].data.ptr;
            eventfd_t signals;

            must(eventfd_read(cgroup->watch.eventfd, &signals), "eventfd");
            ooms += signals;
            signalled += cgroup->signals == 0;
            cgroup->signals += signals;
        }
        for (int i = 0; i < (found ? found : 1); i++) {
            long long killed = rise(mount_fd, found ? events[i].data.ptr : &victim->watch);

            if (killed) {
                last_kill = now_ns();
                kills += killed;
            }
        }
        if (found)
            last_oom = now_ns();
    }
    printf("%lld %lld %llu %zu %lld\n", last_oom, last_kill, (unsigned long long)ooms, signalled, kills);
    return 0;
}

static int clock_first(int epoll_fd, int count, char **paths)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    struct sched_param priority = {.sched_priority = 1};

    /* Ahead of whoever is measured and of whoever dies: a reference that has to wait is none. */
    must(sched_setscheduler(0, SCHED_FIFO, &priority), "sched_setscheduler");
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event), "stdin");
    for (int i = 0; i < count && i < MOST; i++)
        add(epoll_fd, paths[i], &cgroups[i].watch);
    say("ready");

    while (must(epoll_wait(epoll_fd, &event, 1, -1), "epoll_wait") && event.data.ptr) {
        struct cgroup *cgroup = event.data.ptr;
        long long now = now_ns();
        eventfd_t signals;

        must(eventfd_read(cgroup->watch.eventfd, &signals), "eventfd");
        if (!cgroup->first)
            cgroup->first = now;
    }
    /* Only now: a write to the pipe would wake its reader in the middle of the measurement. */
    for (int i = 0; i < count && i < MOST; i++)
        printf("%lld\n", cgroups[i].first);
    return 0;
}

int main(int argc, char **argv)
{
    int epoll_fd;

    allow_all_fds();
    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");

    if (argc == 2 && strcmp(argv[1], "watch") == 0)
        return watch_all(epoll_fd);
    if (argc > 2 && strcmp(argv[1], "clock") == 0)
        return clock_first(epoll_fd, argc - 2, argv + 2);
    errx(2, "usage: storm watch, storm clock CGROUP...");
}
