/* What the parts of the C core share. */
#ifndef MEMCG_OOM_H
#define MEMCG_OOM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>

#include "declarations.h"

/* The oom_kill counter of an open memory.oom_control. Defined in control_file.c. */
int64_t memcg_read_kills(int control_fd);

#endif
