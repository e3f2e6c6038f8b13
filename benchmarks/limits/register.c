/*
 * How fast registration can be: one thread, a loop, nothing that a Monitor does not do as well.
 *
 * Reads paths of cgroups from stdin, one a line; prints the nanoseconds that the loop took.
 */
#define _GNU_SOURCE
#include "limits.h"

static char *paths[MOST];

int main(void)
{
    size_t count = 0;
    struct watch *watches;
    long long start;
    int epoll_fd;

    allow_all_fds();
    while (count < MOST && (paths[count] = read_line()))
        count++;
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
