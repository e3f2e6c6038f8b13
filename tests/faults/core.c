/*
 * core FOLDER: every function of the C core, with each system call in it made to fail once, in each place, with each
 * errno (see interpose.h). FOLDER is an empty one, in which cgroups are made of plain files. What must hold: no
 * descriptor is left, the result is the errno, or what it would have been without the fault where that does not matter;
 * the rows beside the one that failed are as good as ever; and the same call again succeeds.
 *
 * Prints a line for each fault: the function, the call, the errno, what came of it.
 */
#include "memcg_oom.h"

#include "interpose.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MUST(condition)                                                                                   \
    do {                                                                                                  \
        if (!(condition)) {                                                                               \
            fprintf(stderr, "core.c:%d: %s: %s no. %d, %s: %s\n", __LINE__, at.scenario,                  \
                    fault_calls[at.call].name, at.nth, strerrorname_np(at.error), \
                    #condition);                                                                          \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

#define MANY 3
#define OOM {.file = "memory.oom_control", .key = "oom_kill"}

/* The fault of this round, whether it came, and what came of it. */
static struct {
    const char *scenario;
    int call, nth, error, struck;
    const char *outcome;
} at;

static uint64_t device;
static char cgroups[MANY][PATH_MAX / 2];
static char paths[MANY * PATH_MAX]; /* of all, as the core takes them */
static uint64_t directory_ids[MANY], control_ids[MANY], local_ids[MANY];
static int folder_fd, inotify_fd;

static void begin(void)
{
    fault_arm(at.call, at.nth, at.error);
}

static void end(void)
{
    at.struck = fault_disarm();
}

/* What a call of the core returns, with the fault in it. */
#define FAULTY(call)                  \
    ({                                \
        __typeof__(call) result_;     \
        begin();                      \
        result_ = (call);             \
        end();                        \
        result_;                      \
    })

/* Whether it was that call that failed. */
static int failed(const char *name)
{
    return at.struck && strcmp(fault_calls[at.call].name, name) == 0;
}

/* It does not matter, for a reason. */
static int harmless(int is_so, const char *reason)
{
    if (is_so)
        at.outcome = reason;
    return is_so;
}

static int is_closing(void)
{
    return harmless(failed("close"), "done all the same: the descriptor is gone");
}

/* What a function must return that would return `value`. */
static int64_t due(int64_t value)
{
    return at.struck && !is_closing() ? -at.error : value;
}

static int open_descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 64; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
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

static uint64_t id_of(const char *directory, const char *file)
{
    char path[PATH_MAX];
    struct stat status;

    snprintf(path, sizeof(path), "%s/%s", directory, file);
    MUST(stat(path, &status) == 0);
    device = status.st_dev;
    return status.st_ino;
}

static void make_cgroups(const char *folder)
{
    char *end_of_paths = paths;

    for (int i = 0; i < MANY; i++) {
        snprintf(cgroups[i], sizeof(cgroups[i]), "%s/%c", folder, 'a' + i);
        MUST(mkdir(cgroups[i], 0700) == 0);
        put(cgroups[i], "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n");
        put(cgroups[i], "cgroup.event_control", "");
        put(cgroups[i], "memory.events.local", "low 0\nhigh 4\nmax 5\noom 2\noom_kill 1\noom_group_kill 3\n");
        put(cgroups[i], "memory.events", "low 0\nhigh 14\nmax 15\noom 12\noom_kill 11\n");
        directory_ids[i] = id_of(cgroups[i], ".");
        control_ids[i] = id_of(cgroups[i], "memory.oom_control");
        local_ids[i] = id_of(cgroups[i], "memory.events.local");
        end_of_paths = stpcpy(end_of_paths, cgroups[i]) + 1;
    }
    folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    inotify_fd = memcg_inotify_open(); /* one for all: the kernel takes milliseconds to close one */
    MUST(folder_fd >= 0 && inotify_fd >= 0);
    fault_handles_below(folder);
}

/* -- registrations */

static int is_step_of_call(int step)
{
    if (failed("open") || failed("open_by_handle_at"))
        return step == MEMCG_STEP_CGROUP;
    if (failed("fstat"))
        return step == MEMCG_STEP_CGROUP || step == MEMCG_STEP_CONTROL_FILE;
    if (failed("openat"))
        return step == MEMCG_STEP_CONTROL_FILE || step == MEMCG_STEP_EVENT_CONTROL;
    if (failed("pread"))
        return step == MEMCG_STEP_CONTROL_FILE;
    if (failed("eventfd"))
        return step == MEMCG_STEP_EVENTFD;
    if (failed("write"))
        return step == MEMCG_STEP_WRITE;
    return failed("inotify_add_watch") && step == MEMCG_STEP_FOLLOW;
}

static void register_one(void)
{
    struct memcg_registration row;
    int fd = FAULTY(memcg_register(cgroups[0], "memory.oom_control", "", &row));

    MUST(row.eventfd == fd);
    if (due(1) > 0) {
        MUST(fd >= 0);
        close(fd);
    } else {
        MUST(fd == -at.error && is_step_of_call(row.step));
    }
}

static struct memcg_registrations *registrations(int mount_fd, int follow_fd)
{
    struct memcg_registrations *made = calloc(1, sizeof(*made) + MANY * sizeof(made->rows[0]));

    MUST(made != NULL);
    *made = (struct memcg_registrations){
        .mount_fd = mount_fd, .inotify_fd = follow_fd, .highest_fd = INT_MAX, .control = OOM};
    return made;
}

/* All rows are as they must be, but for the one that failed, which says so; a second try has all. */
static void check_rows(const struct memcg_registrations *made, int is_harmless, int64_t value)
{
    int bad = 0;

    MUST(made->count == MANY);
    for (int i = 0; i < MANY; i++) {
        const struct memcg_registration *row = &made->rows[i];

        if (row->eventfd < 0) {
            MUST(++bad == 1 && row->eventfd == -at.error && is_step_of_call(row->step));
            if (row->step <= MEMCG_STEP_CONTROL_FILE)
                continue;
        }
        MUST(row->directory_id == directory_ids[i] && row->control_id && row->before == value && row->after == value);
    }
    MUST(bad == (at.struck && !is_harmless));
}

/* Which of the three values of a row is the one that could not be read after the registration: as before then. */
static int is_second_read(void)
{
    return harmless(failed("pread") && at.nth % 2 == 0 && at.error != ENODEV,
                    "done all the same: the value is what it was before, and is looked at soon");
}

static void register_many(void)
{
    struct memcg_registrations *made = registrations(-1, -1);

    begin();
    memcg_register_many(device, directory_ids, paths, MANY, made);
    end();
    check_rows(made, is_closing() || is_second_read(), 7);
    memcg_unregister_many(made);
    free(made);
}

static void register_by_id(void)
{
    struct memcg_registrations *made = registrations(folder_fd, -1);
    int is_path;

    begin();
    memcg_register_many(device, directory_ids, paths, MANY, made);
    end();
    is_path = harmless(failed("open") || (failed("fstat") && at.nth % 3 == 1), "done all the same: opened by its id");
    check_rows(made, is_path || is_closing() || is_second_read(), 7);
    memcg_unregister_many(made);
    free(made);
}

static void register_moved(void)
{
    static const char elsewhere[] = "/no/such/a\0/no/such/b\0/no/such/c";
    struct memcg_registrations *made = registrations(folder_fd, -1);

    begin();
    memcg_register_many(device, directory_ids, elsewhere, MANY, made);
    end();
    check_rows(made, harmless(failed("open"), "done all the same: opened by its id") || is_closing() || is_second_read(),
               7);
    memcg_unregister_many(made);
    free(made);
}

static void register_followed(void)
{
    int unfollowed = 0, is_unfollowed;
    struct memcg_registrations *made = registrations(-1, inotify_fd);

    begin();
    memcg_register_many(device, NULL, paths, MANY, made);
    end();
    is_unfollowed = harmless(failed("inotify_add_watch"), "done all the same: the row says that it is not followed");
    check_rows(made, is_unfollowed || is_closing() || is_second_read(), 7);
    for (int i = 0; i < MANY; i++) {
        unfollowed += made->rows[i].follower == -at.error && at.error;
        MUST(made->rows[i].follower > 0 || is_unfollowed || made->rows[i].step == MEMCG_STEP_CGROUP);
    }
    MUST(!is_unfollowed || unfollowed == 1);
    memcg_unregister_many(made);
    free(made);
}

static void register_unread(void)
{
    struct memcg_registrations *made = registrations(-1, -1);

    made->control = (struct memcg_control){.file = "memory.oom_control", .argument = "low,local", .unread = 1};
    begin();
    memcg_register_many(device, NULL, paths, MANY, made);
    end();
    check_rows(made, is_closing(), 0);
    memcg_unregister_many(made);
    free(made);
}

static void unregister(void)
{
    struct memcg_registrations *made = registrations(-1, -1);

    memcg_register_many(device, NULL, paths, MANY, made);
    begin();
    memcg_unregister_many(made);
    end();
    MUST(made->count == 0 && due(0) == 0);
    free(made);
}

/* -- the epoll set */

static uint64_t key_of(int fd, uint64_t serial)
{
    return serial << 32 | (uint64_t)fd;
}

static int signalled(uint64_t count)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    MUST(fd >= 0 && write(fd, &count, sizeof(count)) == sizeof(count));
    return fd;
}

static void loop_add(void)
{
    struct memcg_batch *batch = calloc(1, sizeof(*batch));
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC), fds[MANY], rc;
    uint64_t keys[MANY];

    MUST(batch != NULL && epoll_fd >= 0);
    for (int i = 0; i < MANY; i++)
        keys[i] = key_of(fds[i] = signalled(1), (uint64_t)i);
    rc = FAULTY(memcg_loop_add(epoll_fd, keys, MANY));
    MUST(rc == due(0));
    if (rc < 0) {
        MUST(memcg_wait(epoll_fd, 0, batch) == 0 && batch->unread == 0); /* none of them is in */
        MUST(memcg_loop_add(epoll_fd, keys, MANY) == 0);
    }
    MUST(memcg_wait(epoll_fd, 0, batch) == MANY);
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    close(epoll_fd);
    free(batch);
}

static void waiting(void)
{
    struct memcg_batch *batch = calloc(1, sizeof(*batch));
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC), fds[MANY], timer_fd = memcg_timer_open(), rc;
    uint64_t keys[MANY + 1], total = 0, signals = 0;
    struct pollfd timer = {.fd = timer_fd, .events = POLLIN};

    MUST(batch != NULL && epoll_fd >= 0 && timer_fd >= 0);
    for (int i = 0; i < MANY; i++)
        keys[i] = key_of(fds[i] = signalled((uint64_t)i + 1), (uint64_t)i);
    keys[0] |= MEMCG_UNREAD;
    keys[MANY] = key_of(timer_fd, MANY);
    MUST(memcg_loop_add(epoll_fd, keys, MANY + 1) == 0 && memcg_timer_arm(timer_fd, 1) == 0);
    MUST(poll(&timer, 1, -1) == 1);
    batch->count = batch->unread = batch->time_ns = -1;
    rc = FAULTY(memcg_wait(epoll_fd, -1, batch));
    if (failed("epoll_wait") || failed("clock_gettime")) {
        MUST(rc == -at.error && batch->count == 0 && batch->unread == 0);
    } else {
        MUST(rc == MANY - harmless(failed("read"), "done all the same: what was not read stays readable"));
        MUST(batch->count == rc && batch->count + batch->unread == MANY + 1 && batch->time_ns > 0);
    }
    /* Nothing is lost: what was not read is read the next time. */
    for (int round = 0; round < 2; round++) {
        for (int64_t i = 0; i < batch->count; i++) {
            signals++;
            total += batch->signals[i].key == keys[MANY] ? 0 : batch->signals[i].count;
        }
        if (round == 0)
            MUST(memcg_wait(epoll_fd, 0, batch) >= 0 && batch->unread == 1);
    }
    MUST(signals == MANY && total == 2 + 3);
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    close(timer_fd);
    close(epoll_fd);
    free(batch);
}

