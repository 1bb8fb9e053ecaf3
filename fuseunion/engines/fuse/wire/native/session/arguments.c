/* From a request to the arguments of its handler. What a request must hold is checked before it is read. */

#define _GNU_SOURCE
#include "arguments.h"

#include "../state.h"

#include <string.h>

#define BODY(type) (r->size < sizeof(type) ? NULL : (const type *)r->body)

PyObject *number(uint64_t value) { return PyLong_FromUnsignedLongLong(value); }

/* A name that ends with a zero byte within the message, as bytes; advances past it. */
static PyObject *name_at(const request *r, size_t *at)
{
    const char *start = r->body + *at;
    size_t left = *at <= r->size ? r->size - *at : 0;
    size_t length = strnlen(start, left);
    if (length == left) {
        PyErr_SetString(PyExc_ValueError, "a name without an end");
        return NULL;
    }
    *at += length + 1;
    return PyBytes_FromStringAndSize(start, (Py_ssize_t)length);
}

#define MOST_OF_IOCTL 4096

void put(arguments *a, PyObject *item)
{
    if (item == NULL || a->count == ARGUMENTS)
        a->failed = true;
    else
        a->items[a->count++] = item;
}

static void put_caller(arguments *a, const request *r)
{
    put(a, number(r->header->uid));
    put(a, number(r->header->gid));
    put(a, number(r->header->pid));
}

/* A time in nanoseconds, of which 64 bits hold those from 1678 to 2262. */
static PyObject *nanoseconds(uint64_t seconds, uint32_t nsec)
{
    int64_t result;
    if (!__builtin_mul_overflow((int64_t)seconds, (int64_t)1000000000, &result) &&
        !__builtin_add_overflow(result, (int64_t)nsec, &result))
        return PyLong_FromLongLong(result);
    PyObject *whole = PyLong_FromLongLong((int64_t)seconds), *second = PyLong_FromLong(1000000000);
    PyObject *rest = PyLong_FromLong((long)nsec);
    PyObject *product = whole && second ? PyNumber_Multiply(whole, second) : NULL;
    PyObject *sum = product && rest ? PyNumber_Add(product, rest) : NULL;
    Py_XDECREF(whole);
    Py_XDECREF(second);
    Py_XDECREF(rest);
    Py_XDECREF(product);
    return sum;
}

static bool too_short(const request *r, size_t wanted, arguments *a)
{
    if (r->size >= wanted)
        return false;
    PyErr_SetString(PyExc_ValueError, "a request that is too short");
    a->failed = true;
    return true;
}

