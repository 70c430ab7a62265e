"""How tokens spread over the trees: what the paths of :func:`cmm.cmm_forward` say of a layer."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmm._interop import as_numpy
from cmm._native import lib
from cmm.errors import ArgumentError, DtypeError, ShapeError

__all__ = ["dead_subtrees", "node_usage"]


def node_usage(nodes: ArrayLike, N: int) -> NDArray[np.int64]:  # noqa: N803 (the operation's own name for it)
    """Count how many tokens visited each node.

    Parameters
    ----------
    nodes : array_like of integers, shape (..., K, D+1)
        Paths, as :func:`cmm.cmm_forward` and ``return_path`` give them.
    N : int
        Nodes of one tree, 2^(D+1) - 1.

    Returns
    -------
    ndarray, shape (K, N), int64
        A node with count 0 was visited by no token; with it, its whole subtree.

    Raises
    ------
    DtypeError
        nodes are not integers.
    ShapeError
        nodes have fewer than two dimensions, or N is not that of D+1 levels.
    ArgumentError
        A path does not start at the root or goes on to a node that is not a child.
    """
    paths = as_numpy("nodes", nodes)
    if paths.dtype.kind not in "iu":
        raise DtypeError(f"nodes has dtype {paths.dtype}; it should be int32, as cmm.cmm_forward() returns it")
    if paths.ndim < 2 or not 1 <= paths.shape[-1] <= lib.CMM_MAX_DEPTH + 1:
        raise ShapeError(f"nodes has shape {paths.shape}; it should be (..., K, D+1), D at most {lib.CMM_MAX_DEPTH}")
    trees, visited = paths.shape[-2:]
    if 2**visited - 1 != N:
        raise ShapeError(f"N is {N!r}; it should be {2**visited - 1} for the {visited} nodes of a path in nodes")
    if (paths[..., 0] != 0).any():
        raise ArgumentError("nodes holds a path that does not start at node 0; it should hold paths from the root")
    turns = paths[..., 1:] - 2 * paths[..., :-1].astype(np.int64)
    if ((turns != 1) & (turns != 2)).any():
        raise ArgumentError("nodes holds a path that leaves its tree; the children of node n should be 2n+1 and 2n+2")
    flat = paths.astype(np.int64) + N * np.arange(trees)[:, np.newaxis]
    return np.bincount(flat.ravel(), minlength=trees * N).reshape(trees, N)


def dead_subtrees(usage: ArrayLike) -> NDArray[np.int64]:
    """List the subtrees that no token visited.

    Parameters
    ----------
    usage : array_like of integers, shape (K, N)
        Visits of each node, as :func:`cmm.node_usage` counts them.

    Returns
    -------
    ndarray, shape (M, 2), int64
        Tree and topmost node of each of M subtrees, tree by tree, the largest of a tree first. Subtrees of these are
        not named again. Node n is at depth ``floor(log2(n + 1))``.

    Raises
    ------
    DtypeError
        usage is not of integers.
    ShapeError
        usage has not the two dimensions K and N = 2^(D+1) - 1.
    """
    counts = as_numpy("usage", usage)
    if counts.dtype.kind not in "iu":
        raise DtypeError(f"usage has dtype {counts.dtype}; it should be int64, as cmm.node_usage() returns it")
    if counts.ndim != 2 or counts.shape[1] < 1 or counts.shape[1] & (counts.shape[1] + 1):
        raise ShapeError(f"usage has shape {counts.shape}; it should be (K, N), N = 2^(D+1) - 1 nodes in a tree")
    parents = np.ones_like(counts)  # a root that was not visited is the top of a dead tree
    parents[:, 1:] = np.repeat(counts[:, : counts.shape[1] // 2], 2, axis=1)
    # Nodes are numbered level by level, so the smaller the number, the larger the subtree.
    return np.argwhere((counts == 0) & (parents > 0)).astype(np.int64, copy=False)
