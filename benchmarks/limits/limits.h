/*
 * What the competitors in C share: the one way to be told of OOMs, with nothing that a Monitor does not do as well.
 */
#ifndef LIMITS_H
#define LIMITS_H

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
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MOST 65536 /* as many cgroups as a host can have */

union identity {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + sizeof(uint64_t)];
};

struct watch {
    union identity control;
    long long kills; /* the counter when it was last read */
    int eventfd;
};

static inline int must(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

static inline long long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline void allow_all_fds(void)
{
    struct rlimit limit;

    must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
}

/* What a line of stdin says; NULL at its end. The caller's to free. */
static inline char *read_line(void)
{
    char *line = NULL;
    size_t room = 0;

    if (getline(&line, &room, stdin) <= 0) {
        free(line);
        return NULL;
    }
    line[strcspn(line, "\n")] = '\0';
    return line;
}

/* For whoever waits for it at the other end of stdout. */
static inline void say(const char *line)
{
    puts(line);
    if (fflush(stdout))
        err(1, "stdout");
}

static inline long long read_kills(int fd)
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

/* The counter of that very cgroup, whatever its path is by now. */
static inline long long look(int mount_fd, union identity *control)
{
    int fd = must(open_by_handle_at(mount_fd, &control->handle, O_RDONLY | O_CLOEXEC), "open_by_handle_at");
    long long kills = read_kills(fd);

    close(fd);
    return kills;
}

/* Identifies a cgroup, reads its counter and has an eventfd signalled when it is out of memory. */
static inline void set_up(const char *cgroup, struct watch *watch, int eventfd_flags)
{
    char path[PATH_MAX], line[32];
    int control_fd, event_control_fd, mount_id, length;

    snprintf(path, sizeof(path), "%s/memory.oom_control", cgroup);
    control_fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    watch->control.handle.handle_bytes = sizeof(uint64_t);
    must(name_to_handle_at(control_fd, "", &watch->control.handle, &mount_id, AT_EMPTY_PATH), "name_to_handle_at");
    watch->kills = read_kills(control_fd);
    watch->eventfd = must(eventfd(0, eventfd_flags), "eventfd");

    snprintf(path, sizeof(path), "%s/cgroup.event_control", cgroup);
    event_control_fd = must(open(path, O_WRONLY | O_CLOEXEC), path);
    length = snprintf(line, sizeof(line), "%d %d", watch->eventfd, control_fd);
    must((int)write(event_control_fd, line, (size_t)length), path);
    close(event_control_fd);
    close(control_fd);
}

/* The same, and adds it to an epoll set. */
static inline void add(int epoll_fd, const char *cgroup, struct watch *watch)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};

    set_up(cgroup, watch, EFD_CLOEXEC | EFD_NONBLOCK);
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, watch->eventfd, &event), "epoll_ctl");
}

#endif
