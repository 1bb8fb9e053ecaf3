/* The part of the module that is in ends.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char note_end_doc[];
PyObject *note_end(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* Whether there is nothing behind a position in the listing of a directory. It is said once, and no more when the
 * directory is listed from the beginning. */
bool is_end(uint64_t number, uint64_t position);

/* The directory is another. */
void forget_end(uint64_t number);

/* Nothing is known of any. */
void forget_all_ends(void);
#pragma GCC visibility pop