static void timer_open(void)
{
    int fd = FAULTY(memcg_timer_open());

    MUST(fd < 0 ? fd == due(0) : due(fd) == fd);
    if (fd >= 0)
        close(fd);
}

static void timer_arm(void)
{
    int fd = memcg_timer_open();
    struct pollfd timer = {.fd = fd, .events = POLLIN};

    MUST(fd >= 0 && FAULTY(memcg_timer_arm(fd, 1)) == due(0));
    MUST((at.struck && poll(&timer, 1, 0) == 0) || poll(&timer, 1, -1) == 1);
    close(fd);
}

/* -- looks */

static void open_by_id(void)
{
    int fd = FAULTY(memcg_open_by_id(folder_fd, control_ids[1]));

    MUST(fd < 0 ? fd == due(0) : due(fd) == fd);
    if (fd >= 0)
        close(fd);
}

static void look(int mount_fd)
{
    const struct memcg_control control = OOM;
    int64_t values[MANY];
    uint8_t under_oom[MANY];
    int bad = 0;

    begin();
    memcg_look_many(&control, mount_fd, device, control_ids, paths, MANY, values, under_oom);
    end();
    for (int i = 0; i < MANY; i++) {
        bad += values[i] != 7;
        MUST((values[i] == 7 || values[i] == due(7)) && under_oom[i] == 0);
    }
    MUST(bad == (due(0) < 0));
}

