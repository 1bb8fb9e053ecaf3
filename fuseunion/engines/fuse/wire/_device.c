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
 * shared (`share`), until it takes that back (`unshare`). What was written is told to Python before it does anything
 * else (`wrote`), because the attributes that it remembers are not true any more.
 *
 * Nothing is allocated for a request but what Python needs. One session for each process, one thread: the functions are
 * called with the GIL held, and let go of it only while they wait.
 *
 * Layouts: include/uapi/linux/fuse.h. What a request must hold is checked before it is read: a short one is EIO.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/fuse.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What older headers do not name. */
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

enum outcome { IDLE, PASSED, TURN };

/* What a shared descriptor may be used for. */
enum { READS = 1, WRITES = 2, NEVER_WAITS = 4 };

#define SHARED 1024

/* A shared descriptor. A table with one place for each number, which a later one may take: who is not found is answered
 * by Python, which shares it again. */
struct shared {
    uint64_t number; /* 0: nobody's */
    int fd;
    int uses;
    bool written; /* Python has not been told of a write yet */
};

/* -- state --------------------------------------------------------------------------------------------------------- */

static struct {
    int fd;
    char *buffer;
    size_t pending; /* bytes in `buffer` that libfuse has not read yet */
    uint64_t init_unique, offered, wanted, unwanted;
    PyObject *handlers[OPCODES]; /* callables; NULL for what libfuse answers */
    int refusals[OPCODES];       /* an error number that needs no handler */
    PyObject *later, *failed, *wrote;
    struct shared shared[SHARED];
    uint64_t written[SHARED]; /* the numbers to tell Python of */
    size_t writes;
    char *data; /* what is read */
    uint64_t requests[OPCODES]; /* how many there were */
    uint64_t errors[ERRORS];    /* how many were answered with each error, but for refusals */
} device = {.fd = -1};

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

/* Write one reply. ENOENT: nobody waits for it any more (fs/fuse/dev.c fuse_dev_do_write). */
static int write_reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&header, sizeof header}, {(void *)data, size}};
    if (writev(device.fd, iov, size != 0 ? 2 : 1) < 0)
        return errno;
    return 0;
}

/* The kernel takes a reply only if it has the size that it expects: what it does not take is answered EIO. */
static void answer(uint64_t unique, int error, const void *data, size_t size)
{
    if (error > 0 && error < ERRORS)
        device.errors[error]++;
    if (write_reply(unique, error, data, size) == EINVAL)
        write_reply(unique, EIO, NULL, 0);
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

static struct shared *place_of(uint64_t number)
{
    return &device.shared[(number * 0x9E3779B97F4A7C15u) >> 54]; /* the upper ten bits */
}

/* Tell Python of what was written since it last was told. Returns -1 with an exception. */
static int tell_writes(void)
{
    while (device.writes > 0) {
        uint64_t number = device.written[--device.writes];
        struct shared *shared = place_of(number);
        if (shared->number == number)
            shared->written = false;
        PyObject *result = PyObject_CallFunction(device.wrote, "K", (unsigned long long)number);
        if (result == NULL)
            return -1;
        Py_DECREF(result);
    }
    return 0;
}

static bool note_write(struct shared *shared)
{
    if (shared->written)
        return true;
    if (device.writes == SHARED)
        return false;
    device.written[device.writes++] = shared->number;
    shared->written = true;
    return true;
}

/* Answer a read from what is in memory. Returns false when Python has to wait for a disk. */
static bool repeat_read(const struct fuse_in_header *header, const struct fuse_read_in *in, const struct shared *shared)
{
    if (in->size > BUFFER_SIZE)
        return false;
    struct iovec iov = {device.data, in->size};
    ssize_t got = preadv2(shared->fd, &iov, 1, (off_t)in->offset, shared->uses & NEVER_WAITS ? 0 : RWF_NOWAIT);
    if (got < 0)
        return false;
    if ((size_t)got < in->size) {
        struct stat st;
        if (fstat(shared->fd, &st) != 0 || (off_t)in->offset + got < st.st_size)
            return false;
    }
    answer(header->unique, 0, device.data, (size_t)got);
    return true;
}

/* Write as much as there is space for (Union.write). */
static bool repeat_write(const struct fuse_in_header *header, const struct fuse_write_in *in, struct shared *shared)
{
    if (!note_write(shared))
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

/* Answer a request without Python, if that can be. */
static bool repeat(const struct fuse_in_header *header, const char *body, size_t size)
{
    struct shared *shared = place_of(header->nodeid);
    if (shared->number != header->nodeid)
        return false;
    if (header->opcode == FUSE_READ && shared->uses & READS && size >= sizeof(struct fuse_read_in))
        return repeat_read(header, (const struct fuse_read_in *)body, shared);
    if (header->opcode == FUSE_WRITE && shared->uses & WRITES && size >= sizeof(struct fuse_write_in)) {
        const struct fuse_write_in *in = (const struct fuse_write_in *)body;
        return size - sizeof *in >= in->size && repeat_write(header, in, shared);
    }
    return false;
}

PyDoc_STRVAR(share_doc, "share(number, fd, uses)\n--\n\n"
                        "Let a descriptor be used for the inode with this number: READS, WRITES; NEVER_WAITS for one whose\n"
                        "reads never wait for a disk. It may be forgotten at any time.");
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
    struct shared *shared = place_of(number);
    if (shared->number == number)
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
        PyObject *result = PyObject_CallFunction(handler, "KK", (unsigned long long)list[i].nodeid,
                                                 (unsigned long long)list[i].nlookup);
        if (result == NULL)
            error_of_exception(FUSE_FORGET);
        Py_XDECREF(result);
    }
}

