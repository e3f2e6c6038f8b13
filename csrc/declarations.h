/*
 * The C API, once: gcc reads this file through memcg_oom.h, cffi reads it as it stands. So it holds plain
 * declarations only: no #include, and no macros but plain numbers, which cffi understands.
 *
 * One convention for all: a result >= 0 is a value, a negative one is -errno. Descriptors and buffers belong to the
 * caller. Nothing here allocates, logs, keeps state or starts a thread, so every function may run in several threads
 * at once as long as each has its own buffers.
 *
 * `paths` are N absolute paths, each with its NUL, one behind the other.
 */

/* The step of a registration that failed; it tells the caller which file the errno is about. */
enum memcg_step {
    MEMCG_STEP_CGROUP,        /* opening the cgroup's directory */
    MEMCG_STEP_CONTROL_FILE,  /* opening, or reading, the control file */
    MEMCG_STEP_EVENTFD,       /* eventfd(2) */
    MEMCG_STEP_EVENT_CONTROL, /* opening cgroup.event_control */
    MEMCG_STEP_WRITE,         /* the write that registers */
    MEMCG_STEP_FOLLOW         /* inotify_add_watch(2), on cgroup v2 */
};

/* A control file of cgroup v1: what is registered for, and what is read at a look. */
struct memcg_control {
    char file[32];     /* its name */
    char key[16];      /* of the line "key value" that is read; empty: the file is the value */
    char argument[32]; /* what the kernel is told at the registration; empty: nothing */
    int32_t unread;    /* whether it is not to be read, and counts as 0: memory.pressure_level holds nothing */
};

struct memcg_registration {
    int32_t eventfd;       /* the new eventfd, or -errno and nothing left open */
    int32_t step;          /* where it failed: enum memcg_step */
    int32_t follower;      /* the inotify watch of the cgroup's directory, or -errno */
    uint32_t children;     /* how many cgroups are in it: read after `follower` stood */
    uint64_t directory_id; /* st_ino of the cgroup's directory, its kernfs id */
    uint64_t control_id;   /* st_ino of the control file, its kernfs id */
    int64_t before;        /* its value, oom_kill or the usage, read before the registration stood */
    int64_t after;         /* and after it; as before where it could not be read */
};

/*
 * Registers one eventfd for `control_file` of `cgroup`: the four steps of the kernel's interface. Fills eventfd and
 * step alone, and returns the eventfd.
 */
int memcg_register(const char *cgroup, const char *control_file, const char *argument,
                   struct memcg_registration *registration);

/* Registrations, and so descriptors, that belong to this buffer as long as `count` counts them. */
struct memcg_registrations {
    int64_t count;
    int32_t mount_fd;   /* to open by their ids those that are not at their paths, or -1 */
    int32_t inotify_fd; /* that is to follow their directories, or -1 */
    int64_t highest_fd; /* an eventfd above it counts as one too many (EMFILE) */
    struct memcg_control control;
    struct memcg_registration rows[];
};

/*
 * Registers `count` cgroups for one of their control files, with identities and values. A row that failed says why, and has
 * what was found out before: with a step after MEMCG_STEP_CONTROL_FILE that is all but the eventfd. registrations->count
 * is `count` in the end. A cgroup on another file system than `device` (st_dev) fails with EXDEV before anything was
 * written. With `ids` another cgroup than the one meant fails with ESTALE; without (NULL) what is at the path counts.
 */
void memcg_register_many(uint64_t device, const uint64_t *ids, const char *paths, size_t count,
                         struct memcg_registrations *registrations);

/* Closes the eventfds that the buffer counts: what nobody took over ends with it. */
void memcg_unregister_many(struct memcg_registrations *registrations);

/* A ready descriptor of the set and what it held. */
struct memcg_signal {
    uint64_t key;
    uint64_t count;
};

#define MEMCG_BATCH 1024

/* In a key: not to be read by memcg_wait(), which only says that there is something to read. */
#define MEMCG_UNREAD 0x8000000000000000

