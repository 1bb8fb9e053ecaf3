/* Where the listings of directories end.
 *
 * Who lists a directory asks once more behind its last name. Python, which has sent all names in one answer, says which
 * position that is, and what is made later need not be in a listing that was begun before (readdir(3p)). It is true of
 * the listing that was begun last: whoever begins another, at position 0, ends that, because a name may have come to
 * where the directory ended.
 */

#include "ends.h"

#include "../places.h"

#include <string.h>

const char note_end_doc[] =
    "note_end(number, position)\n--\n\nThere is nothing behind this position in the listing of the directory.";

enum { PLACES = 64 };

/* A table with one place for each number, which a later one may take: who is not found is answered by Python. */
static struct end {
    uint64_t number, position; /* 0: nobody's */
} ends[PLACES];

static struct end *place_of(uint64_t number)
{
    return &ends[place_in(number, PLACES)];
}

bool is_end(uint64_t number, uint64_t position)
{
    struct end *end = place_of(number);
    if (number == 0 || end->number != number || (position != end->position && position != 0))
        return false;
    end->number = 0;
    return position != 0;
}

void forget_end(uint64_t number)
{
    struct end *end = place_of(number);
    if (end->number == number)
        end->number = 0;
}

void forget_all_ends(void)
{
    memset(ends, 0, sizeof ends);
}

PyObject *note_end(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "note_end(number, position)");
        return NULL;
    }
    struct end end = {.number = PyLong_AsUnsignedLongLong(args[0])};
    if (!PyErr_Occurred())
        end.position = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    *place_of(end.number) = end;
    Py_RETURN_NONE;
}
