/* From a request to the arguments of its handler (arguments.c). */

#ifndef FUSEUNION_ARGUMENTS_H
#define FUSEUNION_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* What the kernel sent; `size` of what comes after the header. */
typedef struct {
    const struct fuse_in_header *header;
    const char *body;
    size_t size;
} request;

#define ARGUMENTS 12

typedef struct {
    PyObject *items[ARGUMENTS];
    size_t count;
    bool failed;
} arguments;

/* An int, and one more argument; NULL makes all of them fail. */
PyObject *number(uint64_t value);
void put(arguments *a, PyObject *item);

/* The arguments of a request's handler, in the order that answers.py says. `room`: see answer_with. */
void read_arguments(const request *r, arguments *a, uint32_t *room);

/* They are not needed any more. */
void release_arguments(arguments *a);

#pragma GCC visibility pop

#endif