/* What one memcg_wait() drained. The caller sets `count` to 0 when it has taken everything. */
struct memcg_batch {
    int64_t count;
    int64_t unread;  /* how many more were ready: those with MEMCG_UNREAD in their keys, and what could not be read */
    int64_t time_ns; /* CLOCK_MONOTONIC when the wait was over: all that was ready then was read, up to MEMCG_BATCH */
    struct memcg_signal signals[MEMCG_BATCH];
};

/*
 * Adds descriptors to the epoll set. A key's low 32 bits are the descriptor, which lets memcg_wait() read it without a
 * table; the high 32 bits are the caller's, so that a key never comes again when a descriptor's number does.
 * All or nothing: on failure none of them is in the set.
 */
int memcg_loop_add(int epoll_fd, const uint64_t *keys, size_t count);

/*
 * Waits up to timeout_ms (-1: for ever) and reads every ready descriptor, eventfd or timerfd, up to MEMCG_BATCH of
 * them. Returns their number, which is in batch->count too: should a signal handler raise on the way back, the batch
 * still tells what was read. No descriptor of the set may be closed while a call is in progress.
 */
int memcg_wait(int epoll_fd, int timeout_ms, struct memcg_batch *batch);

/* A timerfd on CLOCK_MONOTONIC. */
int memcg_timer_open(void);

/* Arms it for an absolute time in nanoseconds; 0 disarms it. */
int memcg_timer_arm(int timer_fd, int64_t deadline_ns);

/*
 * Opens a kernfs file or directory by its id, through any open directory of its file system. Never a namesake: ESTALE
 * when that very file is gone. Needs CAP_DAC_READ_SEARCH (EPERM).
 */
int memcg_open_by_id(int mount_fd, uint64_t id);

/*
 * Looks at `count` control files, each found by its identity, and reads the value of each: values[i] >= 0, or -errno.
 * under_oom[i] is what a line "under_oom" of it says, 0 without one. With mount_fd >= 0 the files are opened by id and
 * `paths` is not read; with -1 by the paths of their cgroups, and a path that leads to another file gives ESTALE.
 */
void memcg_look_many(const struct memcg_control *control, int mount_fd, uint64_t device, const uint64_t *control_ids,
                     const char *paths, size_t count, int64_t *values, uint8_t *under_oom);

/* What memcg_moved_many() finds. */
#define MEMCG_HERE 0      /* the path leads to the directory of that id */
#define MEMCG_ELSEWHERE 1 /* it leads nowhere, or to another: the directory was renamed, or is gone */
#define MEMCG_UNKNOWN 2   /* nobody could tell: there was no memory for it, say */

/* Looks whether each path, an absolute one, still leads to the directory of that id. */
void memcg_moved_many(uint64_t device, const uint64_t *directory_ids, const char *paths, size_t count,
                      uint8_t *moved);

/*
 * The next subdirectories of an open directory, by getdents64(2) into the caller's buffer: their names, each with its
 * NUL, one behind the other at the start of `names`, and their ids. Returns how many, at most size / MEMCG_ENTRY, which
 * `ids` must have room for; 0 at the end.
 */
int memcg_list(int directory_fd, char *names, size_t size, uint64_t *ids);

#define MEMCG_ENTRY 24 /* bytes: the least that a directory entry takes in the kernel's form */

/* An inotify instance, for directories, and on cgroup v2 for control files too. */
int memcg_inotify_open(void);

/* Follows a control file at a path: whatever is written to it, or counted in it. Returns the watch descriptor. */
int memcg_inotify_add_file(int inotify_fd, const char *path);

/* Follows an open directory: creation, removal and renames of what is in it. Returns the watch descriptor. */
int memcg_inotify_add(int inotify_fd, int directory_fd);

/* The kernel never takes away the watch of a removed cgroup. */
int memcg_inotify_remove(int inotify_fd, int watch);