/* Deal with the request in the buffer. */
static enum outcome dispatch(size_t size)
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
        write_reply(unique | INTERRUPT_BIT, ENOSYS, NULL, 0);
        return IDLE;
    }
    if (opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET) {
        if (device.writes > 0 && tell_writes() < 0)
            error_of_exception(opcode);
        forget(r);
        return IDLE;
    }
    if (opcode >= OPCODES || (device.handlers[opcode] == NULL && device.refusals[opcode] == 0)) {
        if (opcode == FUSE_DESTROY)
            return PASSED;
        write_reply(unique, ENOSYS, NULL, 0);
        return IDLE;
    }
    if (device.handlers[opcode] == NULL) {
        write_reply(unique, device.refusals[opcode], NULL, 0);
        return IDLE;
    }
    if (repeat(header, r->body, r->size))
        return IDLE;
    if (device.writes > 0 && tell_writes() < 0) {
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
    if (result == NULL) {
        answer(unique, error_of_exception(opcode), NULL, 0);
        return IDLE;
    }
    if (PyBytes_Check(result) || PyLong_Check(result)) {
        answer_with(opcode, unique, result, room);
        Py_DECREF(result);
        return IDLE;
    }
    PyObject *told = PyObject_CallFunction(device.later, "IKIO", opcode, (unsigned long long)unique, room, result);
    Py_DECREF(result);
    if (told == NULL)
        answer(unique, error_of_exception(opcode), NULL, 0);
    Py_XDECREF(told);
    return TURN;
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Read a request; where there is none, look again for a while, and let whoever needs the core have it. */
static ssize_t read_request(int64_t patience)
{
    ssize_t got = read(device.fd, device.buffer, BUFFER_SIZE);
    if (got >= 0 || errno != EAGAIN || patience <= 0)
        return got;
    int error;
    Py_BEGIN_ALLOW_THREADS
    int64_t end = now() + patience;
    do {
        sched_yield();
        got = read(device.fd, device.buffer, BUFFER_SIZE);
        error = errno;
    } while (got < 0 && error == EAGAIN && now() < end);
    Py_END_ALLOW_THREADS
    errno = error;
    return got;
}

PyDoc_STRVAR(serve_doc,
             "serve(most, patience) -> outcome\n--\n\n"
             "Answer requests: at most `most` of them, and as long as one comes within `patience` nanoseconds.\n\n"
             "Returns IDLE when none comes, PASSED when one waits for libfuse (or an error of /dev/fuse does, as ENODEV\n"
             "when it is unmounted), TURN when others ought to get their turn.");

static PyObject *serve_requests(long most, int64_t patience)
{
    while (most-- > 0) {
        ssize_t got = read_request(patience);
        if (got < 0) {
            if (errno == EINTR || errno == ENOENT) { /* ENOENT: the request was taken back */
                if (PyErr_CheckSignals() < 0)
                    return NULL;
                continue;
            }
            return PyLong_FromLong(errno == EAGAIN ? IDLE : PASSED);
        }
        enum outcome outcome = dispatch((size_t)got);
        if (outcome == PASSED)
            device.pending = (size_t)got;
        if (outcome != IDLE)
            return PyLong_FromLong(outcome);
    }
    return PyLong_FromLong(TURN);
}

static PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "serve(most, patience)");
        return NULL;
    }
    long most = PyLong_AsLong(args[0]);
    int64_t patience = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    PyObject *outcome = serve_requests(most, patience);
    if (tell_writes() < 0) /* before anybody else looks */
        Py_CLEAR(outcome);
    return outcome;
}

