"""Turn the dense feedforward layers of a trained model into fast feedforward layers: `cmm convert`.

Three stages. The start fits each layer to what its dense layer gives for the dense model's own hidden states: nodes
that halve their tokens, and output weights by least squares. Distillation trains all layers side by side, each still
on the dense model's hidden states. The finish trains the whole model to do what the dense one does.

Models are those of ``cmm.bert`` with dense layers, and BERT of the package ``transformers``.
"""

import json
import math
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import cmm.bert
from cmm._files import given_path
from cmm.bert.config import read_json
from cmm.bert.trained import packaged
from cmm.errors import ArgumentError, ShapeError, UnusableError, listed
from cmm.torch import data, training
from cmm.torch.fff import FFF, set_softness
from cmm.torch.model import MaskedLanguageModel
from cmm.torch.operators import ACTIVATIONS_OF_TENSORS
from cmm.typing import Activation

Start: TypeAlias = Literal["regions", "neurons"]
STARTS: tuple[Start, ...] = ("regions", "neurons")

#: Tokens that a leaf should get on average for its regions and weights to mean something.
TOKENS_OF_A_LEAF = 32

_TOKENS = 1 << 15  # the least that the start is fitted on, where there are as many
_JOINT = 1 << 13  # neurons of a layer up to which the least squares are solved for all trees together
_CHUNK = 1 << 12  # tokens whose hidden neurons are all in memory
_POWER = 6  # iterations towards the largest singular vector
_FLOOR = 1e-3  # of the mean variance: what a direction of the hidden states has at least, for whitening
_RIDGE = 1e-4  # of the mean square of a neuron, added to each in the least squares
_GONE = 0.6  # share of the distillation after which a start from neurons acts on the path alone
_OF_MEANS = 4.0  # weight of the distance of texts' mean vectors, where a model has no head
_IGNORED = -100  # a label that no loss counts, as PyTorch has it
_HIDDEN_FROM_HF: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_HIDDEN_FROM_HF |= {"relu": "relu", "silu": "silu", "swish": "silu"}


# ---- the start of one layer ----------------------------------------------------------------------------------------


def r2(y: Tensor, target: Tensor) -> float:
    """Return the share of the variance of targets (T, d) that outputs (T, d) explain: 1 - |y - target|^2 / |.|^2."""
    variance = (target - target.mean(0)).double().square().sum()
    return float(1 - (y - target).double().square().sum() / variance.clamp(min=torch.finfo(torch.float64).tiny))


class _Paths(NamedTuple):
    """The neurons on the paths of tokens."""

    rows: Tensor  # int64, (T, K, D+1), of all K*N
    values: Tensor  # activation(z), (T, K, D+1)


@torch.no_grad()
def fit(layer: FFF, x: Tensor, y: Tensor, *, seed: int = 0) -> float:
    """Set a layer's weights so that it gives y for x as well as regions and least squares can.

    Tree after tree and level after level each node gets the direction along which its tokens vary most together with
    what the trees before have left of y: the largest singular vector of the covariance of the two, x whitened. The
    bias is minus the median, so that a node's children get half of its tokens each; the logits of a node's tokens
    have the root mean square 1. Output weights follow by ridge regression, at last of all trees together.

    Parameters
    ----------
    layer : FFF
        With a bias.
    x : tensor, float32, (T, d_in)
        T is at least 32 for each leaf of a tree.
    y : tensor, float32, (T, d_out)
    seed : int, optional
        Of the vectors that the singular vectors are sought from.

    Returns
    -------
    float
        R2 of the layer's outputs, see :func:`r2`.

    Raises
    ------
    ShapeError
        x or y has another shape, or too few tokens.
    """
    _check_tokens(layer, x, y)
    generator = torch.Generator(x.device).manual_seed(seed)
    mean = x.mean(0)
    centred = x - mean
    values, vectors = torch.linalg.eigh((centred.t() @ centred).double() / len(x))
    values = values.clamp(min=_FLOOR * max(float(values.mean()), torch.finfo(torch.float32).tiny))
    whiten = (vectors / values.sqrt()).float()
    white = centred @ whiten
    residual = y.clone()
    paths = []
    rows_in, biases = [], []
    for _ in range(layer.trees):
        path, weights, bias = _grow(layer, white, residual, generator)
        residual = residual - _sum(path, _least_squares([path], residual, layer.nodes, layer.nodes))
        paths.append(path)
        rows_in.append(weights @ whiten.t())
        biases.append(bias - rows_in[-1] @ mean)
    layer.linear_in.weight.copy_(torch.cat(rows_in))
    layer.linear_in.bias.copy_(torch.cat(biases))
    return solve_outputs(layer, x, y)


def _check_tokens(layer: FFF, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != layer.d_in or y.shape != (len(x), layer.d_out):
        shapes = f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}"
        raise ShapeError(f"{shapes}; they should be (T, {layer.d_in}) and (T, {layer.d_out})")
    if len(x) < (least := TOKENS_OF_A_LEAF * 2**layer.depth):
        leaves = f"for {2**layer.depth} leaves of a tree, {TOKENS_OF_A_LEAF} each"
        raise ShapeError(f"x has {len(x)} tokens; there should be at least {least}, {leaves}")


