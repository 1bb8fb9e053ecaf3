/* Extended attributes that are not there, as most objects have none: one call says so, where Python needs ten.
 *
 * An object is recognised by its device and inode number, and asked through a descriptor of it: a name may lead elsewhere.
 */

#define _GNU_SOURCE
#include "xattrs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

const char lacks_attribute_doc[] =
    "lacks_attribute(dirfd, name, device, number, attribute) -> ALL, ONE or 0\n--\n\n"
    "Whether `name` in a directory is the object (device, number), and has not the attribute (ONE), or none (ALL).\n"
    "0: it has, or another has to find out.";

const char are_without_xattrs_doc[] =
    "are_without_xattrs(dirfd, files) -> list of bool\n--\n\n"
    "Which files have none: (anything, name, device, number) of each, in the directory.";

static int look_for_attribute(int fd, uint64_t device, uint64_t number, const char *attribute)
{
    struct stat st;
    char path[sizeof "/proc/self/fd/2147483647"];
    if (fstat(fd, &st) != 0 || st.st_dev != device || st.st_ino != number)
        return UNKNOWN;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (listxattr(path, NULL, 0) == 0)
        return ALL;
    return attribute != NULL && getxattr(path, attribute, NULL, 0) < 0 && errno == ENODATA ? ONE : UNKNOWN;
}

static int look(int dirfd, const char *name, uint64_t device, uint64_t number, const char *attribute)
{
    const int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return UNKNOWN;
    const int found = look_for_attribute(fd, device, number, attribute);
    close(fd);
    return found;
}

PyObject *lacks_attribute(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "lacks_attribute takes 5 arguments");
        return NULL;
    }
    char *name, *attribute;
    int dirfd = (int)PyLong_AsLong(args[0]);
    uint64_t device = PyLong_AsUnsignedLongLong(args[2]), number = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[1], &name, NULL) < 0 ||
        PyBytes_AsStringAndSize(args[4], &attribute, NULL) < 0)
        return NULL;
    return PyLong_FromLong(look(dirfd, name, device, number, attribute));
}

PyObject *are_without_xattrs(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "are_without_xattrs(dirfd, files)");
        return NULL;
    }
    const int dirfd = (int)PyLong_AsLong(args[0]);
    PyObject *found = PyErr_Occurred() ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(args[1]); i++) {
        PyObject *file = PyList_GET_ITEM(args[1], i), *anything;
        const char *name;
        unsigned long long device, number;
        if (!PyTuple_Check(file))
            PyErr_SetString(PyExc_TypeError, "files are tuples");
        else if (PyArg_ParseTuple(file, "OyKK", &anything, &name, &device, &number) &&
                 PyList_Append(found, look(dirfd, name, device, number, NULL) == ALL ? Py_True : Py_False) == 0)
            continue;
        Py_CLEAR(found);
    }
    return found;
}
