/* Frames of a spool: the short way to write one, and how many of them are alike and whole.

   `cursor.py` and `frame.py` have the same in Python and say what it promises; these write the same
   bytes sooner, and find the same frames. A row that is not plain (other names, a tensor, an
   integer beyond a double, a full block, a busy spool) is answered with None, nothing written: the
   long way has the checks and their words.

   No Python code runs between the first look at the spool and the store that makes the row valid,
   so neither another thread nor a signal handler nor a finalizer can come between. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#include "../_plain.h"
#include "_crc32.h"

/* frame.py: marker u32 | crc u32 | size/8 u16 | kind u8 | regime i8 | layout u32 | sequence u64
   | step i64 | time_ns i64 | metrics f64 × n, little-endian. */
#define MARKER 0xd7726671u
#define KIND_ROW 1
#define ROW_BYTES 40
#define STEP_BITS 62

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the frames of a spool are little-endian; use the cursor in Python"
#endif

typedef struct {
    uint16_t words;
    uint8_t kind;
    int8_t regime;
    uint32_t layout;
    uint64_t seq;
    int64_t step;
    int64_t time_ns;
    double values[];
} Body;

typedef struct {
    PyObject_HEAD
    long long at, limit, seq, block;
    unsigned int seed;
    char busy;
    /* What `use` was told. */
    PyObject *layout, *names;
    long long layout_block;
    Py_ssize_t bytes;
    unsigned int layout_id;
    /* What `hold` was given. */
    Py_buffer view;
} Cursor;

/* -- the row -------------------------------------------------------------------------------- */

/* Fill the tuple, and the doubles in the mapping; 0: not the usual row. Allocates nothing. */
static int
take(Cursor *self, PyObject *metrics, PyObject *values, double *numbers)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->names), place = 0, i = 0;
    PyObject *name, *value;

    if (!PyDict_CheckExact(metrics) || PyDict_GET_SIZE(metrics) != count
        || PyTuple_GET_SIZE(values) != count)
        return 0;
    while (i < count && PyDict_Next(metrics, &place, &name, &value)) {
        PyObject *expected = PyTuple_GET_ITEM(self->names, i);
        if (name != expected
            && !(PyUnicode_CheckExact(name) && PyUnicode_Compare(name, expected) == 0))
            return 0;
        if (!plain(value, &numbers[i]))
            return 0;
        Py_INCREF(value);
        PyTuple_SET_ITEM(values, i, value);
        i++;
    }
    return i == count;
}

PyDoc_STRVAR(put_doc,
"put(layout, step, regime, metrics, /)\n--\n\n"
"Add a usual row; its values, or None: it is not usual, and nothing was written.");

static PyObject *
cursor_put(Cursor *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 4) {
        PyErr_SetString(PyExc_TypeError, "put(layout, step, regime, metrics)");
        return NULL;
    }
    if (args[0] != self->layout || !PyLong_CheckExact(args[1]))
        Py_RETURN_NONE;
    int overflow = 0;
    long long step = PyLong_AsLongLongAndOverflow(args[1], &overflow);
    if (overflow || step < 0 || step >> STEP_BITS)
        Py_RETURN_NONE;
    long regime = PyLong_AsLong(args[2]);
    if (regime == -1 && PyErr_Occurred())
        return NULL;
    /* First: it may set off the garbage collection, and that a `__del__` which records. */
    PyObject *values = PyTuple_New(PyTuple_GET_SIZE(self->names));
    if (values == NULL)
        return NULL;
    if (self->busy || args[0] != self->layout || self->layout_block != self->block
        || self->view.buf == NULL || self->at + self->bytes > self->limit
        || self->at + self->bytes > self->view.len) {
        Py_DECREF(values);
        Py_RETURN_NONE;
    }
    unsigned char *frame = (unsigned char *)self->view.buf + self->at;
    /* Straight into the mapping: until its first word is stored, the frame is nothing. */
    Body *body = (Body *)(frame + 8);
    if (!take(self, args[3], values, body->values)) {
        Py_DECREF(values);
        Py_RETURN_NONE;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    body->words = (uint16_t)(self->bytes / 8);
    body->kind = KIND_ROW;
    body->regime = (int8_t)regime;
    body->layout = self->layout_id;
    body->seq = (uint64_t)self->seq + 1;
    body->step = step;
    body->time_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    uint64_t crc = crc32_of(frame + 8, (size_t)self->bytes - 8, self->seed);
    /* One aligned store comes last, and nothing above may be moved behind it. */
    __atomic_store_n((uint64_t *)frame, crc << 32 | MARKER, __ATOMIC_RELEASE);
    self->seq += 1;
    self->at += self->bytes;
    return values;
}

/* -- what rows are written with -------------------------------------------------------------- */

