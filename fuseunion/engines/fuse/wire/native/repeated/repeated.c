/* What needs no decision, and is repeated without asking Python.
 *
 * Reads and writes of a file whose descriptor Python has shared (`share`), its attributes, and changes of them, until
 * Python takes that back (`unshare`). What was changed is told to Python before it does anything else (`changed`), because
 * the attributes that it remembers are not true any more. Which names are not in a directory is said here too, and files
 * are made in it (directories.c). Reads that wait, and fsync(2), are left to threads (data/waiting.c).
 *
 * docs/architecture.md says what may be repeated, and why it cannot be stale. */

#define _GNU_SOURCE
#include "repeated.h"

#include "../data/spliced.h"
#include "../data/waiting.h"
#include "../places.h"
#include "../plain/plain.h"
#include "../session/replies.h"
#include "../state.h"
#include "directories.h"
#include "ends.h"
#include "remembered.h"
#include "without_xattrs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CAPABILITY "security.capability"
#define ACCESS_ACL "system.posix_acl_access"
#define DEFAULT_ACL "system.posix_acl_default"

static struct shared *place_of(uint64_t number)
{
    return &device.shared[place_in(number, SHARED)];
}

/* What Python has shared of an inode, or NULL. */
static struct shared *find_shared(uint64_t number)
{
    struct shared *shared = place_of(number);
    return shared->number == number ? shared : NULL;
}

/* Whether a FUSE_READ with a body of `size` can be made with it. */
static bool is_shared_read(const struct shared *shared, size_t size)
{
    return shared->uses & READS && size >= sizeof(struct fuse_read_in);
}

int tell_changes(void)
{
    while (device.changes > 0) {
        uint64_t number = device.changed[--device.changes];
        struct shared *shared = find_shared(number);
        if (shared != NULL)
            shared->changed = false;
        PyObject *result = PyObject_CallFunction(device.tell, "K", (unsigned long long)number);
        if (result == NULL)
            return -1;
        Py_DECREF(result);
    }
    return 0;
}

static bool note_change(struct shared *shared)
{
    if (shared->changed)
        return true;
    if (device.changes == SHARED)
        return false;
    device.changed[device.changes++] = shared->number;
    shared->changed = true;
    return true;
}

/* Read what is in memory into `device.data`. Returns -1 when Python has to wait for a disk. */
static ssize_t read_shared(const struct fuse_read_in *in, const struct shared *shared)
{
    if (in->size > BUFFER_SIZE)
        return -1;
    struct iovec iov = {device.data, in->size};
    ssize_t got = preadv2(shared->fd, &iov, 1, (off_t)in->offset, shared->uses & NEVER_WAITS ? 0 : RWF_NOWAIT);
    if (got >= 0 && (size_t)got < in->size) {
        struct stat st;
        if (fstat(shared->fd, &st) != 0 || (off_t)in->offset + got < st.st_size)
            return -1;
    }
    return got;
}