static void look_by_path(void)
{
    look(-1);
}

static void look_by_id(void)
{
    look(folder_fd);
}

static void moved(void)
{
    uint8_t found[MANY];
    int is_gone = at.error == ENOENT || at.error == ENOTDIR, elsewhere = 0, unknown = 0;

    begin();
    memcg_moved_many(device, directory_ids, paths, MANY, found);
    end();
    for (int i = 0; i < MANY; i++) {
        elsewhere += found[i] == MEMCG_ELSEWHERE;
        unknown += found[i] == MEMCG_UNKNOWN;
        MUST(found[i] <= MEMCG_UNKNOWN);
    }
    harmless(failed("open"), "done all the same: by the whole path");
    MUST(unknown == harmless(failed("fstatat") && !is_gone, "told: nobody knows where it is"));
    MUST(elsewhere == harmless(failed("fstatat") && is_gone, "told: it is not at its path"));
    due(0);
}

/* -- who is there, and who tells */

static void list(void)
{
    char names[96]; /* so that it takes several calls */
    uint64_t ids[sizeof(names) / MEMCG_ENTRY];
    int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), total = 0, failures = 0, count;

    MUST(fd >= 0);
    begin();
    while ((count = memcg_list(fd, names, sizeof(names), ids)) != 0) {
        if (count < 0) {
            MUST(count == -at.error && ++failures == 1);
            continue;
        }
        total += count;
    }
    end();
    MUST(total == MANY && failures == at.struck);
    close(fd);
}

