/* What the parts of the C core share. */
#ifndef MEMCG_OOM_H
#define MEMCG_OOM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>

#include "declarations.h"

/* Defined in control_file.c: the value of an open control file, and whether it says under_oom. */
int64_t memcg_read_value(const struct memcg_control *control, int control_fd, uint8_t *under_oom);

/*
 * The value of `key` in a control file of lines "key value", or with the empty key the number that it is. -EBADMSG
 * where a value is no number, -ENODATA where no line has the key (oom_kill came with 4.13).
 */
int64_t memcg_parse_counter(const char *text, const char *key);

/*
 * Opens a file of a cgroup, or with the empty name its directory: by id, or with mount_fd -1 at the path that *paths
 * is at, which is gone past. There another file than that of the id gives ESTALE; 0: any will do.
 */
int memcg_open_control(int mount_fd, uint64_t device, uint64_t id, const char **paths, const char *file);

#endif