/* Write as much as there is space for (Union.write). */
static bool repeat_write(const struct fuse_in_header *header, const struct fuse_write_in *in, struct shared *shared)
{
    if (!note_change(shared))
        return false;
    const char *data = (const char *)(in + 1);
    size_t done = 0;
    while (done < in->size) {
        ssize_t count = pwrite(shared->fd, data + done, in->size - done, (off_t)(in->offset + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            if (done == 0) {
                answer(header->unique, count < 0 ? errno : ENOSPC, NULL, 0);
                return true;
            }
            break;
        }
        done += (size_t)count;
    }
    struct fuse_write_out out = {.size = (uint32_t)done};
    answer(header->unique, 0, &out, sizeof out);
    return true;
}

void fill_entry(struct fuse_entry_out *entry, const struct stat *st, uint64_t number)
{
    *entry = (struct fuse_entry_out){
        .nodeid = number,
        .entry_valid = device.seconds,
        .attr_valid = device.seconds,
        .entry_valid_nsec = device.nsec,
        .attr_valid_nsec = device.nsec,
    };
    fill_attributes(&entry->attr, st, number);
}

/* Say that a name is not there, where no layer has it. */
static void say_absent(struct known *known)
{
    struct fuse_entry_out out = {.entry_valid = device.seconds, .entry_valid_nsec = device.nsec};
    memcpy(device.data, &out, sizeof out);
    *known = (struct known){.size = sizeof out};
}

/* Say what an inode has (Entries in entries.py). */
static void say_attributes(const struct fuse_attr *attr, struct known *known)
{
    struct fuse_attr_out out = {.attr_valid = device.seconds, .attr_valid_nsec = device.nsec, .attr = *attr};
    memcpy(device.data, &out, sizeof out);
    *known = (struct known){.size = sizeof out};
}

static void say_status(uint64_t number, const struct stat *st, struct known *known)
{
    struct fuse_attr attr;
    fill_attributes(&attr, st, number);
    say_attributes(&attr, known);
}

static bool look_at_shared(const struct shared *shared, struct known *known)
{
    struct stat st;
    if (fstat(shared->fd, &st) != 0)
        return false;
    say_status(shared->number, &st, known);
    return true;
}

static bool is_name(const char *text, size_t size, const char *name)
{
    return size == strlen(name) + 1 && memcmp(text, name, size) == 0;
}

/* Whether a file has not the attribute with a name, as far as that is known. */
static bool shared_lacks(const struct shared *shared, const char *name, size_t size)
{
    if (shared->uses & NO_CAPABILITY && is_name(name, size, CAPABILITY))
        return true;
    return shared->uses & XATTRS && (is_name(name, size, CAPABILITY) || is_name(name, size, ACCESS_ACL)) &&
           fgetxattr(shared->fd, name, NULL, 0) < 0 && errno == ENODATA;
}

/* Whether an inode has not the attribute that is asked for, or none where all names are, as far as that is known. */
static bool lacks_xattrs(const struct fuse_in_header *header, const char *body, size_t size, struct known *known)
{
    const size_t at = sizeof(struct fuse_getxattr_in);
    if (size < at)
        return false;
    const bool none = is_without_xattrs(header->nodeid);
    const struct shared *shared = none ? NULL : find_shared(header->nodeid);
    if (header->opcode == FUSE_LISTXATTR) {
        *known = (struct known){.size = 0};
        return none || (shared != NULL && shared->uses & XATTRS && flistxattr(shared->fd, NULL, 0) == 0);
    }
    *known = (struct known){.error = ENODATA};
    const char *name = body + at;
    size -= at;
    if (none)
        return is_name(name, size, CAPABILITY) || is_name(name, size, ACCESS_ACL) || is_name(name, size, DEFAULT_ACL);
    return shared != NULL && shared_lacks(shared, name, size);
}

/* Whether an ioctl(2) asks a terminal for something (asm-generic/ioctls.h), as isatty(3) does of each file that Python
 * opens. */
static bool is_for_terminal(const char *body, size_t size)
{
    return size >= sizeof(struct fuse_ioctl_in) && _IOC_TYPE(((const struct fuse_ioctl_in *)body)->cmd) == 'T';
}

/* What an inode has, where that is seen, or remembered, without Python. */
static bool knows_attributes(uint64_t number, struct known *known)
{
    struct stat st;
    if (look_at_directory(number, &st)) {
        say_status(number, &st, known);
        return true;
    }
    const struct fuse_attr *attr = find_attributes(number);
    if (attr != NULL) {
        say_attributes(attr, known);
        return true;
    }
    const struct shared *shared = find_shared(number);
    return shared != NULL && shared->uses & ATTRIBUTES && look_at_shared(shared, known);
}

/* Whether what is asked for is behind the last name of a directory. */
static bool ends_listing(const struct fuse_in_header *header, const char *body, size_t size, struct known *known)
{
    *known = (struct known){.size = 0};
    return size >= sizeof(struct fuse_read_in) && is_end(header->nodeid, ((const struct fuse_read_in *)body)->offset);
}

bool is_known(const struct fuse_in_header *header, const char *body, size_t size, struct known *known)
{
    if (header->opcode == FUSE_LOOKUP) {
        if (!is_absent(header->nodeid, body, size))
            return false;
        say_absent(known);
        return true;
    }
    if (header->opcode == FUSE_IOCTL && is_for_terminal(body, size)) {
        *known = (struct known){.error = ENOTTY};
        return true;
    }
    if (header->opcode == FUSE_GETATTR)
        return knows_attributes(header->nodeid, known);
    if (header->opcode == FUSE_GETXATTR || header->opcode == FUSE_LISTXATTR)
        return lacks_xattrs(header, body, size, known);
    if (header->opcode == FUSE_READDIRPLUS)
        return ends_listing(header, body, size, known);
    if (header->opcode == FUSE_READ) {
        const struct shared *shared = find_shared(header->nodeid);
        if (shared == NULL || !is_shared_read(shared, size))
            return false;
        ssize_t got = read_shared((const struct fuse_read_in *)body, shared);
        *known = (struct known){.size = (size_t)got};
        return got >= 0;
    }
    return false;
}

/* Make a change of owner, of mode, or of times: one of them, which is done or not. Returns false when it was not. */
static bool set_attributes(int fd, const struct fuse_setattr_in *in)
{
    enum { OWNER = FATTR_UID | FATTR_GID, TIMES = FATTR_ATIME | FATTR_MTIME };
    const uint32_t meant = in->valid & (FATTR_MODE | FATTR_SIZE | OWNER | TIMES);
    if (meant != 0 && (meant & ~(uint32_t)OWNER) == 0)
        return fchown(fd, meant & FATTR_UID ? in->uid : (uid_t)-1, meant & FATTR_GID ? in->gid : (gid_t)-1) == 0;
    if (meant == FATTR_MODE)
        return (in->mode & (S_ISUID | S_ISGID)) == 0 && fchmod(fd, in->mode & ALLPERMS) == 0;
    if (meant != 0 && (meant & ~(uint32_t)TIMES) == 0) {
        const struct timespec times[2] = {
            {.tv_sec = (time_t)in->atime, .tv_nsec = meant & FATTR_ATIME ? (long)in->atimensec : UTIME_OMIT},
            {.tv_sec = (time_t)in->mtime, .tv_nsec = meant & FATTR_MTIME ? (long)in->mtimensec : UTIME_OMIT},
        };
        return futimens(fd, times) == 0;
    }
    return false;
}

/* Change attributes. What fails is begun again by Python, which knows what is to be said. */
static bool repeat_change(const struct fuse_in_header *header, const struct fuse_setattr_in *in, struct shared *shared)
{
    struct known known;
    if (!note_change(shared) || !set_attributes(shared->fd, in) || !look_at_shared(shared, &known))
        return false;
    answer(header->unique, 0, device.data, known.size);
    return true;
}

/* Set the ACL of a file, which has no set-group-ID bit to lose. What fails is begun again by Python. */
static bool repeat_acl(const struct fuse_in_header *header, const char *body, size_t size, struct shared *shared)
{
    enum { VALUE_AT = FUSE_COMPAT_SETXATTR_IN_SIZE + sizeof ACCESS_ACL };
    const struct fuse_setxattr_in *in = (const struct fuse_setxattr_in *)body;
    if (size < VALUE_AT || in->flags != 0 || size - VALUE_AT < in->size)
        return false;
    const char *name = body + FUSE_COMPAT_SETXATTR_IN_SIZE;
    forget_without_xattrs(header->nodeid);
    if (!is_name(name, sizeof ACCESS_ACL, ACCESS_ACL) || !note_change(shared) ||
        fsetxattr(shared->fd, name, body + VALUE_AT, in->size, 0) != 0)
        return false;
    answer(header->unique, 0, NULL, 0);
    return true;
}

/* Make a file or a directory; Python only takes it over. Returns false when nothing was made. */
static bool repeat_making(const struct fuse_in_header *header, const char *body, size_t size)
{
    struct stat st;
    if (device.changes > 0 && tell_changes() < 0) {
        answer(header->unique, error_of_exception(header->opcode), NULL, 0);
        return true;
    }
    const bool is_file = header->opcode == FUSE_MKNOD;
    const int fd = is_file ? make_file(header, body, size, &st) : -1;
    if (is_file ? fd < 0 : make_directory(header, body, size, &st) < 0)
        return false;
    const char *name = body + (is_file ? sizeof(struct fuse_mknod_in) : sizeof(struct fuse_mkdir_in));
    PyObject *number = PyObject_CallFunction(device.made, "KyiKK", (unsigned long long)header->nodeid, name, fd,
                                             (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    struct fuse_entry_out out;
    fill_entry(&out, &st, number != NULL ? PyLong_AsUnsignedLongLong(number) : 0);
    Py_XDECREF(number);
    if (PyErr_Occurred()) {
        answer(header->unique, error_of_exception(header->opcode), NULL, 0);
        return true;
    }
    answer(header->unique, 0, &out, sizeof out);
    return true;
}

bool repeat_read(const struct fuse_in_header *header, const char *body, size_t size)
{
    const struct fuse_read_in *in = (const struct fuse_read_in *)body;
    const struct shared *shared = find_shared(header->nodeid);
    struct stat st;
    if (shared == NULL || !is_shared_read(shared, size) || !(shared->uses & NEVER_WAITS) || in->size < SPLICED ||
        fstat(shared->fd, &st) != 0 || in->offset >= (uint64_t)st.st_size)
        return false;
    const uint64_t left = (uint64_t)st.st_size - in->offset;
    return answer_spliced(device.fd, header->unique, shared->fd, in->offset, in->size < left ? in->size : left);
}

bool repeat_later(const struct fuse_in_header *header, const char *body, size_t size, int64_t since)
{
    const struct shared *shared = find_shared(header->nodeid);
    struct waiting request = {.opcode = header->opcode, .device = device.fd, .unique = header->unique, .since = since};
    if (shared == NULL)
        return false;
    if (header->opcode == FUSE_READ && is_shared_read(shared, size) && !(shared->uses & NEVER_WAITS)) {
        request.offset = ((const struct fuse_read_in *)body)->offset;
        request.size = ((const struct fuse_read_in *)body)->size;
    } else if (header->opcode == FUSE_FSYNC && shared->uses & SYNCS && size >= sizeof(struct fuse_fsync_in)) {
        request.data_only = is_data_only((const struct fuse_fsync_in *)body);
    } else {
        return false;
    }
    request.fd = fcntl(shared->fd, F_DUPFD_CLOEXEC, 0); /* Python may close its own meanwhile */
    if (request.fd < 0)
        return false;
    if (answer_in_thread(&request))
        return true;
    close(request.fd);
    return false;
}

void answer_later(uint32_t opcode, uint64_t unique, int64_t since, PyObject *wanted)
{
    unsigned long long offset = 0;
    int data_only = 0;
    struct waiting request = {.opcode = opcode, .device = device.fd, .unique = unique, .since = since};
    if (opcode == FUSE_READ ? !PyArg_ParseTuple(wanted, "iKI", &request.fd, &offset, &request.size)
                            : !PyArg_ParseTuple(wanted, "ip", &request.fd, &data_only)) {
        answer(unique, error_of_exception(opcode), NULL, 0);
        return;
    }
    request.offset = offset;
    request.data_only = data_only;
    if (answer_in_thread(&request))
        return;
    close(request.fd);
    answer(unique, ENOMEM, NULL, 0);
}

bool repeat(const struct fuse_in_header *header, const char *body, size_t size)
{
    if (header->opcode == FUSE_MKNOD || header->opcode == FUSE_MKDIR)
        return repeat_making(header, body, size);
    struct shared *shared = find_shared(header->nodeid);
    if (shared == NULL)
        return false;
    if (header->opcode == FUSE_WRITE && shared->uses & WRITES && size >= sizeof(struct fuse_write_in)) {
        const struct fuse_write_in *in = (const struct fuse_write_in *)body;
        return size - sizeof *in >= in->size && repeat_write(header, in, shared);
    }
    if (header->opcode == FUSE_SETXATTR && shared->uses & ATTRIBUTES && shared->uses & XATTRS)
        return repeat_acl(header, body, size, shared);
    if (header->opcode == FUSE_SETATTR && shared->uses & ATTRIBUTES && size >= sizeof(struct fuse_setattr_in))
        return repeat_change(header, (const struct fuse_setattr_in *)body, shared);
    return false;
}

/* Where an entry and the attributes in `device.data` differ, from the beginning of struct fuse_attr; -1: nowhere that
 * counts. A read changes the time of access without telling Python, and a directory that its owner closed, and that is
 * opened for a moment, has another time of change. */
static int difference_of_attributes(const char *entry)
{
    struct fuse_entry_out one;
    struct fuse_attr_out other;
    memcpy(&one, entry, sizeof one);
    memcpy(&other, device.data, sizeof other);
    one.attr.atime = other.attr.atime;
    one.attr.atimensec = other.attr.atimensec;
    if (S_ISDIR(one.attr.mode) && S_ISDIR(other.attr.mode)) {
        one.attr.ctime = other.attr.ctime;
        one.attr.ctimensec = other.attr.ctimensec;
    }
    const char *left = (const char *)&one.attr, *right = (const char *)&other.attr;
    for (int at = 0; at < (int)sizeof one.attr; at++)
        if (left[at] != right[at])
            return at;
    return -1;
}

void compare(uint32_t opcode, PyObject *result, const struct known *known)
{
    int at = -1;
    if (PyLong_Check(result)) {
        if (PyLong_AsLong(result) == known->error && known->size == 0)
            return;
    } else if (PyBytes_Check(result)) {
        const char *data = PyBytes_AS_STRING(result);
        size_t size = (size_t)PyBytes_GET_SIZE(result);
        if (opcode == FUSE_GETATTR && known->error == 0 && size == sizeof(struct fuse_entry_out))
            at = difference_of_attributes(data);
        else if (known->error != 0 || size != known->size || memcmp(data, device.data, size) != 0)
            at = 0;
        if (at < 0)
            return;
    } else {
        return; /* it answers later, and the file may be another then */
    }
    PyErr_Format(PyExc_AssertionError, "request %u: Python answers otherwise (at %d)", opcode, at);
    error_of_exception(opcode);
}

const char share_doc[] =
    "share(number, fd, uses)\n--\n\n"
    "Let a descriptor be used for the inode with this number. It may be forgotten at any time.\n\n"
    "uses: READS, WRITES; SYNCS, by fsync(2); ATTRIBUTES where those of the descriptor are what is shown and changed, but for set-ID\n"
    "bits, of which it has none; NO_CAPABILITY where it has none; NEVER_WAITS where it waits for no disk; XATTRS where\n"
    "its extended attributes are the file's.";
const char unshare_doc[] =
    "unshare(number)\n--\n\nUse no descriptor for this inode any more.";

PyObject *share_number(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "share(number, fd, uses)");
        return NULL;
    }
    uint64_t number = PyLong_AsUnsignedLongLong(args[0]);
    long fd = PyLong_AsLong(args[1]), uses = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    struct shared *shared = place_of(number);
    *shared = (struct shared){.number = number, .fd = (int)fd, .uses = (int)uses};
    Py_RETURN_NONE;
}

PyObject *unshare_number(PyObject *module, PyObject *argument)
{
    (void)module;
    uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    struct shared *shared = find_shared(number);
    if (shared != NULL)
        *shared = (struct shared){.number = 0};
    Py_RETURN_NONE;
}
