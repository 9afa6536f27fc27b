/* What a detector remembers, in C, and how a quiet value changes it.

   `statistic.py` has the same class in Python, and `detectors.py` the whole of the arithmetic:
   here is only the way of a value about which there is nothing to say, with the same operations in
   the same order, so that both give the same bits. Every other value goes to `judge`, with nothing
   changed. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <structmember.h>

/* detectors.py: _KNOWN and _DEVIATION_MAX. */
#define KNOWN 600
#define DEVIATION_MAX 1e148
#define QUICK 0.12

typedef struct {
    PyObject_HEAD
    PyObject *name, *severity, *action, *metric;
    double a, covariance, delta, floor, floor_relative, gathered, jitter, lagged, lam, last, mean,
        scale, total, variance, warn_squared, weight, wide;
    long long count, direction, level, run, warm_up;
    char open;
} Statistic;

static PyObject *judged;

static PyObject *
judge(Statistic *self, PyObject *step, PyObject *value)
{
    return PyObject_CallMethodObjArgs((PyObject *)self, judged, step, value, NULL);
}

static int
given(PyObject *const *args, Py_ssize_t count, double *value)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "a step and a value");
        return -1;
    }
    *value = PyFloat_AsDouble(args[1]);
    return *value == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static double
larger(double first, double second)
{
    return second > first ? second : first; /* as Python's max() */
}

static double
clipped(double deviation, double bound)
{
    return -bound < deviation && deviation < bound ? deviation : copysign(bound, deviation);
}

PyDoc_STRVAR(level_doc,
"take_level(step, value, /)\n--\n\n`EwmaDetector`: take a value inside the usual range.");

static PyObject *
take_level(Statistic *self, PyObject *const *args, Py_ssize_t count)
{
    double value;
    if (given(args, count, &value) < 0)
        return NULL;
    double deviation = value - self->mean;
    if (self->count < self->warm_up || self->level || self->run
        || deviation * deviation > self->warn_squared * self->variance)
        return judge(self, args[0], args[1]);
    double a = self->a;
    self->mean += a * deviation;
    self->variance = (1.0 - a) * (self->variance + a * deviation * deviation);
    self->covariance += a * (deviation * self->last - self->covariance);
    self->last = deviation;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(drift_doc,
"take_drift(step, value, /)\n--\n\n`PageHinkleyDetector`: take a value of no drift.");

static PyObject *
take_drift(Statistic *self, PyObject *const *args, Py_ssize_t given_count)
{
    double value;
    if (given(args, given_count, &value) < 0)
        return NULL;
    long long count = self->count + 1;
    if (count & 3) {
        self->count = count;
        self->gathered += 0.25 * value;
        self->last = value;
        Py_RETURN_NONE;
    }
    if (count <= self->warm_up || !(count & 31))
        return judge(self, args[0], args[1]);

    double scale = self->scale, slow = larger(4.0 * self->weight, 0.0);
    double four = self->gathered + 0.25 * value;
    double deviation = clipped(four - self->mean, 2.5 * scale);
    double single = clipped(value - self->mean, 10.0 * scale);
    double change = clipped(value - self->last, 10.0 * scale);
    double total = self->total
        + 4.0 * ((double)self->direction * deviation / scale - self->delta);
    if (total > self->lam)
        return judge(self, args[0], args[1]);
    self->count = count;
    self->gathered = 0.0;
    self->wide += four / 8.0;
    self->mean += slow * deviation;
    self->variance += slow * (single * single - self->variance);
    self->jitter += QUICK * (0.5 * change * change - self->jitter);

    double noise = sqrt(larger(larger(self->jitter, self->variance), self->lagged));
    if (count < KNOWN)
        noise *= 4.0 - 3.0 * (double)count / KNOWN;
    double wanted = larger(larger(noise, self->floor_relative * fabs(self->mean)), self->floor);
    self->scale = DEVIATION_MAX < wanted ? DEVIATION_MAX : wanted;
    if (total > 0.0)
        self->total = total;
    else {
        self->total = 0.0;
        self->open = 0;
    }
    Py_RETURN_NONE;
}

static void
statistic_dealloc(Statistic *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(self->name);
    Py_CLEAR(self->severity);
    Py_CLEAR(self->action);
    Py_CLEAR(self->metric);
    type->tp_free((PyObject *)self);
}

static PyMethodDef statistic_methods[] = {
    {"take_level", (PyCFunction)(void (*)(void))take_level, METH_FASTCALL, level_doc},
    {"take_drift", (PyCFunction)(void (*)(void))take_drift, METH_FASTCALL, drift_doc},
    {NULL, NULL, 0, NULL},
};

#define TEXT(field) {#field, T_OBJECT_EX, offsetof(Statistic, field), 0, NULL}
#define REAL(field) {#field, T_DOUBLE, offsetof(Statistic, field), 0, NULL}
#define WHOLE(field) {#field, T_LONGLONG, offsetof(Statistic, field), 0, NULL}

static PyMemberDef statistic_members[] = {
    TEXT(name), TEXT(severity), TEXT(action), TEXT(metric),
    REAL(a), REAL(covariance), REAL(delta), REAL(floor), REAL(floor_relative), REAL(gathered),
    REAL(jitter), REAL(lagged), REAL(lam), REAL(last), REAL(mean), REAL(scale), REAL(total),
    REAL(variance), REAL(warn_squared), REAL(weight), REAL(wide),
    WHOLE(count), WHOLE(direction), WHOLE(level), WHOLE(run), WHOLE(warm_up),
    {"open", T_BOOL, offsetof(Statistic, open), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject statistic_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "qigstore.safety._statistic.Statistic",
    .tp_doc = PyDoc_STR("What a detector remembers, and the way of a quiet value."),
    .tp_basicsize = sizeof(Statistic),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)statistic_dealloc,
    .tp_methods = statistic_methods,
    .tp_members = statistic_members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qigstore.safety._statistic",
    .m_doc = PyDoc_STR("The memory of a detector, compiled."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__statistic(void)
{
    judged = PyUnicode_InternFromString("judge");
    PyObject *made = judged == NULL ? NULL : PyModule_Create(&module);
    if (made != NULL && PyModule_AddType(made, &statistic_type) < 0)
        Py_CLEAR(made);
    return made;
}
