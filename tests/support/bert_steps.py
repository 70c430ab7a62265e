"""Every step of an encoder in float64, from the inputs that it had, with a bound of its error in another precision.

u is the unit roundoff of what products multiply, V that of float32, in which all sums are. Errors come from rounding
to the dtype, sums of n terms in any order (gamma(n) of the sum of magnitudes), and inputs that are off (propagated).
What a trace shows of a step is compared with that step alone, so errors of others do not add up. Paths come first,
and each is the one that the signs of its own logits say.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

V = 2.0**-24
UNITS = {"float32": V, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float32": 0.0, "bfloat16": 0.0, "float16": 2.0**-25}  # half the distance of its subnormal numbers

Floats = NDArray[np.float64]


def gamma(terms: int) -> float:
    return terms * V / (1 - terms * V)


class Near(NamedTuple):
    """A value, and how far what was computed may be from it."""

    value: Floats
    error: Floats


def nearest(x: Floats, dtype: str) -> Floats:
    """Return the nearest numbers of a dtype, of two the even one; magnitudes beyond its largest are not made inf."""
    bits, smallest = {"float32": (24, -149), "bfloat16": (8, -133), "float16": (11, -24)}[dtype]
    quantum = np.exp2(np.maximum(np.frexp(x)[1] - bits, smallest))
    return np.rint(x / quantum) * quantum


def rounded(near: Near, dtype: str) -> Near:
    """Return what may become of it: rounding keeps order, so it is between the ends of the interval, rounded.

    They are mostly the same number, and then there is no error: errors of float32 rarely reach the middle between two
    numbers of 16 bits.
    """
    low, high = nearest(near.value - near.error, dtype), nearest(near.value + near.error, dtype)
    return Near((low + high) / 2, (high - low) / 2)


def perhaps_rounded(near: Near, dtype: str) -> Near:
    """The same where another level may not round it."""
    return Near(near.value, near.error + UNITS[dtype] * (np.abs(near.value) + near.error) + TINY[dtype])


def product(x: Near, weights: Floats) -> Near:
    """Rows of x times weights (n, k)."""
    size, w = gamma(weights.shape[1] + 1), np.abs(weights)
    return Near(x.value @ weights.T, x.error @ w.T + size * (np.abs(x.value) + x.error) @ w.T)


def norm(x: Near, weight: Floats, bias: Floats, eps: float) -> Near:
    """A layer norm in float32.

    The mean is off by gamma of the mean magnitude; that, and what x is off, moves a deviation, and by its root mean
    square the variance. Rounding the rest takes a few V.
    """
    mean = x.value.mean(-1, keepdims=True)
    sigma = np.sqrt(((x.value - mean) ** 2).mean(-1, keepdims=True) + eps)
    z = (x.value - mean) / sigma
    width = x.value.shape[-1]
    moved = x.error + x.error.mean(-1, keepdims=True) + gamma(width) * np.abs(x.value).mean(-1, keepdims=True)
    moved = (moved + V * np.abs(x.value - mean)) / sigma
    stretched = np.sqrt((moved**2).mean(-1, keepdims=True)) + gamma(width + 8)  # relative, of sigma
    error = np.abs(weight) * (moved + (np.abs(z) + moved) * 1.1 * stretched) + 4 * V * (
        np.abs(weight * z) + np.abs(bias)
    )
    assert stretched.max() < 0.05  # 1 / (1 - stretched) < 1.1
    return Near(z * weight + bias, error)


def context(qkv: Near, heads: int, mask: Any, shape: tuple[int, int], dtype: str) -> Near:
    """Softmax(q k^T) v, of rows of sequences after each other, each [q | k | v] head by head."""
    u, (batch, length), head = UNITS[dtype], shape, qkv.value.shape[1] // 3 // heads
    (q, k, v), (dq, dk, dv) = (a.reshape(batch, length, heads, 3, head).transpose(3, 0, 2, 1, 4) for a in qkv)

    def dot(a: Floats, b: Floats) -> Floats:
        return a @ b.swapaxes(-1, -2)

    scale = head**-0.5
    scores = dot(q, k) * scale
    size = dot(np.abs(q) + dq, np.abs(k) + dk)
    off = (size - dot(np.abs(q), np.abs(k)) + gamma(head + 3) * size) * scale
    if mask is not None:
        lost = (mask == 0)[:, None, None] if mask.ndim == 2 else (mask == 0)[:, None]
        scores = scores - 10000.0 * lost
        off = off + 2.0**-10 * lost  # the sum with -10000 is rounded to a multiple of that, here up or down
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    # A weight moves by its own score and by the sum of all, and is rounded; 2^-18 for approximate exponentials and
    # the division: theirs are off by 2^-21, and by 2 V of an argument of up to 30, beyond which nothing counts.
    moved = np.exp(off + off.max(-1, keepdims=True)) * (1 + u) * (1 + 2.0**-18 + gamma(2 * length)) - 1
    error = (weights * moved) @ np.abs(v) + (weights * (1 + moved)) @ (dv + gamma(length) * np.abs(v))
    value, error = (a.transpose(0, 2, 1, 3).reshape(batch * length, -1) for a in (weights @ v, error))
    return Near(value, error)


def attention(x: Near, qkv: Floats, dense: Floats, heads: int, mask: Any, shape: tuple[int, int], dtype: str) -> Near:
    """x: rounded rows, of sequences after each other."""
    mixed = context(rounded(product(x, qkv), dtype), heads, mask, shape, dtype)
    return product(rounded(mixed, dtype), dense)


def trees(x: Floats, w_in: Floats, bias: Floats, w_out: Floats, nodes: Any, dtype: str) -> tuple[Near, Near]:
    """Logits and outputs along paths (T, K, D + 1), of the x that there was."""
    tree = np.arange(len(w_in))[None, :, None]
    rows, width = w_in[tree, nodes], x.shape[-1]
    logits = np.einsum("tkdh,th->tkd", rows, x) + bias[tree, nodes]
    size = np.einsum("tkdh,th->tkd", np.abs(rows), np.abs(x)) + np.abs(bias[tree, nodes])
    near = Near(logits, gamma(width + 2) * size)
    value = logits * ndtr(logits)
    # GELU rises by 1.13 at most. Coefficients may be rounded, and GELU be good to 2^-14 of 1 then.
    u = 0.0 if dtype == "float32" else UNITS[dtype] + 2.0**-14
    off = 1.13 * near.error + (u + 2.0**-21) * np.abs(value) + (2.0**-14 if u else 2.0**-22)
    out = w_out[tree, nodes]
    y = np.einsum("tkd,tkdh->th", value, out)
    count = nodes.shape[1] * nodes.shape[2]
    error = np.einsum("tkd,tkdh->th", off + gamma(count + 1) * (np.abs(value) + off), np.abs(out))
    return near, rounded(Near(y, error), dtype)


def steps(
    tensors: dict[str, Any], trace: dict[str, Any], ids: Any, mask: Any, heads: int, eps: float, dtype: str
) -> Iterator[tuple[str, Any, Near]]:
    """Yield the name of a step, what the trace shows, and what it should be near; of paths the signs' own."""
    w = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    t = {
        name: None if value is None else np.asarray(value, np.int64 if name == "path_nodes" else np.float64)
        for name, value in trace.items()
    }
    width = w["embedding.word"].shape[1]

    def flat(a: Floats) -> Floats:
        return a.reshape(-1, *a.shape[2:])

    def exact(a: Floats) -> Near:
        return Near(a, np.zeros_like(a))

    def normed(x: Near, name: str) -> Near:
        return norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    x = flat(t["embedding_out"])
    angle = np.arange(ids.shape[1])[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(ids.shape[1], width)
    words = w["embedding.word"][ids]
    # the sinusoids are float32's, of float32 angles: off by some V of the angle
    off = V * (4 * np.abs(words) + np.abs(w["embedding.scale"]) * (8 + 4 * np.repeat(angle, 2, axis=-1)))
    yield "embedding_out", x, normed(Near(flat(words + w["embedding.scale"] * table), flat(off)), "embedding.norm")
    for index in range(len(t["layer_out"])):
        layer = f"layers.{index}"
        first = rounded(normed(exact(x), f"{layer}.norm1"), dtype)
        added = attention(first, w[f"{layer}.qkv"], w[f"{layer}.dense"], heads, mask, ids.shape, dtype)
        shown = flat(t["attn_out"][index])
        # the trace shows x after minus x before, both float32
        yield f"attn_out {index}", shown, Near(added.value, added.error + 2 * V * (np.abs(x) + np.abs(x + shown)))
        middle = Near(x + shown, V * np.abs(shown))
        inner = flat(t["ffn_in"][index])
        yield f"ffn_in {index}", inner, rounded(normed(middle, f"{layer}.norm2"), dtype)
        outer = flat(t["ffn_out"][index])
        w_in, w_out = w[f"{layer}.ffn.w_in"], w[f"{layer}.ffn.w_out"]
        if t["path_nodes"] is not None:
            nodes, logits = flat(t["path_nodes"][index]), flat(t["path_logits"][index])
            near, y = trees(inner, w_in, w[f"{layer}.ffn.bias"], w_out, nodes, dtype)
            assert (nodes[..., 0] == 0).all()
            assert (nodes[..., 1:] == 2 * nodes[..., :-1] + 1 + (logits[..., :-1] > 0)).all()
            yield f"path_logits {index}", logits, near
        else:
            h = perhaps_rounded(product(exact(inner), w_in), dtype)
            if len(w_in) != len(w_out):
                h, gate = (Near(*parts) for parts in zip(*(np.split(a, 2, axis=-1) for a in h), strict=True))
            else:
                gate = h
            active = gate.value * ndtr(gate.value)
            off = 1.13 * gate.error + 2.0**-21 * np.abs(active) + 2.0**-22
            if gate is not h:
                off = off * (np.abs(h.value) + h.error) + np.abs(active) * h.error
                active = active * h.value
            y = rounded(product(perhaps_rounded(Near(active, off), dtype), w_out.T), dtype)
        yield f"ffn_out {index}", outer, y
        after = flat(t["layer_out"][index])
        yield f"layer_out {index}", after, Near(middle.value + outer, 2 * V * (np.abs(middle.value) + np.abs(outer)))
        x = after
    yield "encoder_out", flat(t["encoder_out"]), normed(exact(x), "final_norm")


def along_paths(w: dict[str, Floats], ids: Any, paths: Any, heads: int, eps: float) -> Floats:
    """Return the hidden states of an encoder of FFF layers in float64, (B, S, H), along paths (L, B, S, K, D + 1)."""
    width, none = w["embedding.word"].shape[1], "float32"

    def normed(x: Floats, name: str) -> Floats:
        return norm(Near(x, np.zeros_like(x)), w[f"{name}.weight"], w[f"{name}.bias"], eps).value

    angle = np.arange(ids.shape[1])[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(ids.shape[1], width)
    x = normed((w["embedding.word"][ids] + w["embedding.scale"] * table).reshape(-1, width), "embedding.norm")
    for index, nodes in enumerate(paths):
        layer = f"layers.{index}"
        first = normed(x, f"{layer}.norm1")
        near = Near(first, np.zeros_like(first))
        x = x + attention(near, w[f"{layer}.qkv"], w[f"{layer}.dense"], heads, None, ids.shape, none).value
        ffn = (w[f"{layer}.ffn.{name}"] for name in ("w_in", "bias", "w_out"))
        x = x + trees(normed(x, f"{layer}.norm2"), *ffn, nodes.reshape(len(x), *nodes.shape[2:]), none)[1].value
    return normed(x, "final_norm").reshape(*ids.shape, width)
