/* The kernel's side of a FUSE mount: requests read from /dev/fuse, and answered, beneath pyfuse3.
 *
 *     kernel <-- /dev/fuse --> serve(): one request after the other
 *                                |-- a handler in Python answers it at once (bytes, or an error number)
 *                                |-- a handler says that it takes longer: `later` is told, `reply` comes some day
 *                                `-- no handler (FUSE_INIT, FUSE_DESTROY): left for libfuse, which reads it here
 *
 * libfuse keeps the session. pyfuse3 finds `fuse_session_mount` here before it finds libfuse's, because this module is
 * loaded with RTLD_GLOBAL first; it calls the real one and then gives the session our functions for reading and writing
 * (fuse_session_custom_io(3), libfuse 3.14). So the answer to FUSE_INIT passes here, and gets the flags that libfuse does
 * not ask for.
 *
 * What needs no decision is repeated here without asking Python: reads and writes of a file whose descriptor Python has
 * shared (`share`), its attributes, and changes of them, until Python takes that back (`unshare`). What was changed is
 * told to Python before it does anything else (`changed`), because the attributes that it remembers are not true any
 * more. Which names are not in a directory is said here too, and files are made in it (directories.c).
 *
 * Nothing is allocated for a request but what Python needs. One session for each process, one thread: the functions are
 * called with the GIL held, and let go of it only while they wait.
 *
 * Layouts: include/uapi/linux/fuse.h. What a request must hold is checked before it is read: a short one is EIO.
 */

#define _GNU_SOURCE
#include "directories.h"
#include "plain/copy.h"
#include "plain/known.h"
#include "plain/opening.h"
#include "plain/plain.h"
#include "plain/remove.h"
#include "reads/spliced.h"
#include "reads/waiting.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* What older headers do not name: those of Linux 5.10 lack the first. */
#ifndef FUSE_COMPAT_SETXATTR_IN_SIZE
#define FUSE_COMPAT_SETXATTR_IN_SIZE 8
#endif
enum {
    OP_SYNCFS = 50,
    OP_TMPFILE = 51,
    OPCODES = 64,
    ERRORS = 134, /* error numbers are below (include/uapi/asm-generic/errno.h) */
    INTERRUPT_BIT = 1, /* FUSE_INT_REQ_BIT, fs/fuse/dev.c */
};
#define FLAG_KILLPRIV_V2 ((uint64_t)1 << 28)
#define FLAG_INIT_EXT ((uint64_t)1 << 30)
#define FLAG_NO_EXPORT ((uint64_t)1 << 38)

/* What libfuse negotiates with the kernel at most, and the headers before it (FUSE_BUFFER_HEADER_SIZE). */
#define BUFFER_SIZE ((size_t)(1 << 20) + 0x1000)

#define SECOND ((int64_t)1000000000)

/* A turn of others on our core that is longer than what a request takes, and how long they are believed to want more. */
#define LONG_TURN (SECOND / 2000)
#define CROWDED (SECOND / 10)

/* What Python finds here (device.py): another number when functions or their arguments change. */
#define INTERFACE 7

/* LATER: a thread answers; nobody else is told. */
enum outcome { IDLE, PASSED, TURN, LATER };

/* What a shared descriptor may be used for. NEVER_WAITS: for a disk. ATTRIBUTES: what it has is what is shown of the
 * file, and what is changed of it, but for set-ID bits. NO_CAPABILITY: the file has no attribute security.capability.
 * XATTRS: what it has of extended attributes is what the file has, and all of them. */
enum { READS = 1, WRITES = 2, NEVER_WAITS = 4, ATTRIBUTES = 8, NO_CAPABILITY = 16, XATTRS = 32 };

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

/* -- state --------------------------------------------------------------------------------------------------------- */

static struct {
    int fd;
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
    int64_t crowded_until; /* CLOCK_MONOTONIC */
    char *data; /* what is answered without Python */
    uint64_t requests[OPCODES]; /* how many there were */
    uint64_t alone[OPCODES];    /* how many of them were answered without Python */
    struct durations durations[OPCODES];
    int64_t clock; /* CLOCK_MONOTONIC, when the last request was dealt with, or the next one was looked for */
    bool watched;  /* somebody wants to know which inodes are asked for most */
    struct busy busy[BUSY];
    uint64_t errors[ERRORS];    /* how many were answered with each error, but for refusals */
} device = {.fd = -1};

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

/* -- counting ------------------------------------------------------------------------------------------------------ */

static void count_error(int error)
{
    if (error > 0 && error < ERRORS)
        device.errors[error]++;
}

