/*
 * driver CGROUP: the C core without Python, for valgrind and the sanitizers. CGROUP is a real memory cgroup of version
 * 1, or a folder with the plain files memory.oom_control and cgroup.event_control. Every function is called, to succeed
 * and to fail; exits with 0 when each result was as it must be and no descriptor was left open.
 */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MUST(condition)                                                       \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "driver.c:%d: %s\n", __LINE__, #condition);       \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

#define MANY 8
#define OOM {.file = "memory.oom_control", .key = "oom_kill"}

static int open_descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* N times the path, each with its NUL. */
static void repeat(char *paths, const char *cgroup, int count)
{
    for (int i = 0; i < count; i++, paths += strlen(paths) + 1)
        strcpy(paths, cgroup);
}

static void registration(const char *cgroup)
{
    struct memcg_registration one;
    int before = open_descriptors();
    int fd = memcg_register(cgroup, "memory.oom_control", "", &one);

    MUST(fd >= 0 && one.eventfd == fd && open_descriptors() == before + 1);
    close(fd);
    MUST(memcg_register("/no/such", "memory.oom_control", "", &one) == -ENOENT && one.step == MEMCG_STEP_CGROUP);
    MUST(memcg_register(cgroup, "no.such", "", &one) == -ENOENT && one.step == MEMCG_STEP_CONTROL_FILE);
    MUST(memcg_register("/proc", "version", "", &one) < 0 && one.step == MEMCG_STEP_EVENT_CONTROL);
    {
        char argument[400];

        memset(argument, 'x', sizeof(argument) - 1);
        argument[sizeof(argument) - 1] = '\0';
        MUST(memcg_register(cgroup, "memory.oom_control", argument, &one) == -E2BIG && one.step == MEMCG_STEP_WRITE);
    }
    MUST(open_descriptors() == before);
}

static struct memcg_registrations *registrations(size_t count)
{
    struct memcg_registrations *made = malloc(sizeof(*made) + count * sizeof(made->rows[0]));

    MUST(made != NULL);
    *made = (struct memcg_registrations){.mount_fd = -1, .inotify_fd = -1, .highest_fd = INT_MAX, .control = (struct memcg_control)OOM};
    return made;
}

static void out_of_descriptors(const char *cgroup, uint64_t device)
{
    struct memcg_registrations *one = registrations(1);
    struct rlimit limit, low;
    char path[PATH_MAX];
    int before = open_descriptors();

    repeat(path, cgroup, 1);
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    /* Each of the four descriptors that a registration opens is, in turn, one too many. */
    for (rlim_t free_fds = 0; free_fds < 4; free_fds++) {
        low = limit;
        low.rlim_cur = (rlim_t)before + free_fds;
        MUST(setrlimit(RLIMIT_NOFILE, &low) == 0);
        memcg_register_many(device, NULL, path, 1, one);
        MUST(one->count == 1 && one->rows[0].eventfd == -EMFILE);
        MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        MUST(open_descriptors() == before);
    }
    free(one);
}