static void inotify_open(void)
{
    int fd = FAULTY(memcg_inotify_open());

    MUST(fd < 0 ? fd == due(0) : due(fd) == fd);
    if (fd >= 0)
        close(fd);
}

static void inotify_add(void)
{
    int watch = FAULTY(memcg_inotify_add(inotify_fd, folder_fd));

    MUST(watch < 0 ? watch == due(0) : due(watch) == watch);
    MUST(memcg_inotify_add(inotify_fd, folder_fd) > 0);
}

static void inotify_add_file(void)
{
    char path[PATH_MAX];
    int watch;

    snprintf(path, sizeof(path), "%s/memory.events.local", cgroups[0]);
    watch = FAULTY(memcg_inotify_add_file(inotify_fd, path));
    MUST(watch < 0 ? watch == due(0) : due(watch) == watch);
    MUST(memcg_inotify_add_file(inotify_fd, path) > 0);
}

static void inotify_remove(void)
{
    int watch = memcg_inotify_add(inotify_fd, folder_fd);

    MUST(watch > 0 && FAULTY(memcg_inotify_remove(inotify_fd, watch)) == due(0));
}

static void fanotify_open(void)
{
    int fd = FAULTY(memcg_fanotify_open("."));

    MUST(fd < 0 ? fd == due(0) : due(fd) == fd);
    if (fd >= 0)
        close(fd);
}

/* -- version 2 */