def _grow(layer: FFF, x: Tensor, residual: Tensor, generator: torch.Generator) -> tuple[_Paths, Tensor, Tensor]:
    """Return the paths (T, 1, D+1) of whitened tokens in a new tree, and its weights (N, d_in) and biases (N,)."""
    activation = ACTIVATIONS_OF_TENSORS[layer.activation]
    node = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    weights, biases, rows, values = [], [], [], []
    for level in range(layer.depth + 1):
        groups = 2**level
        own = node - (groups - 1)
        order = own.argsort(stable=True)
        counts = torch.bincount(own, minlength=groups).tolist()
        directions, bias = x.new_zeros(groups, x.shape[1]), x.new_zeros(groups)
        for group, some in enumerate(order.split(counts)):
            direction = _direction(x[some], residual[some], generator)
            z = x[some] @ direction
            if len(some):
                # Between the two tokens in the middle, so that of an even number each side gets half.
                low, high = (z.kthvalue(place).values for place in ((len(z) + 1) // 2, len(z) // 2 + 1))
                middle = (low + high) / 2
                scale = (z - middle).square().mean().sqrt().clamp(min=1e-6)
                directions[group], bias[group] = direction / scale, -middle / scale
        z = (x * directions[own]).sum(1) + bias[own]
        rows.append(node)
        values.append(activation(z))
        weights.append(directions)
        biases.append(bias)
        residual = residual - values[-1][:, None] * _slopes(values[-1], residual, own, groups)[own]
        node = 2 * node + 1 + (z > 0 if layer.tie == "left" else z >= 0)
    path = _Paths(torch.stack(rows, 1)[:, None], torch.stack(values, 1)[:, None])
    return path, torch.cat(weights), torch.cat(biases)


def _direction(x: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    """Return the unit vector along which tokens vary most together with the residual, by power iteration."""
    start = torch.randn(x.shape[1], generator=generator, device=x.device)
    found = start / start.norm()
    if len(x) > 1:
        covariance = (x - x.mean(0)).t() @ residual
        for _ in range(_POWER):
            product = covariance @ (covariance.t() @ found)
            norm = product.norm()
            found = torch.where(norm > 0, product / norm.clamp(min=1e-30), found)
    return found


def _slopes(values: Tensor, residual: Tensor, own: Tensor, groups: int) -> Tensor:
    """Return for each node the output weight that takes most off the residual of its tokens, (groups, d_out)."""
    squares = values.new_zeros(groups).index_add(0, own, values.square())
    products = residual.new_zeros(groups, residual.shape[1]).index_add(0, own, values[:, None] * residual)
    return products / squares.clamp(min=1e-12)[:, None]


def _least_squares(paths: Sequence[_Paths], y: Tensor, nodes: int, neurons: int) -> Tensor:
    """Return output weights (neurons, d_out) by ridge regression of y on the neurons of some trees."""
    gram = torch.zeros(neurons, neurons, dtype=torch.float64, device=y.device)
    right = torch.zeros(neurons, y.shape[1], dtype=torch.float64, device=y.device)
    for start in range(0, len(y), _CHUNK):
        some = slice(start, start + _CHUNK)
        target = y[some]
        hidden = y.new_zeros(len(target), neurons)
        for tree, path in enumerate(paths):
            hidden.scatter_(1, path.rows[some].flatten(1) + tree * nodes, path.values[some].flatten(1))
        gram += (hidden.t() @ hidden).double()
        right += (hidden.t() @ target).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return torch.linalg.solve(gram, right).float()


def _sum(path: _Paths, weights: Tensor) -> Tensor:
    """Return the sum along paths of one tree (T, 1, D+1) for its output weights (N, d_out)."""
    return sum(
        value[:, None] * weights[row] for row, value in zip(path.rows[:, 0].t(), path.values[:, 0].t(), strict=True)
    )


@torch.no_grad()
def solve_outputs(layer: FFF, x: Tensor, y: Tensor) -> float:
    """Set the output weights of a layer so that it gives y for x, by ridge regression; return R2.

    Parameters, errors and the result are those of :func:`fit`; where tokens go stays as it is. Layers of more than
    8192 neurons are solved tree after tree, each for what those before have left.
    """
    _check_tokens(layer, x, y)
    paths = _paths_of(layer, x)
    trees = [_Paths(paths.rows[:, k : k + 1], paths.values[:, k : k + 1]) for k in range(layer.trees)]
    if layer.trees * layer.nodes <= _JOINT:
        weights = _least_squares(trees, y, layer.nodes, layer.trees * layer.nodes)
    else:
        parts, residual = [], y
        for tree in trees:
            parts.append(_least_squares([tree], residual, layer.nodes, layer.nodes))
            residual = residual - _sum(tree, parts[-1])
        weights = torch.cat(parts)
    layer.linear_out.weight.copy_(weights.t())
    got = sum(_sum(tree, some) for tree, some in zip(trees, weights.split(layer.nodes), strict=True))
    return r2(got, y)


def _paths_of(layer: FFF, x: Tensor) -> _Paths:
    """Return the paths of tokens, rows of each tree from 0."""
    activation = ACTIVATIONS_OF_TENSORS[layer.activation]
    rows, values = [], []
    for some in x.split(_CHUNK):
        z = functional.linear(some, layer.linear_in.weight, layer.linear_in.bias).unflatten(1, (layer.trees, -1))
        node = torch.zeros(len(some), layer.trees, 1, dtype=torch.int64, device=x.device)
        visited, logits = [], []
        for _ in range(layer.depth + 1):
            logit = z.gather(2, node)
            visited.append(node)
            logits.append(logit)
            node = 2 * node + 1 + (logit > 0 if layer.tie == "left" else logit >= 0)
        rows.append(torch.cat(visited, 2))
        values.append(activation(torch.cat(logits, 2)))
    return _Paths(torch.cat(rows), torch.cat(values))


@torch.no_grad()
def place_neurons(layer: FFF, dense: nn.Module, x: Tensor) -> None:
    """Give the nodes of a layer the neurons of a dense one, so that it is the dense one where all nodes act.

    Near the roots come those that give much to the output and whose logit is as often above 0 as below it. Neurons
    that find no node are left out; nodes that find none give 0.

    Parameters
    ----------
    layer : FFF
    dense : module
        With ``dense_in`` and ``dense_out``, linear layers between which is the activation of `layer`.
    x : tensor, (T, d_in)
        Tokens to count by.
    """
    w_in, w_out = dense.dense_in.weight, dense.dense_out.weight
    b_in = dense.dense_in.bias
    z = functional.linear(x, w_in, b_in)
    share = (z > 0).float().mean(0)
    energy = ACTIVATIONS_OF_TENSORS[layer.activation](z).square().mean(0) * w_out.square().sum(0)
    best = (energy * share * (1 - share)).argsort(descending=True)[: layer.trees * layer.nodes]
    # Node n of every tree before node n + 1 of any.
    rows = torch.arange(layer.trees * layer.nodes, device=x.device).view(layer.trees, layer.nodes).t().flatten()
    rows = rows[: len(best)]
    for parameter in layer.parameters():
        parameter.zero_()
    layer.linear_in.weight[rows] = w_in[best]
    if b_in is not None:
        layer.linear_in.bias[rows] = b_in[best]
    layer.linear_out.weight[:, rows] = w_out[:, best]


# ---- models --------------------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where a dense layer's tokens come in and go out, as hooks see them."""

    enters: nn.Module
    leaves: nn.Module


class _Family(ABC):
    """A dense model, its copy with fast feedforward layers, and what is particular to their kind.

    Attributes
    ----------
    teacher, student : torch.nn.Module
    dense : list of _Places
        Of the teacher's layers.
    layers : list of FFF
        Of the student.
    pad : int or None
        The id of what fills sequences up; None where they are full.
    tokenizer : Path
        The folder with ``tokenizer.json``.
    """

    teacher: nn.Module
    student: nn.Module
    dense: list[_Places]
    pad: int | None
    tokenizer: Path
    vocab_size: int
    limit: int
    head_is_there: bool

    def __init__(self) -> None:
        self.layers = [module for module in self.student.modules() if isinstance(module, FFF)]

    def to(self, device: torch.device) -> None:
        self.teacher.to(device).eval().requires_grad_(False)
        self.student.to(device)

    def mask(self, ids: Tensor) -> Tensor | None:
        """Return which tokens count, (B, S), or None where all do."""
        return None if self.pad is None else ids != self.pad

    @abstractmethod
    def hide(self, ids: Tensor, seed: int) -> data.Masked:
        """Hide some tokens, where the model fills blanks in."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> nn.Module:
        """Return the part of a model from ids to hidden states."""

    @abstractmethod
    def hidden(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return last hidden states, (B, S, H)."""

    @abstractmethod
    def logits(self, model: nn.Module, hidden: Tensor, places: Tensor) -> Tensor:
        """Return logits at places (B, M) of hidden states, (B, M, V)."""

    @abstractmethod
    def sequences(self, text: Path, length: int) -> np.ndarray[Any, Any]:
        """Return texts as ids, (n, S)."""

    @abstractmethod
    def dense_layer(self, index: int) -> nn.Module:
        """Return a dense layer as `place_neurons` takes it."""

    def target(self, index: int, y: Tensor) -> Tensor:
        """Return what the fast feedforward layer should give, for what the dense layer gives."""
        return y

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the student."""


class _CmmFamily(_Family):
    """A model of `cmm.bert`."""

    pad = None
    head_is_there = True

    def __init__(self, folder: Path, layer: str) -> None:
        model = cmm.bert.load(folder)
        config = model.config
        if config.trees is not None:
            raise ArgumentError(f"{folder} has fast feedforward layers already, {config.trees}x{config.depth}")
        if not model.has_decoder:
            raise ArgumentError(f"{folder} has no masked-language-model head, by which the finish is trained")
        arch = dict(config.arch)
        arch["embedding"] = {**arch["embedding"], "vocab_size": len(model.weights.word)}
        state = training.state_dict(model)
        self.teacher = MaskedLanguageModel(arch)
        self.teacher.load_state_dict(state)
        sizes = training.architecture(layer)
        fast = {name: sizes[name] for name in ("intermed_type", "intermed_size", "intermed_depth")}
        self.student = MaskedLanguageModel({**arch, **fast, "nonlin": "GELU"})
        self.student.load_state_dict({k: v for k, v in state.items() if ".ffn." not in k}, strict=False)
        self.dense = [_Places(one.ffn, one.ffn) for one in self.teacher.encoder.layers]
        self.vocab_size, self.limit = len(model.weights.word), config.max_seq_length
        self.gated = config.gated
        self.tokenizer = folder if folder.is_dir() else folder.parent
        super().__init__()

    def hide(self, ids: Tensor, seed: int) -> data.Masked:
        return data.hide(ids, seed, self.vocab_size)

    def encoder(self, model: nn.Module) -> nn.Module:
        return model.encoder

    def hidden(self, model: nn.Module, ids: Tensor) -> Tensor:
        return model.encoder(ids)

    def logits(self, model: nn.Module, hidden: Tensor, places: Tensor) -> Tensor:
        return model.decode(hidden, places)

    def sequences(self, text: Path, length: int) -> np.ndarray[Any, Any]:
        return data.pack(text, self.tokenizer / "tokenizer.json", length)

    def dense_layer(self, index: int) -> nn.Module:
        if self.gated:
            raise ArgumentError("start is 'neurons', and the dense layers are GELUglu; it should be 'regions'")
        return self.dense[index].enters

    def save(self, folder: Path) -> None:
        there = (self.tokenizer / "tokenizer.json").exists()
        state, config = self.student.state_dict(), self.student.config.arch
        cmm.bert.export(state, folder, config=config, tokenizer=self.tokenizer if there else None)


class _Bias(nn.Module):
    """What is left of a dense layer's second half: its bias."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias."""
        return x + self.bias


_SEEDS = 1 << 32  # batches are drawn by a seed times a million and some

_HF_KINDS = ("BertModel", "BertForMaskedLM")
_HF_NAME = "cmm_fff"  # of the block in config.json


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UnusableError(
            "a BERT of Hugging Face needs the package transformers: pip install transformers"
        ) from None
    return transformers


def _checked_hf(folder: Path, config: dict[str, Any]) -> str:
    """Return which class a configuration is of, if its layers can be converted."""
    file = folder / "config.json"
    expected = {"is_decoder": (False, None), "add_cross_attention": (False, None), "model_type": ("bert",)}
    for name, values in expected.items():
        if (value := config.get(name)) not in values:
            raise ArgumentError(f"{file}: {name} is {value!r}; it should be {values[0]!r} to be converted")
    kinds = config.get("architectures") or ["BertModel"]
    if kinds[0] not in _HF_KINDS:
        raise ArgumentError(f"{file}: architectures is {kinds!r}; it should be one of {', '.join(_HF_KINDS)}")
    if (act := config.get("hidden_act", "gelu")) not in _HIDDEN_FROM_HF:
        raise ArgumentError(f"{file}: hidden_act is {act!r}; it should be one of {', '.join(_HIDDEN_FROM_HF)}")
    return str(kinds[0])


def _with_fff(model: nn.Module, trees: int, depth: int, activation: Activation) -> None:
    """Put fast feedforward layers into a BERT of transformers; the bias of the second half stays."""
    encoder = getattr(model, "bert", model).encoder
    for layer in encoder.layer:
        width = layer.intermediate.dense.in_features
        bias = layer.output.dense.bias.detach()
        layer.intermediate = FFF(width, trees, depth, activation=activation)
        layer.output.dense = _Bias(bias)


class _HfFamily(_Family):
    """A BERT of the package transformers, in a folder with its `config.json`."""

    def __init__(self, folder: Path, layer: str) -> None:
        config = read_json(folder / "config.json")
        if _HF_NAME in config:
            raise ArgumentError(f"{folder} has fast feedforward layers already, {config[_HF_NAME]['layer']}")
        kind = _checked_hf(folder, config)
        transformers = _transformers()
        sizes = training.architecture(layer)
        trees, depth = sizes["intermed_size"], sizes["intermed_depth"]
        self.kind = getattr(transformers, kind)
        self.head_is_there = kind == "BertForMaskedLM"
        how: dict[str, Any] = {"attn_implementation": "eager"}
        if not self.head_is_there:
            how["add_pooling_layer"] = False
        try:
            self.teacher = self.kind.from_pretrained(folder, local_files_only=True, **how).float()
            self.student = self.kind.from_pretrained(folder, local_files_only=True, **how).float()
        except (OSError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"{folder} cannot be read by transformers: {str(error).splitlines()[0]}") from None
        self.activation = _HIDDEN_FROM_HF[config.get("hidden_act", "gelu")]
        _with_fff(self.student, trees, depth, self.activation)
        self.layer, self.folder, self.tokenizer = layer, folder, folder
        encoder = getattr(self.teacher, "bert", self.teacher).encoder
        self.dense = [_Places(one.intermediate, one.output.dense) for one in encoder.layer]
        sizes_of = self.teacher.config
        self.vocab_size, self.limit = sizes_of.vocab_size, sizes_of.max_position_embeddings
        self.pad: int = sizes_of.pad_token_id or 0
        if self.head_is_there:
            self.special, self.mask_id = self._special()
        super().__init__()
        for module in self.student.modules():  # it is distilled without
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def hide(self, ids: Tensor, seed: int) -> data.Masked:
        special = self.special.to(ids.device)
        masked = data.hide(ids, seed, self.vocab_size, 0.15, special=special, mask_id=self.mask_id)
        # Of a short text, most of whose places are filled up, fewer are hidden.
        return masked._replace(labels=torch.where(torch.isin(masked.labels, special), _IGNORED, masked.labels))

    def _special(self) -> tuple[Tensor, int]:
        encoder = data.read_tokenizer(self.tokenizer / "tokenizer.json")
        names = {token.content: id for id, token in encoder.get_added_tokens_decoder().items() if token.special}
        if "[MASK]" not in names:
            raise ArgumentError(f"{self.tokenizer} has no special token [MASK], by which the finish is trained")
        return torch.tensor(sorted(names.values())), names["[MASK]"]

    def encoder(self, model: nn.Module) -> nn.Module:
        return getattr(model, "bert", model)

    def hidden(self, model: nn.Module, ids: Tensor) -> Tensor:
        counts = (ids != self.pad).long()
        return self.encoder(model)(input_ids=ids, attention_mask=counts).last_hidden_state

    def logits(self, model: nn.Module, hidden: Tensor, places: Tensor) -> Tensor:
        return model.cls(hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2])))

    def sequences(self, text: Path, length: int) -> np.ndarray[Any, Any]:
        return data.pad(text, self.tokenizer / "tokenizer.json", length, self.pad)

    def dense_layer(self, index: int) -> nn.Module:
        places = self.dense[index]
        pair = nn.Module()
        pair.dense_in, pair.dense_out = places.enters.dense, places.leaves
        return pair

    def target(self, index: int, y: Tensor) -> Tensor:
        return y - self.dense[index].leaves.bias

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        config = read_json(self.folder / "config.json") | {_HF_NAME: {"layer": self.layer}}
        state = {key: value.detach().cpu().clone().contiguous() for key, value in self.student.state_dict().items()}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cmm-convert-", dir=folder.parent) as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, made / name)
            (made / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            save_file(state, made / "model.safetensors")
            if folder.exists():
                folder.rmdir()  # it is empty
            made.rename(folder)


def load_bert(folder: Any) -> nn.Module:
    """Load a BERT of the package transformers that :func:`convert` has written, in ``eval()``.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    transformers.BertModel or transformers.BertForMaskedLM
        Whose layers have ``cmm.torch.FFF`` as ``intermediate``.

    Raises
    ------
    ArgumentError
        The folder is none that :func:`convert` has written.
    UnusableError
        The package transformers or safetensors is not installed.
    """
    folder = given_path("folder", folder)
    config = read_json(folder / "config.json")
    if _HF_NAME not in config:
        raise ArgumentError(f"{folder} is no BERT that was converted: its config.json has no {_HF_NAME!r}")
    kind = _checked_hf(folder, config)
    transformers = _transformers()
    from safetensors.torch import load_file

    sizes = training.architecture(config.pop(_HF_NAME)["layer"])
    made = getattr(transformers, kind)
    how = {} if kind == "BertForMaskedLM" else {"add_pooling_layer": False}
    model = made(transformers.BertConfig(**config), **how)
    activation = _HIDDEN_FROM_HF[config.get("hidden_act", "gelu")]
    _with_fff(model, sizes["intermed_size"], sizes["intermed_depth"], activation)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _family(folder: Path, layer: str) -> _Family:
    config = folder / "config.json"
    if folder.is_dir() and config.exists() and not (folder / "model_config.json").exists():
        block = read_json(config)
        if isinstance(block, dict) and "arch" not in block:
            return _HfFamily(folder, layer)
    return _CmmFamily(folder, layer)


# ---- stages --------------------------------------------------------------------------------------------------------


@contextmanager
def _seen(places: Sequence[_Places]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Give a list to which forward passes of the teacher add what enters and leaves each dense layer."""
    found: list[tuple[Tensor, Tensor]] = []
    entered: list[Tensor] = []
    hooks = []
    for one in places:
        hooks.append(one.enters.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])))
        hooks.append(one.leaves.register_forward_hook(lambda _, __, y: found.append((entered.pop(), y))))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _states(family: _Family, ids: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return what enters and should leave each layer for a batch of ids, (T, H) each."""
    if family.head_is_there:
        ids = family.hide(ids, seed).ids
    with torch.no_grad(), _seen(family.dense) as found:
        family.hidden(family.teacher, ids)
    counts = family.mask(ids)
    states = []
    for index, (x, y) in enumerate(found):
        pair = (x.float(), family.target(index, y.float()))
        states.append(tuple(one.flatten(0, 1) if counts is None else one[counts] for one in pair))
    return states


def _many_states(family: _Family, batches: data.Batches, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Return the states of at least so many tokens, or of an epoch."""
    parts: list[list[tuple[Tensor, Tensor]]] = []
    count = 0
    for step in range(len(batches.sequences) // batches.size):
        parts.append(_states(family, batches[step], -1 - step))
        count += len(parts[-1][0][0])
        if count >= tokens:
            break
    return [tuple(torch.cat([part[i][side] for part in parts]) for side in (0, 1)) for i in range(len(family.layers))]


class _Distillation(nn.Module):
    """How far fast feedforward layers are from their dense layers, as the sum of their shares of the variance."""

    def __init__(self, layers: Sequence[FFF], scales: Tensor, balance: float) -> None:
        super().__init__()
        self.layers, self.balance = nn.ModuleList(layers), balance
        self.register_buffer("scales", scales)

    def forward(self, *states: Tensor) -> Tensor:
        loss = self.scales.new_zeros(())
        for layer, scale, x, y in zip(self.layers, self.scales, states[0::2], states[1::2], strict=True):
            loss = loss + (layer(x).float() - y).square().mean() / scale
            if self.balance:
                loss = loss + self.balance * layer.balance_loss()
        return loss


def _layer_r2(family: _Family, states: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the R2 of each layer on held-out states."""
    found = []
    for layer, (x, y) in zip(family.layers, states, strict=True):
        was = layer.training
        layer.eval()
        with torch.no_grad():
            found.append(round(r2(layer(x), y), 4))
        layer.train(was)
    return found


@torch.no_grad()
def _quality(family: _Family, model: nn.Module, sequences: Tensor, batch: int) -> dict[str, float]:
    """Return how well a model does on held-out sequences, on the device it is on, in float32.

    Of a model with a head: loss and accuracy of hidden tokens. Of one without: how far its mean vectors of texts
    are those of the dense model, by their mean cosine.
    """
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    count = 0
    for number, some in enumerate(sequences.long().split(batch)):
        ids = some.to(device)
        if family.head_is_there:
            masked = family.hide(ids, number)
            logits = family.logits(model, family.hidden(model, masked.ids), masked.places).flatten(0, 1).float()
            labels = masked.labels.flatten()
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack((loss, (logits.argmax(1) == labels).sum())).double().cpu()
            count += int((labels != _IGNORED).sum())
        else:
            vectors = [_means(family.hidden(one, ids), family.mask(ids)) for one in (model, family.teacher)]
            sums[0] += functional.cosine_similarity(*vectors).double().sum().cpu()
            count += len(ids)
    model.train(was)
    if family.head_is_there:
        return {"loss": round(float(sums[0]) / count, 5), "accuracy": round(float(sums[1]) / count, 5)}
    return {"cosine": round(float(sums[0]) / count, 5)}


def _means(hidden: Tensor, counts: Tensor | None) -> Tensor:
    """Return the mean hidden state of each text, (B, H)."""
    if counts is None:
        return hidden.mean(1)
    return (hidden * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)


class _Finish(nn.Module):
    """How far the student is from the teacher, and from the hidden tokens by a share `labels`."""

    def __init__(self, family: _Family, balance: float, labels: float) -> None:
        super().__init__()
        self.family, self.balance, self.labels = family, balance, labels
        self.teacher, self.student = family.teacher, family.student
        self.layers = family.layers

    def forward(self, ids: Tensor, places: Tensor | None, answers: Tensor | None) -> Tensor:
        family = self.family
        counts = family.mask(ids)
        with torch.no_grad():
            wanted = family.hidden(self.teacher, ids).float()
        found = family.hidden(self.student, ids).float()
        weight = torch.ones_like(ids, dtype=found.dtype) if counts is None else counts.to(found.dtype)
        weight = weight[..., None]
        centre = (wanted * weight).sum((0, 1)) / weight.sum()
        loss = ((found - wanted).square() * weight).sum() / ((wanted - centre).square() * weight).sum()
        if places is None or answers is None:
            vectors = (_means(found, counts), _means(wanted, counts))
            loss = loss + _OF_MEANS * (1 - functional.cosine_similarity(*vectors)).mean()
        else:
            with torch.no_grad():
                right = family.logits(self.teacher, wanted, places).flatten(0, 1).float().log_softmax(1)
            logs = family.logits(self.student, found, places).flatten(0, 1).float().log_softmax(1)
            answers = answers.flatten()
            is_one = answers != _IGNORED
            apart = (right.exp() * (right - logs)).sum(1) * is_one
            loss = loss + (1 - self.labels) * apart.sum() / is_one.sum().clamp(min=1)
            loss = loss + self.labels * functional.nll_loss(logs, answers)
        if self.balance:
            for layer in self.layers:
                loss = loss + self.balance * layer.balance_loss()
        return loss


@dataclass(frozen=True)
class LayerQuality:
    """R2 of a layer for what its dense layer gives, on held-out hidden states of the dense model."""

    start: float
    """After the start."""
    distilled: float
    """After distillation."""


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert_model` did."""

    layer: str
    """Trees x depth."""
    steps: int
    """Of training, distillation and finish together."""
    tokens: int
    """Of the text that was trained on, once."""
    layers: list[LayerQuality]
    dense: dict[str, float]
    """Of the dense model on held-out text: ``loss`` and ``accuracy`` of hidden tokens; nothing without a head."""
    start: dict[str, float]
    """The same of the model before the finish; without a head ``cosine``, the mean cosine of each text's mean hidden
    state with the dense model's."""
    converted: dict[str, float]
    """The same of the model that was written."""
    seconds: float


def convert_model(
    source: Any,
    folder: Any,
    *,
    layer: str,
    text: Any,
    held_out: Any = None,
    steps: int = 1000,
    distillation: float = 0.3,
    batch: int = 64,
    length: int | None = None,
    rate: float = 2e-3,
    start: Start = "regions",
    labels: float = 0.3,
    balance: float = 0.1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    bfloat16: bool = False,
    compile: bool = False,
    say: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a trained model with dense feedforward layers, and write it to a folder.

    Parameters
    ----------
    source : path-like
        A folder that training or ``cmm export`` left, or ``"dense"`` of libcmm-models; or the folder of a BERT of
        the package transformers, BertModel or BertForMaskedLM.
    folder : path-like
        Should not exist, or be empty. A model of ``cmm.bert`` is written as :func:`cmm.bert.export` does, and
        ``cmm.bert.load`` reads it; a BERT is read by :func:`load_bert`.
    layer : str
        Trees x depth, as in ``"16x5"``.
    text : path-like
        A paragraph a line, UTF-8; or a ``.npy`` file of ids (n, S), what is filled up with the padding's id.
    held_out : path-like, optional
        The like, to measure on. One in 50 sequences of the text, its last, if not given.
    steps : int, optional
    distillation : float, optional
        The share of the steps that distils layer by layer; the others finish the whole.
    batch : int, optional
        Sequences of a step.
    length : int, optional
        Tokens of a sequence, 128 or what the model takes if that is less.
    rate : float, optional
        The peak of the learning rate, a cosine with a warm-up in each of the two stages.
    start : {"regions", "neurons"}, optional
        "regions": :func:`fit`. "neurons": nodes get the dense layer's neurons, which all act when distillation begins
        and fade to the path alone.
    labels : float, optional
        The share of the hidden tokens' own loss in the finish; the rest is the distance to the dense model's logits.
    balance : float, optional
        The weight of :meth:`cmm.torch.FFF.balance_loss` of each layer.
    seed : int, optional
    device : str or torch.device, optional
    bfloat16 : bool, optional
        Whether matrix products of training are in bfloat16, by autocast.
    compile : bool, optional
        Whether ``torch.compile`` compiles what is trained.
    say : callable, optional
        Is called with a line of progress now and then.

    Returns
    -------
    Conversion

    Raises
    ------
    ArgumentError, CheckpointError
        An argument is not as it should be, the model has no layers that can be converted, or the text has too few
        tokens for the leaves.
    UnusableError
        A package or the device is not there.
    FileExistsError
        There is something in the folder.
    OSError
        A file cannot be read or written.
    """
    began = time.perf_counter()
    say = say or (lambda _: None)
    folder, source = given_path("folder", folder), given_path("source", packaged(source))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    sizes = training.architecture(layer)
    if sizes["intermed_type"] != "fff":
        raise ArgumentError(f"layer is {layer!r}; it should be trees x depth, as in 16x5")
    for name, number in {"steps": steps, "batch": batch}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ArgumentError(f"{name} is {number!r}; it should be a whole number, at least 1")
    for name, share in {"distillation": distillation, "labels": labels}.items():
        if not 0 <= share <= 1:
            raise ArgumentError(f"{name} is {share!r}; it should be a number from 0 to 1")
    if not (math.isfinite(rate) and rate > 0):
        raise ArgumentError(f"rate is {rate!r}; it should be a number above 0")
    if not (math.isfinite(balance) and balance >= 0):
        raise ArgumentError(f"balance is {balance!r}; it should be a number, at least 0")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        raise ArgumentError(f"seed is {seed!r}; it should be a whole number from 0 to {_SEEDS - 1}")
    if start not in STARTS:
        raise ArgumentError(f"start is {start!r}; it should be one of {listed(STARTS)}")
    device = training.usable_device(str(device))
    torch.manual_seed(seed)
    family = _family(source, layer)
    length = min(128, family.limit) if length is None else length
    if not 4 <= length <= family.limit:
        raise ArgumentError(f"length is {length}; it should be from 4 to {family.limit}, which the model takes")
    train = _sequences(family, given_path("text", text), length, "text")
    if held_out is None:
        some = max(1, len(train) // 50)
        train, test = train[:-some], train[-some:]
    else:
        test = _sequences(family, given_path("held_out", held_out), length, "held_out")
    tokens = int(train.size if family.pad is None else (train != family.pad).sum())
    least = TOKENS_OF_A_LEAF * 2 ** sizes["intermed_depth"]
    if tokens < least:
        raise ArgumentError(
            f"text has {tokens} tokens to learn from; {layer} needs at least {least}, "
            f"{TOKENS_OF_A_LEAF} for each leaf of a tree"
        )
    family.to(device)
    test_ids = torch.from_numpy(test.astype(np.int32))
    batches = data.Batches(train, min(batch, len(train)), seed, device)
    dense = _quality(family, family.teacher, test_ids, batch) if family.head_is_there else {}
    held = _states_of(family, test_ids[: max(1, 2 * _CHUNK // length)].to(device), batch)

    states = _many_states(family, batches, max(_TOKENS, least))
    for index, (one, (x, y)) in enumerate(zip(family.layers, states, strict=True)):
        if start == "regions":
            found = fit(one, x, y, seed=seed + index)
            say(f"layer {index}: R2 {found:.3f} of {len(x)} tokens")
        else:
            place_neurons(one, family.dense_layer(index), x)
    scales = torch.stack([y.var(0, correction=0).mean().clamp(min=1e-12) for _, y in states])
    del states
    started = _layer_r2(family, held)
    first = round(distillation * steps)
    _distil(family, batches, scales, first, rate, balance, start == "neurons", device, bfloat16, compile, say)
    distilled = _layer_r2(family, held)
    say("distilled: R2 " + ", ".join(f"{one:.3f}" for one in distilled))
    before = _quality(family, family.student, test_ids, batch)
    _finish(family, batches, steps - first, first, rate, balance, labels, device, bfloat16, compile, say)
    after = _quality(family, family.student, test_ids, batch)
    family.student.eval()
    family.save(folder)
    qualities = [LayerQuality(*pair) for pair in zip(started, distilled, strict=True)]
    seconds = round(time.perf_counter() - began, 1)
    return Conversion(layer, steps, tokens, qualities, dense, before, after, seconds)


def _sequences(family: _Family, file: Path, length: int, name: str) -> np.ndarray[Any, Any]:
    """Return the sequences of an argument, (n, S)."""
    if file.suffix != ".npy":
        ids = family.sequences(file, length)
    else:
        try:
            ids = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ArgumentError(f"{name}: {file} cannot be read as a .npy file: {error}") from None
        if not isinstance(ids, np.ndarray):
            raise ArgumentError(f"{name}: {file} cannot be read as a .npy file: it holds several arrays")
        if ids.ndim != 2 or ids.dtype.kind not in "ui" or not ids.size:
            found = f"{ids.dtype} of shape {ids.shape}"
            raise ArgumentError(f"{name}: {file} has {found}; it should be whole numbers (n, S)")
        if not 4 <= ids.shape[1] <= family.limit:
            found = f"sequences of {ids.shape[1]}"
            raise ArgumentError(f"{name}: {file} has {found}; the model takes 4 to {family.limit} tokens")
    if ids.size and (ids.min() < 0 or ids.max() >= family.vocab_size):
        id = ids.min() if ids.min() < 0 else ids.max()
        raise ArgumentError(f"{name}: {file} has the id {id}; the model has {family.vocab_size} tokens")
    return np.ascontiguousarray(ids, np.uint16 if family.vocab_size <= 1 << 16 else np.int32)


def _states_of(family: _Family, sequences: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    parts = [_states(family, some.long(), number) for number, some in enumerate(sequences.split(batch))]
    return [tuple(torch.cat([part[i][side] for part in parts]) for side in (0, 1)) for i in range(len(family.layers))]


def _optimizer(layers: Iterable[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """Return AdamW as training has it, see :func:`cmm.torch.training.make_optimizer`."""
    wanted = [one for one in layers if one.requires_grad]
    groups = [
        {"params": [one for one in wanted if (one.ndim > 1) == matrices], "weight_decay": 0.01 * matrices}
        for matrices in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-12, fused=wanted[0].is_cuda)


def _distil(
    family: _Family,
    batches: data.Batches,
    scales: Tensor,
    steps: int,
    rate: float,
    balance: float,
    fades: bool,
    device: torch.device,
    bfloat16: bool,
    compile: bool,
    say: Callable[[str], None],
) -> None:
    """Train each layer on the dense model's hidden states."""
    for layer in family.layers:
        layer.track_routing = balance > 0
    objective = _Distillation(family.layers, scales, balance).train()
    optimizer = _optimizer(objective.parameters(), rate)
    forward = torch.compile(objective) if compile else objective
    for step in range(steps):
        share = step / steps
        set_softness(objective, training.softness(share, 0, _GONE) if fades else 0.0)
        with training.autocast(device, bfloat16):
            states = _states(family, batches[step], step)
            loss = forward(*(one for pair in states for one in pair))
        training.descend(objective, optimizer, loss, rate * training.cosine(share))
        if (step + 1) % 100 == 0:
            say(f"distillation {step + 1} of {steps}: loss {float(loss.detach()) / len(states):.4f} a layer")
    set_softness(objective, 0.0)


def _finish(
    family: _Family,
    batches: data.Batches,
    steps: int,
    first: int,
    rate: float,
    balance: float,
    labels: float,
    device: torch.device,
    bfloat16: bool,
    compile: bool,
    say: Callable[[str], None],
) -> None:
    """Train the whole model to do what the dense one does."""
    student = family.student.train()
    objective = _Finish(family, balance, labels)
    optimizer = _optimizer(student.parameters(), rate)
    forward = torch.compile(objective) if compile else objective
    for step in range(steps):
        ids, places, answers = batches[first + step], None, None
        if family.head_is_there:
            ids, places, answers = family.hide(ids, first + step)
        with training.autocast(device, bfloat16):
            loss = forward(ids, places, answers)
        training.descend(student, optimizer, loss, rate * training.cosine(step / steps))
        if (step + 1) % 100 == 0:
            say(f"finish {step + 1} of {steps}: loss {float(loss.detach()):.4f}")
