/*
 * driver CGROUP: the C core without Python, for valgrind and the sanitizers. CGROUP is a real memory cgroup of version
 * 1, or a folder with the plain files memory.oom_control and cgroup.event_control. Every function is called, to succeed
 * and to fail; exits with 0 when each result was as it must be and no descriptor was left open.
 */
#include "memcg_oom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
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
    *made = (struct memcg_registrations){.mount_fd = -1, .inotify_fd = -1, .highest_fd = INT_MAX};
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
    uint8_t moved[MANY];
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
        MUST(all[i].kills_before >= 0 && all[i].kills_after >= all[i].kills_before);
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

    memcg_look_many(-1, device, ids, paths, MANY, kills);
    for (int i = 0; i < MANY; i++)
        MUST(kills[i] == all[i].kills_after);
    ids[0]++;
    memcg_look_many(-1, device, ids, paths, 1, kills);
    MUST(kills[0] == -ESTALE);
    memcg_look_many(-1, device, ids, "/no/such", 1, kills);
    MUST(kills[0] == -ENOENT);

    mount_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fd = memcg_open_by_id(mount_fd, all[0].control_id);
    if (fd >= 0) { /* kernfs, and the privilege */
        close(fd);
        ids[0] = all[0].control_id;
        memcg_look_many(mount_fd, device, ids, NULL, MANY, kills);
        for (int i = 0; i < MANY; i++)
            MUST(kills[i] == all[i].kills_after);
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

/* What memory.oom_control may never say; only for a folder of plain files. */
static void parsing(const char *cgroup)
{
    static const struct {
        const char *text;
        int64_t kills;
    } cases[] = {
        {"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7},
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
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "%s/parsing", cgroup);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return; /* a real cgroup */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        MUST(ftruncate(fd, 0) == 0);
        MUST(pwrite(fd, cases[i].text, strlen(cases[i].text), 0) == (ssize_t)strlen(cases[i].text));
        MUST(memcg_read_kills(fd) == cases[i].kills);
    }
    close(fd);
    unlink(path);
    MUST(memcg_read_kills(-1) == -EBADF);
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
    parsing(argv[1]);
    return 0;
}
