/* Control files by identity: opened as that very file or not at all, read once, closed. */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* FILEID_KERNFS of include/linux/exportfs.h: the handle is the 64-bit id of the kernfs node, which is its st_ino. */
#define KERNFS_HANDLE_TYPE 0xfe

int64_t memcg_parse_counter(const char *text, const char *key)
{
    size_t key_length = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        const char *digit;
        int64_t value = 0;

        line += *line == '\n';
        if (key_length && (strncmp(line, key, key_length) != 0 || line[key_length] != ' '))
            continue;
        digit = line + key_length + (key_length != 0);
        if (*digit < '0' || *digit > '9')
            return -EBADMSG;
        for (; *digit >= '0' && *digit <= '9'; digit++) {
            if (value > (INT64_MAX - 9) / 10)
                return -EBADMSG;
            value = value * 10 + (*digit - '0');
        }
        return *digit == '\n' || *digit == '\0' ? value : -EBADMSG;
    }
    return -ENODATA;
}

int64_t memcg_read_value(const struct memcg_control *control, int control_fd, uint8_t *under_oom)
{
    char text[256]; /* three short lines; the kernel makes up the whole file at offset 0 */
    ssize_t length;

    *under_oom = 0;
    if (control->unread)
        return 0;
    length = pread(control_fd, text, sizeof(text) - 1, 0);
    if (length < 0)
        return -errno;
    text[length] = '\0';
    *under_oom = memcg_parse_counter(text, "under_oom") > 0;
    return memcg_parse_counter(text, control->key);
}

int memcg_open_by_id(int mount_fd, uint64_t id)
{
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + sizeof(id)];
    } u = {.handle = {.handle_bytes = sizeof(id), .handle_type = KERNFS_HANDLE_TYPE}};
    int fd;

    memcpy(u.room + offsetof(struct file_handle, f_handle), &id, sizeof(id));
    fd = open_by_handle_at(mount_fd, &u.handle, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* By path, for those who may not open by id: what is found there counts only if it is what is meant. */
static int open_at_path(uint64_t device, uint64_t id, const char *cgroup, const char *file)
{
    char path[PATH_MAX];
    struct stat status;
    int fd, rc, length;

    length = snprintf(path, sizeof(path), "%s/%s", cgroup, file);
    if (length < 0 || (size_t)length >= sizeof(path))
        return -ENAMETOOLONG;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    rc = fstat(fd, &status) < 0 ? -errno : 0;
    if (rc == 0 && id != 0 && (status.st_dev != device || status.st_ino != id))
        rc = -ESTALE;
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int memcg_open_control(int mount_fd, uint64_t device, uint64_t id, const char **paths, const char *file)
{
    int fd;

    if (mount_fd >= 0)
        return memcg_open_by_id(mount_fd, id);
    fd = open_at_path(device, id, *paths, file);
    *paths += strlen(*paths) + 1;
    return fd;
}

void memcg_look_many(const struct memcg_control *control, int mount_fd, uint64_t device, const uint64_t *control_ids,
                     const char *paths, size_t count, int64_t *values, uint8_t *under_oom)
{
    for (size_t i = 0; i < count; i++) {
        int fd = memcg_open_control(mount_fd, device, control_ids[i], &paths, control->file);

        values[i] = fd;
        under_oom[i] = 0;
        if (fd >= 0) {
            /* Opened, used, closed: a control file that stays open costs 4.9 KB of kernel memory. */
            values[i] = memcg_read_value(control, fd, &under_oom[i]);
            close(fd);
        }
    }
}

/* The directory whose path has that length; without a descriptor for it AT_FDCWD. */
static int open_parent(const char *path, size_t length)
{
    char parent[PATH_MAX];
    int fd;

    if (length >= sizeof(parent))
        return AT_FDCWD;
    memcpy(parent, path, length);
    parent[length] = '\0';
    fd = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? AT_FDCWD : fd;
}

static uint8_t find_at(int parent_fd, const char *name, uint64_t device, uint64_t directory_id)
{
    struct stat status;

    if (fstatat(parent_fd, name, &status, 0) == 0)
        return status.st_dev == device && status.st_ino == directory_id ? MEMCG_HERE : MEMCG_ELSEWHERE;
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ESTALE:
    case ENAMETOOLONG: /* never found by it, so that "unknown" would not end */
        return MEMCG_ELSEWHERE;
    default:
        return MEMCG_UNKNOWN;
    }
}

void memcg_moved_many(uint64_t device, const uint64_t *directory_ids, const char *paths, size_t count,
                      uint8_t *moved)
{
    const char *parent = "";
    size_t parent_length = 0; /* with its slash */
    int parent_fd = AT_FDCWD;

    for (size_t i = 0; i < count; i++, paths += strlen(paths) + 1) {
        size_t length = (size_t)(strrchr(paths, '/') + 1 - paths);
        const char *name = paths;

        /* The way to a sibling of the last one is not walked again: that is half of the time. */
        if (length != parent_length || memcmp(paths, parent, length) != 0) {
            if (parent_fd >= 0)
                close(parent_fd);
            parent_fd = AT_FDCWD;
            parent = paths;
            parent_length = length;
        } else {
            if (parent_fd < 0)
                parent_fd = open_parent(parent, parent_length);
            if (parent_fd >= 0)
                name += length;
        }
        moved[i] = find_at(parent_fd, name, device, directory_ids[i]);
    }
    if (parent_fd >= 0)
        close(parent_fd);
}
