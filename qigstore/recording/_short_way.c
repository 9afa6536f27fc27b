/* The short way of `record()`, in C: from the call to the frame in the spool and the rules' answer.

   `short_way.py` has the same class in Python and says what it promises. Here a training loop's
   usual row costs no step of the interpreter's. Whatever is not usual goes to `record_unusual`,
   with nothing written.

   The lock of the spool is taken as everywhere else, without waiting: who holds it is in the middle
   of a row, and waiting is the long way's. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <structmember.h>

#include "_plain.h"

#define NO_REGIME (-1)

typedef struct {
    PyObject_HEAD
    /* Bound methods of the spool and of its lock. */
    PyObject *acquire, *release, *put;
    /* Of the rows that are usual: their layout and what judges them; None: there is none. */
    PyObject *layout, *check;
    char has_phi, mixed;
    /* Boundaries of the regimes: qigkernels' RegimeThresholds. */
    double geometric, hyperdimensional, instability, kappa_star, kappa_window, basin_stable;
    /* The last row: layout, step, values and regime. */
    PyObject *last_row;
} ShortWay;

static PyObject *text_phi, *text_kappa, *text_basin, *text_unusual, *none_raised;

/* -- the regime ------------------------------------------------------------------------------- */

/* A metric of the row; 1: there, 0: the row has none of that name, -1: it is not plain. */
static int
number_of(PyObject *metrics, PyObject *name, double *number)
{
    PyObject *value = PyDict_GetItemWithError(metrics, name);
    if (value != NULL)
        return plain(value, number) ? 1 : -1;
    if (!PyErr_Occurred())
        return 0;
    PyErr_Clear(); /* a name that cannot be compared: the long way says so */
    return -1;
}

/* `RegimeDetector.code`; 0: some value is not plain. */
static int
regime_of(ShortWay *self, PyObject *metrics, long *regime)
{
    double phi, kappa, basin;
    int has_phi = number_of(metrics, text_phi, &phi);
    int has_kappa = number_of(metrics, text_kappa, &kappa);
    int has_basin = number_of(metrics, text_basin, &basin);
    if (has_phi < 0 || has_kappa < 0 || has_basin < 0)
        return 0;
    if (!has_phi || isnan(phi))
        *regime = NO_REGIME;
    else if (phi < self->geometric)
        *regime = 0;
    else if (phi < self->hyperdimensional)
        *regime = 1;
    else if (phi >= self->instability
             || (has_kappa && fabs(kappa - self->kappa_star) > self->kappa_window)
             || (has_basin && basin > self->basin_stable))
        *regime = 3;
    else
        *regime = 2;
    return 1;
}

/* -- the row ---------------------------------------------------------------------------------- */

static int
remember(ShortWay *self, PyObject *layout, PyObject *step, PyObject *values, PyObject *code)
{
    PyObject *row = PyTuple_Pack(4, layout, step, values, code);
    if (row == NULL)
        return -1;
    Py_XSETREF(self->last_row, row); /* the old one goes last: a finalizer of its may record */
    return 0;
}

/* With the lock held: the row, and then what the rules say of it. */
static PyObject *
put_and_judge(ShortWay *self, PyObject *step, PyObject *metrics, PyObject *code)
{
    /* Kept: a finalizer that records other rows meanwhile changes what is usual. */
    PyObject *layout = Py_NewRef(self->layout), *check = Py_NewRef(self->check);
    PyObject *row[4] = {layout, step, code, metrics}, *alarms = NULL;
    PyObject *values = PyObject_Vectorcall(self->put, row, 4, NULL);
    if (values == Py_None)
        alarms = Py_NewRef(Py_None);
    else if (values != NULL && remember(self, layout, step, values, code) == 0) {
        PyObject *judged[2] = {step, values};
        alarms = check == Py_None ? Py_NewRef(none_raised)
                                  : PyObject_Vectorcall(check, judged, 2, NULL);
    }
    Py_XDECREF(values);
    Py_DECREF(layout);
    Py_DECREF(check);
    return alarms;
}

static void
let_go(ShortWay *self)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    PyObject *done = PyObject_CallNoArgs(self->release);
    if (done == NULL)
        PyErr_WriteUnraisable(self->release);
    Py_XDECREF(done);
    PyErr_Restore(kind, value, trace);
}

/* The alarms; None: not usual, and nothing was written. */
static PyObject *
plainly(ShortWay *self, PyObject *step, PyObject *metrics)
{
    long regime = NO_REGIME;
    if (self->put == NULL || self->check == NULL || self->layout == NULL
        || self->layout == Py_None || !PyDict_CheckExact(metrics)
        || (self->has_phi && !regime_of(self, metrics, &regime)))
        Py_RETURN_NONE;
    PyObject *blocking = Py_False;
    PyObject *mine = PyObject_Vectorcall(self->acquire, &blocking, 1, NULL);
    if (mine == NULL)
        return NULL;
    Py_DECREF(mine);
    if (mine != Py_True)
        Py_RETURN_NONE;
    PyObject *code = PyLong_FromLong(regime); /* a small one: it is there already */
    PyObject *alarms = code == NULL ? NULL : put_and_judge(self, step, metrics, code);
    Py_XDECREF(code);
    let_go(self);
    return alarms;
}

static int
two(PyObject *const *args, Py_ssize_t given)
{
    if (given == 2)
        return 1;
    PyErr_SetString(PyExc_TypeError, "a step and the metrics of a row");
    return 0;
}

