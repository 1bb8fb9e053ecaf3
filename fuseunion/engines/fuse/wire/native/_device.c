/* The kernel's side of a FUSE mount: requests read from /dev/fuse, and answered, beneath pyfuse3.
 *
 *     kernel <-- /dev/fuse --> serve(): one request after the other
 *                                |-- a handler in Python answers it at once (bytes, or an error number)
 *                                |-- a handler says that it takes longer: `later` is told, `reply` comes some day
 *                                `-- no handler (FUSE_INIT, FUSE_DESTROY): left for libfuse, which reads it here
 *
 *     state.h         what all parts know
 *     places.h        where a number is in a table
 *     session/        libfuse, which keeps the session; the next request, arguments of handlers, replies, what is counted
 *     repeated/       what needs no decision is repeated without asking Python
 *     plain/          what Python asks for in one call instead of many
 *     data/           reads and fsync(2) that wait, by threads; long reads, without a copy
 *
 * Nothing is allocated for a request but what Python needs. One session for each process, one thread: the functions are
 * called with the GIL held, and let go of it only while they wait.
 *
 * Layouts: include/uapi/linux/fuse.h. What a request must hold is checked before it is read: a short one is EIO.
 */

#define _GNU_SOURCE
#include "plain/copy.h"
#include "plain/known.h"
#include "plain/opening.h"
#include "plain/plain.h"
#include "plain/remove.h"
#include "plain/xattrs.h"
#include "data/waiting.h"
#include "repeated/directories.h"
#include "repeated/ends.h"
#include "repeated/remembered.h"
#include "repeated/repeated.h"
#include "repeated/without_xattrs.h"
#include "session/arguments.h"
#include "session/counting.h"
#include "session/looking.h"
#include "session/replies.h"
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* After how many forgotten inodes what they took is given back to the system. */
enum { MANY_FORGOTTEN = 10000 };

/* What Python finds here (device.py): another number when functions or their arguments change. */
#define INTERFACE 13

/* LATER: a thread answers; nobody else is told. */
enum outcome { IDLE, PASSED, TURN, LATER };

struct device device = {.fd = -1, .told = -1};

