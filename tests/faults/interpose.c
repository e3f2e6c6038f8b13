/* See interpose.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "interpose.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/*
 * What man pages list, less what only a wrong argument leads to (EBADF, EFAULT) and what these calls have no part in
 * (sockets, disk quotas, leases).
 */
#define CALLS(CALL)                                                                                             \
    CALL(open, EACCES, EINTR, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM, ENOTDIR, EPERM)                            \
    CALL(openat, EACCES, EINTR, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM, ENOTDIR, EPERM, EROFS)                   \
    CALL(close, EINTR, EIO)                                                                                     \
    CALL(read, EAGAIN, EINTR, EINVAL, EIO, ENODEV, ENOMEM, EPIPE)                                                \
    CALL(pread, EINTR, EIO, ENODEV, ENOMEM)                                                                     \
    CALL(eventfd_read, EAGAIN)                                                                                  \
    CALL(write, EACCES, EINTR, EINVAL, EIO, ENODEV, ENOMEM, EOPNOTSUPP, EPERM)                                   \
    CALL(lseek, EINVAL, ESPIPE)                                                                                 \
    CALL(stat, EACCES, ELOOP, ENOENT, ENOMEM, ENOTDIR)                                                           \
    CALL(fstat, EACCES, ENOMEM)                                                                                 \
    CALL(fstatat, EACCES, ELOOP, ENOENT, ENOMEM, ENOTDIR)                                                        \
    CALL(dup, EMFILE)                                                                                           \
    CALL(getdents64, EINVAL, ENOENT, ENOMEM, ENOTDIR)                                                            \
    CALL(opendir, EACCES, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR)                                               \
    CALL(readlink, EACCES, EINVAL, EIO, ENOENT, ENOMEM, ENOTDIR)                                                 \
    CALL(mkdir, EACCES, EEXIST, ENOENT, ENOMEM, ENOSPC, EPERM, EROFS)                                            \
    CALL(rmdir, EACCES, EBUSY, ENOENT, ENOMEM, ENOTEMPTY, EPERM, EROFS)                                          \
    CALL(open_by_handle_at, EACCES, EINTR, EMFILE, ENFILE, ENOMEM, EPERM, ESTALE)                                \
    CALL(eventfd, EMFILE, ENFILE, ENODEV, ENOMEM)                                                               \
    CALL(epoll_create1, EMFILE, ENFILE, ENOMEM)                                                                 \
    CALL(epoll_ctl, ENOMEM, ENOSPC)                                                                             \
    CALL(epoll_wait, EINTR)                                                                                     \
    CALL(poll, EINTR, ENOMEM)                                                                                   \
    CALL(clock_gettime, EINVAL)                                                                                 \
    CALL(timerfd_create, EMFILE, ENFILE, ENODEV, ENOMEM)                                                         \
    CALL(timerfd_settime, ECANCELED, EINVAL)                                                                    \
    CALL(inotify_init1, EINVAL, EMFILE, ENFILE, ENOMEM)                                                          \
    CALL(inotify_add_watch, EACCES, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, ENOTDIR)                               \
    CALL(inotify_rm_watch, EINVAL)                                                                              \
    CALL(fanotify_init, EINVAL, EMFILE, ENOMEM, ENOSYS, EPERM)                                                   \
    CALL(fanotify_mark, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR, EOPNOTSUPP, EPERM, EXDEV)       \
    CALL(io_setup, EAGAIN, EINVAL, ENOMEM, ENOSYS)                                                              \
    CALL(io_destroy, EINVAL, ENOSYS)                                                                            \
    CALL(io_submit, EAGAIN, EINVAL, ENOMEM, ENOSYS)                                                             \
    CALL(io_cancel, EAGAIN, EINPROGRESS, EINVAL, ENOSYS)                                                        \
    CALL(io_getevents, EINTR, EINVAL, ENOSYS)                                                                   \
    CALL(pidfd_open, EMFILE, ENFILE, ENODEV, ENOMEM, ESRCH)

#define NUMBER(name, ...) CALL_##name,
#define ROW(name, ...) {#name, {__VA_ARGS__}},

enum { CALLS(NUMBER) CALL_COUNT };

const struct fault_call fault_calls[] = {CALLS(ROW){NULL, {0}}};

static _Thread_local struct {
    int armed, call, nth, error, struck;
    int counts[CALL_COUNT];
} fault;

static char handles_below[PATH_MAX];

void fault_arm(int call, int nth, int error)
{
    memset(&fault, 0, sizeof(fault));
    fault.call = call;
    fault.nth = nth;
    fault.error = error;
    fault.armed = 1;
}

int fault_disarm(void)
{
    fault.armed = 0;
    return fault.struck;
}

int fault_count(int call)
{
    return fault.counts[call];
}

void fault_handles_below(const char *directory)
{
    snprintf(handles_below, sizeof(handles_below), "%s", directory ? directory : "");
}