static void many(const char *cgroup, uint64_t device)
{
    struct memcg_registrations *made = registrations(MANY);
    struct memcg_registration *all = made->rows;
    struct memcg_batch *batch = calloc(1, sizeof(*batch));
    char paths[MANY * 512];
    uint64_t keys[MANY + 2], ids[MANY], count = 3;
    int64_t kills[MANY];
    uint8_t moved[MANY], under_oom[MANY];
    const struct memcg_control oom = OOM;
    int before = open_descriptors(), epoll_fd, timer_fd, mount_fd, fd;
    struct timespec now;

    MUST(batch != NULL && strlen(cgroup) < 500);
    repeat(paths, cgroup, MANY);
    memcg_register_many(device + 1, NULL, paths, MANY, made);
    MUST(made->count == MANY && all[0].eventfd == -EXDEV && all[MANY - 1].eventfd == -EXDEV);
    memcg_unregister_many(made);
    memcg_register_many(device, NULL, paths, MANY, made);
    MUST(made->count == MANY);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = memcg_timer_open();
    MUST(epoll_fd >= 0 && timer_fd >= 0);
    for (uint64_t i = 0; i < MANY; i++) {
        keys[i] = (i + 1) << 32 | (uint64_t)all[i].eventfd;
        ids[i] = all[i].control_id;
        MUST(all[i].before >= 0 && all[i].after >= all[i].before);
    }
    keys[MANY] = (uint64_t)timer_fd;
    keys[MANY + 1] = 0xfffffff; /* no such descriptor: all or nothing */
    MUST(memcg_loop_add(epoll_fd, keys, MANY + 2) == -EBADF);
    MUST(memcg_wait(epoll_fd, 0, batch) == 0);
    MUST(memcg_loop_add(epoll_fd, keys, MANY + 1) == 0);

    MUST(write(all[2].eventfd, &count, sizeof(count)) == sizeof(count));
    MUST(memcg_wait(epoll_fd, -1, batch) == 1 && batch->count == 1);
    MUST(batch->signals[0].key == keys[2] && batch->signals[0].count == 3);

    clock_gettime(CLOCK_MONOTONIC, &now);
    MUST(memcg_timer_arm(timer_fd, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec) == 0);
    MUST(memcg_wait(epoll_fd, -1, batch) == 1 && batch->signals[0].key == keys[MANY]);
    MUST(memcg_timer_arm(timer_fd, INT64_MAX) == 0 && memcg_timer_arm(timer_fd, 0) == 0);
    MUST(memcg_timer_arm(epoll_fd, 1) == -EINVAL && memcg_wait(timer_fd, 0, batch) == -EINVAL);

    memcg_look_many(&oom, -1, device, ids, paths, MANY, kills, under_oom);
    for (int i = 0; i < MANY; i++)
        MUST(kills[i] == all[i].after);
    ids[0]++;
    memcg_look_many(&oom, -1, device, ids, paths, 1, kills, under_oom);
    MUST(kills[0] == -ESTALE);
    memcg_look_many(&oom, -1, device, ids, "/no/such", 1, kills, under_oom);
    MUST(kills[0] == -ENOENT);

    mount_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fd = memcg_open_by_id(mount_fd, all[0].control_id);
    if (fd >= 0) { /* kernfs, and the privilege */
        close(fd);
        ids[0] = all[0].control_id;
        memcg_look_many(&oom, mount_fd, device, ids, NULL, MANY, kills, under_oom);
        for (int i = 0; i < MANY; i++)
            MUST(kills[i] == all[i].after);
    }
    MUST(memcg_open_by_id(mount_fd, UINT64_MAX) < 0 && memcg_open_by_id(-1, 1) < 0);

    for (int i = 0; i < MANY; i++)
        ids[i] = all[i].directory_id;
    ids[1]++;
    memcg_moved_many(device, ids, paths, MANY, moved);
    for (int i = 0; i < MANY; i++)
        MUST(moved[i] == (i == 1));

    close(all[0].eventfd);
    all[0].eventfd = -1;
    memcg_unregister_many(made);
    MUST(made->count == 0);
    close(mount_fd);
    close(timer_fd);
    close(epoll_fd);
    free(batch);
    free(made);
    MUST(open_descriptors() == before);
}

