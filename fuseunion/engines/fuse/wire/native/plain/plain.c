/* Plain files of a listing, ready to be sent: what core/tree/listing.py (PlainFiles) calls plain, many at once.
 *
 * It is lstat(2) of each name and a struct fuse_direntplus made of it, without a Python object for each number. What is
 * not plain, or cannot be looked at, ends the run: Python looks it up and says what is wrong with it.
 *
 * Layouts: include/uapi/linux/fuse.h.
 */

#include "plain.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

const char pack_plain_doc[] =
    "pack_plain(layers, is_written, names, first, room, seconds, nsec) -> (entries, files)\n--\n\n"
    "Entries for the plain files among `names`, from number `first` up to the first that is none, or has no room.\n\n"
    "layers: a list of (descriptor of the directory, st_dev of its filesystem, what is added to a real inode number\n"
    "(core/format/numbers.py)), topmost first; is_written: the files of the first are only when they have no attributes;\n"
    "names: a list of (position, name); seconds, nsec: how long the kernel may keep an entry.\n"
    "Returns bytes of at most `room`, and for each file (name, number of its layer, number shown, real number, S_IFMT of\n"
    "its mode, length of its entry).";

enum {
    AT_ONCE = 64, /* as many as directories/listed.py asks for at most */
    LAYERS = 64,  /* of more, Python asks only those that have a name */
    REAL_BITS = 48,
};

struct layer {
    int dirfd;
    dev_t device;
    uint64_t index;
};

struct stack {
    struct layer layers[LAYERS];
    size_t count;
    bool is_written; /* the first, whose files can have marks, however few layers lie below */
};

/* listxattrat(2), which Linux 6.13 brought: a third of the time of a path through proc(5). */
#if !defined SYS_listxattrat && (defined __x86_64__ || defined __aarch64__ || defined __riscv || defined __s390x__)
#define SYS_listxattrat 465
#endif

static ssize_t list_attributes(int dirfd, const char *name)
{
#ifdef SYS_listxattrat
    static bool is_missing = false; /* written with the GIL held */
    if (!is_missing) {
        long length = syscall(SYS_listxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, NULL, 0);
        /* A filter of system calls may refuse what it does not know with EPERM, which llistxattr(2) never says. */
        if (length >= 0 || (errno != ENOSYS && errno != EPERM))
            return length;
        is_missing = true;
    }
#endif
    char path[sizeof "/proc/self/fd/2147483647/" + NAME_MAX];
    int length = snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dirfd, name);
    return length > 0 && (size_t)length < sizeof path ? llistxattr(path, NULL, 0) : -1;
}

/* An attribute can make a whiteout of an empty file, and say that another layer has the data: not one without any. */
static bool has_no_attributes(int dirfd, const char *name)
{
    return list_attributes(dirfd, name) == 0;
}

static bool is_plain(const struct layer *layer, bool lowest, const char *name, const struct stat *st)
{
    if (st->st_dev != layer->device || st->st_nlink != 1 || st->st_ino <= FUSE_ROOT_ID || st->st_ino >> REAL_BITS != 0)
        return false;
    if (S_ISLNK(st->st_mode))
        return lowest || has_no_attributes(layer->dirfd, name);
    return S_ISREG(st->st_mode) && ((lowest && st->st_size > 0) || has_no_attributes(layer->dirfd, name));
}

/* Which layer has a plain file of this name; -1 where none has, or what is there is no such file. */
static int find_plain(const struct stack *stack, const char *name, struct stat *st)
{
    for (size_t i = 0; i < stack->count; i++) {
        const struct layer *layer = &stack->layers[i];
        if (fstatat(layer->dirfd, name, st, AT_SYMLINK_NOFOLLOW) == 0)
            return is_plain(layer, i + 1 == stack->count && !(stack->is_written && i == 0), name, st) ? (int)i : -1;
        if (errno != ENOENT)
            return -1;
    }
    return -1;
}

void fill_attributes(struct fuse_attr *attr, const struct stat *st, uint64_t number)
{
    *attr = (struct fuse_attr){
        .ino = number,
        .size = (uint64_t)st->st_size,
        .blocks = (uint64_t)st->st_blocks,
        .atime = (uint64_t)st->st_atim.tv_sec,
        .mtime = (uint64_t)st->st_mtim.tv_sec,
        .ctime = (uint64_t)st->st_ctim.tv_sec,
        .atimensec = (uint32_t)st->st_atim.tv_nsec,
        .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = (uint32_t)st->st_nlink,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .rdev = (uint32_t)st->st_rdev,
        .blksize = (uint32_t)st->st_blksize,
    };
}

size_t put_entry(char *at, const struct stat *st, const struct listed *listed)
{
    const size_t whole = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + listed->length);
    struct fuse_direntplus to;
    memset(&to, 0, sizeof to);
    to.entry_out.nodeid = listed->number;
    to.entry_out.entry_valid = to.entry_out.attr_valid = listed->seconds;
    to.entry_out.entry_valid_nsec = to.entry_out.attr_valid_nsec = listed->nsec;
    fill_attributes(&to.entry_out.attr, st, listed->number);
    to.dirent.ino = listed->number;
    to.dirent.off = listed->position;
    to.dirent.namelen = (uint32_t)listed->length;
    to.dirent.type = st->st_mode >> 12;
    memcpy(at, &to, FUSE_NAME_OFFSET_DIRENTPLUS);
    memset(at + whole - 8, 0, 8);
    memcpy(at + FUSE_NAME_OFFSET_DIRENTPLUS, listed->name, listed->length);
    return whole;
}

