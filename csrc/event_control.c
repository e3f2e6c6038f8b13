/* Registration: cgroup v1's notification interface, memcg_write_event_control() in the kernel. */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* Notes the step that is about to be taken and hands its result through. */
#define STEP(name, call) (registration->step = MEMCG_STEP_##name, (call))

/*
 * Steps two to four, in an open cgroup directory: all files are opened below it, so a cgroup that replaces this one
 * under the same path cannot be mixed up with it.
 */
static int register_event(int directory_fd, int control_fd, const char *argument,
                          struct memcg_registration *registration)
{
    char line[256];
    int event_fd, event_control_fd, length, rc;

    event_fd = STEP(EVENTFD, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (event_fd < 0)
        return -errno;

    event_control_fd = STEP(EVENT_CONTROL, openat(directory_fd, "cgroup.event_control", O_WRONLY | O_CLOEXEC));
    if (event_control_fd < 0) {
        rc = -errno;
        goto fail;
    }

    /* One space each, one write(2): with two spaces the kernel reads the control fd as 0. */
    registration->step = MEMCG_STEP_WRITE;
    length = snprintf(line, sizeof(line), *argument ? "%d %d %s" : "%d %d", event_fd, control_fd, argument);
    if (length < 0 || (size_t)length >= sizeof(line))
        rc = -E2BIG;
    else
        rc = write(event_control_fd, line, (size_t)length) < 0 ? -errno : 0;
    close(event_control_fd);
    if (rc < 0)
        goto fail;
    return event_fd;

fail:
    close(event_fd);
    return rc;
}

int memcg_register(const char *cgroup, const char *control_file, const char *argument,
                   struct memcg_registration *registration)
{
    int directory_fd, control_fd, rc;

    directory_fd = STEP(CGROUP, open(cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (directory_fd < 0)
        return registration->eventfd = -errno;
    control_fd = STEP(CONTROL_FILE, openat(directory_fd, control_file, O_RDONLY | O_CLOEXEC));
    if (control_fd < 0) {
        rc = -errno;
    } else {
        rc = register_event(directory_fd, control_fd, argument, registration);
        /* The kernel keeps what it needs: the registration lives as long as the eventfd and the cgroup. */
        close(control_fd);
    }
    close(directory_fd);
    return registration->eventfd = rc;
}

/*
 * By its path first: to open a directory by its id, one that the kernel has no name for at hand, it reads the directory
 * above until it comes to it (exportfs_get_name()), which for 20,000 siblings takes minutes. So one with a path that is
 * too long is not opened at all: whoever makes cgroups may make 20,000 such.
 */
static int open_cgroup(int mount_fd, uint64_t device, const uint64_t *id, const char *path)
{
    struct stat status;
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 && errno == ENAMETOOLONG)
        return -errno;
    if (!id || mount_fd < 0)
        return fd < 0 ? -errno : fd;
    if (fd >= 0) {
        if (fstat(fd, &status) == 0 && status.st_dev == device && status.st_ino == *id)
            return fd;
        close(fd);
    }
    return memcg_open_by_id(mount_fd, *id);
}

/* The identity of the cgroup, the value before, the registration, the value after. */
static int register_one(const struct memcg_registrations *how, uint64_t device, const uint64_t *id, const char *path,
                        struct memcg_registration *registration)
{
    const struct memcg_control *control = &how->control;
    struct stat status;
    int directory_fd, control_fd = -1, event_fd = -1, rc;
    uint8_t under_oom;
    int64_t after;

    registration->follower = -EBADF;
    directory_fd = STEP(CGROUP, open_cgroup(how->mount_fd, device, id, path));
    if (directory_fd < 0)
        return directory_fd;
    /* Followed before its children are counted: one that comes later is told of. */
    if (how->inotify_fd >= 0)
        registration->follower = memcg_inotify_add(how->inotify_fd, directory_fd);
    if (fstat(directory_fd, &status) < 0) {
        rc = -errno;
        goto out;
    }
    if (status.st_dev != device) {
        rc = -EXDEV;
        goto out;
    }
    if (id && status.st_ino != *id) {
        rc = -ESTALE;
        goto out;
    }
    registration->directory_id = status.st_ino;
    /* kernfs counts subdirectories (kernfs_refresh_inode()); a file system that does not says 1. */
    registration->children = status.st_nlink < 2 ? 1 : (uint32_t)status.st_nlink - 2;

    control_fd = STEP(CONTROL_FILE, openat(directory_fd, control->file, O_RDONLY | O_CLOEXEC));
    if (control_fd < 0 || fstat(control_fd, &status) < 0) {
        rc = -errno;
        goto out;
    }
    registration->control_id = status.st_ino;

    /* The baseline is read before the registration, so that a kill between the two is seen as one. */
    registration->before = registration->after = memcg_read_value(control, control_fd, &under_oom);
    if (registration->before < 0) {
        rc = (int)registration->before;
        goto out;
    }
    rc = event_fd = register_event(directory_fd, control_fd, control->argument, registration);
    if (rc >= 0 && event_fd > how->highest_fd) {
        registration->step = MEMCG_STEP_EVENTFD;
        close(event_fd);
        rc = -EMFILE;
    }
    if (rc < 0)
        goto out;
    registration->step = MEMCG_STEP_CONTROL_FILE;
    after = memcg_read_value(control, control_fd, &under_oom);
    /* What could not be read just now the first look will: only who is gone is not registered after all. */
    if (after >= 0) {
        registration->after = after;
    } else if (after == -ENODEV) {
        rc = (int)after;
        close(event_fd);
    }

out:
    if (control_fd >= 0)
        close(control_fd);
    close(directory_fd);
    return rc;
}

void memcg_register_many(uint64_t device, const uint64_t *ids, const char *paths, size_t count,
                         struct memcg_registrations *registrations)
{
    registrations->count = 0;
    for (size_t i = 0; i < count; i++, paths += strlen(paths) + 1) {
        struct memcg_registration *row = &registrations->rows[i];

        row->eventfd = register_one(registrations, device, ids ? &ids[i] : NULL, paths, row);
        registrations->count++;
    }
}

void memcg_unregister_many(struct memcg_registrations *registrations)
{
    while (registrations->count > 0) {
        int fd = registrations->rows[--registrations->count].eventfd;

        if (fd >= 0) /* a failed one, or one that was given up */
            close(fd);
    }
}
