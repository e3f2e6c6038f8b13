/*
 * How fast all cgroups of a tree can be found and registered: one thread, nothing that a Monitor does not do as well.
 *
 * scan nftw: with nftw(3), which asks stat(2) about every file on the way.
 * scan readdir: with readdir(3), which says what is a directory, and so without.
 *
 * Each reads the path of the topmost cgroup from stdin and prints the nanoseconds that it took.
 */
#define _GNU_SOURCE
#include "limits.h"

#include <dirent.h>
#include <ftw.h>

static struct watch *watches;
static size_t count;
static int epoll_fd;

static void found(const char *cgroup)
{
    if (count == MOST)
        errx(1, "more than %d cgroups", MOST);
    add(epoll_fd, cgroup, &watches[count++]);
}

static int visit(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)place;
    if (kind == FTW_D)
        found(path);
    return 0;
}

static void descend(const char *cgroup)
{
    DIR *directory = opendir(cgroup);
    const struct dirent *entry;

    if (!directory)
        err(1, "%s", cgroup);
    found(cgroup);
    while ((entry = readdir(directory))) {
        char path[PATH_MAX];

        if (entry->d_type != DT_DIR || strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof(path), "%s/%s", cgroup, entry->d_name) >= (int)sizeof(path))
            errx(1, "a path is too long");
        descend(path);
    }
    closedir(directory);
}

int main(int argc, char **argv)
{
    char *top;
    long long start;

    if (argc != 2 || (strcmp(argv[1], "nftw") != 0 && strcmp(argv[1], "readdir") != 0))
        errx(2, "usage: scan nftw, scan readdir");
    allow_all_fds();
    top = read_line();
    watches = calloc(MOST, sizeof(*watches));
    if (!top || !watches)
        err(1, "the topmost cgroup");

    start = now_ns();
    epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    if (strcmp(argv[1], "nftw") == 0)
        must(nftw(top, visit, 64, FTW_PHYS), top);
    else
        descend(top);
    printf("%lld\n", now_ns() - start);
    free(top);
    return 0;
}