/*
 * A fanotify group with one mark, on the whole file system that `path` is on: creation, removal and renames of
 * directories, with the parent's file handle and the name. EPERM without CAP_SYS_ADMIN; ENODEV, EINVAL on older kernels.
 */
int memcg_fanotify_open(const char *path);

/* What memory.events.local of cgroup v2 counts. oom_kill may be -errno: it could not be read, and the rest is 0. */
struct memcg_counters {
    int64_t oom_kill;
    int64_t oom;
    int64_t oom_group_kill; /* from 5.17 on, else 0 */
    int64_t max;
    int64_t high;
};

/* A cgroup of version 2, and the inotify watch that tells of its events. */
struct memcg_attachment {
    int32_t watch;         /* of memory.events.local, or -errno */
    int32_t step;          /* where it failed: enum memcg_step */
    int32_t follower;      /* the inotify watch of the cgroup's directory, or -errno */
    uint32_t children;     /* how many cgroups are in it: read after `follower` stood */
    uint64_t directory_id; /* st_ino of the cgroup's directory, its kernfs id */
    uint64_t control_id;   /* st_ino of memory.events.local, its kernfs id; 0: the memory controller is off */
    struct memcg_counters before; /* read before the watch stood */
    struct memcg_counters after;  /* and after it, also where it could not be had; as before where they could not be read */
    struct memcg_counters subtree; /* of memory.events, read between the two */
};

struct memcg_attachments {
    int64_t count;
    int32_t inotify_fd; /* or -errno: why there is none */
    int32_t follow;     /* whether to follow the directories too */
    struct memcg_attachment rows[];
};

/*
 * Attaches to `count` cgroups of version 2, as memcg_register_many() registers those of version 1. The watches are
 * inotify's: they last until they are removed, or the instance is closed, and are the same for the same file.
 */
void memcg_attach_many(uint64_t device, const uint64_t *ids, const char *paths, size_t count,
                       struct memcg_attachments *attachments);

/* Looks at `count` memory.events.local files, as memcg_look_many() looks at memory.oom_control. */
void memcg_count_many(int mount_fd, uint64_t device, const uint64_t *control_ids, const char *paths, size_t count,
                      struct memcg_counters *counters);

/* The same of memory.events, which counts what is and was below as well; by path, the ids are the directories'. */
void memcg_subtree_many(uint64_t device, const uint64_t *directory_ids, const char *paths, size_t count,
                        struct memcg_counters *counters);

/*
 * Triggers of pressure stall information, by Linux AIO (io_submit(2), IOCB_CMD_POLL): polling such a file takes its
 * event away (psi_trigger_poll()), so that in an epoll set which is in another one the outer would take what the inner
 * has to tell. Here one request a file polls it, and an eventfd says that it has.
 */

#define MEMCG_TRIGGERS 1024 /* the most of one context */

/* Room for a request (struct iocb); it stays where it is until it was taken with the count 0. */
struct memcg_trigger {
    uint64_t request[8];
};

/* Makes a context, to be given up with memcg_triggers_close(). ENOSYS where the kernel has no AIO; EAGAIN: fs.aio-max-nr. */
int memcg_triggers_open(uint64_t *context);

/* Cancels what is under way; not in a forked child, whose context is not this. */
int memcg_triggers_close(uint64_t context);

/* Polls an open trigger from now on and adds 1 to the eventfd when there is something to take. */
int memcg_trigger_begin(uint64_t context, int trigger_fd, int event_fd, uint64_t key, struct memcg_trigger *trigger);

/* Ends that; it is taken once more, with the count 0, unless it was before. */
int memcg_trigger_end(uint64_t context, struct memcg_trigger *trigger);

/*
 * Takes what there is, without waiting: a key with the count 1 where it stalled, and with the count 0 where the polling
 * has ended: the cgroup was removed, memcg_trigger_end() was called, or the kernel would not go on. One that stalled is
 * polled further unless it is there with 0 as well, behind. The batch holds them whatever comes afterwards.
 */
int memcg_triggers_take(uint64_t context, struct memcg_batch *batch);
