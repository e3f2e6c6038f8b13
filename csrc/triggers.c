/* Triggers of pressure stall information, polled by Linux AIO: see declarations.h for the reason. */
#include "memcg_oom.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct iocb) == sizeof(struct memcg_trigger), "a request fits its room");

int memcg_triggers_open(uint64_t *context)
{
    aio_context_t made = 0;

    if (syscall(SYS_io_setup, MEMCG_TRIGGERS, &made) < 0)
        return -errno;
    *context = made;
    return 0;
}

int memcg_triggers_close(uint64_t context)
{
    return syscall(SYS_io_destroy, (aio_context_t)context) < 0 ? -errno : 0;
}

static int submit(uint64_t context, struct iocb *request)
{
    return syscall(SYS_io_submit, (aio_context_t)context, 1L, &request) < 0 ? -errno : 0;
}

int memcg_trigger_begin(uint64_t context, int trigger_fd, int event_fd, uint64_t key, struct memcg_trigger *trigger)
{
    struct iocb *request = (struct iocb *)trigger;

    *request = (struct iocb){
        .aio_data = key,
        .aio_lio_opcode = IOCB_CMD_POLL,
        .aio_fildes = (uint32_t)trigger_fd,
        .aio_buf = POLLPRI,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)event_fd,
    };
    return submit(context, request);
}

int memcg_trigger_end(uint64_t context, struct memcg_trigger *trigger)
{
    struct iocb *request = (struct iocb *)trigger;
    struct io_event unused;

    request->aio_lio_opcode = IOCB_CMD_NOOP; /* if it is done already, whoever takes it cannot submit it again */
    /* EINPROGRESS: it is being cancelled. EINVAL: it is done. Either way the next take has it, with the count 0. */
    if (syscall(SYS_io_cancel, (aio_context_t)context, request, &unused) < 0 && errno != EINPROGRESS && errno != EINVAL)
        return -errno;
    return 0;
}

int memcg_triggers_take(uint64_t context, struct memcg_batch *batch)
{
    struct io_event done[MEMCG_BATCH / 2]; /* each of which may be two signals */
    struct timespec at_once = {0, 0};
    long count;

    batch->count = batch->unread = 0;
    count = syscall(SYS_io_getevents, (aio_context_t)context, 0L, (long)MEMCG_BATCH / 2, done, &at_once);
    if (count < 0)
        return -errno;
    for (long i = 0; i < count; i++) {
        int has_stalled = done[i].res == POLLPRI;

        if (has_stalled)
            batch->signals[batch->count++] = (struct memcg_signal){.key = done[i].data, .count = 1};
        /* Nothing is lost in between: an event that comes before the new request ends it at once. */
        if (!has_stalled || submit(context, (struct iocb *)(uintptr_t)done[i].obj) < 0)
            batch->signals[batch->count++] = (struct memcg_signal){.key = done[i].data};
    }
    return (int)batch->count;
}
