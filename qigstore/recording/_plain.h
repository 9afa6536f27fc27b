/* What the short way takes for a number. */

#ifndef QIGSTORE_PLAIN_H
#define QIGSTORE_PLAIN_H

#include <Python.h>

/* A plain number as a double; 0: it is none, or needs words. */
static int
plain(PyObject *value, double *number)
{
    if (PyFloat_Check(value)) { /* NumPy's float64 is one too */
        *number = PyFloat_AS_DOUBLE(value);
        return 1;
    }
    if (!PyLong_Check(value))
        return 0;
    *number = PyLong_AsDouble(value);
    if (*number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return 1;
}

#endif
