/* What is said to the kernel: bytes, attributes, an error number, or that of an exception. */

#define _GNU_SOURCE
#include "replies.h"

#include "../data/waiting.h"
#include "../state.h"
#include "counting.h"

#include <errno.h>
#include <string.h>

void answer(uint64_t unique, int error, const void *data, size_t size)
{
    count_error(error);
    write_reply(device.fd, unique, error, data, size);
}

/* The attributes out of an entry: struct fuse_attr_out and fuse_entry_out end with the same struct fuse_attr. */
static void answer_attributes(uint64_t unique, const char *entry)
{
    struct fuse_entry_out in;
    struct fuse_attr_out out;
    memcpy(&in, entry, sizeof in);
    memset(&out, 0, sizeof out);
    out.attr_valid = in.attr_valid;
    out.attr_valid_nsec = in.attr_valid_nsec;
    out.attr = in.attr;
    answer(unique, 0, &out, sizeof out);
}

void answer_sized(uint64_t unique, const char *data, size_t size, uint32_t room)
{
    if (room == 0) {
        struct fuse_getxattr_out out = {.size = (uint32_t)size};
        answer(unique, 0, &out, sizeof out);
    } else if (size > room) {
        answer(unique, ERANGE, NULL, 0);
    } else {
        answer(unique, 0, data, size);
    }
}

void answer_with(uint32_t opcode, uint64_t unique, PyObject *result, uint32_t room)
{
    if (PyLong_Check(result)) {
        answer(unique, (int)PyLong_AsLong(result), NULL, 0);
        return;
    }
    const char *data = PyBytes_AS_STRING(result);
    size_t size = (size_t)PyBytes_GET_SIZE(result);
    if (opcode == FUSE_GETATTR || opcode == FUSE_SETATTR) {
        if (size == sizeof(struct fuse_entry_out))
            answer_attributes(unique, data);
        else
            answer(unique, EIO, NULL, 0);
    } else if (opcode == FUSE_GETXATTR || opcode == FUSE_LISTXATTR) {
        answer_sized(unique, data, size, room);
    } else {
        answer(unique, 0, data, size);
    }
}

int error_of_exception(uint32_t opcode)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        PyException_SetTraceback(value, traceback);
    PyObject *result = PyObject_CallFunction(device.failed, "IO", opcode, value != NULL ? value : Py_None);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    long code = EIO;
    if (result != NULL && PyLong_Check(result))
        code = PyLong_AsLong(result);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(device.failed);
    Py_XDECREF(result);
    return code > 0 ? (int)code : EIO;
}
