"""The mathematics of the encoder: pure functions, with the shape of every result behind it.

B sequences of S tokens, T = B * S tokens in all, width H, A heads of H / A, vocabulary V. Everything is float32.
``encode`` says what follows what, on every device; how a step is computed comes in through :class:`Ops`, which is
:class:`ArrayOps` for the functions of this file, of an array module, and ``gpu.py``'s own on a GPU. Buffers are made
once per call and reused by every layer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cmm.bert.device import Device
from cmm.layers import FFF as Prepared  # noqa: N811
from cmm.layers import ff_forward, fff_forward
from cmm.typing import LevelName

Array = Any  # an ndarray of float32, or the like of another array module

#: Called with the name of a tap, the layer and the value, which is only valid during the call.
Tap = Callable[[str, int, Array], None]

#: How one vector is made of a sequence.
POOLERS = ("avg", "zero_index", "max", "logsumexp")


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Array  # (H,)
    bias: Array  # (H,)


class FFF(NamedTuple):
    """A fast feedforward layer of K trees of N nodes."""

    w_in: Array  # (K, N, H)
    bias: Array  # (K, N)
    w_out: Array  # (K, N, H)


class Dense(NamedTuple):
    """A dense feedforward layer of I neurons; GELUglu halves them before the second matrix."""

    w_in: Array  # (I, H)
    w_out: Array  # (I, H), or (I / 2, H) for GELUglu


class Layer(NamedTuple):
    """One transformer layer."""

    norm1: Norm
    qkv: Array  # (3H, H); head a owns rows [q_a | k_a | v_a]
    dense: Array  # (H, H)
    norm2: Norm
    ffn: FFF | Dense | Prepared  # the last where its rows are narrow


class HeadTransform(NamedTuple):
    """What may stand between the encoder and the decoder."""

    dense: Array  # (H, H)
    norm: Norm


class Classifier(NamedTuple):
    """A sequence classifier of C labels, through a pooler P wide."""

    pooler_weight: Array  # (P, H)
    pooler_bias: Array  # (P,)
    head_weight: Array  # (C, P)
    head_bias: Array  # (C,)


class Weights(NamedTuple):
    """All weights of a model."""

    word: Array  # (V, H); the decoder too
    scale: Array  # (1,)
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    final_norm: Norm
    transform: HeadTransform | None
    classifier: Classifier | None


class Call(NamedTuple):
    """The choices of one call, constant through all layers."""

    device: Device
    heads: int
    eps: float
    level: LevelName
    threads: int | None
    tap: Tap | None
    ops: "Ops"


def position_table(length: int, width: int) -> NDArray[np.float32]:
    """Return the sinusoids of positions 0 .. length - 1, even columns sine, odd ones cosine; a numpy array."""
    position = np.arange(length, dtype=np.float32)[:, None]  # (S, 1)
    rate = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / width))  # (H / 2,)
    angle = position * rate  # (S, H / 2)
    table = np.empty((length, width), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)
    return table  # (S, H)


def additive_mask(xp: Any, mask: Array) -> Array:
    """Return 0 where mask is 1 and -10000 where it is 0, with room for the heads. Not -inf: no row becomes NaN.

    In a row that is masked everywhere the sum rounds every score to a multiple of 2^-10, as it does in training.
    """
    bias = xp.where(mask, xp.float32(0), xp.float32(-10000.0))
    return bias[:, None, None, :] if mask.ndim == 2 else bias[:, None, :, :]  # (B, 1, 1 or S, S)


def layer_norm(call: Call, x: Array, norm: Norm, out: Array) -> Array:
    """Normalise every row to mean 0 and (biased) variance 1, then scale and shift; out may be x."""
    xp = call.device.xp
    mean = xp.einsum("th->t", x)  # (T,); a third of the time of x.mean()
    mean /= x.shape[-1]
    xp.subtract(x, mean[:, None], out=out)  # (T, H)
    variance = xp.matmul(out[:, None, :], out[:, :, None])[:, 0]  # (T, 1); each is a dot product of the BLAS
    variance /= x.shape[-1]
    variance += call.eps
    out *= 1 / xp.sqrt(variance)
    out *= norm.weight
    out += norm.bias
    return out  # (T, H)


def gelu(call: Call, x: Array) -> Array:
    """Apply the exact GELU, x * Phi(x), in place."""
    x *= call.device.ndtr(x)
    return x


def embed(call: Call, ids: Array, weights: Weights, positions: Array) -> Array:
    """Look up tokens and positions. ids (B, S), positions (S, H)."""
    xp = call.device.xp
    x = xp.take(weights.word, ids, axis=0)  # (B, S, H)
    x += weights.scale * positions
    x = x.reshape(-1, x.shape[-1])  # (T, H)
    return layer_norm(call, x, weights.embedding_norm, out=x)


class Buffers(NamedTuple):
    """The scratch arrays of a call."""

    normed: Array  # (T, H)
    qkv: Array  # (T, 3H)
    context: Array  # (T, H)
    scores: Array  # (sequences at a time, A, S, S)
    delta: Array  # (T, H)
    mask: Array | None = None  # additive

    @classmethod
    def make(cls, device: Device, batch: int, length: int, width: int, heads: int) -> "Buffers":
        """Allocate for one batch."""
        tokens = batch * length
        at_a_time = max(1, min(batch, device.scores_bytes // (4 * heads * length * length)))
        scores = (at_a_time, heads, length, length)
        shapes = ((tokens, width), (tokens, 3 * width), (tokens, width), scores, (tokens, width))
        return cls(*(device.xp.empty(shape, device.xp.float32) for shape in shapes))


def project(call: Call, x: Array, weight: Array, out: Array) -> Array:
    """Apply a linear layer without a bias. x (T, H), weight (W, H)."""
    return call.device.xp.matmul(x, weight.T, out=out)  # (T, W)


def score(call: Call, q: Array, k: Array, mask: Array | None, out: Array) -> Array:
    """Say how much each query wants of each key. q and k (b, A, S, H / A), mask additive or None."""
    scores = call.device.xp.matmul(q, k.swapaxes(-1, -2), out=out)
    scores *= q.shape[-1] ** -0.5  # scaling q would take twice as long, for its rows are apart
    if mask is not None:
        scores += mask
    return scores  # (b, A, S, S)


def softmax(call: Call, scores: Array) -> Array:
    """Softmax over the last axis, in place."""
    xp = call.device.xp
    scores -= scores.max(axis=-1, keepdims=True)
    xp.exp(scores, out=scores)
    scores /= xp.einsum("...k->...", scores)[..., None]
    return scores


def mix(call: Call, weights: Array, v: Array, out: Array) -> Array:
    """Weigh the values of all tokens. weights (b, A, S, S), v (b, A, S, H / A)."""
    return call.device.xp.matmul(weights, v, out=out)  # (b, A, S, H / A)


def attention(call: Call, x: Array, layer: Layer, mask: Array | None, buffers: Buffers) -> Array:
    """Self-attention. x (T, H), mask additive (B, 1, 1 or S, S) or None."""
    at_a_time, heads, length, _ = buffers.scores.shape
    head = x.shape[-1] // heads
    project(call, x, layer.qkv, out=buffers.qkv)  # (T, 3H)
    per_head = buffers.qkv.reshape(-1, length, heads, 3 * head).swapaxes(1, 2)  # (B, A, S, 3 * H / A)
    q, k, v = per_head[..., :head], per_head[..., head : 2 * head], per_head[..., 2 * head :]  # (B, A, S, H / A) each
    context = buffers.context.reshape(-1, length, heads, head).swapaxes(1, 2)  # (B, A, S, H / A)
    for first in range(0, len(q), at_a_time):
        some = slice(first, min(first + at_a_time, len(q)))
        masked = None if mask is None else mask[some]
        scores = score(call, q[some], k[some], masked, out=buffers.scores[: some.stop - first])  # (b, A, S, S)
        mix(call, softmax(call, scores), v[some], out=context[some])
    return project(call, buffers.context, layer.dense, out=buffers.delta)  # (T, H)


def feedforward(call: Call, x: Array, ffn: FFF | Dense | Prepared, index: int, out: Array) -> Array:
    """Apply the feedforward layer of one transformer layer. x (T, H)."""
    xp = call.device.xp
    how: dict[str, Any] = {"level": call.level, "threads": call.threads, "out": out}
    if isinstance(ffn, FFF | Prepared):
        apply: Callable[..., Any] = ffn if isinstance(ffn, Prepared) else fff_forward
        rows = () if isinstance(ffn, Prepared) else (ffn.w_in, ffn.w_out, ffn.bias)
        if call.tap is None:
            return apply(x, *rows, **how)
        _, nodes, logits = apply(x, *rows, return_path=True, **how)
        call.tap("path_nodes", index, nodes)  # (T, K, D + 1)
        call.tap("path_logits", index, logits)  # (T, K, D + 1)
        return out
    if len(ffn.w_in) == len(ffn.w_out):
        return ff_forward(x, ffn.w_in, ffn.w_out, **how)
    value, gate = xp.split(xp.matmul(x, ffn.w_in.T), 2, axis=-1)  # (T, I / 2) each
    gelu(call, gate)
    gate *= value
    return xp.matmul(gate, ffn.w_out, out=out)  # (T, H)


class Ops(Protocol):
    """The steps of an encoder. x is the hidden state, float32 (T, H); buffers are what ``begin`` returns."""

    def stored(self, name: str, tensor: Array) -> Array:
        """Return a float32 tensor, by its name in ``state_dict_map.tensors``, as it is kept."""

    def settle(self) -> None:
        """Wait until what was stored is there for every stream, and until no call reads what was before."""

    def exclusive(self) -> AbstractContextManager[Any]:
        """Hold what calls share for the time of one."""

    def begin(self, call: Call, weights: Weights, ids: Array, mask: Array | None, positions: Array) -> Any:
        """Embed, and return x and the buffers of a call, which have ``normed`` and ``delta``, both (T, H)."""

    def layers(self, call: Call, weights: Weights, x: Array, buffers: Any) -> None:
        """Run ``run_layers``, or what it queued when it ran last."""

    def add_norm(self, call: Call, x: Array, delta: Array | None, norm: Norm, out: Array) -> Array:
        """Add delta, where there is one, to x; return its norm, in out."""

    def attend(self, call: Call, x: Array, layer: Layer, index: int, buffers: Any) -> None:
        """Add the attention of ``buffers.normed`` to x, and show what it adds."""

    def feedforward(self, call: Call, ffn: FFF | Dense | Prepared, index: int, buffers: Any) -> None:
        """Apply a feedforward layer to ``buffers.normed``; the result is ``buffers.delta``."""

    def wide(self, value: Array) -> Array:
        """Return a value, which may be of the buffers, as float32."""

    def decode(self, call: Call, weights: Weights, hidden: Array) -> Array:
        """Apply the masked-language-model head. hidden float32 (..., H)."""


class ArrayOps:
    """The steps by an array module, such as numpy."""

    def stored(self, name: str, tensor: Array) -> Array:
        """Return it as it is."""
        return tensor

    def settle(self) -> None:
        """Wait for nothing."""

    def exclusive(self) -> AbstractContextManager[Any]:
        """Hold nothing: calls share nothing."""
        return nullcontext()

    def begin(
        self, call: Call, weights: Weights, ids: Array, mask: Array | None, positions: Array
    ) -> tuple[Array, Buffers]:
        """Embed, and allocate buffers."""
        x = embed(call, ids, weights, positions)  # (T, H)
        additive = None if mask is None else additive_mask(call.device.xp, mask)
        batch, length = ids.shape
        return x, Buffers.make(call.device, batch, length, x.shape[-1], call.heads)._replace(mask=additive)

    def layers(self, call: Call, weights: Weights, x: Array, buffers: Buffers) -> None:
        """Run the layers."""
        run_layers(call, weights, x, buffers)

    def add_norm(self, call: Call, x: Array, delta: Array | None, norm: Norm, out: Array) -> Array:
        """Add, then normalise."""
        if delta is not None:
            x += delta
        return layer_norm(call, x, norm, out)

    def attend(self, call: Call, x: Array, layer: Layer, index: int, buffers: Buffers) -> None:
        """Compute attention, show it, add it."""
        x += show(call, "attn_out", index, attention(call, buffers.normed, layer, buffers.mask, buffers))

    def feedforward(self, call: Call, ffn: FFF | Dense | Prepared, index: int, buffers: Buffers) -> None:
        """Apply a feedforward layer."""
        feedforward(call, buffers.normed, ffn, index, out=buffers.delta)

    def wide(self, value: Array) -> Array:
        """Return it as it is."""
        return value

    def decode(self, call: Call, weights: Weights, hidden: Array) -> Array:
        """Apply the head."""
        return decode(call, weights, hidden)


def encode(call: Call, weights: Weights, ids: Array, mask: Array | None, positions: Array, out: Array) -> None:
    """Run the encoder.

    Parameters
    ----------
    call : Call
    weights : Weights
    ids : integer array, (B, S)
        All within the vocabulary.
    mask : bool array, (B, S) or (B, S, S), or None
    positions : float32 array, (S, H)
    out : float32 array, (B, S, H)
        The result; C-contiguous.
    """
    ops = call.ops
    with ops.exclusive():
        x, buffers = ops.begin(call, weights, ids, mask, positions)  # (T, H)
        show(call, "embedding_out", 0, x)
        ops.layers(call, weights, x, buffers)
        delta = buffers.delta if weights.layers else None
        hidden = ops.add_norm(call, x, delta, weights.final_norm, out=out.reshape(x.shape))
        if weights.layers:
            show(call, "layer_out", len(weights.layers) - 1, x)
        show(call, "encoder_out", 0, hidden)


def run_layers(call: Call, weights: Weights, x: Array, buffers: Any) -> None:
    """Run the layers, but for the last sum: x + ``buffers.delta`` is what the last one makes of x."""
    ops = call.ops
    for index, layer in enumerate(weights.layers):
        ops.add_norm(call, x, buffers.delta if index else None, layer.norm1, out=buffers.normed)
        if index:
            show(call, "layer_out", index - 1, x)
        ops.attend(call, x, layer, index, buffers)
        ops.add_norm(call, x, None, layer.norm2, out=buffers.normed)
        show(call, "ffn_in", index, buffers.normed)
        ops.feedforward(call, layer.ffn, index, buffers)
        show(call, "ffn_out", index, buffers.delta)


def show(call: Call, name: str, index: int, value: Array) -> Array:
    """Give a value to the tap, where there is one; return it as it was."""
    if call.tap is not None:
        call.tap(name, index, call.ops.wide(value))
    return value


def decode(call: Call, weights: Weights, hidden: Array) -> Array:
    """Apply the masked-language-model head. hidden (..., H)."""
    xp = call.device.xp
    x = hidden.reshape(-1, hidden.shape[-1])  # (T, H)
    if weights.transform is not None:
        x = gelu(call, xp.matmul(x, weights.transform.dense.T))
        layer_norm(call, x, weights.transform.norm, out=x)
    return xp.matmul(x, weights.word.T).reshape(*hidden.shape[:-1], len(weights.word))  # (..., V)


def pool(call: Call, hidden: Array, pooler: str) -> Array:
    """Make one vector of a sequence, padding included. hidden (B, S, H)."""
    xp = call.device.xp
    if pooler == "zero_index":
        return hidden[:, 0]  # (B, H)
    if pooler == "avg":
        return hidden.mean(axis=1)  # (B, H)
    largest = hidden.max(axis=1)  # (B, H)
    if pooler == "max":
        return largest
    return xp.log(xp.exp(hidden - largest[:, None]).sum(axis=1)) + largest  # (B, H)


def classify(call: Call, classifier: Classifier, hidden: Array, pooler: str) -> Array:
    """Apply the classifier. hidden (B, S, H)."""
    xp = call.device.xp
    pooled = xp.tanh(pool(call, hidden, pooler) @ classifier.pooler_weight.T + classifier.pooler_bias)  # (B, P)
    return pooled @ classifier.head_weight.T + classifier.head_bias  # (B, C)


def assemble(tensors: dict[str, Array], layers: int, prepared: Sequence[Prepared] = ()) -> Weights:
    """Put tensors, by the names of ``state_dict_map.tensors``, into their places; and layers that were prepared."""

    def norm(name: str) -> Norm:
        return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def parts() -> Iterator[Layer]:
        for index in range(layers):
            name = f"layers.{index}"
            ffn: FFF | Dense | Prepared
            if prepared:
                ffn = prepared[index]
            else:
                w_in, w_out = tensors[f"{name}.ffn.w_in"], tensors[f"{name}.ffn.w_out"]
                bias = tensors.get(f"{name}.ffn.bias")
                ffn = Dense(w_in, w_out) if bias is None else FFF(w_in, bias, w_out)
            qkv, dense = tensors[f"{name}.qkv"], tensors[f"{name}.dense"]
            yield Layer(norm(f"{name}.norm1"), qkv, dense, norm(f"{name}.norm2"), ffn)

    transform = tensors.get("transform.dense")
    classifier = [tensors.get(f"{part}.{kind}") for part in ("pooler", "head") for kind in ("weight", "bias")]
    return Weights(
        word=tensors["embedding.word"],
        scale=tensors["embedding.scale"],
        embedding_norm=norm("embedding.norm"),
        layers=tuple(parts()),
        final_norm=norm("final_norm"),
        transform=None if transform is None else HeadTransform(transform, norm("transform.norm")),
        classifier=None if classifier[0] is None else Classifier(*classifier),
    )
