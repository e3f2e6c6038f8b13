/* One epoll set for everything that a monitor waits for: wait, drain, and the timer. */
#include "memcg_oom.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int key_to_fd(uint64_t key)
{
    return (int)(key & 0xffffffff);
}

int memcg_loop_add(int epoll_fd, const uint64_t *keys, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = keys[i]};

        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, key_to_fd(keys[i]), &event) < 0) {
            int rc = -errno;

            while (i-- > 0)
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, key_to_fd(keys[i]), NULL);
            return rc;
        }
    }
    return 0;
}

int memcg_wait(int epoll_fd, int timeout_ms, struct memcg_batch *batch)
{
    struct epoll_event events[MEMCG_BATCH];
    struct timespec now;
    int ready;

    batch->count = batch->unread = 0;
    ready = epoll_wait(epoll_fd, events, MEMCG_BATCH, timeout_ms);
    if (ready < 0 || clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        return -errno; /* before anything was read */
    batch->time_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;

    for (int i = 0; i < ready; i++) {
        struct memcg_signal *signal = &batch->signals[batch->count];

        signal->key = events[i].data.u64;
        if (signal->key & MEMCG_UNREAD) {
            batch->unread++;
            continue;
        }
        /* eventfds and timerfds alike hold one 64-bit count. EAGAIN: a timer that was armed anew meanwhile. */
        if (read(key_to_fd(signal->key), &signal->count, sizeof(signal->count)) == sizeof(signal->count))
            batch->count++;
        else
            batch->unread++;
    }
    return (int)batch->count;
}

int memcg_timer_open(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

int memcg_timer_arm(int timer_fd, int64_t deadline_ns)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000},
    };

    return timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}
