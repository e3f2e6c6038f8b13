/*
 * How soon an OOM can be known: after the signal it does what a Monitor does before it tells an Oom, and no more.
 *
 * waiter CGROUP EVENTFD COUNT: prints, for each wake-up, the moment of CLOCK_MONOTONIC when everything was known, in
 * nanoseconds, and how many signals it was for; ends when COUNT signals came.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_MS 10000

union identity {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + sizeof(uint64_t)];
};

struct arrival {
    long long time_ns;
    eventfd_t signals;
};

static int must(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

/* The oom_kill counter of that very file, whatever its path is by now. */
static long long look(int mount_fd, union identity *control)
{
    char text[256];
    int fd = must(open_by_handle_at(mount_fd, &control->handle, O_RDONLY | O_CLOEXEC), "open_by_handle_at");
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
    const char *line;

    must((int)length, "pread");
    close(fd);
    text[length] = '\0';
    line = strstr(text, "\noom_kill ");
    if (!line)
        errx(1, "no oom_kill in memory.oom_control");
    return strtoll(line + strlen("\noom_kill "), NULL, 10);
}

int main(int argc, char **argv)
{
    union identity control = {.handle = {.handle_bytes = sizeof(uint64_t)}};
    struct epoll_event event = {.events = EPOLLIN};
    struct stat cgroup, found;
    struct arrival *arrivals;
    char path[PATH_MAX];
    long long kills;
    long count, wakeups = 0, seen = 0;
    int mount_fd, mount_id, epoll_fd, eventfd;

    if (argc != 4)
        errx(2, "usage: waiter CGROUP EVENTFD COUNT");
    eventfd = atoi(argv[2]);
    count = atol(argv[3]);
    arrivals = calloc((size_t)count, sizeof(*arrivals));
    if (!arrivals)
        err(1, "calloc");

    mount_fd = must(open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), argv[1]);
    must(fstat(mount_fd, &cgroup), argv[1]);
    snprintf(path, sizeof(path), "%s/memory.oom_control", argv[1]);
    must(name_to_handle_at(AT_FDCWD, path, &control.handle, &mount_id, 0), path);
    kills = look(mount_fd, &control);

    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, eventfd, &event), "epoll_ctl");

    while (seen < count) {
        struct timespec now;
        struct arrival *arrival = &arrivals[wakeups++];

        if (must(epoll_wait(epoll_fd, &event, 1, LONGEST_MS), "epoll_wait") == 0)
            errx(1, "no signal for %d ms", LONGEST_MS);
        must(eventfd_read(eventfd, &arrival->signals), "eventfd");
        if (look(mount_fd, &control) != kills)
            errx(1, "somebody was killed in the cgroup of the benchmark");
        must(stat(argv[1], &found), argv[1]);
        if (found.st_dev != cgroup.st_dev || found.st_ino != cgroup.st_ino)
            errx(1, "the cgroup of the benchmark was renamed");
        clock_gettime(CLOCK_MONOTONIC, &now);
        arrival->time_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
        seen += (long)arrival->signals;
    }
    for (long i = 0; i < wakeups; i++)
        printf("%lld %llu\n", arrivals[i].time_ns, (unsigned long long)arrivals[i].signals);
    return 0;
}
