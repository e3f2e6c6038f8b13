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
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MOST 65536 /* as many cgroups as a host can have */
#define BATCH 1024 /* as many as a Monitor reads at once */
#define QUIET_MS 1000
#define LONGEST_MS 60000 /* without a signal, or from it without a kill; then something is wrong */

union identity {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + sizeof(uint64_t)];
};

struct watch {
    union identity control;
    long long kills;   /* the counter when it was last read */
    eventfd_t signals; /* that came until now */
    long long first;   /* when the first of them came; clock() alone asks */
    int eventfd;
};

static long long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int must(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

static long long read_kills(int fd)
{
    char text[256];
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
    const char *line;

    must((int)length, "pread");
    text[length] = '\0';
    line = strstr(text, "\noom_kill ");
    if (!line)
        errx(1, "no oom_kill in memory.oom_control");
    return strtoll(line + strlen("\noom_kill "), NULL, 10);
}

/* By how much the counter of that very cgroup rose, whatever its path is by now. */
static long long look(int mount_fd, struct watch *watch)
{
    int fd = must(open_by_handle_at(mount_fd, &watch->control.handle, O_RDONLY | O_CLOEXEC), "open_by_handle_at");
    long long before = watch->kills;

    watch->kills = read_kills(fd);
    close(fd);
    return watch->kills - before;
}

static void add(int epoll_fd, const char *cgroup, struct watch *watch)
{
    char path[PATH_MAX], line[32];
    int control_fd, event_control_fd, mount_id, length;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};

    snprintf(path, sizeof(path), "%s/memory.oom_control", cgroup);
    control_fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    watch->control.handle.handle_bytes = sizeof(uint64_t);
    must(name_to_handle_at(control_fd, "", &watch->control.handle, &mount_id, AT_EMPTY_PATH), "name_to_handle_at");
    watch->kills = read_kills(control_fd);
    watch->eventfd = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");

    snprintf(path, sizeof(path), "%s/cgroup.event_control", cgroup);
    event_control_fd = must(open(path, O_WRONLY | O_CLOEXEC), path);
    length = snprintf(line, sizeof(line), "%d %d", watch->eventfd, control_fd);
    must((int)write(event_control_fd, line, (size_t)length), path);
    close(event_control_fd);
    close(control_fd);

    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, watch->eventfd, &event), "epoll_ctl");
}

static void ready(void)
{
    puts("ready");
    if (fflush(stdout))
        err(1, "stdout");
}

static struct watch watches[MOST];

static int watch_all(int epoll_fd)
{
    static struct epoll_event events[BATCH];
    struct watch *const victim = &watches[0];
    long long kills = 0, last_oom = 0, last_kill = 0, start = 0;
    eventfd_t ooms = 0;
    size_t count = 0, room = 0, signalled = 0;
    ssize_t length;
    char *line = NULL;
    int mount_fd = -1, found;

    while ((length = getline(&line, &room, stdin)) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (count == MOST)
            errx(1, "more than %d cgroups", MOST);
        if (mount_fd < 0) /* any directory of the file system */
            mount_fd = must(open(line, O_RDONLY | O_DIRECTORY | O_CLOEXEC), line);
        add(epoll_fd, line, &watches[count++]);
    }
    free(line);
    if (!count)
        errx(1, "no cgroups");
    ready();

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
            struct watch *watch = events[i].data.ptr;
            eventfd_t signals;

            must(eventfd_read(watch->eventfd, &signals), "eventfd");
            ooms += signals;
            signalled += watch->signals == 0;
            watch->signals += signals;
        }
        for (int i = 0; i < (found ? found : 1); i++) {
            long long killed = look(mount_fd, found ? events[i].data.ptr : victim);

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

static int clock_first(int epoll_fd, int count, char **cgroups)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    struct sched_param priority = {.sched_priority = 1};

    /* Ahead of whoever is measured and of whoever dies: a reference that has to wait is none. */
    must(sched_setscheduler(0, SCHED_FIFO, &priority), "sched_setscheduler");
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event), "stdin");
    for (int i = 0; i < count && i < MOST; i++)
        add(epoll_fd, cgroups[i], &watches[i]);
    ready();

    while (must(epoll_wait(epoll_fd, &event, 1, -1), "epoll_wait") && event.data.ptr) {
        struct watch *watch = event.data.ptr;
        long long now = now_ns();
        eventfd_t signals;

        must(eventfd_read(watch->eventfd, &signals), "eventfd");
        if (!watch->first)
            watch->first = now;
    }
    /* Only now: a write to the pipe would wake its reader in the middle of the measurement. */
    for (int i = 0; i < count && i < MOST; i++)
        printf("%lld\n", watches[i].first);
    return 0;
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    int epoll_fd;

    must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");

    if (argc == 2 && strcmp(argv[1], "watch") == 0)
        return watch_all(epoll_fd);
    if (argc > 2 && strcmp(argv[1], "clock") == 0)
        return clock_first(epoll_fd, argc - 2, argv + 2);
    errx(2, "usage: storm watch, storm clock CGROUP...");
}
