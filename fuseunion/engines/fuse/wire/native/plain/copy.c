/* The copy-up of a plain file: what core/ops/copy_up/plain.py has found to be nothing but system calls.
 *
 * The order is that of core/ops/copy_up/files.py, which does all others: the copy gets data, owner, mark, mode and times in
 * work, and enters the upper by one rename, which is the last thing that can fail. What fails, or is not as it was believed
 * to be, is taken back and said to be so: Python begins again, and knows what is to be answered. */

#include "copy.h"
#include "opening.h"
#include "plain.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

const char copy_plain_doc[] =
    "copy_plain((lower, name, device, number, work, temporary, upper, new_name, shown, mark, value),\n"
    "           (uid, gid, mode, atime, mtime), waits, keeps)\n"
    "    -> (entry, st_dev, st_ino, size, times_kept, fd) or None\n--\n\n"
    "Copy `name` in the directory `lower`, which is the object (device, number), to `new_name` in `upper`, by way of\n"
    "`temporary` in `work`; all three are descriptors. shown: its number in the mount. mark, value: an attribute of the\n"
    "copy, in which that, the number of the copy, and the time of change of the file are filled in before what follows\n"
    "(core/marks/origin_mark.py). uid, gid, mode, atime, mtime (nanoseconds): -1 for what the file has. waits: the data may\n"
    "have to be waited for; then only what is in memory is copied.\n"
    "None: nothing was done. Else the entry to show (entries.py), empty where it could not be looked at; st_dev and st_ino\n"
    "of the copy; how many bytes were copied; times_kept: `upper` has the times that it had; fd: of the copy, for reading\n"
    "and writing, -1 if not `keeps`.";
const char prepare_plain_doc[] =
    "prepare_plain(what, as, waits) -> (fd, st_dev, st_ino, size) or None\n--\n\n"
    "The first part of copy_plain: a finished copy in `work`, which may have to be put on disk before it is shown.";
const char show_plain_doc[] =
    "show_plain(work, temporary, upper, new_name) -> times_kept or None\n--\n\n"
    "The last part of copy_plain: the copy enters the upper. None: nothing was done.";

enum {
    LARGEST = 1 << 16,
    NUMBER_AT = 1, /* in the mark, as in origin_mark.py */
    SHOWN_AT = 9,
    CTIME_AT = 17,
    HEADER = 25,
    LONGEST_MARK = HEADER + 1024,
};

#define SECOND 1000000000LL

struct wish {
    int lower, work, upper;
    const char *name, *temporary, *new_name, *mark;
    uint64_t device, number, shown;
    bool waits, keeps;
    int64_t uid, gid, mode, atime, mtime;
    char value[LONGEST_MARK];
    size_t value_size;
};

struct outcome {
    struct stat st; /* of the copy; before it had its owner if `looked` is false */
    bool looked, times_kept;
    int64_t size;
    int fd;
};

static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * SECOND + time.tv_nsec;
}

/* A time before 1970 has a remainder that is not negative. */
static struct timespec time_of(int64_t ns)
{
    int64_t rest = ns % SECOND;
    if (rest < 0)
        rest += SECOND;
    return (struct timespec){.tv_sec = (time_t)((ns - rest) / SECOND), .tv_nsec = (long)rest};
}

static bool is_plain(const struct stat *st, const struct wish *w)
{
    return st->st_dev == w->device && st->st_ino == w->number && S_ISREG(st->st_mode) && st->st_nlink == 1 &&
           (st->st_mode & (S_ISUID | S_ISGID)) == 0 && st->st_size <= LARGEST &&
           st->st_blocks * 512 >= st->st_size && /* without holes */
           st->st_ctim.tv_sec >= 0 && st->st_ctim.tv_sec < INT64_MAX / SECOND; /* the mark can say it */
}

static char data[LARGEST + 1];

/* The whole file, which must have the size that it had. */
static bool read_data(int from, size_t size, bool waits)
{
    struct iovec iov = {.iov_base = data, .iov_len = size + 1};
    return size == 0 || preadv2(from, &iov, 1, 0, waits ? RWF_NOWAIT : 0) == (ssize_t)size;
}

static bool write_data(int to, size_t size)
{
    return size == 0 || write(to, data, size) == (ssize_t)size;
}