/* By id, followed, and with a limit to the descriptors. */
static void chosen(const char *cgroup, uint64_t device, uint64_t directory_id)
{
    struct memcg_registrations *made = registrations(2);
    struct memcg_registration *all = made->rows;
    uint64_t ids[2] = {directory_id, directory_id + 1};
    char paths[2 * 512];
    int before = open_descriptors(), inotify_fd, mount_fd, fd;

    repeat(paths, cgroup, 2);
    made->inotify_fd = inotify_fd = memcg_inotify_open();
    MUST(inotify_fd >= 0);
    memcg_register_many(device, ids, paths, 2, made);
    MUST(made->count == 2 && all[0].eventfd >= 0 && all[0].directory_id == directory_id && all[0].follower >= 0);
    MUST(all[1].eventfd == -ESTALE && all[1].step == MEMCG_STEP_CGROUP);
    memcg_unregister_many(made);
    MUST(made->count == 0 && open_descriptors() == before + 1);
    MUST(memcg_inotify_remove(inotify_fd, all[0].follower) == 0);
    close(inotify_fd);

    /* What cannot be followed is registered all the same. */
    memcg_register_many(device, ids, paths, 1, made);
    MUST(all[0].eventfd >= 0 && all[0].follower == -EBADF);
    memcg_unregister_many(made);
    made->inotify_fd = -1;
    memcg_register_many(device, NULL, paths, 1, made);
    MUST(all[0].eventfd >= 0 && all[0].follower < 0);

    /* The same again has the same number; one less is allowed. */
    made->highest_fd = all[0].eventfd;
    memcg_unregister_many(made);
    memcg_register_many(device, NULL, paths, 1, made);
    MUST(all[0].eventfd == made->highest_fd);
    memcg_unregister_many(made);
    made->highest_fd--;
    memcg_register_many(device, NULL, paths, 1, made);
    MUST(made->count == 1 && all[0].eventfd == -EMFILE && all[0].step == MEMCG_STEP_EVENTFD);
    MUST(all[0].directory_id == directory_id && all[0].control_id != 0 && all[0].after == all[0].before);
    memcg_unregister_many(made);
    made->highest_fd = INT_MAX;

    mount_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    made->mount_fd = mount_fd;
    fd = memcg_open_by_id(mount_fd, directory_id);
    memcg_register_many(device, ids, "/no/such", 1, made);
    if (fd >= 0) { /* then the path does not matter */
        close(fd);
        MUST(all[0].eventfd >= 0 && all[0].directory_id == directory_id);
    } else {
        MUST(all[0].eventfd == fd && all[0].step == MEMCG_STEP_CGROUP);
    }
    memcg_unregister_many(made);
    ids[0] = UINT64_MAX;
    memcg_register_many(device, ids, paths, 1, made);
    MUST(all[0].eventfd < 0 && all[0].step == MEMCG_STEP_CGROUP);
    memcg_unregister_many(made);
    all[0].follower = 0;
    memcg_register_many(device, NULL, "/no/such", 1, made);
    MUST(all[0].eventfd == -ENOENT && all[0].follower == -EBADF);
    memcg_unregister_many(made);
    close(mount_fd);
    free(made);
    MUST(open_descriptors() == before);
}

/* Lists a directory through a buffer of so many bytes; how many it finds. */
static int list(const char *path, size_t size, uint64_t sum[1])
{
    char *names = malloc(size);
    uint64_t *ids = malloc(size / MEMCG_ENTRY * sizeof(*ids));
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), total = 0, count;

    MUST(names != NULL && ids != NULL && fd >= 0);
    sum[0] = 0;
    while ((count = memcg_list(fd, names, size, ids)) > 0) {
        const char *name = names;

        MUST((size_t)count <= size / MEMCG_ENTRY);
        for (int i = 0; i < count; i++, name += strlen(name) + 1) {
            struct stat status;

            MUST(fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0);
            MUST(S_ISDIR(status.st_mode) && status.st_ino == ids[i]);
            sum[0] += ids[i];
        }
        total += count;
    }
    close(fd);
    free(names);
    free(ids);
    return count < 0 ? count : total;
}

#define SUBDIRECTORIES 300

