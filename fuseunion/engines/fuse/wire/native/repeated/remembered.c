/* Attributes of files of a lower that were read, and of directories that were listed.
 *
 * After each FUSE_READ and FUSE_READDIRPLUS the kernel believes the time of access no more, and asks for all attributes
 * when somebody looks at the inode again (fs/fuse/dir.c fuse_invalidate_atime); a mount that is noatime is not spared.
 * Those of a file were seen when it was read, and are the same as long as the file is that of the lower; those of a
 * directory are what Python says of it. Python keeps a token of each inode that is remembered where it would keep the
 * attributes, and forgets both at once (Remembered in entries.py).
 */

#include "remembered.h"

#include "../places.h"
#include "../plain/plain.h"

#include <stddef.h>
#include <string.h>

const char forget_attributes_doc[] =
    "forget_attributes(number)\n--\n\nThe attributes of the inode with this number may be others now.";
const char note_attributes_doc[] =
    "note_attributes(entry)\n--\n\nRemember the attributes in a struct fuse_entry_out, of its inode.";

enum { PLACES = 8192 };

/* A table with one place for each number, which a later one may take: who is not found is answered by Python. */
static struct remembered {
    uint64_t number; /* 0: nobody's */
    struct fuse_attr attr;
} remembered[PLACES];

static bool any;

static struct remembered *place_of(uint64_t number)
{
    return &remembered[place_in(number, PLACES)];
}

void remember_attributes(uint64_t number, const struct stat *st)
{
    struct remembered *place = place_of(number);
    place->number = number;
    fill_attributes(&place->attr, st, number);
    any = true;
}

const struct fuse_attr *find_attributes(uint64_t number)
{
    const struct remembered *place = place_of(number);
    return number != 0 && place->number == number ? &place->attr : NULL;
}

void forget_all_attributes(void)
{
    if (any)
        memset(remembered, 0, sizeof remembered);
    any = false;
}

PyObject *note_attributes(PyObject *module, PyObject *argument)
{
    (void)module;
    struct fuse_entry_out entry;
    if (!PyBytes_Check(argument) || PyBytes_GET_SIZE(argument) != sizeof entry) {
        PyErr_SetString(PyExc_TypeError, "note_attributes(entry)");
        return NULL;
    }
    memcpy(&entry, PyBytes_AS_STRING(argument), sizeof entry);
    *place_of(entry.nodeid) = (struct remembered){.number = entry.nodeid, .attr = entry.attr};
    any = true;
    Py_RETURN_NONE;
}

PyObject *forget_attributes(PyObject *module, PyObject *argument)
{
    (void)module;
    const uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    struct remembered *place = place_of(number);
    if (place->number == number)
        place->number = 0;
    Py_RETURN_NONE;
}