/* A request was answered that was looked for at a time. */
static void answered(uint32_t opcode, int64_t since, int64_t until)
{
    const int64_t taken = until - since;
    if (opcode >= OPCODES || taken < 0)
        return;
    struct durations *durations = &device.durations[opcode];
    const uint64_t full = taken > 0 ? (uint64_t)(taken - 1) / 1000 : 0;
    const int place = full != 0 ? 64 - __builtin_clzll(full) : 0;
    durations->nanoseconds += (uint64_t)taken;
    durations->counts[place < PLACES ? place : PLACES - 1]++;
}

/* Count what threads have answered since the last time. */
static void count_answered(void)
{
    for (struct waiting_read read; take_answered(&read);) {
        count_error(read.error);
        answered(FUSE_READ, read.since, read.until);
    }
}

static void note_busy(uint64_t number)
{
    struct busy *busy = &device.busy[(number * 0x9E3779B97F4A7C15u) >> 56]; /* the upper eight bits */
    if (busy->number == number)
        busy->count++;
    else if (busy->count == 0)
        *busy = (struct busy){number, 1};
    else
        busy->count--;
}

/* -- libfuse ------------------------------------------------------------------------------------------------------- */

struct fuse_session;

/* fuse_lowlevel.h, struct fuse_custom_io. */
struct custom_io {
    ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
    ssize_t (*read)(int fd, void *buf, size_t size, void *userdata);
    ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
    ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
    int (*clone_fd)(int);
};

static int find_libfuse(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    if (info->dlpi_name == NULL || strstr(info->dlpi_name, "libfuse3") == NULL)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    return *(void **)found != NULL;
}

static void *symbol_of_libfuse(const char *name)
{
    void *library = NULL;
    dl_iterate_phdr(find_libfuse, &library);
    return library == NULL ? NULL : dlsym(library, name);
}

/* The answer to FUSE_INIT with the flags that we want and the kernel offers, without those that we do not want. */
static void complete_init(char *message, size_t size)
{
    struct fuse_out_header header;
    memcpy(&header, message, sizeof header);
    if (header.unique != device.init_unique || header.error != 0)
        return;
    size_t flags2_at = sizeof header + 32; /* struct fuse_init_out, flags2 */
    size_t flags_at = sizeof header + 12;
    if (size < flags2_at + 4)
        return;
    uint32_t low, high = 0;
    memcpy(&low, message + flags_at, 4);
    if (low & FLAG_INIT_EXT)
        memcpy(&high, message + flags2_at, 4);
    uint64_t flags = ((uint64_t)high << 32 | low | (device.wanted & device.offered)) & ~device.unwanted;
    if (flags >> 32)
        flags |= FLAG_INIT_EXT;
    low = (uint32_t)flags;
    high = (uint32_t)(flags >> 32);
    memcpy(message + flags_at, &low, 4);
    memcpy(message + flags2_at, &high, 4);
    device.init_unique = 0;
}

static ssize_t libfuse_writes(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)userdata;
    char message[256];
    size_t size = 0;
    if (device.init_unique != 0) {
        for (int i = 0; i < count; i++) {
            if (size + iov[i].iov_len > sizeof message)
                return writev(fd, iov, count);
            memcpy(message + size, iov[i].iov_base, iov[i].iov_len);
            size += iov[i].iov_len;
        }
        if (size >= sizeof(struct fuse_out_header)) {
            complete_init(message, size);
            return write(fd, message, size);
        }
    }
    return writev(fd, iov, count);
}

static ssize_t libfuse_reads(int fd, void *buf, size_t size, void *userdata)
{
    (void)userdata;
    if (device.pending == 0)
        return read(fd, buf, size);
    size_t got = device.pending;
    device.pending = 0;
    if (got > size) {
        errno = EIO;
        return -1;
    }
    memcpy(buf, device.buffer, got);
    return (ssize_t)got;
}

/* In the place of libfuse's function of this name. */
__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
    int (*real)(struct fuse_session *, const char *) = symbol_of_libfuse("fuse_session_mount");
    void *custom = symbol_of_libfuse("fuse_session_custom_io");
    int (*version)(void) = symbol_of_libfuse("fuse_version");
    if (real == NULL)
        return -1;
    int result = real(session, mountpoint);
    if (result != 0 || device.fd < 0)
        return result;
    static const struct custom_io io = {.writev = libfuse_writes, .read = libfuse_reads};
    if (custom == NULL || version == NULL)
        return -1;
    if (version() >= 317)
        return ((int (*)(struct fuse_session *, const struct custom_io *, size_t, int))custom)(session, &io, sizeof io,
                                                                                            device.fd);
    return ((int (*)(struct fuse_session *, const struct custom_io *, int))custom)(session, &io, device.fd);
}

/* -- replies ------------------------------------------------------------------------------------------------------- */