/* -- requests ------------------------------------------------------------------------------------------------------ */

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
    device.forgotten += count;
    for (size_t i = 0; i < count; i++) {
        unshare_directory(list[i].nodeid);
        forget_without_xattrs(list[i].nodeid);
        forget_end(list[i].nodeid);
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
            answer_sized(unique, device.data, known.size, ((const struct fuse_getxattr_in *)r->body)->size);
        else
            answer(unique, known.error, device.data, known.size);
        return IDLE;
    }
    if (repeat(header, r->body, r->size)) {
        device.alone[opcode]++;
        return IDLE;
    }
    if (!device.compares && repeat_later(header, r->body, r->size, since)) {
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
        answer_later(opcode, unique, since, result);
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

/* Let those go on whose files are on disk. Who comes after the descriptor was read makes it readable again. */
static void go_on(void)
{
    eventfd_t count;
    eventfd_read(device.told, &count);
    for (struct waiting *done = take_told(), *next; done != NULL; done = next) {
        PyObject *told = done->whose, *result = PyObject_CallFunction(told, "i", done->error);
        if (result == NULL)
            PyErr_WriteUnraisable(told);
        Py_XDECREF(result);
        Py_DECREF(told);
        next = done->next;
        free(done->fds);
        free(done);
    }
}

/* After each turn: freed memory that lies between other goes back to the system. glibc does that by itself only at the end of
 * the heap, and keeps there up to twice the largest block that was ever freed (mallopt(3), M_TRIM_THRESHOLD): after a
 * million inodes 60 MB. It takes a millisecond then. When nothing is asked for any more it is done for the last time. */
static void give_back(bool idle)
{
    if (device.forgotten < MANY_FORGOTTEN && !(idle && device.gives_back))
        return;
    device.gives_back = !idle;
    device.forgotten = 0;
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

PyDoc_STRVAR(sync_doc, "sync(fds, told)\n--\n\n"
                       "Let a thread put files on disk: a tuple of descriptors. `told` is called, by `serve` or `tell`, with 0 or\n"
                       "the first error number; until then the descriptors have to stay open.");

static PyObject *sync_files(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *fds, *told;
    if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &fds, &told))
        return NULL;
    struct waiting wanted = {.opcode = NO_REQUEST, .device = device.told, .count = (size_t)PyTuple_GET_SIZE(fds)};
    wanted.fds = malloc(sizeof(int) * (wanted.count + 1)); /* none is not NULL */
    if (wanted.fds == NULL)
        return PyErr_NoMemory();
    for (size_t i = 0; i < wanted.count; i++)
        wanted.fds[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(fds, (Py_ssize_t)i));
    wanted.whose = told;
    Py_INCREF(told);
    if (!PyErr_Occurred() && answer_in_thread(&wanted))
        Py_RETURN_NONE;
    free(wanted.fds);
    Py_DECREF(told);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

PyDoc_STRVAR(tell_doc, "tell()\n--\n\nSay which files are on disk: to be called when the descriptor `told()` can be read.");

static PyObject *tell(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    go_on();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(told_doc, "told() -> fd\n--\n\nA descriptor that can be read when files are on disk (`sync`).");

static PyObject *told_descriptor(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyLong_FromLong(device.told);
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
        const int error = errno;
        if (is_told()) {
            go_on();
            if (got < 0 && error == EAGAIN)
                return PyLong_FromLong(TURN);
            most = 0; /* those who go on are others */
        }
        errno = error;
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
    give_back(outcome != NULL && PyLong_AsLong(outcome) == IDLE);
    return outcome;
}

PyDoc_STRVAR(reply_doc,
             "reply(opcode, unique, room, since, result)\n--\n\n"
             "Answer a request that `later` was told of: with bytes, an error number, or what a thread is to do, which then\n"
             "closes the descriptor: a READ with (fd, offset, size), FSYNC and FSYNCDIR with (fd, data_only).");

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
        answer_later(opcode, unique, since, result);
        Py_RETURN_NONE;
    }
    if (!PyBytes_Check(result) && !PyLong_Check(result)) {
        PyErr_SetString(PyExc_TypeError, "a result is bytes, an error number, or what a thread is to do");
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
    if (device.told < 0 && (device.told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
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
    forget_all_attributes(); /* of another mount */
    forget_all_without_xattrs();
    forget_all_ends();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(waiting_doc, "waiting() -> count\n--\n\nHow many requests threads have not answered yet.");

static PyObject *waiting(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyLong_FromSize_t(unanswered());
}

PyDoc_STRVAR(finish_doc, "finish()\n--\n\n"
                         "Wait until threads have answered what they have, and answer nothing any more: the\n"
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

/* -- the module ---------------------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"attach", attach, METH_VARARGS, attach_doc},
    {"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL, serve_doc},
    {"sync", sync_files, METH_VARARGS, sync_doc},
    {"tell", tell, METH_NOARGS, tell_doc},
    {"told", told_descriptor, METH_NOARGS, told_doc},
    {"reply", reply, METH_VARARGS, reply_doc},
    {"share", (PyCFunction)(void (*)(void))share_number, METH_FASTCALL, share_doc},
    {"unshare", unshare_number, METH_O, unshare_doc},
    {"share_directory", share_directory, METH_VARARGS, share_directory_doc},
    {"unshare_directory", unshare_one_directory, METH_O, unshare_one_directory_doc},
    {"unshare_directories", unshare_directories, METH_NOARGS, unshare_directories_doc},
    {"note_attributes", note_attributes, METH_O, note_attributes_doc},
    {"forget_attributes", forget_attributes, METH_O, forget_attributes_doc},
    {"note_end", (PyCFunction)(void (*)(void))note_end, METH_FASTCALL, note_end_doc},
    {"note_without_xattrs", note_without_xattrs, METH_O, note_without_xattrs_doc},
    {"may_have_xattrs", may_have_xattrs, METH_O, may_have_xattrs_doc},
    {"copy_plain", (PyCFunction)(void (*)(void))copy_plain, METH_FASTCALL, copy_plain_doc},
    {"prepare_plain", (PyCFunction)(void (*)(void))prepare_plain, METH_FASTCALL, prepare_plain_doc},
    {"show_plain", show_plain, METH_VARARGS, show_plain_doc},
    {"lacks_attribute", (PyCFunction)(void (*)(void))lacks_attribute, METH_FASTCALL, lacks_attribute_doc},
    {"are_without_xattrs", (PyCFunction)(void (*)(void))are_without_xattrs, METH_FASTCALL, are_without_xattrs_doc},
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
        PyModule_AddIntMacro(module, NO_CAPABILITY) < 0 || PyModule_AddIntMacro(module, XATTRS) < 0 || PyModule_AddIntMacro(module, SYNCS) < 0 ||
        PyModule_AddIntMacro(module, SHOWN) < 0 || PyModule_AddIntMacro(module, MADE) < 0 ||
        PyModule_AddIntMacro(module, UMASK) < 0 || PyModule_AddIntMacro(module, ALL) < 0 ||
        PyModule_AddIntMacro(module, DIRECTORIES) < 0 || PyModule_AddIntMacro(module, NAMES) < 0 ||
        PyModule_AddIntMacro(module, ONE_LINK) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
