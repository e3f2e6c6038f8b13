/*
 * A layer between a program and libc, in which one system call fails once: the n-th of its kind from now on, with an
 * errno that its man page lists. It is linked into a program in C, or preloaded into one in Python.
 *
 * A call that fails has not been made, but for close(2) and io_cancel(2), which fail after they have taken effect. Only
 * the calls of the thread that has armed it count.
 */
#ifndef INTERPOSE_H
#define INTERPOSE_H

#define FAULT_ERRORS 12

struct fault_call {
    const char *name;
    int errors[FAULT_ERRORS]; /* what it is made to fail with; ends with 0 */
};

/* The calls that can fail; ends with one without a name. */
extern const struct fault_call fault_calls[];

/* From now on calls are counted, and the nth (from 1) of that kind fails. With a nth of 0 none does. */
void fault_arm(int call, int nth, int error);

/* Ends that; returns whether a call was made to fail. */
int fault_disarm(void);

/* How many of a kind there were from the last fault_arm() to the fault_disarm(). */
int fault_count(int call);

/* Has open_by_handle_at(2) open what is below a directory by inode number, as kernfs does; NULL: no more. */
void fault_handles_below(const char *directory);

#endif
