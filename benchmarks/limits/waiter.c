/*
 * How soon an OOM can be known: after the signal it does what a Monitor does before it tells an Oom, and no more.
 *
 * waiter CGROUP EVENTFD COUNT [victims]: prints, for each wake-up, the moment of CLOCK_MONOTONIC when everything was
 * known, in nanoseconds, and how many signals it was for; ends when COUNT signals came. With "victims" it does as well
 * what a Monitor does to know them: it lists the tasks of the cgroup and reads the kernel's log.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <sys/stat.h>

#define LONGEST_MS 10000

struct arrival {
    long long time_ns;
    eventfd_t signals;
};

static void list_tasks(const char *file)
{
    char text[1 << 16];
    int fd = must(open(file, O_RDONLY | O_CLOEXEC), file);

    while (must((int)read(fd, text, sizeof(text)), file) > 0)
        continue;
    close(fd);
}

static void read_log(int log_fd)
{
    char text[8192];

    while (read(log_fd, text, sizeof(text)) > 0)
        continue;
}

int main(int argc, char **argv)
{
    union identity control = {.handle = {.handle_bytes = sizeof(uint64_t)}};
    struct epoll_event event = {.events = EPOLLIN};
    struct stat cgroup, found;
    struct arrival *arrivals;
    char path[PATH_MAX], procs[PATH_MAX];
    long long kills;
    long count, wakeups = 0, seen = 0;
    int mount_fd, mount_id, epoll_fd, eventfd, log_fd = -1;

    if (argc != 4 && argc != 5)
        errx(2, "usage: waiter CGROUP EVENTFD COUNT [victims]");
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
    snprintf(procs, sizeof(procs), "%s/cgroup.procs", argv[1]);
    if (argc == 5) {
        log_fd = must(open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC), "/dev/kmsg");
        must((int)lseek(log_fd, 0, SEEK_END), "/dev/kmsg");
    }

    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, eventfd, &event), "epoll_ctl");

    while (seen < count) {
        struct arrival *arrival = &arrivals[wakeups++];

        if (must(epoll_wait(epoll_fd, &event, 1, LONGEST_MS), "epoll_wait") == 0)
            errx(1, "no signal for %d ms", LONGEST_MS);
        must(eventfd_read(eventfd, &arrival->signals), "eventfd");
        if (log_fd >= 0) {
            list_tasks(procs);
            must(stat(argv[1], &found), argv[1]);
        }
        if (look(mount_fd, &control) != kills)
            errx(1, "somebody was killed in the cgroup of the benchmark");
        must(stat(argv[1], &found), argv[1]);
        if (found.st_dev != cgroup.st_dev || found.st_ino != cgroup.st_ino)
            errx(1, "the cgroup of the benchmark was renamed");
        if (log_fd >= 0)
            read_log(log_fd);
        arrival->time_ns = now_ns();
        seen += (long)arrival->signals;
    }
    for (long i = 0; i < wakeups; i++)
        printf("%lld %llu\n", arrivals[i].time_ns, (unsigned long long)arrivals[i].signals);
    return 0;
}
