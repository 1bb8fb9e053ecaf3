/* How many requests there were, how they were answered, how long that took, and which inodes were asked for most. */

#define _GNU_SOURCE
#include "counting.h"

#include "../data/waiting.h"
#include "../places.h"
#include "../state.h"

#include <string.h>

void count_error(int error)
{
    if (error > 0 && error < ERRORS)
        device.errors[error]++;
}

void answered(uint32_t opcode, int64_t since, int64_t until)
{
    const int64_t taken = until - since;
    if (opcode >= OPCODES || taken < 0)
        return;
    struct durations *durations = &device.durations[opcode];
    const uint64_t full = taken > 0 ? (uint64_t)(taken - 1) / 1000 : 0;
    const int place = full != 0 ? 64 - __builtin_clzll(full) : 0;
    durations->nanoseconds += (uint64_t)taken;
    durations->counts[place < PLACES ? place : PLACES - 1]++;
}

void count_answered(void)
{
    for (struct waiting request; take_answered(&request);) {
        count_error(request.error);
        answered(request.opcode, request.since, request.until);
    }
}

void note_busy(uint64_t number)
{
    struct busy *busy = &device.busy[place_in(number, BUSY)];
    if (busy->number == number)
        busy->count++;
    else if (busy->count == 0)
        *busy = (struct busy){number, 1};
    else
        busy->count--;
}

const char counts_doc[] =
    "counts() -> (requests, errors, alone)\n--\n\n"
    "How many requests there were, by opcode; how many were answered with an error, by its number (what\n"
    "is refused without a look (`refusals`) is no error); how many were answered without Python, by\n"
    "opcode.";

static PyObject *nonzero(const uint64_t *values, int count)
{
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < count; i++) {
        if (values[i] == 0)
            continue;
        PyObject *key = PyLong_FromLong(i), *value = PyLong_FromUnsignedLongLong(values[i]);
        if (key == NULL || value == NULL || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return result;
}

PyObject *counts(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    count_answered();
    PyObject *requests = nonzero(device.requests, OPCODES), *errors = nonzero(device.errors, ERRORS);
    PyObject *alone = nonzero(device.alone, OPCODES);
    if (requests != NULL && errors != NULL && alone != NULL)
        return Py_BuildValue("(NNN)", requests, errors, alone);
    Py_XDECREF(requests);
    Py_XDECREF(errors);
    Py_XDECREF(alone);
    return NULL;
}

const char durations_doc[] =
    "durations(opcode) -> (nanoseconds, counts)\n--\n\n"
    "How long the answers to one kind of request took: all together, and how many took at most 1, 2,\n"
    "4, ... microseconds, and longer than the one before; the last count is of all others. It begins\n"
    "when a request that waits is read, and ends when its answer is written.";

PyObject *durations(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long opcode = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (opcode >= OPCODES) {
        PyErr_SetString(PyExc_ValueError, "no such opcode");
        return NULL;
    }
    count_answered();
    const struct durations *of = &device.durations[opcode];
    PyObject *list = PyTuple_New(PLACES);
    for (int i = 0; list != NULL && i < PLACES; i++) {
        PyObject *count = PyLong_FromUnsignedLongLong(of->counts[i]);
        if (count == NULL)
            Py_CLEAR(list);
        else
            PyTuple_SET_ITEM(list, i, count);
    }
    return list == NULL ? NULL : Py_BuildValue("(KN)", (unsigned long long)of->nanoseconds, list);
}

const char watch_doc[] =
    "watch(on)\n--\n\nCount from now on, or no more, which inodes are asked for most.";

PyObject *watch(PyObject *module, PyObject *argument)
{
    (void)module;
    const int on = PyObject_IsTrue(argument);
    if (on < 0)
        return NULL;
    device.watched = on;
    memset(device.busy, 0, sizeof device.busy);
    Py_RETURN_NONE;
}

const char busiest_doc[] =
    "busiest() -> {number: count}\n--\n\n"
    "The inodes that were asked for most since the last call, and about how often.";

PyObject *busiest(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < BUSY; i++) {
        if (device.busy[i].count == 0)
            continue;
        PyObject *key = PyLong_FromUnsignedLongLong(device.busy[i].number);
        PyObject *value = PyLong_FromUnsignedLongLong(device.busy[i].count);
        if (key == NULL || value == NULL || PyDict_SetItem(result, key, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    memset(device.busy, 0, sizeof device.busy);
    return result;
}
