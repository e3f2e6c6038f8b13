/*
 * Plays the kernel: writes 1 to an eventfd again and again, which is what eventfd_signal() looks like to its reader.
 *
 * signaller EVENTFD COUNT SHORTEST_NS LONGEST_NS: pauses evenly spread between the two. Prints the moments of
 * CLOCK_MONOTONIC just before the writes, in nanoseconds.
 */
#define _GNU_SOURCE
#include "limits.h"

int main(int argc, char **argv)
{
    int eventfd;
    long count, shortest, longest;
    long long *sent;

    if (argc != 5)
        errx(2, "usage: signaller EVENTFD COUNT SHORTEST_NS LONGEST_NS");
    eventfd = atoi(argv[1]);
    count = atol(argv[2]);
    shortest = atol(argv[3]);
    longest = atol(argv[4]);
    sent = calloc((size_t)count, sizeof(*sent));
    if (!sent)
        err(1, "calloc");

    for (long i = 0; i < count; i++) {
        const struct timespec pause = {.tv_nsec = shortest + random() % (longest - shortest + 1)};

        nanosleep(&pause, NULL);
        sent[i] = now_ns();
        if (eventfd_write(eventfd, 1) < 0)
            err(1, "eventfd");
    }
    /* Only now: a write to the pipe would wake its reader in the middle of the measurement. */
    for (long i = 0; i < count; i++)
        printf("%lld\n", sent[i]);
    return 0;
}