static void attach(int follow)
{
    struct memcg_attachments *made = calloc(1, sizeof(*made) + MANY * sizeof(made->rows[0]));
    int bad = 0, unfollowed = 0, uncounted = 0, is_fine, failing;

    MUST(made != NULL);
    made->inotify_fd = inotify_fd;
    made->follow = follow;
    begin();
    memcg_attach_many(device, directory_ids, paths, MANY, made);
    end();
    MUST(made->count == MANY);
    is_fine = is_closing();
    for (int i = 0; i < MANY; i++) {
        const struct memcg_attachment *row = &made->rows[i];

        unfollowed += row->follower == -at.error && at.struck;
        uncounted += row->subtree.oom_kill == -at.error && at.struck && row->watch > 0;
        if (row->watch < 0) {
            MUST(++bad == 1 && row->watch == -at.error && is_step_of_call(row->step));
            if (row->step <= MEMCG_STEP_CONTROL_FILE)
                continue;
        }
        MUST(row->directory_id == directory_ids[i] && row->control_id == local_ids[i]);
        MUST(row->before.oom_kill == 1 && row->after.oom_kill == 1 && row->after.high == 4 && row->after.oom == 2);
        MUST(row->subtree.oom_kill == 11 || row->subtree.oom_kill == -at.error);
    }
    failing = at.struck && !is_fine;
    is_fine |= harmless(failed("inotify_add_watch") && follow && unfollowed == 1,
                        "done all the same: the row says that it is not followed");
    is_fine |= harmless(failing && uncounted == 1, "done all the same: the row says that the subtree is not counted");
    is_fine |= harmless(failed("pread") && at.nth % 3 == 0 && at.error != ENODEV,
                        "done all the same: the value is what it was before, and is looked at soon");
    MUST(bad == (at.struck && !is_fine));
    free(made);
}

static void attach_many(void)
{
    attach(0);
}

static void attach_followed(void)
{
    attach(1);
}

static void count(int mount_fd)
{
    struct memcg_counters counters[MANY];
    int bad = 0;

    begin();
    memcg_count_many(mount_fd, device, local_ids, paths, MANY, counters);
    end();
    for (int i = 0; i < MANY; i++) {
        int64_t kills = counters[i].oom_kill;

        bad += kills != 1;
        MUST(kills == 1 ? counters[i].oom == 2 && counters[i].high == 4 : kills == due(1) && counters[i].oom == 0);
    }
    MUST(bad == (due(0) < 0));
}

static void count_by_path(void)
{
    count(-1);
}

static void count_by_id(void)
{
    count(folder_fd);
}

static void subtree(void)
{
    struct memcg_counters counters[MANY];
    int bad = 0;

    begin();
    memcg_subtree_many(device, directory_ids, paths, MANY, counters);
    end();
    for (int i = 0; i < MANY; i++) {
        int64_t kills = counters[i].oom_kill;

        bad += kills != 11;
        MUST(kills == 11 ? counters[i].oom == 12 : kills == due(11) && counters[i].oom == 0);
    }
    MUST(bad == (due(0) < 0));
}

/* -- triggers: urgent data of a socket is to poll(2) what the stall of a trigger is */

static void triggers_open(void)
{
    uint64_t context = 0;
    int rc = FAULTY(memcg_triggers_open(&context));

    MUST(rc == due(0) && (rc == 0) == (context != 0));
    MUST(rc < 0 || memcg_triggers_close(context) == 0);
}

static void triggers_close(void)
{
    uint64_t context = 0;
    int rc;

    MUST(memcg_triggers_open(&context) == 0);
    rc = FAULTY(memcg_triggers_close(context));
    MUST(rc == due(0) && (rc == 0 || memcg_triggers_close(context) == 0));
}

struct triggers {
    uint64_t context;
    int event_fd, socket, other;
    struct memcg_trigger *request;
    struct memcg_batch *batch;
};

