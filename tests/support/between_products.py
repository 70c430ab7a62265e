"""What lies between the two products of a layer, without a bound, for there is nothing to bound.

The walk decides by logits that are given, and an activation or its slope is a function of one float (or double) that
libcmm has the same bits of on every instruction set: tests/c/activation_accuracy.c says how good they are. So results
are compared by ==, where NaN equals NaN.
"""

from typing import Any

import cmm
import numpy as np
from numpy.typing import NDArray
from reference import goes_right

Array = NDArray[Any]


def walked(logits: Array, tie: str) -> NDArray[np.int32]:
    """Return nodes (T, K, D+1) for logits (T, K, N)."""
    node = np.zeros(logits.shape[:2], np.int64)
    path = [node]
    for _ in range(logits.shape[2].bit_length() - 1):
        logit = np.take_along_axis(logits, node[..., None], 2)[..., 0]
        node = 2 * node + 1 + goes_right(logit, tie)
        path.append(node)
    return np.stack(path, -1).astype(np.int32)


def on_path(logits: Array, nodes: Array) -> Array:
    """Return the logits of a path, (T, K, D+1)."""
    return np.take_along_axis(logits, nodes, 2)


def activated(z: Array, activation: str) -> Array:
    """Return libcmm's activations of float32 or float64."""
    one = np.ones((1, 1, 1), z.dtype)
    y: Array = cmm.fff_forward(z.reshape(-1, 1), one, one, activation=activation)  # type: ignore[arg-type]
    return y.reshape(z.shape)


def sloped(z: Array, dy: Array, activation: str) -> Array:
    """Return dy times libcmm's slope."""
    one, flat = np.ones((1, 1, 1), z.dtype), z.reshape(-1, 1)
    nodes = np.zeros((len(flat), 1, 1), np.int32)
    how: Any = {"activation": activation, "dw_in": False, "dbias": False, "dw_out": False}
    dx: Array = cmm.fff_backward(flat, one, one, nodes, flat[..., None], dy.reshape(-1, 1), **how).dx
    return dx.reshape(z.shape)


def spread(values: Array, nodes: Array, size: int) -> Array:
    """Return values of a path (T, K, D+1) among all nodes (T, K, N), 0 elsewhere."""
    found = np.zeros((*nodes.shape[:2], size), values.dtype)
    np.put_along_axis(found, nodes, values, 2)
    return found