static void listing(const char *cgroup)
{
    char path[PATH_MAX], names[512];
    uint64_t ids[sizeof(names) / MEMCG_ENTRY], expected = 0, sum;
    int before = open_descriptors(), fd;
    struct stat status;

    MUST(list(cgroup, 4096, &sum) == 0); /* files, and nothing else */
    MUST(memcg_list(-1, names, sizeof(names), ids) == -EBADF);
    fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && memcg_list(fd, names, sizeof(names), ids) == -ENOTDIR);
    close(fd);
    for (int i = 0; i < SUBDIRECTORIES; i++) {
        /* Of all lengths; the kernel pads its entries to eight bytes. */
        snprintf(path, sizeof(path), "%s/d%03d%.*s", cgroup, i, i % 60,
                 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
        MUST(mkdir(path, 0700) == 0 && stat(path, &status) == 0);
        expected += status.st_ino;
    }
    for (size_t size = 128; size <= 65536; size *= 2)
        MUST(list(cgroup, size, &sum) == SUBDIRECTORIES && sum == expected);
    MUST(list(cgroup, 24, &sum) == -EINVAL); /* no room for a long name */
    for (int i = 0; i < SUBDIRECTORIES; i++) {
        snprintf(path, sizeof(path), "%s/d%03d%.*s", cgroup, i, i % 60,
                 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
        MUST(rmdir(path) == 0);
    }
    MUST(open_descriptors() == before);
}

/* The next inotify event: its name is `name`, its mask has `mask`. */
static void hear(int inotify_fd, int watch, uint32_t mask, const char *name)
{
    _Alignas(struct inotify_event) char data[sizeof(struct inotify_event) + NAME_MAX + 1];
    ssize_t length = read(inotify_fd, data, sizeof(struct inotify_event) + 16); /* one, of a short name */
    const struct inotify_event *event = (const void *)data;

    MUST(length > 0 && event->wd == watch && (event->mask & mask) == mask && strcmp(event->name, name) == 0);
}

static void following(const char *cgroup)
{
    char path[PATH_MAX], moved[PATH_MAX], byte;
    int before = open_descriptors(), directory_fd, inotify_fd, watch, fd;
    struct rlimit limit, low;

    directory_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    inotify_fd = memcg_inotify_open();
    MUST(directory_fd >= 0 && inotify_fd >= 0 && (fcntl(inotify_fd, F_GETFD) & FD_CLOEXEC));
    MUST(read(inotify_fd, &byte, 1) < 0 && (errno == EAGAIN || errno == EINVAL)); /* and does not block */
    watch = memcg_inotify_add(inotify_fd, directory_fd);
    MUST(watch >= 0 && memcg_inotify_add(inotify_fd, directory_fd) == watch);
    snprintf(path, sizeof(path), "%s/d1", cgroup);
    snprintf(moved, sizeof(moved), "%s/d2", cgroup);
    MUST(mkdir(path, 0700) == 0);
    hear(inotify_fd, watch, IN_CREATE | IN_ISDIR, "d1");
    MUST(rename(path, moved) == 0);
    hear(inotify_fd, watch, IN_MOVED_TO | IN_ISDIR, "d2");
    MUST(rmdir(moved) == 0);
    hear(inotify_fd, watch, IN_DELETE | IN_ISDIR, "d2");
    MUST(memcg_inotify_remove(inotify_fd, watch) == 0);
    MUST(memcg_inotify_remove(inotify_fd, watch) == -EINVAL);
    MUST(memcg_inotify_remove(-1, watch) == -EBADF && memcg_inotify_remove(directory_fd, watch) == -EINVAL);
    MUST(memcg_inotify_add(-1, directory_fd) == -EBADF && memcg_inotify_add(directory_fd, directory_fd) == -EINVAL);
    MUST(memcg_inotify_add(inotify_fd, INT_MAX) == -ENOENT);
    fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && memcg_inotify_add(inotify_fd, fd) == -ENOTDIR);
    close(fd);
    close(inotify_fd);

    /* fanotify takes privilege, and a kernel that has it for this file system. */
    fd = memcg_fanotify_open(cgroup);
    MUST(fd >= 0 || fd == -EPERM || fd == -ENODEV || fd == -EINVAL || fd == -ENOSYS || fd == -EOPNOTSUPP || fd == -EXDEV);
    if (fd >= 0) {
        MUST((fcntl(fd, F_GETFD) & FD_CLOEXEC) && (fcntl(fd, F_GETFL) & O_NONBLOCK));
        close(fd);
    }
    MUST(memcg_fanotify_open("/no/such") < 0);

    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = limit;
    low.rlim_cur = (rlim_t)before + 1;
    MUST(setrlimit(RLIMIT_NOFILE, &low) == 0);
    MUST(memcg_inotify_open() == -EMFILE && memcg_timer_open() == -EMFILE);
    fd = memcg_fanotify_open(cgroup);
    MUST(fd < 0);
    fd = memcg_open_by_id(directory_fd, 1);
    MUST(fd < 0);
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    close(directory_fd);
    MUST(open_descriptors() == before);
}

