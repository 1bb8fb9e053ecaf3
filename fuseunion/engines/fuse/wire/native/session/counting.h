/* What is counted (counting.c). */

#ifndef FUSEUNION_COUNTING_H
#define FUSEUNION_COUNTING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* A request was answered with an error number; 0 is none. */
void count_error(int error);

/* A request was answered that was looked for at a time (CLOCK_MONOTONIC, nanoseconds). */
void answered(uint32_t opcode, int64_t since, int64_t until);

/* Count what threads have answered since the last time. */
void count_answered(void);

/* An inode was asked for. */
void note_busy(uint64_t number);

extern const char counts_doc[], durations_doc[], watch_doc[], busiest_doc[];
PyObject *counts(PyObject *module, PyObject *nothing);
PyObject *durations(PyObject *module, PyObject *argument);
PyObject *watch(PyObject *module, PyObject *argument);
PyObject *busiest(PyObject *module, PyObject *nothing);

#pragma GCC visibility pop

#endif
