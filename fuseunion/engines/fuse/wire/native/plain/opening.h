/* The part of the module that is in opening.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char open_plain_doc[], read_plain_doc[];

/* Open a name to be read: not its time of access, where that is allowed; no link is followed; no lease and no FIFO is
 * waited for. Returns -1 with errno. */
int open_quietly(int dirfd, const char *name);

PyObject *open_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *read_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
#pragma GCC visibility pop
