/* What the parts of the module know together: the session, its handlers, what is shared and what is counted. */

#ifndef FUSEUNION_STATE_H
#define FUSEUNION_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* What older headers do not name: those of Linux 5.10 lack the first two. */
#ifndef FUSE_COMPAT_SETXATTR_IN_SIZE
#define FUSE_COMPAT_SETXATTR_IN_SIZE 8
#endif
#define FLAG_INIT_EXT ((uint64_t)1 << 30)
enum {
    OP_TMPFILE = 51,
    OPCODES = 64,
    ERRORS = 134, /* error numbers are below (include/uapi/asm-generic/errno.h) */
    INTERRUPT_BIT = 1, /* FUSE_INT_REQ_BIT, fs/fuse/dev.c */
};

/* What libfuse negotiates with the kernel at most, and the headers before it (FUSE_BUFFER_HEADER_SIZE). */
#define BUFFER_SIZE ((size_t)(1 << 20) + 0x1000)

#define SECOND ((int64_t)1000000000)

#define SHARED 1024

/* A shared descriptor. A table with one place for each number, which a later one may take: who is not found is answered
 * by Python, which shares it again. */
struct shared {
    uint64_t number; /* 0: nobody's */
    int fd;
    int uses;
    bool changed; /* Python has not been told of a change yet */
};

/* How long answers took: place n of a histogram is for what took at most 2^n microseconds, and longer than the place
 * before; the last for all else (watching/counts.py). */
enum { PLACES = 25 };

struct durations {
    uint64_t nanoseconds; /* of all together */
    uint64_t counts[PLACES];
};

#define BUSY 256

/* How often an inode was asked for. A table with one place for each number: who is asked for more often than all others
 * of its place together keeps it (Boyer and Moore's majority vote). */
struct busy {
    uint64_t number, count;
};

struct device {
    int fd;
    int told; /* an eventfd(2): something is on disk; -1 before the first attach */
    char *buffer;
    size_t pending; /* bytes in `buffer` that libfuse has not read yet */
    uint64_t init_unique, offered, wanted, unwanted;
    PyObject *handlers[OPCODES]; /* callables; NULL for what libfuse answers */
    int refusals[OPCODES];       /* an error number that needs no handler */
    PyObject *later, *failed, *tell, *made;
    struct shared shared[SHARED];
    uint64_t changed[SHARED]; /* the numbers to tell Python of */
    size_t changes;
    uint64_t seconds; /* how long the kernel may believe what it is told */
    uint32_t nsec;
    bool compares;
    size_t forgotten;      /* inodes, since memory was given back */
    bool gives_back;       /* more may be forgotten before nothing is asked for any more */
    char *data; /* what is answered without Python */
    uint64_t requests[OPCODES]; /* how many there were */
    uint64_t alone[OPCODES];    /* how many of them were answered without Python */
    struct durations durations[OPCODES];
    int64_t clock; /* CLOCK_MONOTONIC, when the last request was dealt with, or the next one was looked for */
    bool watched;  /* somebody wants to know which inodes are asked for most */
    struct busy busy[BUSY];
    uint64_t errors[ERRORS];    /* how many were answered with each error, but for refusals */
};

extern struct device device;

/* Whether FUSE_FSYNC or FUSE_FSYNCDIR is to do what fdatasync(2) does (FUSE_FSYNC_FDATASYNC, which older headers do not
 * name). */
static inline bool is_data_only(const struct fuse_fsync_in *in)
{
    return in->fsync_flags & 1;
}

/* CLOCK_MONOTONIC, in nanoseconds. */
static inline int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

#pragma GCC visibility pop

#endif
