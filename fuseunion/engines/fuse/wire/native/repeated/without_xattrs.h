/* The part of the module that is in without_xattrs.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char note_without_xattrs_doc[], may_have_xattrs_doc[];
PyObject *note_without_xattrs(PyObject *module, PyObject *argument);
PyObject *may_have_xattrs(PyObject *module, PyObject *argument);

/* Whether an inode is known to have no extended attributes. */
bool is_without_xattrs(uint64_t number);

/* It may have some from now on, or is another. */
void forget_without_xattrs(uint64_t number);

/* Nothing is known of any. */
void forget_all_without_xattrs(void);
#pragma GCC visibility pop
