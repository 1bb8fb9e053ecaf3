/* Inodes that have no extended attributes at all, as most.
 *
 * The kernel remembers none, and who copies or compares a tree asks for each file's (cp -a, rsync -X, a commit of
 * podman). They were looked for, and nobody but the daemon changes a layer: Python keeps a token of each inode that is
 * noted in the place of the attributes that it is known to lack, and forgets both at once (WithoutXattrs in xattrs.py).
 * An inode that the kernel forgets is forgotten here too, because another may get its number.
 */

#include "without_xattrs.h"

#include "../places.h"

#include <string.h>

const char note_without_xattrs_doc[] = "note_without_xattrs(number)\n--\n\nThe inode with this number has none.";
const char may_have_xattrs_doc[] = "may_have_xattrs(number)\n--\n\nThe inode with this number may have some from now on.";

enum { PLACES = 65536 };

/* A table with one place for each number, which a later one may take: who is not found is answered by Python. */
static uint64_t numbers[PLACES]; /* 0: nobody's */
static bool any;

static uint64_t *place_of(uint64_t number)
{
    return &numbers[place_in(number, PLACES)];
}

bool is_without_xattrs(uint64_t number)
{
    return any && number != 0 && *place_of(number) == number;
}

void forget_without_xattrs(uint64_t number)
{
    if (is_without_xattrs(number))
        *place_of(number) = 0;
}

void forget_all_without_xattrs(void)
{
    if (any)
        memset(numbers, 0, sizeof numbers);
    any = false;
}

PyObject *note_without_xattrs(PyObject *module, PyObject *argument)
{
    (void)module;
    const uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    *place_of(number) = number;
    any = true;
    Py_RETURN_NONE;
}

PyObject *may_have_xattrs(PyObject *module, PyObject *argument)
{
    (void)module;
    const uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    forget_without_xattrs(number);
    Py_RETURN_NONE;
}
