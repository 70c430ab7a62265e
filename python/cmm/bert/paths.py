"""Which nodes the tokens of texts visited, how they spread over the trees, and which subtrees no token reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmm.bert.model import Model
from cmm.bert.text import encode, progress_bar
from cmm.bert.tokenizer import Text, checked_texts
from cmm.errors import UnusableError
from cmm.routing_stats import dead_subtrees, node_usage

# Dead subtrees that the report names in one layer.
_NAMED = 4


class Subtree(NamedTuple):
    """A part of a tree: a node and all below it."""

    layer: int
    tree: int
    node: int  # its top, numbered within the tree: the children of node n are 2n + 1 and 2n + 2
    depth: int  # of the top; the root has depth 0
    leaves: int


@dataclass(frozen=True)
class Paths:
    """The paths of T tokens through L layers of K trees, D deep.

    Attributes
    ----------
    tokens : list of str
        The tokens' texts, or their ids where there is no tokenizer.
    nodes : ndarray of int32, (L, T, K, D + 1)
        The nodes that each token visited, root first, numbered within their tree.
    """

    tokens: list[str]
    nodes: NDArray[np.int32]

    @property
    def layers(self) -> int:
        """L."""
        return int(self.nodes.shape[0])

    @property
    def trees(self) -> int:
        """K."""
        return int(self.nodes.shape[2])

    @property
    def depth(self) -> int:
        """D."""
        return int(self.nodes.shape[3]) - 1

    @property
    def leaves(self) -> int:
        """Leaves of one tree."""
        return int(2**self.depth)

    @cached_property
    def usage(self) -> NDArray[np.int64]:
        """How many tokens visited each node, (L, K, N)."""
        return np.stack([node_usage(layer, 2 * self.leaves - 1) for layer in self.nodes])

    @property
    def leaf_usage(self) -> NDArray[np.int64]:
        """How many tokens ended in each leaf, left to right, (L, K, 2^D)."""
        return self.usage[..., self.leaves - 1 :]

    @cached_property
    def dead(self) -> list[Subtree]:
        """The subtrees that no token reached, by layer and tree, the largest first.

        A subtree within another one of them is not named again.
        """
        result = []
        for layer, counts in enumerate(self.usage):
            for tree, node in dead_subtrees(counts).tolist():
                depth = (node + 1).bit_length() - 1
                result.append(Subtree(layer, tree, node, depth, 2 ** (self.depth - depth)))
        return result


def of_texts(model: Model, texts: Text | Sequence[Text], *, truncate: bool = False, **run: Any) -> Paths:
    """Follow the tokens of texts.

    Parameters
    ----------
    model : Model
        With FFF layers and a tokenizer.
    texts : str, (str, str), or sequence of these
    truncate : bool, optional
        Cut texts that are longer than the model's limit, and warn, instead of raising.
    **run
        ``level`` and ``threads``, as for calling the model.

    Returns
    -------
    Paths
        Special tokens are tokens too.

    Raises
    ------
    ArgumentError, DtypeError
        As ``Model.embed``.
    UnusableError
        The model has dense layers, or no tokenizer.
    """
    given = checked_texts(texts, "texts")
    return of_ids(model, encode(model.tokenizer, model.config.max_seq_length, given, truncate=truncate), **run)


def of_ids(model: Model, sequences: Sequence[ArrayLike], **run: Any) -> Paths:
    """Follow the tokens of sequences of ids, which may differ in length; the rest is as for ``of_texts``."""
    if model.config.trees is None:
        raise UnusableError(f"{model.source} has dense layers: there are no paths")
    found, tokens = [], []
    names = None if model.tokenizer_file is None else model.tokenizer
    with progress_bar(len(sequences)) as step:
        for ids in sequences:
            nodes = model.device.host(model.trace(np.asarray(ids)[np.newaxis], **run).path_nodes)
            assert nodes is not None
            found.append(nodes[:, 0])
            tokens += [str(id) if names is None else names.token(id) or str(id) for id in np.asarray(ids).tolist()]
            step(1)
    empty = np.empty((model.config.layers, 0, model.config.trees, (model.config.depth or 0) + 1), np.int32)
    return Paths(tokens, np.concatenate([empty, *found], axis=1))


def report(paths: Paths) -> str:
    """Return what there is to say of paths, a line for each layer."""
    shape = f"{paths.trees}x{paths.depth}"
    what = f"{len(paths.tokens)} tokens through {paths.layers} layers of {shape}"
    leaves = paths.trees * paths.leaves
    lines = [f"{what}, {paths.trees} tree{'s' * (paths.trees > 1)} of {paths.leaves} leaves each", ""]
    lines.append("layer  leaves visited  most in one leaf  dead subtrees: the largest, node (leaves)")
    for layer, counts in enumerate(paths.leaf_usage):
        visited = np.count_nonzero(counts)
        dead = sorted((one for one in paths.dead if one.layer == layer), key=lambda one: -one.leaves)
        named = [_name(one, paths.trees) for one in dead[:_NAMED]]
        rest = dead[_NAMED:]
        if rest:
            named.append(f"and {len(rest)} more with {sum(one.leaves for one in rest)} leaves")
        share = f"{visited} of {leaves}"
        lines.append(f"{layer:<5}  {share:<14}  {counts.max(initial=0):<16}  {', '.join(named) or 'none'}")
    return "\n".join(lines)


def _name(subtree: Subtree, trees: int) -> str:
    where = f"tree {subtree.tree} " if trees > 1 else ""
    return f"{where}{subtree.node} ({subtree.leaves})"


def as_json(paths: Paths) -> dict[str, Any]:
    """Return paths as plain values: the tokens, each layer's nodes by token, tree and depth, and dead subtrees."""
    return {
        "tokens": paths.tokens,
        "trees": paths.trees,
        "depth": paths.depth,
        "layers": [{"layer": layer, "nodes": nodes.tolist()} for layer, nodes in enumerate(paths.nodes)],
        "dead_subtrees": [one._asdict() for one in paths.dead],
    }
