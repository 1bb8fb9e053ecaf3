/* The part of the module that is in plain.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdint.h>
#include <sys/stat.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char pack_plain_doc[];
PyObject *pack_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* What is shown of an object with this lstat; `number` is its inode number there. */
void fill_attributes(struct fuse_attr *attr, const struct stat *st, uint64_t number);

/* The entry of it, which the kernel may believe for as long as all others. */
void fill_entry(struct fuse_entry_out *entry, const struct stat *st, uint64_t number); /* repeated.c */

/* One name of a listing. seconds, nsec: how long the kernel may keep it. */
struct listed {
    uint64_t number, seconds, position;
    uint32_t nsec;
    const char *name;
    size_t length;
};

/* Write its struct fuse_direntplus. Returns how long that is. */
size_t put_entry(char *at, const struct stat *st, const struct listed *listed);
#pragma GCC visibility pop
