/* What the parts of the C core share. */
#ifndef MEMCG_OOM_H
#define MEMCG_OOM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>

#include "declarations.h"

/* Defined in control_file.c: the oom_kill counter of an open memory.oom_control. */
int64_t memcg_read_kills(int control_fd);

/*
 * The value of `key` in a control file of lines "key value". -EBADMSG where a value is no number, -ENODATA where no
 * line has the key (oom_kill came with 4.13).
 */
int64_t memcg_parse_counter(const char *text, const char *key);

/*
 * Opens a file of a cgroup, or with the empty name its directory: by id, or with mount_fd -1 at the path that *paths
 * is at, which is gone past. There another file than that of the id gives ESTALE; 0: any will do.
 */
int memcg_open_control(int mount_fd, uint64_t device, uint64_t id, const char **paths, const char *file);

#endif
