/* The part of the module that is in directories.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
extern const char share_directory_doc[], unshare_one_directory_doc[], unshare_directories_doc[];
PyObject *share_directory(PyObject *module, PyObject *args);
PyObject *unshare_one_directory(PyObject *module, PyObject *argument);
PyObject *unshare_directories(PyObject *module, PyObject *unused);

/* What a shared directory may be used for. SHOWN: what is shown of it is what the first of its descriptors has.
 * ONE_LINK: but for its count of links, which is 1. NAMES: what none of its descriptors has is not in it. MADE: and regular
 * files of the daemon's own user are made in the first. UMASK: which is told with each. DIRECTORIES: are made there too,
 * and what is shown of one is what it has. */
enum { SHOWN = 1, MADE = 2, UMASK = 4, DIRECTORIES = 8, NAMES = 16, ONE_LINK = 32 };

/* Nobody asks for a directory any more. */
void unshare_directory(uint64_t number);

/* Whether no layer of a shared directory has a name, which is at the beginning of so many bytes. */
bool is_absent(uint64_t number, const char *name, size_t size);

/* Look at a shared directory. Returns false where Python has to. */
bool look_at_directory(uint64_t number, struct stat *st);

/* Make the file that a request asks for in a shared directory, and open it. Returns -1 where Python has to. */
int make_file(const struct fuse_in_header *header, const char *body, size_t size, struct stat *st);

/* Make the directory that a request asks for in a shared one. Returns -1 where Python has to, else 0. */
int make_directory(const struct fuse_in_header *header, const char *body, size_t size, struct stat *st);
#pragma GCC visibility pop
