/* Who is there and who comes and goes: directories, and the two interfaces by which the kernel tells of changes. */
#include "memcg_oom.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What getdents64(2) gives: struct linux_dirent64. */
struct entry {
    uint64_t id;
    int64_t next;
    uint16_t length;
    uint8_t type;
    char name[];
};

int memcg_list(int directory_fd, char *names, size_t size, uint64_t *ids)
{
    long length;
    int count = 0;

    do {
        char *end = names;

        length = syscall(SYS_getdents64, directory_fd, names, size);
        if (length < 0)
            return -errno;
        for (const char *next = names; next < names + length;) {
            const struct entry *entry = (const void *)next;
            const char *name = entry->name;

            next += entry->length;
            if (entry->type != DT_DIR || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                continue;
            ids[count++] = entry->id;
            /* In place: a name alone is shorter than the entry that it came in, which has been read by now. */
            memmove(end, name, strlen(name) + 1);
            end += strlen(end) + 1;
        }
    } while (count == 0 && length > 0); /* files alone are not the end */
    return count;
}

int memcg_inotify_open(void)
{
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

int memcg_inotify_add(int inotify_fd, int directory_fd)
{
    char path[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
    int watch;

    /* inotify takes a path; this one leads to the open directory wherever it was moved. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", directory_fd);
    watch = inotify_add_watch(inotify_fd, path, IN_CREATE | IN_DELETE | IN_MOVED_TO | IN_ONLYDIR);
    return watch < 0 ? -errno : watch;
}

int memcg_inotify_remove(int inotify_fd, int watch)
{
    return inotify_rm_watch(inotify_fd, watch) < 0 ? -errno : 0;
}

int memcg_fanotify_open(const char *path)
{
    int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | FAN_REPORT_DFID_NAME,
                           O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    if (fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CREATE | FAN_DELETE | FAN_MOVED_TO | FAN_ONDIR,
                      AT_FDCWD, path) < 0) {
        int rc = -errno;

        close(fd);
        return rc;
    }
    return fd;
}