/* The name of an item of the list, or NULL with an exception. */
static PyObject *name_of(PyObject *names, Py_ssize_t index, uint64_t *position)
{
    PyObject *item = PyList_GET_ITEM(names, index);
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2 || !PyBytes_Check(PyTuple_GET_ITEM(item, 1))) {
        PyErr_SetString(PyExc_TypeError, "names are pairs of a position and bytes");
        return NULL;
    }
    *position = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(item, 0));
    return PyErr_Occurred() ? NULL : PyTuple_GET_ITEM(item, 1);
}

/* Look at the names, without the GIL. Returns how many are plain. */
static Py_ssize_t look(const struct stack *stack, char *const *paths, Py_ssize_t count, struct stat *stats, int *found_in)
{
    Py_ssize_t found = 0;
    Py_BEGIN_ALLOW_THREADS
    while (found < count && (found_in[found] = find_plain(stack, paths[found], &stats[found])) >= 0)
        found++;
    Py_END_ALLOW_THREADS
    return found;
}

/* Returns false with an exception, or without one where there are too many. */
static bool read_layers(PyObject *list, int is_written, struct stack *stack)
{
    if (PyList_GET_SIZE(list) > LAYERS)
        return false;
    *stack = (struct stack){.count = (size_t)PyList_GET_SIZE(list), .is_written = is_written != 0};
    for (size_t i = 0; i < stack->count; i++) {
        unsigned long long device, index;
        PyObject *item = PyList_GET_ITEM(list, (Py_ssize_t)i);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "layers are tuples");
            return false;
        }
        if (!PyArg_ParseTuple(item, "iKK", &stack->layers[i].dirfd, &device, &index))
            return false;
        stack->layers[i].device = device;
        stack->layers[i].index = index;
    }
    return true;
}

PyObject *pack_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 7 || !PyList_Check(args[0]) || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "pack_plain(layers, is_written, names, first, room, seconds, nsec)");
        return NULL;
    }
    PyObject *names = args[2];
    Py_ssize_t first = PyLong_AsSsize_t(args[3]), room = PyLong_AsSsize_t(args[4]);
    uint64_t seconds = PyLong_AsUnsignedLongLong(args[5]);
    uint32_t nsec = (uint32_t)PyLong_AsUnsignedLong(args[6]);
    if (PyErr_Occurred())
        return NULL;
    struct stack stack;
    if (!read_layers(args[0], PyObject_IsTrue(args[1]), &stack))
        return PyErr_Occurred() ? NULL : Py_BuildValue("y[]", "");
    Py_ssize_t left = first < 0 ? 0 : PyList_GET_SIZE(names) - first;
    char *paths[AT_ONCE];
    uint64_t positions[AT_ONCE];
    struct stat stats[AT_ONCE];
    int found_in[AT_ONCE];
    Py_ssize_t asked = 0, size = 0;
    for (; asked < left && asked < AT_ONCE; asked++) {
        PyObject *name = name_of(names, first + asked, &positions[asked]);
        if (name == NULL)
            return NULL;
        size += (Py_ssize_t)FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + (size_t)PyBytes_GET_SIZE(name));
        if (size > room)
            break;
        paths[asked] = PyBytes_AS_STRING(name);
    }
    Py_ssize_t found = look(&stack, paths, asked, stats, found_in);
    PyObject *entries = PyBytes_FromStringAndSize(NULL, room), *files = PyList_New(found);
    char *at = entries == NULL ? NULL : PyBytes_AS_STRING(entries);
    for (Py_ssize_t i = 0; entries != NULL && files != NULL && i < found; i++) {
        PyObject *name = PyTuple_GET_ITEM(PyList_GET_ITEM(names, first + i), 1);
        const struct listed listed = {
            .number = stack.layers[found_in[i]].index | stats[i].st_ino,
            .seconds = seconds,
            .nsec = nsec,
            .position = positions[i],
            .name = paths[i],
            .length = (size_t)PyBytes_GET_SIZE(name),
        };
        const size_t whole = put_entry(at, &stats[i], &listed);
        at += whole;
        PyObject *file = Py_BuildValue("OiKKIn", name, found_in[i], (unsigned long long)listed.number,
                                       (unsigned long long)stats[i].st_ino, stats[i].st_mode & S_IFMT, (Py_ssize_t)whole);
        if (file == NULL)
            Py_CLEAR(files);
        else
            PyList_SET_ITEM(files, i, file);
    }
    if (files == NULL || entries == NULL || _PyBytes_Resize(&entries, at - PyBytes_AS_STRING(entries)) < 0) {
        Py_XDECREF(files);
        Py_XDECREF(entries);
        return NULL;
    }
    PyObject *result = PyTuple_Pack(2, entries, files);
    Py_DECREF(entries);
    Py_DECREF(files);
    return result;
}
