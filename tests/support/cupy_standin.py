"""A CuPy without a GPU: arrays that are not numpy's, in the CPU's memory, and the functions that the encoder needs.

As strict as CuPy where it matters: no array becomes numpy's unasked, none meets a numpy array in an operation, and a
function that is not here is an AttributeError. ``used`` counts the calls of the module's functions. What it cannot
show is what CuPy computes; tests/gpu does that.
"""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
from scipy.special import ndtr as _scipy_ndtr

used = Counter()


def _plain(value):
    """The numpy array or scalar behind an operand; a numpy array itself is refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _index(key):
    return tuple(_plain(k) for k in key) if isinstance(key, tuple) else _plain(key)


class ndarray:  # noqa: N801 (its name in CuPy)
    __module__ = "cupy"
    __array_ufunc__ = None

    def __init__(self, a):
        self._a = np.asarray(a)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    # What cmm.fff_forward asks of an array of another library: the CPU is where this one is.
    def __dlpack__(self, **how):
        return self._a.__dlpack__(**how)

    def __dlpack_device__(self):
        return self._a.__dlpack_device__()

    def __array_namespace__(self):
        return SimpleNamespace(from_dlpack=lambda array: ndarray(np.from_dlpack(array)))

    def __len__(self):
        return len(self._a)

    def __getitem__(self, key):
        return ndarray(self._a[_index(key)])

    def __setitem__(self, key, value):
        self._a[_index(key)] = _plain(value)

    def __float__(self):
        return float(self._a)

    def __bool__(self):
        return bool(self._a)


for _name in ("shape", "dtype", "ndim", "size", "nbytes"):
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self._a, name)))
ndarray.T = property(lambda self: ndarray(self._a.T))


def _method(name):
    def method(self, *args, **how):
        how = {key: _plain(value) for key, value in how.items()}
        result = getattr(self._a, name)(*map(_plain, args), **how)
        return self if result is self._a else ndarray(result)

    return method


for _name in ("reshape", "swapaxes", "mean", "max", "sum", "copy", "astype"):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "matmul"):
    for _kind in ("__{}__", "__r{}__", "__i{}__"):
        setattr(ndarray, _kind.format(_name), _method(_kind.format(_name)))


def _function(name):
    def function(*args, out=None, **how):
        used[name] += 1
        result = getattr(np, name)(*map(_plain, args), **({} if out is None else {"out": _plain(out)}), **how)
        if isinstance(result, list):
            return [ndarray(one) for one in result]
        return out if out is not None else ndarray(result)

    return function


float32 = np.float32
for _name in ("subtract", "exp", "log", "sqrt", "tanh", "take", "where", "einsum", "matmul", "empty", "split"):
    globals()[_name] = _function(_name)


def stack(arrays):
    used["stack"] += 1
    return ndarray(np.stack([_plain(array) for array in arrays]))


def concatenate(arrays, axis):
    used["concatenate"] += 1
    return ndarray(np.concatenate([_plain(array) for array in arrays], axis))


def asarray(value):
    """Copies from the CPU, as CuPy must."""
    used["asarray"] += 1
    return value if isinstance(value, ndarray) else ndarray(np.array(value))


def asnumpy(value):
    used["asnumpy"] += 1
    return _plain(value).copy()


def ndtr(x):
    """That of cupyx.scipy.special."""
    used["ndtr"] += 1
    return ndarray(_scipy_ndtr(_plain(x)))


GPUS = 2
cuda = SimpleNamespace(
    is_available=lambda: True,
    runtime=SimpleNamespace(getDeviceCount=lambda: GPUS, getDevice=lambda: 0),
    Device=lambda number: nullcontext(),
)