/* Keys that are not to be read. */
static void unread(void)
{
    struct memcg_batch *batch = calloc(1, sizeof(*batch));
    int before = open_descriptors(), epoll_fd, one, other;
    uint64_t keys[2], count = 5;

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    one = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    MUST(batch != NULL && epoll_fd >= 0 && one >= 0 && other >= 0);
    keys[0] = MEMCG_UNREAD | (uint64_t)7 << 32 | (uint64_t)one;
    keys[1] = (uint64_t)8 << 32 | (uint64_t)other;
    MUST(memcg_loop_add(epoll_fd, keys, 2) == 0);
    MUST(memcg_wait(epoll_fd, 0, batch) == 0 && batch->unread == 0);
    MUST(write(one, &count, sizeof(count)) == sizeof(count));
    for (int i = 0; i < 2; i++) /* it stays readable */
        MUST(memcg_wait(epoll_fd, -1, batch) == 0 && batch->unread == 1 && batch->count == 0);
    MUST(write(other, &count, sizeof(count)) == sizeof(count));
    MUST(memcg_wait(epoll_fd, -1, batch) == 1 && batch->unread == 1 && batch->count == 1);
    MUST(batch->signals[0].key == keys[1] && batch->signals[0].count == 5);
    MUST(read(one, &count, sizeof(count)) == sizeof(count) && count == 5);
    MUST(memcg_wait(epoll_fd, 0, batch) == 0 && batch->unread == 0);
    close(one);
    close(other);
    close(epoll_fd);
    free(batch);
    MUST(open_descriptors() == before);
}

/* What memory.oom_control may never say; only for a folder of plain files. */
static void parsing(const char *cgroup)
{
    static const struct {
        const char *text;
        int64_t kills;
    } cases[] = {
        {"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7},
        {"oom_kill_disable 1\nunder_oom 1\noom_kill 7\n", 7},
        {"oom_kill 12", 12},
        {"", -ENODATA},
        {"oom_kill_disable 5\n", -ENODATA},
        {"oom_kill\n", -ENODATA},
        {"oom_kill x\n", -EBADMSG},
        {"oom_kill -1\n", -EBADMSG},
        {"oom_kill 99999999999999999999999999\n", -EBADMSG},
        {"oom_kill 1x\n", -EBADMSG},
        {"\n\n\noom_kill 3\n", 3},
    };
    const struct memcg_control oom = OOM, unread = {.unread = 1};
    char path[PATH_MAX];
    uint8_t under_oom;
    int fd;

    snprintf(path, sizeof(path), "%s/parsing", cgroup);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return; /* a real cgroup */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        MUST(ftruncate(fd, 0) == 0);
        MUST(pwrite(fd, cases[i].text, strlen(cases[i].text), 0) == (ssize_t)strlen(cases[i].text));
        MUST(memcg_read_value(&oom, fd, &under_oom) == cases[i].kills);
        MUST(under_oom == (strstr(cases[i].text, "under_oom 1") != NULL));
    }
    close(fd);
    unlink(path);
    MUST(memcg_read_value(&oom, -1, &under_oom) == -EBADF);
    MUST(memcg_read_value(&unread, -1, &under_oom) == 0);
    MUST(memcg_parse_counter("4096\n", "") == 4096 && memcg_parse_counter("", "") == -EBADMSG);
}

static struct memcg_attachments *attachments(int inotify_fd)
{
    struct memcg_attachments *made = malloc(sizeof(*made) + MANY * sizeof(made->rows[0]));

    MUST(made != NULL);
    *made = (struct memcg_attachments){.inotify_fd = inotify_fd, .follow = 1};
    return made;
}

