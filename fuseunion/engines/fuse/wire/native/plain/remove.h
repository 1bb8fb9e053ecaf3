/* The part of the module that is in remove.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char remove_plain_doc[];
PyObject *remove_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
#pragma GCC visibility pop