void read_arguments(const request *r, arguments *a, uint32_t *room)
{
    size_t at = 0;
    put(a, number(r->header->nodeid));
    switch (r->header->opcode) {
    case FUSE_LOOKUP:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_REMOVEXATTR:
        put(a, name_at(r, &at));
        break;
    case FUSE_SETATTR: {
        if (too_short(r, sizeof(struct fuse_setattr_in), a))
            return;
        const struct fuse_setattr_in *in = BODY(struct fuse_setattr_in);
        put_caller(a, r);
        put(a, number(in->valid));
        put(a, number(in->mode));
        put(a, number(in->uid));
        put(a, number(in->gid));
        put(a, number(in->size));
        put(a, nanoseconds(in->atime, in->atimensec));
        put(a, nanoseconds(in->mtime, in->mtimensec));
        break;
    }
    case FUSE_SYMLINK:
        put_caller(a, r);
        put(a, name_at(r, &at));
        put(a, name_at(r, &at));
        break;
    case FUSE_MKNOD: {
        if (too_short(r, sizeof(struct fuse_mknod_in), a))
            return;
        const struct fuse_mknod_in *in = BODY(struct fuse_mknod_in);
        at = sizeof *in;
        put_caller(a, r);
        put(a, number(in->umask));
        put(a, number(in->mode));
        put(a, number(in->rdev));
        put(a, name_at(r, &at));
        break;
    }
    case OP_TMPFILE: { /* its name means nothing */
        if (too_short(r, sizeof(struct fuse_create_in), a))
            return;
        const struct fuse_create_in *in = BODY(struct fuse_create_in);
        put_caller(a, r);
        put(a, number(in->umask));
        put(a, number(in->mode));
        break;
    }
    case FUSE_MKDIR: {
        if (too_short(r, sizeof(struct fuse_mkdir_in), a))
            return;
        const struct fuse_mkdir_in *in = BODY(struct fuse_mkdir_in);
        at = sizeof *in;
        put_caller(a, r);
        put(a, number(in->umask));
        put(a, number(in->mode));
        put(a, name_at(r, &at));
        break;
    }
    case FUSE_RENAME:
    case FUSE_RENAME2: {
        size_t head = r->header->opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(struct fuse_rename2_in);
        if (too_short(r, head, a))
            return;
        uint64_t target;
        uint32_t flags = 0;
        memcpy(&target, r->body, sizeof target);
        if (r->header->opcode == FUSE_RENAME2)
            flags = BODY(struct fuse_rename2_in)->flags;
        at = head;
        put(a, name_at(r, &at));
        put(a, number(target));
        put(a, a->failed ? NULL : name_at(r, &at));
        put(a, number(flags));
        break;
    }
    case FUSE_LINK: {
        if (too_short(r, sizeof(struct fuse_link_in), a))
            return;
        put(a, number(BODY(struct fuse_link_in)->oldnodeid));
        at = sizeof(struct fuse_link_in);
        put(a, name_at(r, &at));
        break;
    }
    case FUSE_READ:
    case FUSE_READDIRPLUS: {
        if (too_short(r, sizeof(struct fuse_read_in), a))
            return;
        const struct fuse_read_in *in = BODY(struct fuse_read_in);
        put(a, number(in->offset));
        put(a, number(in->size));
        break;
    }
    case FUSE_WRITE: {
        if (too_short(r, sizeof(struct fuse_write_in), a))
            return;
        const struct fuse_write_in *in = BODY(struct fuse_write_in);
        if (too_short(r, sizeof *in + (size_t)in->size, a))
            return;
        put_caller(a, r);
        put(a, number(in->write_flags));
        put(a, number(in->offset));
        put(a, PyBytes_FromStringAndSize(r->body + sizeof *in, (Py_ssize_t)in->size));
        break;
    }
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        if (too_short(r, sizeof(struct fuse_fsync_in), a))
            return;
        put(a, PyBool_FromLong(is_data_only(BODY(struct fuse_fsync_in))));
        break;
    case FUSE_SETXATTR: {
        if (too_short(r, FUSE_COMPAT_SETXATTR_IN_SIZE, a))
            return;
        uint32_t size, flags;
        memcpy(&size, r->body, 4);
        memcpy(&flags, r->body + 4, 4);
        at = FUSE_COMPAT_SETXATTR_IN_SIZE;
        put_caller(a, r);
        put(a, name_at(r, &at));
        if (a->failed || too_short(r, at + size, a))
            return;
        put(a, PyBytes_FromStringAndSize(r->body + at, (Py_ssize_t)size));
        put(a, number(flags));
        break;
    }
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
        if (too_short(r, sizeof(struct fuse_getxattr_in), a))
            return;
        *room = BODY(struct fuse_getxattr_in)->size;
        at = sizeof(struct fuse_getxattr_in);
        if (r->header->opcode == FUSE_GETXATTR)
            put(a, name_at(r, &at));
        else
            put(a, number(r->header->uid));
        break;
    case FUSE_ACCESS:
        if (too_short(r, sizeof(struct fuse_access_in), a))
            return;
        put(a, number(BODY(struct fuse_access_in)->mask));
        break;
    case FUSE_FALLOCATE: {
        if (too_short(r, sizeof(struct fuse_fallocate_in), a))
            return;
        const struct fuse_fallocate_in *in = BODY(struct fuse_fallocate_in);
        put_caller(a, r);
        put(a, number(in->offset));
        put(a, number(in->length));
        put(a, number(in->mode));
        break;
    }
    case FUSE_IOCTL: {
        if (too_short(r, sizeof(struct fuse_ioctl_in), a))
            return;
        const struct fuse_ioctl_in *in = BODY(struct fuse_ioctl_in);
        if (too_short(r, sizeof *in + (size_t)in->in_size, a))
            return;
        put(a, number(in->cmd));
        put(a, PyBytes_FromStringAndSize(r->body + sizeof *in, (Py_ssize_t)in->in_size));
        put(a, number(in->out_size < MOST_OF_IOCTL ? in->out_size : MOST_OF_IOCTL));
        break;
    }
    case FUSE_LSEEK: {
        if (too_short(r, sizeof(struct fuse_lseek_in), a))
            return;
        const struct fuse_lseek_in *in = BODY(struct fuse_lseek_in);
        put(a, PyLong_FromLongLong((long long)in->offset)); /* whatever lseek(2) was given (fs/fuse/file.c fuse_lseek) */
        put(a, number(in->whence));
        break;
    }
    case FUSE_COPY_FILE_RANGE: {
        if (too_short(r, sizeof(struct fuse_copy_file_range_in), a))
            return;
        const struct fuse_copy_file_range_in *in = BODY(struct fuse_copy_file_range_in);
        put_caller(a, r);
        put(a, number(in->off_in));
        put(a, number(in->nodeid_out));
        put(a, number(in->off_out));
        put(a, number(in->len));
        break;
    }
    default: /* FUSE_GETATTR, FUSE_READLINK, FUSE_STATFS, FUSE_FORGET, ...: the number says it all */
        break;
    }
}

void release_arguments(arguments *a)
{
    for (size_t i = 0; i < a->count; i++)
        Py_DECREF(a->items[i]);
}
