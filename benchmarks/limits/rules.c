/*
 * How others tell an OOM from the removal of the cgroup, in its smallest form.
 *
 * rules after: reads the eventfd, drops the count, and only then looks whether cgroup.event_control is there. If not, it
 * was the removal (runc, containerd). One thread for all.
 * rules thread: the same in a thread for each cgroup, which waits in read(2) (cgroups-rs).
 * rules before: looks first and reads then. Gone, one signal is the removal's and two are an OOM as well (conmon).
 *
 * Each reads paths of cgroups from stdin, one a line, until an empty one, sets everything up and prints "ready". When
 * stdin ends it prints what it took for OOMs, one a line: the number of the cgroup, and the moment of CLOCK_MONOTONIC in
 * nanoseconds.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <errno.h>
#include <pthread.h>

#define BATCH 128 /* as many as containerd takes at once */
#define STACK 16384 /* bytes: the least that pthreads take */

static char *event_controls[MOST];
static struct watch watches[MOST];
static long long reported[MOST]; /* when an OOM was reported first; 0: never */

static void report(size_t number)
{
    if (!reported[number])
        reported[number] = now_ns();
}

static int is_there(size_t number)
{
    return access(event_controls[number], F_OK) == 0;
}

/* Whether the cgroup is watched further. */
static int after(size_t number)
{
    eventfd_t dropped;

    must(eventfd_read(watches[number].eventfd, &dropped), "eventfd");
    if (!is_there(number))
        return 0;
    report(number);
    return 1;
}

static int before(size_t number)
{
    const int was_there = is_there(number);
    eventfd_t signals;

    must(eventfd_read(watches[number].eventfd, &signals), "eventfd");
    if (was_there || signals > 1)
        report(number);
    return 1;
}

static void *wait_for_one(void *watch)
{
    while (after((size_t)((struct watch *)watch - watches)))
        ;
    return NULL;
}

static void start_threads(size_t count)
{
    pthread_attr_t small;
    pthread_t thread;

    errno = pthread_attr_init(&small);
    if (!errno)
        errno = pthread_attr_setstacksize(&small, STACK);
    for (size_t i = 0; !errno && i < count; i++)
        errno = pthread_create(&thread, &small, wait_for_one, &watches[i]);
    if (errno)
        err(1, "thread");
}

static void wait_for_all(int epoll_fd, int (*judge)(size_t))
{
    struct epoll_event events[BATCH];

    for (;;) {
        const int found = epoll_wait(epoll_fd, events, BATCH, -1);

        if (found < 0 && errno != EINTR) /* EINTR: it was stopped */
            err(1, "epoll_wait");
        for (int i = 0; i < found; i++) {
            const struct watch *watch = events[i].data.ptr;

            if (!watch)
                return; /* stdin */
            if (!judge((size_t)(watch - watches)))
                close(watch->eventfd);
        }
    }
}

int main(int argc, char **argv)
{
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    const int is_threaded = argc == 2 && strcmp(argv[1], "thread") == 0;
    int (*judge)(size_t) = NULL;
    size_t count = 0;
    char *line;
    int epoll_fd;

    if (argc == 2 && strcmp(argv[1], "before") == 0)
        judge = before;
    else if (is_threaded || (argc == 2 && strcmp(argv[1], "after") == 0))
        judge = after;
    else
        errx(2, "usage: rules after, rules thread, rules before");
    allow_all_fds();
    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &input), "stdin");
    for (; count < MOST && (line = read_line()) && *line; free(line), count++) {
        if (asprintf(&event_controls[count], "%s/cgroup.event_control", line) < 0)
            err(1, "path");
        if (is_threaded)
            set_up(line, &watches[count], EFD_CLOEXEC);
        else
            add(epoll_fd, line, &watches[count]);
    }
    if (is_threaded)
        start_threads(count);
    say("ready");
    wait_for_all(epoll_fd, judge);
    for (size_t i = 0; i < count; i++)
        if (reported[i])
            printf("%zu %lld\n", i, reported[i]);
    return 0;
}