static void answer(uint64_t unique, int error, const void *data, size_t size)
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

/* What getxattr(2) and listxattr(2) answer: the size alone where that is all that is asked for. */
static void answer_sized(uint64_t unique, const char *data, size_t size, uint32_t room)
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

/* Answer with what a handler gave: an error number, or bytes. `room` is what the caller has room for. */
static void answer_with(uint32_t opcode, uint64_t unique, PyObject *result, uint32_t room)
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

/* The error number of an exception, which is cleared; what is no OSError is told to `failed` first. */
static int error_of_exception(uint32_t opcode)
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

/* -- what needs no decision ---------------------------------------------------------------------------------------- */

#define CAPABILITY "security.capability"
#define ACCESS_ACL "system.posix_acl_access"

/* An answer without Python: an error number, or bytes in `device.data`. */
struct known {
    int error;
    size_t size;
};

static struct shared *place_of(uint64_t number)
{
    return &device.shared[(number * 0x9E3779B97F4A7C15u) >> 54]; /* the upper ten bits */
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

/* Tell Python of what was changed since it last was told. Returns -1 with an exception. */
static int tell_changes(void)
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
static void say_attributes(uint64_t number, const struct stat *st, struct known *known)
{
    struct fuse_attr_out out = {.attr_valid = device.seconds, .attr_valid_nsec = device.nsec};
    fill_attributes(&out.attr, st, number);
    memcpy(device.data, &out, sizeof out);
    *known = (struct known){.size = sizeof out};
}

static bool look_at_shared(const struct shared *shared, struct known *known)
{
    struct stat st;
    if (fstat(shared->fd, &st) != 0)
        return false;
    say_attributes(shared->number, &st, known);
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

/* Whether an ioctl(2) asks a terminal for something (asm-generic/ioctls.h), as isatty(3) does of each file that Python
 * opens. */
static bool is_for_terminal(const char *body, size_t size)
{
    return size >= sizeof(struct fuse_ioctl_in) && _IOC_TYPE(((const struct fuse_ioctl_in *)body)->cmd) == 'T';
}

/* The answer to a request that changes nothing. Returns false where Python has to give it. */
static bool is_known(const struct fuse_in_header *header, const char *body, size_t size, struct known *known)
{
    struct stat st;
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
    if (header->opcode == FUSE_GETATTR && look_at_directory(header->nodeid, &st)) {
        say_attributes(header->nodeid, &st, known);
        return true;
    }
    const struct shared *shared = find_shared(header->nodeid);
    if (shared == NULL)
        return false;
    switch (header->opcode) {
    case FUSE_READ: {
        if (!is_shared_read(shared, size))
            return false;
        ssize_t got = read_shared((const struct fuse_read_in *)body, shared);
        *known = (struct known){.size = (size_t)got};
        return got >= 0;
    }
    case FUSE_GETATTR:
        return shared->uses & ATTRIBUTES && look_at_shared(shared, known);
    case FUSE_GETXATTR: {
        const size_t at = sizeof(struct fuse_getxattr_in);
        *known = (struct known){.error = ENODATA};
        return size > at && shared_lacks(shared, body + at, size - at);
    }
    case FUSE_LISTXATTR:
        *known = (struct known){.size = 0};
        return shared->uses & XATTRS && size >= sizeof(struct fuse_getxattr_in) && flistxattr(shared->fd, NULL, 0) == 0;
    default:
        return false;
    }
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

/* Answer a long read of a file that never waits, without a copy of its data here. Returns false where nothing was
 * answered: that does not pay, or cannot be done. */
static bool repeat_read(const struct fuse_in_header *header, const char *body, size_t size)
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

/* Have a read that waits made by a thread. Returns false where Python has to see to it. */
static bool repeat_read_later(const struct fuse_in_header *header, const char *body, size_t size, int64_t since)
{
    const struct fuse_read_in *in = (const struct fuse_read_in *)body;
    const struct shared *shared = find_shared(header->nodeid);
    if (shared == NULL || !is_shared_read(shared, size) || shared->uses & NEVER_WAITS)
        return false;
    const int fd = fcntl(shared->fd, F_DUPFD_CLOEXEC, 0); /* Python may close its own meanwhile */
    if (fd < 0)
        return false;
    const struct waiting_read read = {.device = device.fd, .fd = fd, .unique = header->unique, .offset = in->offset,
                                      .size = in->size, .since = since};
    if (read_in_thread(&read))
        return true;
    close(fd);
    return false;
}

/* Have a read made by a thread that a handler wants to be: (fd, offset, size), of which the descriptor is ours now. */
static void read_later(uint64_t unique, int64_t since, PyObject *wanted)
{
    unsigned long long offset;
    struct waiting_read read = {.device = device.fd, .unique = unique, .since = since};
    if (!PyArg_ParseTuple(wanted, "iKI", &read.fd, &offset, &read.size)) {
        answer(unique, error_of_exception(FUSE_READ), NULL, 0);
        return;
    }
    read.offset = offset;
    if (read_in_thread(&read))
        return;
    close(read.fd);
    answer(unique, ENOMEM, NULL, 0);
}

/* Change what was asked for, if that can be done without Python. */
static bool repeat(const struct fuse_in_header *header, const char *body, size_t size)
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
 * counts. A read changes the time of access without telling Python. */
static int difference_of_attributes(const char *entry)
{
    struct fuse_entry_out one;
    struct fuse_attr_out other;
    memcpy(&one, entry, sizeof one);
    memcpy(&other, device.data, sizeof other);
    one.attr.atime = other.attr.atime;
    one.attr.atimensec = other.attr.atimensec;
    const char *left = (const char *)&one.attr, *right = (const char *)&other.attr;
    for (int at = 0; at < (int)sizeof one.attr; at++)
        if (left[at] != right[at])
            return at;
    return -1;
}

/* Whether Python answers as we would have done: a bug is logged (attach, `compares`). */
static void compare(uint32_t opcode, PyObject *result, const struct known *known)
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

PyDoc_STRVAR(share_doc,
             "share(number, fd, uses)\n--\n\n"
             "Let a descriptor be used for the inode with this number. It may be forgotten at any time.\n\n"
             "uses: READS, WRITES; ATTRIBUTES where those of the descriptor are what is shown and changed, but for set-ID\n"
             "bits, of which it has none; NO_CAPABILITY where it has none; NEVER_WAITS where it waits for no disk; XATTRS where\n"
             "its extended attributes are the file's.");
PyDoc_STRVAR(unshare_doc, "unshare(number)\n--\n\nUse no descriptor for this inode any more.");

static PyObject *share_number(PyObject *module, PyObject *const *args, Py_ssize_t count)
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

static PyObject *unshare_number(PyObject *module, PyObject *argument)
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

/* -- requests ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const struct fuse_in_header *header;
    const char *body;
    size_t size;
} request;

#define BODY(type) (r->size < sizeof(type) ? NULL : (const type *)r->body)

static PyObject *number(uint64_t value) { return PyLong_FromUnsignedLongLong(value); }

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

#define ARGUMENTS 12
#define MOST_OF_IOCTL 4096

typedef struct {
    PyObject *items[ARGUMENTS];
    size_t count;
    bool failed;
} arguments;

static void put(arguments *a, PyObject *item)
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

/* The arguments of a request's handler, in the order that requests.py says. `room`: see answer_with. */
static void read_arguments(const request *r, arguments *a, uint32_t *room)
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
        put(a, PyBool_FromLong(BODY(struct fuse_fsync_in)->fsync_flags & 1)); /* FUSE_FSYNC_FDATASYNC */
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
        put(a, number(in->offset));
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

static void release_arguments(arguments *a)
{
    for (size_t i = 0; i < a->count; i++)
        Py_DECREF(a->items[i]);
}

/* FORGET and BATCH_FORGET have no answer. */
static void forget(const request *r)
{
    PyObject *handler = device.handlers[FUSE_FORGET];
    size_t count = 1;
    struct fuse_forget_one single, *list = &single;
    if (r->header->opcode == FUSE_FORGET) {
        if (r->size < sizeof(struct fuse_forget_in))
            return;
        single.nodeid = r->header->nodeid;
        single.nlookup = ((const struct fuse_forget_in *)r->body)->nlookup;
    } else {
        if (r->size < sizeof(struct fuse_batch_forget_in))
            return;
        count = ((const struct fuse_batch_forget_in *)r->body)->count;
        size_t most = (r->size - sizeof(struct fuse_batch_forget_in)) / sizeof single;
        count = count < most ? count : most;
        list = (struct fuse_forget_one *)(r->body + sizeof(struct fuse_batch_forget_in));
    }
    for (size_t i = 0; i < count; i++) {
        unshare_directory(list[i].nodeid);
        arguments a = {.count = 0, .failed = false};
        put(&a, number(list[i].nodeid));
        put(&a, number(list[i].nlookup));
        PyObject *result = a.failed ? NULL : PyObject_Vectorcall(handler, a.items, a.count, NULL);
        release_arguments(&a);
        if (result == NULL)
            error_of_exception(FUSE_FORGET);
        Py_XDECREF(result);
    }
}

/* Deal with the request in the buffer. */
static enum outcome dispatch(size_t size, int64_t since)
{
    const struct fuse_in_header *header = (const struct fuse_in_header *)device.buffer;
    if (size < sizeof *header || header->len != size) {
        errno = EIO;
        return PASSED;
    }
    if (header->opcode < OPCODES)
        device.requests[header->opcode]++;
    const request whole = {header, device.buffer + sizeof *header, size - sizeof *header};
    const request *r = &whole;
    const uint32_t opcode = header->opcode;
    const uint64_t unique = header->unique;
    if (opcode == FUSE_INIT) {
        if (r->size >= 16) {
            uint32_t low, high = 0;
            memcpy(&low, r->body + 12, 4);
            if (low & FLAG_INIT_EXT && r->size >= 20)
                memcpy(&high, r->body + 16, 4);
            device.offered = (uint64_t)high << 32 | low;
            device.init_unique = unique;
        }
        return PASSED;
    }
    if (opcode == FUSE_INTERRUPT) {
        /* All that can be answered at once has been; what takes longer is not cut short. The kernel asks once. */
        write_reply(device.fd, unique | INTERRUPT_BIT, ENOSYS, NULL, 0);
        return IDLE;
    }
    if (opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET) {
        if (device.changes > 0 && tell_changes() < 0)
            error_of_exception(opcode);
        forget(r);
        return IDLE;
    }
    if (device.watched && opcode != FUSE_STATFS)
        note_busy(header->nodeid);
    if (opcode >= OPCODES || (device.handlers[opcode] == NULL && device.refusals[opcode] == 0)) {
        if (opcode == FUSE_DESTROY)
            return PASSED;
        write_reply(device.fd, unique, ENOSYS, NULL, 0);
        return IDLE;
    }
    if (device.handlers[opcode] == NULL) {
        write_reply(device.fd, unique, device.refusals[opcode], NULL, 0);
        return IDLE;
    }
    if (opcode == FUSE_READ && !device.compares && repeat_read(header, r->body, r->size)) {
        device.alone[opcode]++;
        return IDLE;
    }
    struct known known;
    const bool without = is_known(header, r->body, r->size, &known);
    if (without && !device.compares) {
        device.alone[opcode]++;
        if (opcode == FUSE_LISTXATTR)
            answer_sized(unique, device.data, known.size, BODY(struct fuse_getxattr_in)->size);
        else
            answer(unique, known.error, device.data, known.size);
        return IDLE;
    }
    if (repeat(header, r->body, r->size)) {
        device.alone[opcode]++;
        return IDLE;
    }
    if (opcode == FUSE_READ && !device.compares && repeat_read_later(header, r->body, r->size, since)) {
        device.alone[opcode]++;
        return LATER;
    }
    if (device.changes > 0 && tell_changes() < 0) {
        answer(unique, error_of_exception(opcode), NULL, 0);
        return IDLE;
    }
    arguments a = {.count = 0, .failed = false};
    uint32_t room = 0;
    read_arguments(r, &a, &room);
    PyObject *result = NULL;
    if (!a.failed)
        result = PyObject_Vectorcall(device.handlers[opcode], a.items, a.count, NULL);
    release_arguments(&a);
    if (result == NULL)
        result = PyLong_FromLong(error_of_exception(opcode));
    if (result == NULL) {
        PyErr_Clear();
        answer(unique, ENOMEM, NULL, 0);
        return IDLE;
    }
    if (without)
        compare(opcode, result, &known);
    if (PyBytes_Check(result) || PyLong_Check(result)) {
        answer_with(opcode, unique, result, room);
        Py_DECREF(result);
        return IDLE;
    }
    if (PyTuple_Check(result)) {
        read_later(unique, since, result);
        Py_DECREF(result);
        return LATER;
    }
    PyObject *told = PyObject_CallFunction(device.later, "IKILO", opcode, (unsigned long long)unique, room,
                                           (long long)since, result);
    Py_DECREF(result);
    if (told == NULL)
        answer(unique, error_of_exception(opcode), NULL, 0);
    Py_XDECREF(told);
    return TURN;
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

/* Look for a request for a while, and let whoever needs the core have it. Who had it for long will want it again, and the
 * scheduler lets him, because we take all that we are given: so there is no looking then for some time. */
static ssize_t look_for_request(int64_t patience)
{
    ssize_t got;
    int64_t before = now();
    const int64_t end = before + patience;
    if (before < device.crowded_until) {
        errno = EAGAIN;
        return -1;
    }
    do {
        sched_yield();
        const int64_t after = now();
        if (after - before > LONG_TURN)
            device.crowded_until = after + CROWDED;
        before = device.clock = after;
        got = read(device.fd, device.buffer, BUFFER_SIZE);
    } while (got < 0 && errno == EAGAIN && before < end && before >= device.crowded_until);
    return got;
}

/* Read a request; where there is none, look for one, and then sleep until one comes. */
static ssize_t read_request(int64_t patience, int64_t sleep)
{
    ssize_t got = read(device.fd, device.buffer, BUFFER_SIZE);
    if (got >= 0 || errno != EAGAIN || (patience <= 0 && sleep <= 0))
        return got;
    int error = EAGAIN;
    Py_BEGIN_ALLOW_THREADS
    if (patience > 0) {
        got = look_for_request(patience);
        error = errno;
    }
    if (got < 0 && error == EAGAIN && sleep > 0) {
        struct pollfd waiting = {.fd = device.fd, .events = POLLIN};
        const struct timespec most = {.tv_sec = sleep / SECOND, .tv_nsec = sleep % SECOND};
        if (ppoll(&waiting, 1, &most, NULL) >= 0) {
            device.clock = now();
            got = read(device.fd, device.buffer, BUFFER_SIZE);
        }
        error = errno;
    }
    Py_END_ALLOW_THREADS
    errno = error;
    return got;
}

PyDoc_STRVAR(serve_doc,
             "serve(most, patience, sleep) -> outcome\n--\n\n"
             "Answer requests: at most `most` of them, and as long as one comes within `patience` nanoseconds of looking for\n"
             "it and `sleep` nanoseconds of waiting for it.\n\n"
             "Returns IDLE when none comes, PASSED when one waits for libfuse (or an error of /dev/fuse does, as ENODEV\n"
             "when it is unmounted), TURN when others ought to get their turn.");

static PyObject *serve_requests(long most, int64_t patience, int64_t sleep)
{
    device.clock = now();
    count_answered();
    while (most-- > 0) {
        if (device.changes > 0)
            sleep = 0; /* what was written is told before we wait */
        ssize_t got = read_request(patience, sleep);
        if (got < 0) {
            if (errno == EINTR || errno == ENOENT) { /* ENOENT: the request was taken back */
                if (PyErr_CheckSignals() < 0)
                    return NULL;
                continue;
            }
            return PyLong_FromLong(errno == EAGAIN ? IDLE : PASSED);
        }
        const uint32_t opcode = ((const struct fuse_in_header *)device.buffer)->opcode;
        const int64_t since = device.clock;
        enum outcome outcome = dispatch((size_t)got, since);
        device.clock = now();
        if (outcome == PASSED)
            device.pending = (size_t)got;
        else if (outcome == IDLE && opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT)
            answered(opcode, since, device.clock);
        if (outcome == PASSED || outcome == TURN)
            return PyLong_FromLong(outcome);
    }
    return PyLong_FromLong(TURN);
}

static PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "serve(most, patience, sleep)");
        return NULL;
    }
    long most = PyLong_AsLong(args[0]);
    int64_t patience = PyLong_AsLongLong(args[1]), sleep = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    PyObject *outcome = serve_requests(most, patience, sleep), *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback); /* what a signal handler raised */
    if (tell_changes() < 0) { /* before anybody else looks */
        Py_CLEAR(outcome);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    } else if (type != NULL) {
        PyErr_Restore(type, value, traceback);
    }
    return outcome;
}