/* All but the data, in the order that keeps each from taking another away (files.py). */
static bool dress(int to, const struct stat *st, struct wish *w, struct stat *made)
{
    if (fstat(to, made) != 0)
        return false;
    uid_t uid = w->uid < 0 ? st->st_uid : (uid_t)w->uid;
    gid_t gid = w->gid < 0 ? st->st_gid : (gid_t)w->gid;
    if ((uid != made->st_uid || gid != made->st_gid) && fchown(to, uid, gid) != 0)
        return false;
    uint64_t number = made->st_ino;
    int64_t ctime = nanoseconds(st->st_ctim);
    memcpy(w->value + NUMBER_AT, &number, sizeof number);
    memcpy(w->value + SHOWN_AT, &w->shown, sizeof w->shown);
    memcpy(w->value + CTIME_AT, &ctime, sizeof ctime);
    struct timespec times[2] = {
        w->atime == -1 ? st->st_atim : time_of(w->atime),
        w->mtime == -1 ? st->st_mtim : time_of(w->mtime),
    };
    return fsetxattr(to, w->mark, w->value, w->value_size, 0) == 0 &&
           fchmod(to, w->mode < 0 ? st->st_mode & ALLPERMS : (mode_t)w->mode) == 0 && futimens(to, times) == 0;
}

static bool restore_times(int directory, const struct stat *st)
{
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (utimensat(directory, "", times, AT_EMPTY_PATH) == 0) /* since Linux 5.8 */
        return true;
    char path[sizeof "/proc/self/fd/2147483647"];
    snprintf(path, sizeof path, "/proc/self/fd/%d", directory);
    return utimensat(AT_FDCWD, path, times, 0) == 0;
}

/* Into the upper. */
static bool show(int work, const char *temporary, int upper, const char *new_name, bool *times_kept)
{
    struct stat directory;
    if (fstat(upper, &directory) != 0 ||
        syscall(SYS_renameat2, work, temporary, upper, new_name, RENAME_NOREPLACE) != 0)
        return false;
    *times_kept = restore_times(upper, &directory);
    return true;
}

