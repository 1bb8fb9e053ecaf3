/* The part of the module that is in copy.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char copy_plain_doc[], prepare_plain_doc[], show_plain_doc[];
PyObject *copy_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *prepare_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *show_plain(PyObject *module, PyObject *args);
#pragma GCC visibility pop