PyDoc_STRVAR(plain_doc,
"record_plain(step, metrics, /)\n--\n\nAdd a usual row; its alarms, or None: nothing was written.");

static PyObject *
record_plain(ShortWay *self, PyObject *const *args, Py_ssize_t given)
{
    return two(args, given) ? plainly(self, args[0], args[1]) : NULL;
}

PyDoc_STRVAR(record_doc,
"record(step, metrics, /)\n--\n\nAdd one row; the alarms that the rules raise about it.");

static PyObject *
record(ShortWay *self, PyObject *const *args, Py_ssize_t given)
{
    if (!two(args, given))
        return NULL;
    if (!self->mixed) {
        PyObject *alarms = plainly(self, args[0], args[1]);
        if (alarms != Py_None)
            return alarms;
        Py_DECREF(alarms);
    }
    return PyObject_CallMethodObjArgs((PyObject *)self, text_unusual, args[0], args[1], NULL);
}

/* -- what it is made of ------------------------------------------------------------------------ */

static int
read_real(PyObject *object, const char *name, double *number)
{
    PyObject *found = PyObject_GetAttrString(object, name);
    if (found == NULL)
        return -1;
    *number = PyFloat_AsDouble(found);
    Py_DECREF(found);
    return *number == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static int
set(PyObject **field, PyObject *value)
{
    Py_XSETREF(*field, value);
    return value == NULL ? -1 : 0;
}

static int
short_way_init(ShortWay *self, PyObject *args, PyObject *keywords)
{
    PyObject *spool, *bounds, *lock;
    if (!PyArg_ParseTuple(args, "OO:ShortWay", &spool, &bounds))
        return -1;
    lock = PyObject_GetAttrString(spool, "lock");
    if (lock == NULL)
        return -1;
    int failed = set(&self->acquire, PyObject_GetAttrString(lock, "acquire")) < 0
        || set(&self->release, PyObject_GetAttrString(lock, "release")) < 0
        || read_real(bounds, "geometric", &self->geometric) < 0
        || read_real(bounds, "hyperdimensional", &self->hyperdimensional) < 0
        || read_real(bounds, "instability", &self->instability) < 0
        || read_real(bounds, "kappa_star", &self->kappa_star) < 0
        || read_real(bounds, "kappa_window", &self->kappa_window) < 0
        || read_real(bounds, "basin_stable", &self->basin_stable) < 0
        || set(&self->layout, Py_NewRef(Py_None)) < 0
        || set(&self->check, Py_NewRef(Py_None)) < 0
        || set(&self->last_row, Py_NewRef(Py_None)) < 0
        /* Last: with it the rest is there. */
        || set(&self->put, PyObject_GetAttrString(spool, "put")) < 0;
    Py_DECREF(lock);
    return failed ? -1 : 0;
}

/* -- the type --------------------------------------------------------------------------------- */

static int
short_way_traverse(ShortWay *self, visitproc visit, void *arg)
{
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    Py_VISIT(self->put);
    Py_VISIT(self->layout);
    Py_VISIT(self->check);
    Py_VISIT(self->last_row);
    return 0;
}

static int
short_way_clear(ShortWay *self)
{
    Py_CLEAR(self->acquire);
    Py_CLEAR(self->release);
    Py_CLEAR(self->put);
    Py_CLEAR(self->layout);
    Py_CLEAR(self->check);
    Py_CLEAR(self->last_row);
    return 0;
}

static void
short_way_dealloc(ShortWay *self)
{
    PyObject_GC_UnTrack(self);
    short_way_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef short_way_methods[] = {
    {"record", (PyCFunction)(void (*)(void))record, METH_FASTCALL, record_doc},
    {"record_plain", (PyCFunction)(void (*)(void))record_plain, METH_FASTCALL, plain_doc},
    {NULL, NULL, 0, NULL},
};

#define THING(field) {#field, T_OBJECT_EX, offsetof(ShortWay, field), 0, NULL}

static PyMemberDef short_way_members[] = {
    THING(layout), THING(check), THING(last_row),
    {"has_phi", T_BOOL, offsetof(ShortWay, has_phi), 0, NULL},
    {"mixed", T_BOOL, offsetof(ShortWay, mixed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject short_way_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "qigstore.recording._short_way.ShortWay",
    .tp_doc = PyDoc_STR("The way of a usual row, from the call to the rules' answer."),
    .tp_basicsize = sizeof(ShortWay),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)short_way_init,
    .tp_traverse = (traverseproc)short_way_traverse,
    .tp_clear = (inquiry)short_way_clear,
    .tp_dealloc = (destructor)short_way_dealloc,
    .tp_methods = short_way_methods,
    .tp_members = short_way_members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qigstore.recording._short_way",
    .m_doc = PyDoc_STR("The short way of `record()`, compiled."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__short_way(void)
{
    text_phi = PyUnicode_InternFromString("phi");
    text_kappa = PyUnicode_InternFromString("kappa_eff");
    text_basin = PyUnicode_InternFromString("basin_distance");
    text_unusual = PyUnicode_InternFromString("record_unusual");
    none_raised = PyTuple_New(0);
    if (!text_phi || !text_kappa || !text_basin || !text_unusual || !none_raised)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddType(made, &short_way_type) < 0)
        Py_CLEAR(made);
    return made;
}
