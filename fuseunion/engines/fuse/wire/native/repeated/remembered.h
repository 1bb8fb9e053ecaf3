/* The part of the module that is in remembered.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char note_attributes_doc[], forget_attributes_doc[];
PyObject *note_attributes(PyObject *module, PyObject *argument);
PyObject *forget_attributes(PyObject *module, PyObject *argument);

/* Remember the attributes of an inode until Python says `forget_attributes`, or another takes its place. */
void remember_attributes(uint64_t number, const struct stat *st);

/* What is remembered of an inode, or NULL. */
const struct fuse_attr *find_attributes(uint64_t number);

/* Remember nothing. */
void forget_all_attributes(void);
#pragma GCC visibility pop
