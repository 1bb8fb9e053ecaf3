/* What needs no decision (repeated.c). */

#ifndef FUSEUNION_REPEATED_H
#define FUSEUNION_REPEATED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* What a shared descriptor may be used for. NEVER_WAITS: for a disk. ATTRIBUTES: what it has is what is shown of the
 * file, and what is changed of it, but for set-ID bits. NO_CAPABILITY: the file has no attribute security.capability.
 * XATTRS: what it has of extended attributes is what the file has, and all of them. SYNCS: fsync(2) of it is all that
 * fsync(2) of the file has to do. */
enum { READS = 1, WRITES = 2, NEVER_WAITS = 4, ATTRIBUTES = 8, NO_CAPABILITY = 16, XATTRS = 32, SYNCS = 64 };

/* An answer without Python: an error number, or bytes in `device.data`. */
struct known {
    int error;
    size_t size;
};

/* Tell Python of what was changed since it last was told. Returns -1 with an exception. */
int tell_changes(void);

/* The answer to a request that changes nothing. Returns false where Python has to give it. */
bool is_known(const struct fuse_in_header *header, const char *body, size_t size, struct known *known);

/* Whether Python answers as we would have done: a bug is logged (attach, `compares`). */
void compare(uint32_t opcode, PyObject *result, const struct known *known);

/* Change what was asked for, if that can be done without Python. */
bool repeat(const struct fuse_in_header *header, const char *body, size_t size);

/* Answer a long read of a file that never waits, without a copy of its data here. Returns false where nothing was
 * answered: that does not pay, or cannot be done. */
bool repeat_read(const struct fuse_in_header *header, const char *body, size_t size);

/* Have a read that waits, or an fsync(2), made by a thread. Returns false where Python has to see to it. */
bool repeat_later(const struct fuse_in_header *header, const char *body, size_t size, int64_t since);

/* Have made by a thread what a handler wants to be: a FUSE_READ, (fd, offset, size), or an fsync(2), (fd, data_only). The
 * descriptor is ours now. */
void answer_later(uint32_t opcode, uint64_t unique, int64_t since, PyObject *wanted);

extern const char share_doc[], unshare_doc[];
PyObject *share_number(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *unshare_number(PyObject *module, PyObject *argument);

#pragma GCC visibility pop

#endif