static int
read_integer(PyObject *object, const char *name, long long *number)
{
    PyObject *found = PyObject_GetAttrString(object, name);
    if (found == NULL)
        return -1;
    *number = PyLong_AsLongLong(found);
    Py_DECREF(found);
    return *number == -1 && PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(use_doc,
"use(layout, /)\n--\n\nRows of this layout, whose names are in the block, are usual from now on.");

static PyObject *
cursor_use(Cursor *self, PyObject *layout)
{
    long long size, id, block, dimension;
    if (read_integer(layout, "size", &size) < 0 || read_integer(layout, "id", &id) < 0
        || read_integer(layout, "block", &block) < 0
        || read_integer(layout, "dimension", &dimension) < 0)
        return NULL;
    PyObject *names = PyObject_GetAttrString(layout, "names");
    if (names == NULL)
        return NULL;
    if (!PyTuple_CheckExact(names) || dimension != 0
        || size != ROW_BYTES + 8 * (long long)PyTuple_GET_SIZE(names)) {
        Py_DECREF(names);
        PyErr_SetString(PyExc_ValueError, "a layout of plain numbers, no basin");
        return NULL;
    }
    Py_XSETREF(self->names, names);
    Py_INCREF(layout);
    Py_XSETREF(self->layout, layout);
    self->layout_block = block;
    self->layout_id = (unsigned int)id;
    self->bytes = (Py_ssize_t)size;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(hold_doc,
"hold(mapping, /)\n--\n\nWrite into this mapping from now on; None: let go of the last one.");

static PyObject *
cursor_hold(Cursor *self, PyObject *mapping)
{
    PyBuffer_Release(&self->view); /* sets buf to NULL; of nothing held: does nothing */
    if (mapping != Py_None && PyObject_GetBuffer(mapping, &self->view, PyBUF_WRITABLE) < 0) {
        self->view.buf = NULL;
        return NULL;
    }
    Py_RETURN_NONE;
}

/* -- the type --------------------------------------------------------------------------------- */

static void
cursor_dealloc(Cursor *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyBuffer_Release(&self->view);
    Py_CLEAR(self->layout);
    Py_CLEAR(self->names);
    type->tp_free((PyObject *)self);
}

static PyMethodDef cursor_methods[] = {
    {"put", (PyCFunction)(void (*)(void))cursor_put, METH_FASTCALL, put_doc},
    {"use", (PyCFunction)cursor_use, METH_O, use_doc},
    {"hold", (PyCFunction)cursor_hold, METH_O, hold_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef cursor_members[] = {
    {"at", T_LONGLONG, offsetof(Cursor, at), 0, NULL},
    {"limit", T_LONGLONG, offsetof(Cursor, limit), 0, NULL},
    {"seq", T_LONGLONG, offsetof(Cursor, seq), 0, NULL},
    {"block", T_LONGLONG, offsetof(Cursor, block), 0, NULL},
    {"seed", T_UINT, offsetof(Cursor, seed), 0, NULL},
    {"busy", T_BOOL, offsetof(Cursor, busy), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject cursor_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "qigstore.recording.spool._frames.Cursor",
    .tp_doc = PyDoc_STR("Where the next row goes, and the short way to put it there."),
    .tp_basicsize = sizeof(Cursor),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)cursor_dealloc,
    .tp_methods = cursor_methods,
    .tp_members = cursor_members,
};

/* Of a frame's second word: size, kind and layout, and not the regime. */
#define ALIKE 0xffffffff00ffffffu

PyDoc_STRVAR(count_alike_doc,
"count_alike(data, at, most, seed, /)\n--\n\n"
"How many whole frames of one size, kind and layout begin at byte `at`; at most `most`.");

static PyObject *
count_alike(PyObject *module, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t at, most, found = 0;
    PyObject *given;
    if (!PyArg_ParseTuple(args, "y*nnO:count_alike", &data, &at, &most, &given))
        return NULL;
    unsigned long seed = given == Py_None ? 0 : PyLong_AsUnsignedLong(given);
    if (!PyErr_Occurred() && (at < 0 || at > data.len || most < 0))
        PyErr_Format(PyExc_ValueError, "from byte %zd of %zd, at most %zd frames", at, data.len,
                     most);
    if (PyErr_Occurred()) {
        PyBuffer_Release(&data);
        return NULL;
    }
    const unsigned char *frame = (const unsigned char *)data.buf + at;
    size_t left = (size_t)(data.len - at), size = 0;
    uint64_t first = 0;
    for (; found < most && left >= 16; found++, frame += size, left -= size) {
        uint32_t marker, crc;
        uint64_t meta;
        memcpy(&marker, frame, 4);
        memcpy(&crc, frame + 4, 4);
        memcpy(&meta, frame + 8, 8);
        if (found == 0) {
            first = meta & ALIKE;
            size = 8 * (size_t)(meta & 0xffff);
        }
        if (marker != MARKER || (meta & ALIKE) != first || size < 16 || size > left
            || (given != Py_None && crc32_of(frame + 8, size - 8, (uint32_t)seed) != crc))
            break;
    }
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(found);
}

PyDoc_STRVAR(each_way_doc,
"crc32_each_way(data, start, /)\n--\n\n"
"The CRC-32 of whole words by every way that this processor has, for the tests.");

static PyObject *
crc32_each_way(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned int start;
    if (!PyArg_ParseTuple(args, "y*I:crc32_each_way", &data, &start))
        return NULL;
    PyObject *found = NULL;
    if (data.len % 8)
        PyErr_SetString(PyExc_ValueError, "whole words of 8 bytes");
    else
        found = Py_BuildValue("(II)", crc32_by_tables(data.buf, (size_t)data.len, start),
                              crc32_of(data.buf, (size_t)data.len, start));
    PyBuffer_Release(&data);
    return found;
}

static PyMethodDef functions[] = {
    {"count_alike", count_alike, METH_VARARGS, count_alike_doc},
    {"crc32_each_way", crc32_each_way, METH_VARARGS, each_way_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qigstore.recording.spool._frames",
    .m_doc = PyDoc_STR("Frames of a spool, compiled."),
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__frames(void)
{
    choose_crc32();
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddType(made, &cursor_type) < 0)
        Py_CLEAR(made);
    return made;
}