PyDoc_STRVAR(reply_doc, "reply(opcode, unique, room, since, result)\n--\n\n"
                        "Answer a request that `later` was told of: with bytes, an error number, or, a READ, with (fd, offset, size),\n"
                        "which a thread reads and then closes.");

static PyObject *reply(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int opcode, room;
    unsigned long long unique;
    long long since;
    PyObject *result;
    if (!PyArg_ParseTuple(args, "IKILO", &opcode, &unique, &room, &since, &result))
        return NULL;
    if (PyTuple_Check(result)) {
        read_later(unique, since, result);
        Py_RETURN_NONE;
    }
    if (!PyBytes_Check(result) && !PyLong_Check(result)) {
        PyErr_SetString(PyExc_TypeError, "a result is bytes, an error number, or a read to be made");
        return NULL;
    }
    answer_with(opcode, unique, result, room);
    device.clock = now();
    answered(opcode, since, device.clock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attach_doc,
             "attach(fd, handlers, refusals, later, failed, changed, made, wanted, unwanted, seconds, nsec, compares)\n--\n\n"
             "Serve a mounted /dev/fuse descriptor from here on; comes before pyfuse3.init.\n\n"
             "handlers: opcode -> callable; refusals: opcode -> errno; later(opcode, unique, room, since, result) takes\n"
             "what is no answer yet; failed(opcode, exception) -> errno; changed(number): a file that was changed without asking;\n"
             "made(parent, name, fd, st_dev, st_ino) -> number: a file that was made (directories.c), and is Python's now;\n"
             "fd is -1 for a directory;\n"
             "wanted, unwanted: flags of FUSE_INIT; seconds, nsec: how long the kernel may believe what it is told;\n"
             "compares: ask Python too where it need not be asked, for tests.\n"
             "Raises OSError of fcntl(2), mmap(2).");

static PyObject *attach(PyObject *module, PyObject *args)
{
    (void)module;
    int fd;
    PyObject *handlers, *refusals, *later, *failed, *changed, *made;
    unsigned long long wanted, unwanted, seconds;
    unsigned int nsec;
    int compares;
    if (!PyArg_ParseTuple(args, "iO!O!OOOOKKKIp", &fd, &PyDict_Type, &handlers, &PyDict_Type, &refusals, &later, &failed,
                          &changed, &made, &wanted, &unwanted, &seconds, &nsec, &compares))
        return NULL;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (device.buffer == NULL) {
        void *buffer = mmap(NULL, 2 * BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (buffer == MAP_FAILED)
            return PyErr_SetFromErrno(PyExc_OSError);
        device.buffer = buffer;
        device.data = device.buffer + BUFFER_SIZE;
    }
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(handlers, &position, &key, &value)) {
        long opcode = PyLong_AsLong(key);
        if (opcode < 0 || opcode >= OPCODES) {
            PyErr_SetString(PyExc_ValueError, "no such opcode");
            return NULL;
        }
        Py_INCREF(value);
        Py_XSETREF(device.handlers[opcode], value);
    }
    position = 0;
    while (PyDict_Next(refusals, &position, &key, &value)) {
        long opcode = PyLong_AsLong(key);
        if (opcode < 0 || opcode >= OPCODES) {
            PyErr_SetString(PyExc_ValueError, "no such opcode");
            return NULL;
        }
        device.refusals[opcode] = (int)PyLong_AsLong(value);
    }
    if (PyErr_Occurred())
        return NULL;
    Py_INCREF(later);
    Py_XSETREF(device.later, later);
    Py_INCREF(failed);
    Py_XSETREF(device.failed, failed);
    Py_INCREF(changed);
    Py_XSETREF(device.tell, changed);
    Py_INCREF(made);
    Py_XSETREF(device.made, made);
    device.wanted = wanted;
    device.unwanted = unwanted;
    device.compares = compares;
    device.seconds = seconds;
    device.nsec = nsec;
    device.pending = 0;
    device.init_unique = 0;
    device.fd = fd;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(counts_doc, "counts() -> (requests, errors, alone)\n--\n\n"
                         "How many requests there were, by opcode; how many were answered with an error, by its number (what\n"
                         "is refused without a look (`refusals`) is no error); how many were answered without Python, by\n"
                         "opcode.");

static PyObject *nonzero(const uint64_t *values, int count)
{
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < count; i++) {
        if (values[i] == 0)
            continue;
        PyObject *key = PyLong_FromLong(i), *value = PyLong_FromUnsignedLongLong(values[i]);
        if (key == NULL || value == NULL || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return result;
}

static PyObject *counts(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    count_answered();
    PyObject *requests = nonzero(device.requests, OPCODES), *errors = nonzero(device.errors, ERRORS);
    PyObject *alone = nonzero(device.alone, OPCODES);
    if (requests != NULL && errors != NULL && alone != NULL)
        return Py_BuildValue("(NNN)", requests, errors, alone);
    Py_XDECREF(requests);
    Py_XDECREF(errors);
    Py_XDECREF(alone);
    return NULL;
}

PyDoc_STRVAR(durations_doc, "durations(opcode) -> (nanoseconds, counts)\n--\n\n"
                            "How long the answers to one kind of request took: all together, and how many took at most 1, 2,\n"
                            "4, ... microseconds, and longer than the one before; the last count is of all others. It begins\n"
                            "when a request that waits is read, and ends when its answer is written.");

static PyObject *durations(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long opcode = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (opcode >= OPCODES) {
        PyErr_SetString(PyExc_ValueError, "no such opcode");
        return NULL;
    }
    count_answered();
    const struct durations *of = &device.durations[opcode];
    PyObject *list = PyTuple_New(PLACES);
    for (int i = 0; list != NULL && i < PLACES; i++) {
        PyObject *count = PyLong_FromUnsignedLongLong(of->counts[i]);
        if (count == NULL)
            Py_CLEAR(list);
        else
            PyTuple_SET_ITEM(list, i, count);
    }
    return list == NULL ? NULL : Py_BuildValue("(KN)", (unsigned long long)of->nanoseconds, list);
}

PyDoc_STRVAR(waiting_doc, "waiting() -> count\n--\n\nHow many reads threads have not answered yet.");

static PyObject *waiting(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyLong_FromSize_t(unanswered());
}

PyDoc_STRVAR(finish_doc, "finish()\n--\n\n"
                         "Wait until threads have answered the reads that they have, and answer nothing any more: the\n"
                         "descriptor of /dev/fuse may be closed then, and its number be another file's.");

static PyObject *finish(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    Py_BEGIN_ALLOW_THREADS
    wait_for_answers();
    Py_END_ALLOW_THREADS
    device.fd = -1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(caller_doc, "caller() -> (opcode, pid)\n--\n\n"
                         "What request is being dealt with, and whose; for handlers, before they wait.");

static PyObject *caller(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    const struct fuse_in_header *header = (const struct fuse_in_header *)device.buffer;
    return Py_BuildValue("(II)", (unsigned int)header->opcode, (unsigned int)header->pid);
}

PyDoc_STRVAR(watch_doc, "watch(on)\n--\n\nCount from now on, or no more, which inodes are asked for most.");

static PyObject *watch(PyObject *module, PyObject *argument)
{
    (void)module;
    const int on = PyObject_IsTrue(argument);
    if (on < 0)
        return NULL;
    device.watched = on;
    memset(device.busy, 0, sizeof device.busy);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(busiest_doc, "busiest() -> {number: count}\n--\n\n"
                          "The inodes that were asked for most since the last call, and about how often.");

static PyObject *busiest(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < BUSY; i++) {
        if (device.busy[i].count == 0)
            continue;
        PyObject *key = PyLong_FromUnsignedLongLong(device.busy[i].number);
        PyObject *value = PyLong_FromUnsignedLongLong(device.busy[i].count);
        if (key == NULL || value == NULL || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    memset(device.busy, 0, sizeof device.busy);
    return result;
}

/* -- the module ---------------------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"attach", attach, METH_VARARGS, attach_doc},
    {"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL, serve_doc},
    {"reply", reply, METH_VARARGS, reply_doc},
    {"share", (PyCFunction)(void (*)(void))share_number, METH_FASTCALL, share_doc},
    {"unshare", unshare_number, METH_O, unshare_doc},
    {"share_directory", share_directory, METH_VARARGS, share_directory_doc},
    {"unshare_directory", unshare_one_directory, METH_O, unshare_one_directory_doc},
    {"unshare_directories", unshare_directories, METH_NOARGS, unshare_directories_doc},
    {"copy_plain", (PyCFunction)(void (*)(void))copy_plain, METH_FASTCALL, copy_plain_doc},
    {"lacks_attribute", (PyCFunction)(void (*)(void))lacks_attribute, METH_FASTCALL, lacks_attribute_doc},
    {"open_plain", (PyCFunction)(void (*)(void))open_plain, METH_FASTCALL, open_plain_doc},
    {"read_plain", (PyCFunction)(void (*)(void))read_plain, METH_FASTCALL, read_plain_doc},
    {"pack_plain", (PyCFunction)(void (*)(void))pack_plain, METH_FASTCALL, pack_plain_doc},
    {"pack_known", (PyCFunction)(void (*)(void))pack_known, METH_FASTCALL, pack_known_doc},
    {"remove_plain", (PyCFunction)(void (*)(void))remove_plain, METH_FASTCALL, remove_plain_doc},
    {"counts", counts, METH_NOARGS, counts_doc},
    {"durations", durations, METH_O, durations_doc},
    {"waiting", waiting, METH_NOARGS, waiting_doc},
    {"finish", finish, METH_NOARGS, finish_doc},
    {"caller", caller, METH_NOARGS, caller_doc},
    {"watch", watch, METH_O, watch_doc},
    {"busiest", busiest, METH_NOARGS, busiest_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_device", .m_doc = "Requests of a FUSE mount, beneath pyfuse3.", .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__device(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (PyModule_AddIntMacro(module, INTERFACE) < 0 || PyModule_AddIntMacro(module, IDLE) < 0 ||
        PyModule_AddIntMacro(module, PASSED) < 0 || PyModule_AddIntMacro(module, TURN) < 0 ||
        PyModule_AddIntMacro(module, READS) < 0 || PyModule_AddIntMacro(module, WRITES) < 0 ||
        PyModule_AddIntMacro(module, NEVER_WAITS) < 0 || PyModule_AddIntMacro(module, ATTRIBUTES) < 0 ||
        PyModule_AddIntMacro(module, NO_CAPABILITY) < 0 || PyModule_AddIntMacro(module, XATTRS) < 0 ||
        PyModule_AddIntMacro(module, SHOWN) < 0 || PyModule_AddIntMacro(module, MADE) < 0 ||
        PyModule_AddIntMacro(module, UMASK) < 0 || PyModule_AddIntMacro(module, ALL) < 0 ||
        PyModule_AddIntMacro(module, DIRECTORIES) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
