/* The check of a usual row, in C: every value finite, and nothing new to any detector.

   `check.py` has the same class in Python and says what it promises. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stddef.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    /* (index, observe) pairs, and the same taken apart. */
    PyObject *observers;
    Py_ssize_t count, *places;
    PyObject **observe;
    PyObject *busy, *slow, *bounded;
} Check;

static PyObject *quiet;

/* Whether all are finite: their sum is, or overflows, which the slow way then finds out. */
static int
all_finite(PyObject *const *values, Py_ssize_t count)
{
    double total = 0.0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyFloat_CheckExact(values[i]))
            total += PyFloat_AS_DOUBLE(values[i]);
        else {
            double value = PyFloat_AsDouble(values[i]);
            if (value == -1.0 && PyErr_Occurred()) {
                PyErr_Clear(); /* the slow way says it in Python's words */
                return 0;
            }
            total += value;
        }
    }
    return isfinite(total);
}

static PyObject *
judged(Check *self, PyObject *step, PyObject *values)
{
    PyObject *found = NULL;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        if (self->places[i] >= PyTuple_GET_SIZE(values)) {
            PyErr_SetString(PyExc_IndexError, "fewer values than the layout has names");
            Py_XDECREF(found);
            return NULL;
        }
        PyObject *given[2] = {step, PyTuple_GET_ITEM(values, self->places[i])};
        PyObject *alarm = PyObject_Vectorcall(self->observe[i], given, 2, NULL);
        if (alarm == NULL || (alarm != Py_None && found == NULL && !(found = PyList_New(0)))
            || (alarm != Py_None && PyList_Append(found, alarm) < 0)) {
            Py_XDECREF(alarm);
            Py_XDECREF(found);
            return NULL;
        }
        Py_DECREF(alarm);
    }
    if (found == NULL)
        return Py_NewRef(quiet);
    PyObject *alarms = PyObject_CallOneArg(self->bounded, found);
    Py_DECREF(found);
    return alarms;
}

static PyObject *
check(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Check *self = (Check *)callable;
    if (PyVectorcall_NARGS(flags) != 2 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "a step and the values of a row");
        return NULL;
    }
    PyObject *values = PySequence_Tuple(args[1]); /* a tuple is its own */
    if (values == NULL)
        return NULL;
    PyObject *alarms;
    if (PySet_GET_SIZE(self->busy)
        || !all_finite(&PyTuple_GET_ITEM(values, 0), PyTuple_GET_SIZE(values))) {
        PyObject *given[2] = {args[0], values};
        alarms = PyObject_Vectorcall(self->slow, given, 2, NULL);
    }
    else
        alarms = judged(self, args[0], values);
    Py_DECREF(values);
    return alarms;
}

/* -- the type --------------------------------------------------------------------------------- */

static PyObject *
check_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *observers, *busy, *slow, *bounded;
    if (!PyArg_ParseTuple(args, "O!O!OO:Check", &PyTuple_Type, &observers, &PySet_Type, &busy,
                          &slow, &bounded))
        return NULL;
    Check *self = (Check *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(observers);
    self->call = check;
    self->observers = Py_NewRef(observers);
    self->busy = Py_NewRef(busy);
    self->slow = Py_NewRef(slow);
    self->bounded = Py_NewRef(bounded);
    self->places = PyMem_New(Py_ssize_t, count);
    self->observe = PyMem_New(PyObject *, count);
    if (self->places == NULL || self->observe == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (; self->count < count; self->count++) {
        Py_ssize_t i = self->count;
        PyObject *pair = PyTuple_GET_ITEM(observers, i);
        if (!PyTuple_Check(pair)
            || !PyArg_ParseTuple(pair, "nO", &self->places[i], &self->observe[i])) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "observers: pairs of an index and a callable");
            Py_DECREF(self);
            return NULL;
        }
        if (self->places[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "an index is not negative");
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

static int
check_traverse(Check *self, visitproc visit, void *arg)
{
    Py_VISIT(self->observers);
    Py_VISIT(self->busy);
    Py_VISIT(self->slow);
    Py_VISIT(self->bounded);
    return 0;
}

static void
check_dealloc(Check *self)
{
    PyObject_GC_UnTrack(self);
    PyMem_Free(self->places);
    PyMem_Free(self->observe);
    Py_XDECREF(self->observers);
    Py_XDECREF(self->busy);
    Py_XDECREF(self->slow);
    Py_XDECREF(self->bounded);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject check_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "qigstore.safety._check.Check",
    .tp_doc = PyDoc_STR("Judges the values of a usual row."),
    .tp_basicsize = sizeof(Check),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Check, call),
    .tp_call = PyVectorcall_Call,
    .tp_new = check_new,
    .tp_traverse = (traverseproc)check_traverse,
    .tp_dealloc = (destructor)check_dealloc,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qigstore.safety._check",
    .m_doc = PyDoc_STR("The check of a usual row, compiled."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__check(void)
{
    quiet = PyTuple_New(0);
    PyObject *made = quiet == NULL ? NULL : PyModule_Create(&module);
    if (made != NULL && PyModule_AddType(made, &check_type) < 0)
        Py_CLEAR(made);
    return made;
}
