/* Regular files that are reached by a name: opened, or read whole, in one call.
 *
 * It is what RealDir.open_regular, File.recognise and Reader.whole do, without a Python call for each step. What is not as
 * it was believed to be, or fails, is said to be so: Python begins again, and knows what is to be answered.
 */

#define _GNU_SOURCE
#include "opening.h"

#include "../repeated/remembered.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

const char open_plain_doc[] =
    "open_plain(dirfd, name, device, number) -> fd or None\n--\n\n"
    "A descriptor to read from of `name` in a directory, which is the regular file (device, number) and has nobody's lease.\n"
    "None: nothing was done.";
const char read_plain_doc[] =
    "read_plain(dirfd, name, device, number, most, waits, shown) -> bytes, fd or None\n--\n\n"
    "All of such a file, which has less than `most` bytes. waits: it may have to be waited for; then only what is in memory\n"
    "is read, and where that is not all, a descriptor says where the file is. shown: the number of the inode of which its\n"
    "attributes are remembered if it has one link (remembered.c); 0 for none. None: it is another, or longer.";

enum { LARGEST = 1 << 20 }; /* FUSE_MAX_MAX_PAGES, 256, of 4 KiB */

struct file {
    long dirfd;
    const char *name;
    unsigned long long device, number;
};

/* The first four arguments. Returns false with an exception. */
static bool read_file_arguments(PyObject *const *args, struct file *file)
{
    file->dirfd = PyLong_AsLong(args[0]);
    file->name = PyBytes_AsString(args[1]);
    if (file->name == NULL)
        return false;
    file->device = PyLong_AsUnsignedLongLong(args[2]);
    file->number = PyLong_AsUnsignedLongLong(args[3]);
    return !PyErr_Occurred();
}

int open_quietly(int dirfd, const char *name)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    const int fd = openat(dirfd, name, flags | O_NOATIME);
    return fd >= 0 || errno != EPERM ? fd : openat(dirfd, name, flags);
}

/* Returns -1 where it is another file. */
static int open_file(const struct file *file, struct stat *st)
{
    const int fd = open_quietly((int)file->dirfd, file->name);
    if (fd < 0)
        return -1;
    if (fstat(fd, st) == 0 && S_ISREG(st->st_mode) && st->st_dev == file->device && st->st_ino == file->number)
        return fd;
    close(fd);
    return -1;
}

/* Reads of regular files ignore O_NONBLOCK, but a FUSE filesystem is told of it (fs/fuse/file.c). Returns None where it
 * cannot be taken away. */
static PyObject *given(int fd)
{
    const int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0)
        return PyLong_FromLong(fd);
    close(fd);
    Py_RETURN_NONE;
}

PyObject *open_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct file file;
    struct stat st;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "open_plain(dirfd, name, device, number)");
        return NULL;
    }
    if (!read_file_arguments(args, &file))
        return NULL;
    const int fd = open_file(&file, &st);
    if (fd < 0)
        Py_RETURN_NONE;
    return given(fd);
}

/* Into new bytes; NULL, perhaps without an exception, where they are not all of the file. */
static PyObject *read_all(int fd, size_t size, bool waits)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (data == NULL || size == 0)
        return data;
    struct iovec iov = {.iov_base = PyBytes_AS_STRING(data), .iov_len = size};
    if (preadv2(fd, &iov, 1, 0, waits ? RWF_NOWAIT : 0) == (ssize_t)size)
        return data;
    Py_DECREF(data);
    return NULL;
}

PyObject *read_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct file file;
    struct stat st;
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "read_plain(dirfd, name, device, number, most, waits, shown)");
        return NULL;
    }
    const long most = PyLong_AsLong(args[4]);
    const int waits = PyObject_IsTrue(args[5]);
    const uint64_t shown = PyLong_AsUnsignedLongLong(args[6]);
    if (PyErr_Occurred() || !read_file_arguments(args, &file))
        return NULL;
    const int fd = open_file(&file, &st);
    if (fd < 0)
        Py_RETURN_NONE;
    const bool whole = st.st_size < most && st.st_size <= LARGEST;
    PyObject *data = whole ? read_all(fd, (size_t)st.st_size, waits) : NULL;
    if (shown != 0 && st.st_nlink == 1)
        remember_attributes(shown, &st);
    if (data == NULL && whole && waits && !PyErr_Occurred())
        return given(fd);
    close(fd);
    if (data == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return data;
}
