/*
 * How fast cgroups of version 2 can be followed, and what that takes: one thread, one inotify instance.
 *
 * Reads paths of cgroups from stdin, one a line. Of each it reads the counter of kills in memory.events and has the file
 * watched. Prints the nanoseconds that this took, and by how many bytes its own memory and the kernel's slabs grew.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <sys/inotify.h>

static char *paths[MOST];
static long long kills[MOST]; /* by watch descriptor, which inotify counts from 1 */

/* A line "NAME: SIZE kB" of a file in /proc, in bytes. */
static long long size_of(const char *file, const char *name)
{
    char *line = NULL;
    size_t room = 0;
    long long size = -1;
    FILE *proc = fopen(file, "re");

    if (!proc)
        err(1, "%s", file);
    while (size < 0 && getline(&line, &room, proc) > 0)
        if (strncmp(line, name, strlen(name)) == 0)
            size = strtoll(line + strlen(name), NULL, 10) << 10;
    free(line);
    fclose(proc);
    return size;
}

static void follow(int inotify_fd, const char *cgroup)
{
    char path[PATH_MAX], text[512];
    const char *line;
    ssize_t length;
    int fd, watch;

    snprintf(path, sizeof(path), "%s/memory.events", cgroup);
    watch = must(inotify_add_watch(inotify_fd, path, IN_MODIFY), path);
    fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    length = read(fd, text, sizeof(text) - 1);
    must((int)length, path);
    close(fd);
    text[length] = '\0';
    line = strstr(text, "\noom_kill ");
    if (!line || watch >= MOST)
        errx(1, "%s: no oom_kill, or too many watches", path);
    kills[watch] = strtoll(line + strlen("\noom_kill "), NULL, 10);
}

int main(void)
{
    long long own, slabs, start, took;
    size_t count = 0;
    int inotify_fd;

    while (count < MOST && (paths[count] = read_line()))
        count++;
    own = size_of("/proc/self/status", "RssAnon:");
    slabs = size_of("/proc/meminfo", "Slab:");
    start = now_ns();
    inotify_fd = must(inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify");
    for (size_t i = 0; i < count; i++)
        follow(inotify_fd, paths[i]);
    took = now_ns() - start;
    printf("%lld %lld %lld\n", took, size_of("/proc/self/status", "RssAnon:") - own,
           size_of("/proc/meminfo", "Slab:") - slabs);
    return 0;
}
