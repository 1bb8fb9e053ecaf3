/* The removal of a plain file or an empty directory: what core/ops/removing/plain.py has found to be nothing but system
 * calls.
 *
 * The order is that of core/ops/removing/remove.py, which does all others: the object is held and recognised, and then its
 * name goes. What fails, or is not as it was believed to be, is said to be so: Python begins again, and knows what is to be
 * answered.
 */

#define _GNU_SOURCE
#include "remove.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

const char remove_plain_doc[] =
    "remove_plain(directory, name, device, number, kind, holds, lowers) -> descriptor or None\n--\n\n"
    "Remove `name` in a directory, of which `directory` is a descriptor, if it leads to the object with this st_dev and\n"
    "st_ino, and the S_IFMT bits `kind`: a directory if it is empty. holds: keep it by a descriptor, which is the caller's.\n"
    "lowers: descriptors of directories in which nothing may have the name.\n"
    "None: nothing was done. -1: it was removed, and is not held.";

struct object {
    unsigned long long device, number;
    unsigned long kind;
};

static bool is_it(const struct stat *st, const struct object *object)
{
    return st->st_dev == object->device && st->st_ino == object->number && (st->st_mode & S_IFMT) == object->kind;
}

/* Returns a descriptor that holds the object, -1 where nothing has to, or -2 where the name does not lead to it. */
static int recognised(int directory, const char *name, const struct object *object, bool holds)
{
    struct stat st;
    if (!holds)
        return fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && is_it(&st, object) ? -1 : -2;
    const int fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -2;
    if (fstat(fd, &st) == 0 && is_it(&st, object))
        return fd;
    close(fd);
    return -2;
}

PyObject *remove_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 7 || !PyBytes_Check(args[1]) || !PyTuple_Check(args[6])) {
        PyErr_SetString(PyExc_TypeError, "remove_plain(directory, name, device, number, kind, holds, lowers)");
        return NULL;
    }
    const long directory = PyLong_AsLong(args[0]);
    const char *name = PyBytes_AS_STRING(args[1]);
    const struct object object = {PyLong_AsUnsignedLongLong(args[2]), PyLong_AsUnsignedLongLong(args[3]),
                                  PyLong_AsUnsignedLong(args[4])};
    const int holds = PyObject_IsTrue(args[5]);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[6]); i++) {
        struct stat st;
        const int lower = (int)PyLong_AsLong(PyTuple_GET_ITEM(args[6], i));
        if (PyErr_Occurred())
            return NULL;
        if (fstatat(lower, name, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
            Py_RETURN_NONE;
    }
    if (PyErr_Occurred())
        return NULL;
    const int held = recognised((int)directory, name, &object, holds);
    if (held < -1)
        Py_RETURN_NONE;
    if (unlinkat((int)directory, name, object.kind == S_IFDIR ? AT_REMOVEDIR : 0) == 0)
        return PyLong_FromLong(held);
    if (held >= 0)
        close(held);
    Py_RETURN_NONE;
}