PyDoc_STRVAR(reply_doc, "reply(opcode, unique, room, result)\n--\n\n"
                        "Answer a request that `later` was told of: with bytes, or an error number.");

static PyObject *reply(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned int opcode, room;
    unsigned long long unique;
    PyObject *result;
    if (!PyArg_ParseTuple(args, "IKIO", &opcode, &unique, &room, &result))
        return NULL;
    if (!PyBytes_Check(result) && !PyLong_Check(result)) {
        PyErr_SetString(PyExc_TypeError, "a result is bytes or an error number");
        return NULL;
    }
    answer_with(opcode, unique, result, room);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attach_doc,
             "attach(fd, handlers, refusals, later, failed, wrote, wanted, unwanted)\n--\n\n"
             "Serve a mounted /dev/fuse descriptor from here on; comes before pyfuse3.init.\n\n"
             "handlers: opcode -> callable; refusals: opcode -> errno; later(opcode, unique, room, result) takes what is no\n"
             "answer yet; failed(opcode, exception) -> errno; wrote(number): what was written to without asking; wanted,\n"
             "unwanted: flags of FUSE_INIT.\n"
             "Raises OSError of fcntl(2), mmap(2).");

static PyObject *attach(PyObject *module, PyObject *args)
{
    (void)module;
    int fd;
    PyObject *handlers, *refusals, *later, *failed, *wrote;
    unsigned long long wanted, unwanted;
    if (!PyArg_ParseTuple(args, "iO!O!OOOKK", &fd, &PyDict_Type, &handlers, &PyDict_Type, &refusals, &later, &failed,
                          &wrote, &wanted, &unwanted))
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
    Py_INCREF(wrote);
    Py_XSETREF(device.wrote, wrote);
    device.wanted = wanted;
    device.unwanted = unwanted;
    device.pending = 0;
    device.init_unique = 0;
    device.fd = fd;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(counts_doc, "counts() -> (requests, errors)\n--\n\n"
                         "How many requests there were, by opcode, and how many were answered with an error, by its\n"
                         "number; what is refused without a look (`refusals`) is no error.");

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
    PyObject *requests = nonzero(device.requests, OPCODES), *errors = nonzero(device.errors, ERRORS);
    if (requests != NULL && errors != NULL)
        return Py_BuildValue("(NN)", requests, errors);
    Py_XDECREF(requests);
    Py_XDECREF(errors);
    return NULL;
}

/* -- the module ---------------------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"attach", attach, METH_VARARGS, attach_doc},
    {"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL, serve_doc},
    {"reply", reply, METH_VARARGS, reply_doc},
    {"share", (PyCFunction)(void (*)(void))share_number, METH_FASTCALL, share_doc},
    {"unshare", unshare_number, METH_O, unshare_doc},
    {"counts", counts, METH_NOARGS, counts_doc},
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
    if (PyModule_AddIntMacro(module, IDLE) < 0 || PyModule_AddIntMacro(module, PASSED) < 0 ||
        PyModule_AddIntMacro(module, TURN) < 0 || PyModule_AddIntMacro(module, READS) < 0 ||
        PyModule_AddIntMacro(module, WRITES) < 0 || PyModule_AddIntMacro(module, NEVER_WAITS) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
