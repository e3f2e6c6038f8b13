/* cgroup v2: memory.events.local by identity, what it counts, and the inotify watch that tells when it does. */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCAL "memory.events.local"

/* What this kernel does not count is 0; but a file without oom_kill is none of these. */
static int64_t count_of(const char *text, const char *key)
{
    int64_t value = memcg_parse_counter(text, key);

    return value == -ENODATA ? 0 : value;
}

static void read_counters(int control_fd, struct memcg_counters *counters)
{
    char text[1024]; /* a handful of lines; the kernel makes up the whole file at offset 0 */
    ssize_t length = pread(control_fd, text, sizeof(text) - 1, 0);

    if (length < 0) {
        *counters = (struct memcg_counters){.oom_kill = -errno};
        return;
    }
    text[length] = '\0';
    counters->oom_kill = memcg_parse_counter(text, "oom_kill");
    counters->oom = count_of(text, "oom");
    counters->oom_group_kill = count_of(text, "oom_group_kill");
    counters->max = count_of(text, "max");
    counters->high = count_of(text, "high");
}

/* What memory.events counts: of the whole subtree, what is gone of it included. */
static void read_subtree(int directory_fd, struct memcg_counters *counters)
{
    int fd = openat(directory_fd, "memory.events", O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        *counters = (struct memcg_counters){.oom_kill = -errno};
        return;
    }
    read_counters(fd, counters);
    close(fd);
}

void memcg_count_many(int mount_fd, uint64_t device, const uint64_t *control_ids, const char *paths, size_t count,
                      struct memcg_counters *counters)
{
    for (size_t i = 0; i < count; i++) {
        int fd = memcg_open_control(mount_fd, device, control_ids[i], &paths, LOCAL);

        counters[i] = (struct memcg_counters){.oom_kill = fd};
        if (fd >= 0) {
            read_counters(fd, &counters[i]);
            close(fd);
        }
    }
}

void memcg_subtree_many(uint64_t device, const uint64_t *directory_ids, const char *paths, size_t count,
                        struct memcg_counters *counters)
{
    for (size_t i = 0; i < count; i++) {
        int fd = memcg_open_control(-1, device, directory_ids[i], &paths, "");

        counters[i] = (struct memcg_counters){.oom_kill = fd};
        if (fd >= 0) {
            read_subtree(fd, &counters[i]);
            close(fd);
        }
    }
}

int memcg_inotify_add_file(int inotify_fd, const char *path)
{
    int watch = inotify_add_watch(inotify_fd, path, IN_MODIFY);

    return watch < 0 ? -errno : watch;
}

/* The identity of the cgroup, its counters before, the watch, its counters after. */
static int attach(const struct memcg_attachments *how, uint64_t device, const uint64_t *id, const char **paths,
                  struct memcg_attachment *row)
{
    char path[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
    struct memcg_counters after;
    struct stat status;
    int directory_fd, control_fd = -1, rc;

    *row = (struct memcg_attachment){.step = MEMCG_STEP_CGROUP, .follower = -EBADF, .subtree = {.oom_kill = -ENODATA}};
    directory_fd = memcg_open_control(-1, device, id ? *id : 0, paths, "");
    if (directory_fd < 0)
        return directory_fd;
    /* Followed before its children are counted: one that comes later is told of. */
    if (how->follow)
        row->follower = memcg_inotify_add(how->inotify_fd, directory_fd);
    if (fstat(directory_fd, &status) < 0) {
        rc = -errno;
        goto out;
    }
    if (status.st_dev != device) {
        rc = -EXDEV;
        goto out;
    }
    row->directory_id = status.st_ino;
    row->children = status.st_nlink < 2 ? 1 : (uint32_t)status.st_nlink - 2;

    row->step = MEMCG_STEP_CONTROL_FILE;
    control_fd = openat(directory_fd, LOCAL, O_RDONLY | O_CLOEXEC);
    if (control_fd < 0 || fstat(control_fd, &status) < 0) {
        rc = -errno;
        goto out;
    }
    row->control_id = status.st_ino;
    /* The baseline is read before the watch stands, so that a kill between the two is seen as one. */
    read_counters(control_fd, &row->before);
    row->after = row->before;
    if (row->before.oom_kill < 0) {
        rc = (int)row->before.oom_kill;
        goto out;
    }
    read_subtree(directory_fd, &row->subtree);
    row->step = MEMCG_STEP_FOLLOW;
    rc = how->inotify_fd;
    if (rc >= 0) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", control_fd);
        rc = memcg_inotify_add_file(how->inotify_fd, path);
    }
    /* Without a watch too: whoever goes by the counters alone begins with these. */
    read_counters(control_fd, &after);
    /* What could not be read just now the first look will: only who is gone is not attached after all. */
    if (after.oom_kill >= 0) {
        row->after = after;
    } else if (after.oom_kill == -ENODEV) {
        row->step = MEMCG_STEP_CONTROL_FILE;
        if (rc >= 0)
            memcg_inotify_remove(how->inotify_fd, rc);
        rc = -ENODEV;
    }

out:
    if (control_fd >= 0)
        close(control_fd);
    close(directory_fd);
    return rc;
}

void memcg_attach_many(uint64_t device, const uint64_t *ids, const char *paths, size_t count,
                       struct memcg_attachments *attachments)
{
    attachments->count = 0;
    for (size_t i = 0; i < count; i++) {
        struct memcg_attachment *row = &attachments->rows[i];

        row->watch = attach(attachments, device, ids ? &ids[i] : NULL, &paths, row);
        attachments->count++;
    }
}
