/* cmm._call: a call of a prepared layer by the short way.
 *
 * One token takes a layer two microseconds and less, and Python's steps on the way to it as long again. So the usual
 * call is written in C: NumPy's own contiguous arrays of the layer's dtype, level "auto", a new y or an `out` that
 * libcmm can write to. Whatever is not so, and every error, goes the long way through cmm._check, which knows all
 * cases and all messages; nothing has been written by then. What libcmm refuses (an y that overlaps x, an address that
 * is not aligned) comes there as well.
 *
 * Arrays are read through the buffer protocol, so that this file needs no header of NumPy and one module serves every
 * Python from 3.11 on. The GIL guards what is static here; it is released while libcmm computes. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cmm.h"

#include <string.h>

/* A layer for calls of it. */
typedef struct bound {
    PyObject *prepared;   /* what the long way takes; it keeps the memory below alive */
    PyObject *dtype;      /* NumPy's, of y */
    const cmm_fff *layer; /* NULL where only the long way leads to it */
    int64_t *recomputed;  /* NULL without an exact path */
} bound;

static const char BOUND[] = "cmm._call.bound";
enum { VARIABLES = 4 };

/* Borrowed from the package for good, by set_up(). */
static struct {
    PyObject *ndarray, *empty;        /* of NumPy */
    PyObject *automatic;              /* the level "auto" */
    PyObject *environment;            /* the dictionary that os.environ wraps, of bytes; None where it wraps none */
    PyObject *variable[VARIABLES];    /* the names that a plan hangs on */
    PyObject *plan;                   /* plan(threads): the bytes of a cmm_run, or None: the long way */
    PyObject *long_way;               /* cmm._check.apply */
    Py_ssize_t large;                 /* a y of so many bytes starts at a cache line, by the long way */
} package;

/* The last answer of plan(), for these threads (0: None) and these values of the variables (NULL: unset). */
static struct {
    PyObject *answer; /* NULL at first */
    long threads;
    PyObject *value[VARIABLES]; /* held, so that no other object takes a place of theirs in memory */
} last;

/* Fill in how to run a call; 0 where that is to be found the long way. */
static int find_run(PyObject *threads, cmm_run *run)
{
    PyObject *value[VARIABLES];
    long count = 0;
    if (threads != Py_None) {
        if (!PyLong_CheckExact(threads))
            return 0;
        count = PyLong_AsLong(threads);
        if (count < 1) {
            PyErr_Clear();
            return 0;
        }
    }
    if (!PyDict_CheckExact(package.environment))
        return 0;
    int same = last.answer && last.threads == count;
    for (int i = 0; i < VARIABLES; i++) {
        value[i] = PyDict_GetItemWithError(package.environment, package.variable[i]);
        same = same && value[i] == last.value[i];
    }
    if (!same) {
        for (int i = 0; i < VARIABLES; i++)
            Py_XINCREF(value[i]); /* plan() runs Python, which may change the environment */
        PyObject *const answer = PyObject_CallFunctionObjArgs(package.plan, threads, NULL);
        if (!answer) {
            for (int i = 0; i < VARIABLES; i++)
                Py_XDECREF(value[i]);
            PyErr_Clear(); /* the long way meets the same error */
            return 0;
        }
        PyObject *const before = last.answer;
        PyObject *old[VARIABLES];
        memcpy(old, last.value, sizeof old);
        last.answer = answer;
        last.threads = count;
        memcpy(last.value, value, sizeof value);
        Py_XDECREF(before);
        for (int i = 0; i < VARIABLES; i++)
            Py_XDECREF(old[i]);
    }
    if (!PyBytes_Check(last.answer) || PyBytes_Size(last.answer) != (Py_ssize_t)sizeof *run)
        return 0;
    memcpy(run, PyBytes_AsString(last.answer), sizeof *run);
    return 1;
}

/* Whether a buffer has elements of the layer's dtype in rows of so many. */
static int fits(const Py_buffer *buffer, const cmm_fff *layer, int64_t width)
{
    const char code = layer->dtype == CMM_F64 ? 'd' : 'f';
    return buffer->ndim >= 1 && buffer->format && buffer->format[0] == code && !buffer->format[1] &&
           buffer->shape[buffer->ndim - 1] == width;
}

/* A new array for y: the shape of x but for the width. */
static PyObject *new_y(const bound *to, const Py_buffer *x)
{
    PyObject *const shape = PyTuple_New(x->ndim);
    if (!shape)
        return NULL;
    for (int i = 0; i < x->ndim; i++) {
        PyObject *const length = PyLong_FromSsize_t(i < x->ndim - 1 ? x->shape[i] : (Py_ssize_t)to->layer->d_out);
        if (!length || PyTuple_SetItem(shape, i, length) < 0) {
            Py_DECREF(shape);
            return NULL;
        }
    }
    PyObject *const y = PyObject_CallFunctionObjArgs(package.empty, shape, to->dtype, NULL);
    Py_DECREF(shape);
    return y;
}

