/* What is said to the kernel (replies.c). */

#ifndef FUSEUNION_REPLIES_H
#define FUSEUNION_REPLIES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* Answer with an error number, or with so many bytes. */
void answer(uint64_t unique, int error, const void *data, size_t size);

/* What getxattr(2) and listxattr(2) answer: the size alone where that is all that is asked for. */
void answer_sized(uint64_t unique, const char *data, size_t size, uint32_t room);

/* Answer with what a handler gave: an error number, or bytes. `room` is what the caller has room for. */
void answer_with(uint32_t opcode, uint64_t unique, PyObject *result, uint32_t room);

/* The error number of an exception, which is cleared; what is no OSError is told to `failed` first. */
int error_of_exception(uint32_t opcode);

#pragma GCC visibility pop

#endif
