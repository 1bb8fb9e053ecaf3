/* The part of the module that is in xattrs.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
/* What lacks_attribute found: nothing, that the one is not there, that there is none. */
enum { UNKNOWN = 0, ONE = 1, ALL = 2 };
extern const char lacks_attribute_doc[], are_without_xattrs_doc[];
PyObject *lacks_attribute(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *are_without_xattrs(PyObject *module, PyObject *const *args, Py_ssize_t count);
#pragma GCC visibility pop