/* A finished copy in work, open for reading and writing; -1 where there is none. */
static int copy_to_work(int from, const struct stat *st, struct wish *w, struct outcome *outcome)
{
    /* What would have to be waited for is found out before anything is made. */
    if (!read_data(from, (size_t)st->st_size, w->waits))
        return -1;
    const int to = openat(w->work, w->temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (to < 0)
        return -1;
    if (write_data(to, (size_t)st->st_size) && dress(to, st, w, &outcome->st)) {
        outcome->size = st->st_size;
        return to;
    }
    unlinkat(w->work, w->temporary, 0);
    close(to);
    return -1;
}

/* As copy_to_work, of what may be another file than it was believed to be. */
static int prepare(struct wish *w, struct outcome *outcome)
{
    const int from = open_quietly(w->lower, w->name);
    if (from < 0)
        return -1;
    struct stat st;
    const bool plain = fstat(from, &st) == 0 && is_plain(&st, w) && flistxattr(from, NULL, 0) == 0;
    const int to = plain ? copy_to_work(from, &st, w, outcome) : -1;
    close(from);
    return to;
}

static bool copy(struct wish *w, struct outcome *outcome)
{
    const int to = prepare(w, outcome);
    if (to < 0)
        return false;
    const bool done = show(w->work, w->temporary, w->upper, w->new_name, &outcome->times_kept);
    if (done) {
        struct stat shown; /* the rename was a change of it */
        outcome->looked = fstat(to, &shown) == 0;
        if (outcome->looked)
            outcome->st = shown;
    } else {
        unlinkat(w->work, w->temporary, 0);
    }
    if (done && w->keeps)
        outcome->fd = to;
    else
        close(to);
    return done;
}

static const char *text(PyObject *object)
{
    char *found;
    return PyBytes_AsStringAndSize(object, &found, NULL) < 0 ? NULL : found;
}

/* What Python says (plain.py): two tuples, which it keeps during the call. */
static bool read_wish(PyObject *what, PyObject *as, struct wish *w)
{
    enum { WHAT = 11, AS = 5 };
    if (!PyTuple_Check(what) || PyTuple_GET_SIZE(what) != WHAT || !PyTuple_Check(as) || PyTuple_GET_SIZE(as) != AS) {
        PyErr_SetString(PyExc_TypeError, "copy_plain takes a tuple of 11 and one of 5");
        return false;
    }
    w->lower = (int)PyLong_AsLong(PyTuple_GET_ITEM(what, 0));
    w->device = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(what, 2));
    w->number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(what, 3));
    w->work = (int)PyLong_AsLong(PyTuple_GET_ITEM(what, 4));
    w->upper = (int)PyLong_AsLong(PyTuple_GET_ITEM(what, 6));
    w->shown = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(what, 8));
    w->uid = PyLong_AsLongLong(PyTuple_GET_ITEM(as, 0));
    w->gid = PyLong_AsLongLong(PyTuple_GET_ITEM(as, 1));
    w->mode = PyLong_AsLongLong(PyTuple_GET_ITEM(as, 2));
    w->atime = PyLong_AsLongLong(PyTuple_GET_ITEM(as, 3));
    w->mtime = PyLong_AsLongLong(PyTuple_GET_ITEM(as, 4));
    if (PyErr_Occurred())
        return false;
    w->name = text(PyTuple_GET_ITEM(what, 1));
    w->temporary = w->name != NULL ? text(PyTuple_GET_ITEM(what, 5)) : NULL;
    w->new_name = w->temporary != NULL ? text(PyTuple_GET_ITEM(what, 7)) : NULL;
    w->mark = w->new_name != NULL ? text(PyTuple_GET_ITEM(what, 9)) : NULL;
    if (w->mark == NULL)
        return false;
    PyObject *value = PyTuple_GET_ITEM(what, 10);
    if (!PyBytes_Check(value) || PyBytes_GET_SIZE(value) < HEADER || PyBytes_GET_SIZE(value) > LONGEST_MARK) {
        PyErr_SetString(PyExc_ValueError, "a mark of another size");
        return false;
    }
    w->value_size = (size_t)PyBytes_GET_SIZE(value);
    memcpy(w->value, PyBytes_AS_STRING(value), w->value_size);
    return true;
}

PyObject *copy_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct wish w;
    struct outcome outcome = {.looked = false, .fd = -1};
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "copy_plain takes 4 arguments");
        return NULL;
    }
    w.waits = args[2] != Py_False;
    w.keeps = args[3] == Py_True;
    if (!read_wish(args[0], args[1], &w))
        return NULL;
    if (!copy(&w, &outcome))
        Py_RETURN_NONE;
    struct fuse_entry_out entry;
    fill_entry(&entry, &outcome.st, w.shown);
    PyObject *made = Py_BuildValue("y#KKLOi", (const char *)&entry, (Py_ssize_t)(outcome.looked ? sizeof entry : 0),
                                   (unsigned long long)outcome.st.st_dev, (unsigned long long)outcome.st.st_ino,
                                   (long long)outcome.size, outcome.times_kept ? Py_True : Py_False, outcome.fd);
    if (made == NULL && outcome.fd >= 0)
        close(outcome.fd);
    return made;
}

PyObject *prepare_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    struct wish w;
    struct outcome outcome;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "prepare_plain takes 3 arguments");
        return NULL;
    }
    w.waits = args[2] != Py_False;
    if (!read_wish(args[0], args[1], &w))
        return NULL;
    const int fd = prepare(&w, &outcome);
    if (fd < 0)
        Py_RETURN_NONE;
    PyObject *made = Py_BuildValue("iKKL", fd, (unsigned long long)outcome.st.st_dev,
                                   (unsigned long long)outcome.st.st_ino, (long long)outcome.size);
    if (made == NULL) {
        unlinkat(w.work, w.temporary, 0);
        close(fd);
    }
    return made;
}

PyObject *show_plain(PyObject *module, PyObject *args)
{
    (void)module;
    int work, upper;
    const char *temporary, *new_name;
    bool times_kept;
    if (!PyArg_ParseTuple(args, "iyiy", &work, &temporary, &upper, &new_name))
        return NULL;
    if (!show(work, temporary, upper, new_name, &times_kept))
        Py_RETURN_NONE;
    return PyBool_FromLong(times_kept);
}
