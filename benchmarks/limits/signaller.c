/*
 * Plays the kernel: writes 1 to an eventfd again and again, which is what eventfd_signal() looks like to its reader.
 *
 * signaller EVENTFD COUNT SHORTEST_NS LONGEST_NS: pauses evenly spread between the two. Prints the moments of
 * CLOCK_MONOTONIC just before the writes, in nanoseconds.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

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
        struct timespec now, pause = {.tv_nsec = shortest + random() % (longest - shortest + 1)};

        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
        sent[i] = now.tv_sec * 1000000000LL + now.tv_nsec;
        if (eventfd_write(eventfd, 1) < 0)
            err(1, "eventfd");
    }
    /* Only now: a write to the pipe would wake its reader in the middle of the measurement. */
    for (long i = 0; i < count; i++)
        printf("%lld\n", sent[i]);
    return 0;
}
