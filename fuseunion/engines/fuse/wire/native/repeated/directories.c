/* Directories by descriptors: their attributes, and, where the descriptors are of everything that may hold a name in them,
 * names that are not there, and the files that are made in them.
 *
 * Nothing is remembered of what is in them: the layers are asked each time. What is not as simple as it was believed to
 * be is left to Python (SharedDirectories in shared_directories.py, which is the only one who shares one).
 */

#define _GNU_SOURCE
#include "directories.h"

#include "../places.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

const char share_directory_doc[] =
    "share_directory(number, fds, uses)\n--\n\n"
    "Answer for the directory with this number by descriptors of its parts, topmost first, which are opened again. It may\n"
    "be forgotten at any time, and is when the kernel forgets the number.\n\n"
    "uses: SHOWN where what fstat(2) says of the first is what is shown, ONE_LINK where its count of links is not; NAMES\n"
    "where no other part may hold a name; MADE where files are made in the first by open(2) alone, if who asks for one is\n"
    "the daemon's own user; DIRECTORIES where directories are, too, by mkdir(2), and shown as they are; UMASK where the\n"
    "kernel has not applied it.\n"
    "Raises OSError of openat(2), ValueError for more than 3.";
const char unshare_one_directory_doc[] =
    "unshare_directory(number)\n--\n\nClose the descriptors of the directory with this number, if it is shared.";
const char unshare_directories_doc[] = "unshare_directories()\n--\n\nClose the descriptors of all directories.";

enum { PLACES = 16, LAYERS = 3 };

/* A table with one place for each number, which a later one may take: who is not found is answered by Python, which
 * shares it again. */
static struct directory {
    uint64_t number; /* 0: nobody's */
    int uses, count, fds[LAYERS];
} directories[PLACES];

static struct directory *place_of(uint64_t number)
{
    return &directories[place_in(number, PLACES)];
}

static struct directory *find(uint64_t number)
{
    struct directory *directory = place_of(number);
    return directory->number == number ? directory : NULL;
}

static void clear(struct directory *directory)
{
    for (int i = 0; i < directory->count; i++)
        close(directory->fds[i]);
    *directory = (struct directory){.number = 0};
}

void unshare_directory(uint64_t number)
{
    struct directory *directory = find(number);
    if (directory != NULL)
        clear(directory);
}

PyObject *share_directory(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long number;
    PyObject *fds;
    struct directory shared = {.number = 0};
    if (!PyArg_ParseTuple(args, "KO!i", &number, &PyTuple_Type, &fds, &shared.uses))
        return NULL;
    shared.number = number;
    Py_ssize_t count = PyTuple_GET_SIZE(fds);
    if (count < 1 || count > LAYERS) {
        PyErr_SetString(PyExc_ValueError, "1 to 3 descriptors");
        return NULL;
    }
    for (; shared.count < count; shared.count++) {
        int fd = (int)PyLong_AsLong(PyTuple_GET_ITEM(fds, shared.count));
        /* Not duplicated: the lock that a layer's root has would be held too. */
        int own = PyErr_Occurred() ? -1 : openat(fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (own < 0) {
            int error = errno;
            clear(&shared);
            errno = error;
            return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
        }
        shared.fds[shared.count] = own;
    }
    struct directory *place = place_of(number);
    clear(place);
    *place = shared;
    Py_RETURN_NONE;
}

PyObject *unshare_one_directory(PyObject *module, PyObject *argument)
{
    (void)module;
    uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    unshare_directory(number);
    Py_RETURN_NONE;
}

PyObject *unshare_directories(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    for (size_t i = 0; i < PLACES; i++)
        clear(&directories[i]);
    Py_RETURN_NONE;
}

static bool lacks(const struct directory *directory, const char *name, size_t size)
{
    if (strnlen(name, size) == size || strncmp(name, ".wh.", 4) == 0 || strchr(name, '/') != NULL)
        return false;
    struct stat st;
    for (int i = 0; i < directory->count; i++)
        if (fstatat(directory->fds[i], name, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
            return false;
    return true;
}

bool is_absent(uint64_t number, const char *name, size_t size)
{
    const struct directory *directory = find(number);
    return directory != NULL && directory->uses & NAMES && lacks(directory, name, size);
}

bool look_at_directory(uint64_t number, struct stat *st)
{
    const struct directory *directory = find(number);
    if (directory == NULL || !(directory->uses & SHOWN) || fstat(directory->fds[0], st) != 0 || st->st_nlink == 0)
        return false;
    if (directory->uses & ONE_LINK)
        st->st_nlink = 1;
    return true;
}

/* The shared directory in which a name is to be made by its owner, of which no layer has it; NULL where Python has to. */
static const struct directory *place_for(const struct fuse_in_header *header, int use, const char *name, size_t size)
{
    const struct directory *directory = find(header->nodeid);
    if (directory == NULL || !(directory->uses & NAMES) || !(directory->uses & use) || header->uid != geteuid() ||
        header->gid != getegid())
        return NULL;
    return lacks(directory, name, size) ? directory : NULL;
}

int make_directory(const struct fuse_in_header *header, const char *body, size_t size, struct stat *st)
{
    const struct fuse_mkdir_in *in = (const struct fuse_mkdir_in *)body;
    if (size < sizeof *in || in->mode & (S_ISUID | S_ISGID))
        return -1;
    const char *name = body + sizeof *in;
    const struct directory *directory = place_for(header, DIRECTORIES, name, size - sizeof *in);
    if (directory == NULL)
        return -1;
    const mode_t before = umask(directory->uses & UMASK ? in->umask : 0);
    const int made = mkdirat(directory->fds[0], name, in->mode & ALLPERMS);
    umask(before);
    if (made != 0)
        return -1;
    if (fstatat(directory->fds[0], name, st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st->st_mode))
        return 0;
    unlinkat(directory->fds[0], name, AT_REMOVEDIR); /* nobody has seen it */
    return -1;
}

int make_file(const struct fuse_in_header *header, const char *body, size_t size, struct stat *st)
{
    const struct fuse_mknod_in *in = (const struct fuse_mknod_in *)body;
    if (size < sizeof *in || !S_ISREG(in->mode) || in->mode & (S_ISUID | S_ISGID))
        return -1;
    const char *name = body + sizeof *in;
    const struct directory *directory = place_for(header, MADE, name, size - sizeof *in);
    if (directory == NULL)
        return -1;
    const mode_t before = umask(directory->uses & UMASK ? in->umask : 0);
    int fd = openat(directory->fds[0], name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, in->mode & ALLPERMS);
    umask(before);
    if (fd < 0)
        return -1;
    /* Not an open flag: a file whose owner is another would be made, and refused. */
    (void)fcntl(fd, F_SETFL, O_NOATIME);
    if (fstat(fd, st) == 0)
        return fd;
    close(fd);
    unlinkat(directory->fds[0], name, 0); /* nobody has seen it */
    return -1;
}
