/* Files of a listing that are known, ready to be sent: lstat(2) of each name, and its struct fuse_direntplus.
 *
 * Which they are says core/tree/listing.py (known_files). One that is not what it was ends the run: Python looks it up, and
 * says what is wrong with it.
 */

#define _GNU_SOURCE
#include "known.h"

#include "plain.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>

const char pack_known_doc[] =
    "pack_known(directory, device, files, room, seconds, nsec) -> (entries, count)\n--\n\n"
    "Entries for `files`, up to the first that is another object now, or has no room, and for how many they are.\n\n"
    "directory: a descriptor of it; device: st_dev of the files; files: a list of (position, name, number to show, st_ino,\n"
    "S_IFMT bits); room: for entries, in bytes; seconds, nsec: how long the kernel may keep one.";

/* Returns false with an exception. */
static bool read_file(PyObject *item, struct listed *listed, unsigned long long *number, unsigned long *kind)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 5 || !PyBytes_Check(PyTuple_GET_ITEM(item, 1))) {
        PyErr_SetString(PyExc_TypeError, "files are (position, name, number to show, st_ino, S_IFMT bits)");
        return false;
    }
    listed->position = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(item, 0));
    listed->name = PyBytes_AS_STRING(PyTuple_GET_ITEM(item, 1));
    listed->length = (size_t)PyBytes_GET_SIZE(PyTuple_GET_ITEM(item, 1));
    listed->number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(item, 2));
    *number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(item, 3));
    *kind = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(item, 4));
    return !PyErr_Occurred();
}

PyObject *pack_known(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 6 || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "pack_known(directory, device, files, room, seconds, nsec)");
        return NULL;
    }
    const int directory = (int)PyLong_AsLong(args[0]);
    const unsigned long long device = PyLong_AsUnsignedLongLong(args[1]);
    const Py_ssize_t room = PyLong_AsSsize_t(args[3]);
    struct listed listed = {.seconds = PyLong_AsUnsignedLongLong(args[4]), .nsec = (uint32_t)PyLong_AsUnsignedLong(args[5])};
    if (PyErr_Occurred())
        return NULL;
    PyObject *entries = PyBytes_FromStringAndSize(NULL, room > 0 ? room : 0);
    if (entries == NULL)
        return NULL;
    char *const start = PyBytes_AS_STRING(entries), *at = start;
    Py_ssize_t done = 0;
    for (; done < PyList_GET_SIZE(args[2]); done++) {
        unsigned long long number;
        unsigned long kind;
        struct stat st;
        if (!read_file(PyList_GET_ITEM(args[2], done), &listed, &number, &kind)) {
            Py_DECREF(entries);
            return NULL;
        }
        const size_t whole = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + listed.length);
        if ((Py_ssize_t)whole > room - (at - start) || fstatat(directory, listed.name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            st.st_dev != device || st.st_ino != number || (st.st_mode & S_IFMT) != kind)
            break;
        at += put_entry(at, &st, &listed);
    }
    if (_PyBytes_Resize(&entries, at - start) < 0)
        return NULL;
    return Py_BuildValue("(Nn)", entries, done);
}