/* Whether this call is the one that fails; errno says with what. */
static int strikes(int call)
{
    if (!fault.armed || (++fault.counts[call], fault.struck || fault.call != call || fault.counts[call] != fault.nth))
        return 0;
    fault.struck = 1;
    errno = fault.error;
    return 1;
}

/* Looked up at the first call: others are made before any constructor of this runs. */
#define REAL(name)                                      \
    ({                                                  \
        static __typeof__(&name) real;                  \
        if (!real)                                      \
            *(void **)&real = dlsym(RTLD_NEXT, #name);  \
        real;                                           \
    })

#define STAND_IN(result, name, call, parameters, arguments)          \
    result name parameters                                           \
    {                                                                \
        return strikes(CALL_##call) ? -1 : REAL(name) arguments;     \
    }

/* The same of open(2) and its kin, whose last argument is there or not. */
#define STAND_IN_OPEN(name, call, parameters, arguments)             \
    int name parameters                                              \
    {                                                                \
        mode_t mode = 0;                                             \
        if (flags & (O_CREAT | O_TMPFILE)) {                         \
            va_list rest;                                            \
            va_start(rest, flags);                                   \
            mode = va_arg(rest, mode_t);                             \
            va_end(rest);                                            \
        }                                                            \
        return strikes(CALL_##call) ? -1 : REAL(name) arguments;     \
    }

STAND_IN_OPEN(open, open, (const char *path, int flags, ...), (path, flags, mode))
STAND_IN_OPEN(open64, open, (const char *path, int flags, ...), (path, flags, mode))
STAND_IN_OPEN(openat, openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
STAND_IN_OPEN(openat64, openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
STAND_IN(int, eventfd_read, eventfd_read, (int fd, eventfd_t *value), (fd, value))
STAND_IN(ssize_t, pread, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
STAND_IN(ssize_t, pread64, pread, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
STAND_IN(ssize_t, write, write, (int fd, const void *data, size_t size), (fd, data, size))
STAND_IN(off_t, lseek, lseek, (int fd, off_t at, int whence), (fd, at, whence))
STAND_IN(off64_t, lseek64, lseek, (int fd, off64_t at, int whence), (fd, at, whence))
STAND_IN(int, stat, stat, (const char *path, struct stat *status), (path, status))
STAND_IN(int, stat64, stat, (const char *path, struct stat64 *status), (path, status))
STAND_IN(int, lstat, stat, (const char *path, struct stat *status), (path, status))
STAND_IN(int, lstat64, stat, (const char *path, struct stat64 *status), (path, status))
STAND_IN(int, fstat, fstat, (int fd, struct stat *status), (fd, status))
STAND_IN(int, fstat64, fstat, (int fd, struct stat64 *status), (fd, status))
STAND_IN(int, fstatat, fstatat, (int fd, const char *path, struct stat *status, int flags), (fd, path, status, flags))
STAND_IN(int, fstatat64, fstatat, (int fd, const char *path, struct stat64 *status, int flags),
         (fd, path, status, flags))
STAND_IN(ssize_t, readlink, readlink, (const char *path, char *target, size_t size), (path, target, size))
STAND_IN(ssize_t, readlinkat, readlink, (int fd, const char *path, char *target, size_t size),
         (fd, path, target, size))
STAND_IN(int, mkdir, mkdir, (const char *path, mode_t mode), (path, mode))
STAND_IN(int, rmdir, rmdir, (const char *path), (path))
STAND_IN(int, eventfd, eventfd, (unsigned int value, int flags), (value, flags))
STAND_IN(int, epoll_create1, epoll_create1, (int flags), (flags))
STAND_IN(int, epoll_wait, epoll_wait, (int fd, struct epoll_event *events, int size, int timeout),
         (fd, events, size, timeout))
STAND_IN(int, poll, poll, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout))
/* By which select.poll() polls since Python 3.15. */
STAND_IN(int, ppoll, poll,
         (struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask),
         (fds, count, timeout, mask))
STAND_IN(int, clock_gettime, clock_gettime, (clockid_t clock, struct timespec *now), (clock, now))
STAND_IN(int, timerfd_create, timerfd_create, (clockid_t clock, int flags), (clock, flags))
STAND_IN(int, timerfd_settime, timerfd_settime,
         (int fd, int flags, const struct itimerspec *when, struct itimerspec *before), (fd, flags, when, before))
STAND_IN(int, inotify_init1, inotify_init1, (int flags), (flags))
STAND_IN(int, inotify_add_watch, inotify_add_watch, (int fd, const char *path, uint32_t mask), (fd, path, mask))
STAND_IN(int, inotify_rm_watch, inotify_rm_watch, (int fd, int watch), (fd, watch))

/* A file system of plain files takes no such mark, and not everybody may make one: these say nothing, but are there. */
int fanotify_init(unsigned int flags, unsigned int event_flags)
{
    (void)flags;
    (void)event_flags;
    return strikes(CALL_fanotify_init) ? -1 : REAL(eventfd)(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

int fanotify_mark(int fd, unsigned int flags, uint64_t mask, int directory, const char *path)
{
    (void)fd;
    (void)flags;
    (void)mask;
    (void)directory;
    (void)path;
    return strikes(CALL_fanotify_mark) ? -1 : 0;
}

/* EAGAIN is for those that do not block. */
ssize_t read(int fd, void *data, size_t size)
{
    int can_fail = fault.error != EAGAIN || (REAL(fcntl)(fd, F_GETFL) & O_NONBLOCK);

    return can_fail && strikes(CALL_read) ? -1 : REAL(read)(fd, data, size);
}

/* These are of what is added; to take out what is in needs nothing. */
int epoll_ctl(int fd, int what, int other, struct epoll_event *event)
{
    return what == EPOLL_CTL_ADD && strikes(CALL_epoll_ctl) ? -1 : REAL(epoll_ctl)(fd, what, other, event);
}

int close(int fd)
{
    int rc = REAL(close)(fd); /* whatever close(2) says, the descriptor is gone */

    return strikes(CALL_close) ? -1 : rc;
}

DIR *opendir(const char *path)
{
    return strikes(CALL_opendir) ? NULL : REAL(opendir)(path);
}

static int duplicate(int (*real)(int, int, ...), int fd, int command, void *argument)
{
    if ((command == F_DUPFD_CLOEXEC || command == F_DUPFD) && strikes(CALL_dup))
        return -1;
    return real(fd, command, argument);
}

#define STAND_IN_FCNTL(name)                                \
    int name(int fd, int command, ...)                      \
    {                                                       \
        va_list rest;                                       \
        void *argument;                                     \
        va_start(rest, command);                            \
        argument = va_arg(rest, void *);                    \
        va_end(rest);                                       \
        return duplicate(REAL(name), fd, command, argument); \
    }

STAND_IN_FCNTL(fcntl)
STAND_IN_FCNTL(fcntl64)

/* The file of that inode number in a directory or below it, opened; or -1 with ESTALE. */
static int open_inode(const char *directory, uint64_t inode, int flags)
{
    char path[PATH_MAX];
    struct dirent *entry;
    struct stat status;
    DIR *listing;
    int fd = -1;

    if (REAL(stat)(directory, &status) == 0 && status.st_ino == inode)
        return REAL(open)(directory, flags);
    listing = REAL(opendir)(directory);
    while (fd < 0 && listing && (entry = readdir(listing))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name) >= (int)sizeof(path))
            continue;
        if (entry->d_ino == inode)
            fd = REAL(open)(path, flags);
        else if (entry->d_type == DT_DIR)
            fd = open_inode(path, inode, flags);
    }
    if (listing)
        closedir(listing);
    if (fd < 0)
        errno = ESTALE;
    return fd;
}

int open_by_handle_at(int mount_fd, struct file_handle *handle, int flags)
{
    uint64_t inode;

    if (strikes(CALL_open_by_handle_at))
        return -1;
    if (!*handles_below)
        return REAL(open_by_handle_at)(mount_fd, handle, flags);
    memcpy(&inode, handle->f_handle, sizeof(inode));
    return open_inode(handles_below, inode, flags);
}

/*
 * Urgent data of a socket stand for a stall: of these more is told than was asked for, and to be told of them does not
 * take them away.
 */
static void play_stalls(struct io_event *events, long count)
{
    for (long i = 0; i < count; i++) {
        const struct iocb *request = (const struct iocb *)(uintptr_t)events[i].obj;
        char byte;

        events[i].res &= POLLPRI | POLLERR | POLLHUP;
        if (events[i].res & POLLPRI)
            recv((int)request->aio_fildes, &byte, sizeof(byte), MSG_OOB | MSG_DONTWAIT);
    }
}

/* However many arguments there are, six are handed on, as libc itself does it. */
__attribute__((no_sanitize("address"))) long syscall(long number, ...)
{
    va_list rest;
    long a[6], result;

    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if ((number == SYS_getdents64 && strikes(CALL_getdents64)) || (number == SYS_io_setup && strikes(CALL_io_setup)) ||
        (number == SYS_io_destroy && strikes(CALL_io_destroy)) || (number == SYS_io_submit && strikes(CALL_io_submit)) ||
        (number == SYS_io_getevents && strikes(CALL_io_getevents)) ||
        (number == SYS_pidfd_open && strikes(CALL_pidfd_open)))
        return -1;
    result = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_io_getevents)
        play_stalls((struct io_event *)a[3], result);
    return number == SYS_io_cancel && strikes(CALL_io_cancel) ? -1 : result;
}