/* y of a call whose tokens are seen through a buffer; NULL: the long way. */
static PyObject *compute(const bound *to, cmm_run *run, const Py_buffer *x, PyObject *out)
{
    const cmm_fff *const layer = to->layer;
    if (!fits(x, layer, layer->d_in))
        return NULL;
    const int64_t batch = x->len / x->itemsize / layer->d_in;
    if (out == Py_None && batch * layer->d_out * x->itemsize >= package.large)
        return NULL;
    PyObject *const y = out == Py_None ? new_y(to, x) : Py_NewRef(out);
    if (!y)
        return NULL;
    Py_buffer target;
    if (PyObject_GetBuffer(y, &target, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) {
        Py_DECREF(y);
        return NULL;
    }
    int done = fits(&target, layer, layer->d_out) && target.ndim == x->ndim;
    for (int i = 0; done && i < x->ndim - 1; i++)
        done = target.shape[i] == x->shape[i];
    if (done) {
        cmm_status status;
        run->recomputed = to->recomputed;
        Py_BEGIN_ALLOW_THREADS;
        status = cmm_fff_forward(layer, run, batch, x->buf, target.buf, NULL, NULL);
        Py_END_ALLOW_THREADS;
        done = status == CMM_OK;
    }
    PyBuffer_Release(&target);
    if (!done)
        Py_DECREF(y);
    return done ? y : NULL;
}

PyDoc_STRVAR(apply_doc, "apply(bound, x, level, algorithm, threads, out, return_path, path)\n--\n\n"
                        "Apply a layer to tokens: parameters, results and errors of cmm._check.apply().");

static PyObject *apply(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 8) {
        PyErr_Format(PyExc_TypeError, "apply() takes 8 arguments and was given %zd", count);
        return NULL;
    }
    const bound *const to = PyCapsule_GetPointer(arguments[0], BOUND);
    if (!to)
        return NULL;
    PyObject *const x = arguments[1], *const level = arguments[2], *const algorithm = arguments[3],
                    *const threads = arguments[4], *const out = arguments[5], *const return_path = arguments[6],
                    *const path = arguments[7];
    cmm_run run;
    Py_buffer tokens;
    if (to->layer && (PyObject *)Py_TYPE(x) == package.ndarray && level == package.automatic &&
        algorithm == Py_None && return_path == Py_False && path == Py_None &&
        (out == Py_None || (PyObject *)Py_TYPE(out) == package.ndarray) && find_run(threads, &run)) {
        PyObject *y = NULL;
        if (PyObject_GetBuffer(x, &tokens, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) == 0) {
            y = compute(to, &run, &tokens, out);
            PyBuffer_Release(&tokens);
        }
        if (y)
            return y;
        PyErr_Clear();
    }
    return PyObject_CallFunctionObjArgs(package.long_way, to->prepared, x, level, algorithm, threads, out, return_path,
                                        path, NULL);
}

static void unbind(PyObject *capsule)
{
    bound *const to = PyCapsule_GetPointer(capsule, BOUND);
    if (!to)
        return;
    Py_DECREF(to->prepared);
    Py_DECREF(to->dtype);
    PyMem_Free(to);
}

PyDoc_STRVAR(bind_doc, "bind(prepared, dtype, layer, recomputed)\n--\n\n"
                       "Return a layer for apply(): what cmm._check prepared, the dtype of y, and the addresses of its\n"
                       "cmm_fff and of the int64 that counts its recomputed logits, 0 where there is none.");

static PyObject *bind(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *prepared, *dtype;
    unsigned long long layer, recomputed;
    if (!PyArg_ParseTuple(arguments, "OOKK", &prepared, &dtype, &layer, &recomputed))
        return NULL;
    bound *const to = PyMem_Malloc(sizeof *to);
    if (!to)
        return PyErr_NoMemory();
    *to = (bound){Py_NewRef(prepared), Py_NewRef(dtype), (const cmm_fff *)(uintptr_t)layer,
                  (int64_t *)(uintptr_t)recomputed};
    PyObject *const capsule = PyCapsule_New(to, BOUND, unbind);
    if (!capsule) {
        Py_DECREF(prepared);
        Py_DECREF(dtype);
        PyMem_Free(to);
    }
    return capsule;
}

PyDoc_STRVAR(set_up_doc, "set_up(ndarray, empty, automatic, environment, variables, plan, long_way, large)\n--\n\n"
                         "Say what of NumPy and of the package apply() works with; once, at import.");

static PyObject *set_up(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject **const name = package.variable;
    if (!PyArg_ParseTuple(arguments, "OOOO(SSSS)OOn", &package.ndarray, &package.empty, &package.automatic,
                          &package.environment, &name[0], &name[1], &name[2], &name[3], &package.plan,
                          &package.long_way, &package.large))
        return NULL;
    PyObject *const kept[] = {package.ndarray, package.empty, package.automatic, package.environment, name[0],
                              name[1],         name[2],       name[3],           package.plan,        package.long_way};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        Py_INCREF(kept[i]);
    Py_RETURN_NONE;
}

/* METH_FASTCALL's functions have a type of their own, which the table's only member for them is cast from. */
static PyMethodDef methods[] = {
    {"apply", (PyCFunction)(void (*)(void))apply, METH_FASTCALL, apply_doc},
    {"bind", bind, METH_VARARGS, bind_doc},
    {"set_up", set_up, METH_VARARGS, set_up_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "cmm._call", "A call of a prepared layer by the short way.", -1, methods, NULL, NULL, NULL,
    NULL};

PyMODINIT_FUNC PyInit__call(void);
PyMODINIT_FUNC PyInit__call(void)
{
    return PyModule_Create(&definition);
}
