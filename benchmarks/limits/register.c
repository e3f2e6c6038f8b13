/*
 * How fast registration can be: one thread, a loop, nothing that a Monitor does not do as well.
 *
 * Reads paths of cgroups from stdin, one a line; prints the nanoseconds that the loop took.
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
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct watch {
    uint64_t id;
    long long kills;
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

static uint64_t identity(int fd)
{
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + sizeof(uint64_t)];
    } u = {.handle = {.handle_bytes = sizeof(uint64_t)}};
    uint64_t id;
    int mount_id;

    must(name_to_handle_at(fd, "", &u.handle, &mount_id, AT_EMPTY_PATH), "name_to_handle_at");
    memcpy(&id, u.room + offsetof(struct file_handle, f_handle), sizeof(id));
    return id;
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

static void add(int epoll_fd, const char *cgroup, struct watch *watch)
{
    char path[PATH_MAX], line[32];
    int control_fd, event_control_fd, length;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};

    snprintf(path, sizeof(path), "%s/memory.oom_control", cgroup);
    control_fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    watch->id = identity(control_fd);
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

#define MOST 65536 /* as many cgroups as a host can have */
static char *paths[MOST];

int main(void)
{
    struct rlimit limit;
    char *line = NULL;
    size_t count = 0, room = 0;
    ssize_t length;
    struct watch *watches;
    long long start;
    int epoll_fd;

    must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");

    while ((length = getline(&line, &room, stdin)) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (count == MOST || !(paths[count] = strdup(line)))
            err(1, "paths");
        count++;
    }
    watches = calloc(count, sizeof(*watches));
    if (!watches)
        err(1, "watches");

    start = now_ns();
    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    for (size_t i = 0; i < count; i++)
        add(epoll_fd, paths[i], &watches[i]);
    printf("%lld\n", now_ns() - start);
    return 0;
}
