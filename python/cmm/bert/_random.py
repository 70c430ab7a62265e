"""Models of any shape with seeded random weights, for demonstrations, tests and benchmarks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmm._dispatch import thread_count
from cmm.bert import data_parallel, state_dict_map
from cmm.bert.config import Config, parse
from cmm.bert.errors import CheckpointError
from cmm.bert.model import Model


def random(config: Mapping[str, Any], seed: int = 0) -> Model:
    """Make a model with random weights whose trees route diversely: random token ids reach leaves all over the trees.

    Parameters
    ----------
    config : mapping
        An architecture block, such as ``cmm.bert.ULTRAFASTBERT_1X11_LONG``, with ``embedding.vocab_size`` filled in.
        Where ``num_labels`` is filled in, the model has a classifier too.
    seed : int, optional
        Not negative. The same seed gives the same weights with the same version of numpy.

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError
        The configuration is not one of a model that is computed here.
    """
    checked = parse(config)
    if checked.vocab_size is None:
        raise CheckpointError("config", "is null; random weights need a number", "embedding.vocab_size")
    if checked.num_labels is not None and checked.head_dim is None:
        raise CheckpointError("config", "is missing, but num_labels is given", "classification_head")
    table = list(state_dict_map.tensors(checked, vocab_size=checked.vocab_size, num_labels=checked.num_labels))
    seeds = np.random.SeedSequence(seed).spawn(len(table))  # one for each tensor, so the threads change nothing
    values: dict[str, NDArray[np.float32]] = {}

    def make(some: slice) -> None:
        for tensor, own in zip(table[some], seeds[some], strict=True):
            values[tensor.name] = _values(tensor, own, checked)

    threads = min(thread_count(None), len(table))
    data_parallel.share(make, [slice(first, None, threads) for first in range(threads)])
    tensors = {tensor.name: values[tensor.name] for tensor in table}
    return Model(checked, tensors, has_decoder=True, source=f"cmm.bert.random(..., seed={seed})")


def _values(tensor: state_dict_map.Tensor, seed: np.random.SeedSequence, config: Config) -> NDArray[np.float32]:
    """Scales that keep a token's own part of the hidden state large, so that tokens part ways at every node.

    A feedforward layer sees rows of variance 1, so weights of variance 1 / H give logits of variance 1, centred;
    biases a tenth as large leave every branch close to even. All layers together add less variance than the embedding
    has, for part of what they add is the same for all tokens.
    """
    values = np.random.Generator(np.random.SFC64(seed)).standard_normal(tensor.shape, dtype=np.float32)
    owner, _, kind = tensor.name.rpartition(".")
    in_layer = tensor.name.startswith("layers.")
    scale = 1.0 if kind == "word" else tensor.shape[-1] ** -0.5
    if kind == "bias" or "norm" in owner:
        scale = 0.1
    elif kind == "w_out":
        visited = len(values) if config.trees is None or config.depth is None else config.trees * (config.depth + 1)
        scale = visited**-0.5
    if in_layer and kind in ("w_out", "dense"):
        scale *= (2 * config.layers) ** -0.5
    values *= np.float32(scale)
    if "norm" in owner and kind == "weight":
        values += 1
    if tensor.name == "embedding.scale":
        values[:] = config.hidden**-0.5
    return values
