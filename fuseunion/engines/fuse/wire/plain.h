/* The part of the module that is in plain.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern const char pack_plain_doc[];
PyObject *pack_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