static void put(const char *directory, const char *file, const char *text)
{
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", directory, file);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

/* A cgroup of version 2 made of plain files, which inotify tells of as it does of real ones. */
static void version_2(void)
{
    char directory[] = "/tmp/memcg-oom-driver-XXXXXX", paths[MANY * PATH_MAX], file[PATH_MAX], events[4096];
    int before = open_descriptors(), inotify_fd = memcg_inotify_open(), watch;
    struct memcg_attachments *made = attachments(inotify_fd);
    struct memcg_attachment *row = made->rows;
    struct memcg_counters counters[MANY];
    uint64_t ids[MANY], device;
    struct stat status;

    MUST(mkdtemp(directory) != NULL && stat(directory, &status) == 0 && inotify_fd >= 0);
    device = status.st_dev;
    repeat(paths, directory, MANY);
    ids[0] = status.st_ino;

    memcg_attach_many(device, ids, paths, 1, made); /* without the memory controller */
    MUST(row->watch == -ENOENT && row->step == MEMCG_STEP_CONTROL_FILE && row->control_id == 0 && row->follower > 0);
    put(directory, "memory.events.local", "low 0\nhigh 4\nmax 5\noom 2\noom_kill 1\noom_group_kill 3\n");
    put(directory, "memory.events", "low 0\nhigh 14\nmax 15\noom 12\noom_kill 11\nunheard_of 99\n");
    memcg_attach_many(device, ids, paths, 1, made);
    MUST(row->watch > 0 && row->directory_id == ids[0] && made->count == 1 && row->children == 0);
    MUST(row->before.oom_kill == 1 && row->before.oom == 2 && row->before.oom_group_kill == 3);
    MUST(row->after.max == 5 && row->after.high == 4);
    MUST(row->subtree.oom_kill == 11 && row->subtree.oom == 12 && row->subtree.oom_group_kill == 0);
    watch = row->watch;
    memcg_attach_many(device, NULL, paths, MANY, made);
    for (int i = 0; i < MANY; i++) {
        MUST(made->rows[i].watch == watch); /* one file, one watch */
        ids[i] = row->control_id;
    }
    memcg_attach_many(device + 1, NULL, paths, 1, made);
    MUST(row->watch == -EXDEV);
    memcg_attach_many(device, ids, paths, 1, made);
    MUST(row->watch == -ESTALE); /* that is the id of another file */
    memcg_attach_many(device, NULL, "/no/such", 1, made);
    MUST(row->watch == -ENOENT && row->step == MEMCG_STEP_CGROUP && row->directory_id == 0);
    made->inotify_fd = -EMFILE;
    made->follow = 0;
    memcg_attach_many(device, NULL, paths, 1, made);
    MUST(row->watch == -EMFILE && row->step == MEMCG_STEP_FOLLOW && row->after.oom_kill == 1 && row->control_id);

    memcg_count_many(-1, device, ids, paths, MANY, counters);
    MUST(counters[MANY - 1].oom_kill == 1 && counters[MANY - 1].high == 4);
    ids[1]++;
    memcg_count_many(-1, device, ids, paths, 2, counters);
    MUST(counters[0].oom_kill == 1 && counters[1].oom_kill == -ESTALE && counters[1].max == 0);
    ids[0] = status.st_ino;
    memcg_subtree_many(device, ids, paths, 1, counters);
    MUST(counters[0].oom_kill == 11 && counters[0].max == 15);
    put(directory, "memory.events", "oom_kill many\n");
    memcg_subtree_many(device, ids, paths, 1, counters);
    MUST(counters[0].oom_kill == -EBADMSG);
    put(directory, "memory.events.local", "oom 7\n");
    snprintf(file, sizeof(file), "%s/memory.events.local", directory);
    MUST(read(inotify_fd, events, sizeof(events)) > 0);
    MUST(memcg_inotify_add_file(inotify_fd, file) == watch && memcg_inotify_add_file(-1, file) == -EBADF);
    memcg_subtree_many(device, ids, "/no/such", 1, counters);
    MUST(counters[0].oom_kill == -ENOENT);
    memcg_attach_many(device, NULL, paths, 1, made);
    MUST(row->watch == -ENODATA); /* a kernel without the counter */

    MUST(unlink(file) == 0);
    snprintf(file, sizeof(file), "%s/memory.events", directory);
    MUST(unlink(file) == 0 && rmdir(directory) == 0);
    close(inotify_fd);
    free(made);
    MUST(open_descriptors() == before);
}

#define THREADS 4
#define ROUNDS 50

/* What the threads have in common: nothing that is written. */
struct common {
    const char *cgroup;
    uint64_t device;
    int inotify_fd;
    pthread_barrier_t barrier;
};

/* As a monitor and those that watch more with it do it beside each other, in a Python without a global lock. */
static void *take_part(void *argument)
{
    struct common *common = argument;
    struct memcg_registrations *made = registrations(MANY);
    struct memcg_batch *batch = calloc(1, sizeof(*batch));
    const struct memcg_control oom = OOM;
    struct memcg_counters counters[MANY];
    char paths[MANY * 512], names[4096];
    uint64_t keys[MANY], control_ids[MANY], directory_ids[MANY], listed[sizeof(names) / MEMCG_ENTRY], one = 1;
    int64_t kills[MANY];
    uint8_t under_oom[MANY], moved[MANY];
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC), timer_fd = memcg_timer_open();

    MUST(batch != NULL && epoll_fd >= 0 && timer_fd >= 0);
    repeat(paths, common->cgroup, MANY);
    made->inotify_fd = common->inotify_fd;
    pthread_barrier_wait(&common->barrier);
    for (int round = 0; round < ROUNDS; round++) {
        int directory_fd = open(common->cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        memcg_register_many(common->device, NULL, paths, MANY, made);
        MUST(directory_fd >= 0 && made->count == MANY);
        for (uint64_t i = 0; i < MANY; i++) {
            MUST(made->rows[i].eventfd >= 0 && made->rows[i].follower > 0);
            keys[i] = i << 32 | (uint64_t)made->rows[i].eventfd;
            control_ids[i] = made->rows[i].control_id;
            directory_ids[i] = made->rows[i].directory_id;
        }
        MUST(memcg_loop_add(epoll_fd, keys, MANY) == 0 && memcg_timer_arm(timer_fd, 1) == 0);
        MUST(write(made->rows[3].eventfd, &one, sizeof(one)) == sizeof(one));
        MUST(memcg_wait(epoll_fd, -1, batch) == 1 && batch->signals[0].key == keys[3]);
        memcg_look_many(&oom, -1, common->device, control_ids, paths, MANY, kills, under_oom);
        memcg_moved_many(common->device, directory_ids, paths, MANY, moved);
        memcg_count_many(-1, common->device, control_ids, paths, MANY, counters); /* -ENOENT: it is version 1 */
        MUST(kills[MANY - 1] >= 0 && moved[MANY - 1] == MEMCG_HERE && counters[MANY - 1].oom_kill == -ENOENT);
        MUST(memcg_list(directory_fd, names, sizeof(names), listed) == 0);
        memcg_unregister_many(made);
        close(directory_fd);
    }
    close(epoll_fd);
    close(timer_fd);
    free(batch);
    free(made);
    return NULL;
}

static void in_threads(const char *cgroup, uint64_t device)
{
    int before = open_descriptors();
    struct common common = {.cgroup = cgroup, .device = device, .inotify_fd = memcg_inotify_open()};
    pthread_t threads[THREADS];

    MUST(pthread_barrier_init(&common.barrier, NULL, THREADS) == 0);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, take_part, &common) == 0);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&common.barrier);
    close(common.inotify_fd);
    MUST(open_descriptors() == before);
}

int main(int argc, char **argv)
{
    struct stat status;

    if (argc != 2 || stat(argv[1], &status) < 0) {
        fprintf(stderr, "driver CGROUP\n");
        return 2;
    }
    for (int fd = 3; fd < 1024; fd++) /* so that the lowest free number is the number of open descriptors */
        close(fd);
    registration(argv[1]);
    out_of_descriptors(argv[1], status.st_dev);
    many(argv[1], status.st_dev);
    chosen(argv[1], status.st_dev, status.st_ino);
    parsing(argv[1]);
    listing(argv[1]);
    following(argv[1]);
    unread();
    version_2();
    in_threads(argv[1], status.st_dev);
    return 0;
}