static struct triggers triggers(void)
{
    struct triggers made = {.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    made.other = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    MUST(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    MUST(made.other >= 0 && connect(made.other, (struct sockaddr *)&address, size) == 0);
    made.socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    close(listener);
    made.request = calloc(1, sizeof(*made.request));
    made.batch = calloc(1, sizeof(*made.batch));
    MUST(made.event_fd >= 0 && made.socket >= 0 && made.request && made.batch);
    MUST(memcg_triggers_open(&made.context) == 0);
    return made;
}

static void end_triggers(struct triggers *made)
{
    MUST(memcg_triggers_close(made->context) == 0);
    close(made->event_fd);
    close(made->socket);
    close(made->other);
    free(made->request);
    free(made->batch);
}

static int begin_trigger(struct triggers *made)
{
    return memcg_trigger_begin(made->context, made->socket, made->event_fd, 42, made->request);
}

/* What there is to take, once the eventfd says that there is something; into the batch. */
static void await(const struct triggers *made)
{
    struct pollfd event = {.fd = made->event_fd, .events = POLLIN};
    uint64_t events;

    MUST(poll(&event, 1, -1) == 1 && read(made->event_fd, &events, sizeof(events)) == sizeof(events));
}

static void stall(const struct triggers *made)
{
    MUST(send(made->other, "!", 1, MSG_OOB) == 1);
    await(made);
}

static void trigger_begin(void)
{
    struct triggers made = triggers();
    int rc = FAULTY(begin_trigger(&made));

    MUST(rc == due(0) && (rc == 0 || begin_trigger(&made) == 0));
    stall(&made);
    MUST(memcg_triggers_take(made.context, made.batch) == 1);
    MUST(made.batch->signals[0].key == 42 && made.batch->signals[0].count == 1);
    end_triggers(&made);
}

static void trigger_end(void)
{
    struct triggers made = triggers();
    int rc, is_ending;

    MUST(begin_trigger(&made) == 0);
    rc = FAULTY(memcg_trigger_end(made.context, made.request));
    is_ending = harmless(at.error == EINPROGRESS || at.error == EINVAL, "done all the same: that is how it ends");
    MUST(rc == (is_ending ? 0 : due(0)));
    await(&made); /* io_cancel(2) was made, whatever it has said */
    MUST(memcg_triggers_take(made.context, made.batch) == 1);
    MUST(made.batch->signals[0].key == 42 && made.batch->signals[0].count == 0);
    end_triggers(&made);
}

static void triggers_take(void)
{
    struct triggers made = triggers();
    const struct memcg_signal *signals = made.batch->signals;
    int rc;

    MUST(begin_trigger(&made) == 0);
    stall(&made);
    rc = FAULTY(memcg_triggers_take(made.context, made.batch));
    if (failed("io_getevents")) {
        MUST(rc == -at.error && made.batch->count == 0);
        rc = memcg_triggers_take(made.context, made.batch);
    }
    MUST(rc == made.batch->count && signals[0].key == 42 && signals[0].count == 1);
    if (harmless(failed("io_submit"), "told: it has stalled, and has ended"))
        MUST(rc == 2 && signals[1].key == 42 && signals[1].count == 0);
    else
        MUST(rc == 1);
    end_triggers(&made);
}

#define SCENARIO(name) {#name, name}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
    SCENARIO(register_one),    SCENARIO(register_many),   SCENARIO(register_by_id), SCENARIO(register_moved),
    SCENARIO(register_followed), SCENARIO(register_unread), SCENARIO(unregister),     SCENARIO(loop_add),
    SCENARIO(waiting),         SCENARIO(timer_open),      SCENARIO(timer_arm),      SCENARIO(open_by_id),
    SCENARIO(look_by_path),    SCENARIO(look_by_id),      SCENARIO(moved),          SCENARIO(list),
    SCENARIO(inotify_open),    SCENARIO(inotify_add),     SCENARIO(inotify_add_file), SCENARIO(inotify_remove),
    SCENARIO(fanotify_open),   SCENARIO(attach_many),     SCENARIO(attach_followed), SCENARIO(count_by_path),
    SCENARIO(count_by_id),     SCENARIO(subtree),         SCENARIO(triggers_open),  SCENARIO(triggers_close),
    SCENARIO(trigger_begin),   SCENARIO(trigger_end),     SCENARIO(triggers_take),
};

static void run(size_t scenario, int call, int nth, int error)
{
    int before = open_descriptors();

    at.call = call;
    at.nth = nth;
    at.error = error;
    at.struck = 0;
    at.outcome = "-errno";
    scenarios[scenario].run();
    MUST(open_descriptors() == before);
    MUST(at.struck == (nth > 0));
    if (at.struck)
        printf("%s\t%s\t%s\t%s\n", at.scenario, fault_calls[call].name, strerrorname_np(error), at.outcome);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) < 0) {
        fprintf(stderr, "core FOLDER\n");
        return 2;
    }
    make_cgroups(argv[1]);
    for (size_t scenario = 0; scenario < sizeof(scenarios) / sizeof(scenarios[0]); scenario++) {
        int counts[64] = {0};

        at.scenario = scenarios[scenario].name;
        run(scenario, 0, 0, 0);
        for (int call = 0; fault_calls[call].name; call++)
            counts[call] = fault_count(call);
        for (int call = 0; fault_calls[call].name; call++)
            for (int nth = 1; nth <= counts[call]; nth++)
                for (const int *error = fault_calls[call].errors; *error; error++)
                    run(scenario, call, nth, *error);
    }
    return 0;
}
