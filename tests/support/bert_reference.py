"""An independent encoder: the specification in float64 and plain loops, on the keys of training. Slow on purpose.

Nothing is imported from cmm. Also makes small seeded models in the layout that training writes.
"""

import json
import math
import struct

import numpy as np


def architecture(**changes):
    """A small architecture block; ``embedding__max_seq_length=9`` changes a flag of a block."""
    block = {
        "num_transformer_layers": 2,
        "hidden_size": 24,
        "intermed_type": "fff",
        "intermed_size": 2,
        "intermed_depth": 3,
        "norm": "LayerNorm",
        "norm_eps": 1e-12,
        "nonlin": "GELU",
        "embedding": {"vocab_size": None, "max_seq_length": 16, "embedding_dim": 24},
        "attention": {"num_attention_heads": 3},
        "skip_head_transform": True,
        "num_labels": None,
        "classification_head": {"pooler": "avg", "include_ff_layer": True, "head_dim": 10, "nonlin": "Tanh"},
    }
    for name, value in changes.items():
        place, _, flag = name.rpartition("__")
        (block[place] if place else block)[flag] = value
    return block


def state_dict(block, seed=0, *, vocab=50, labels=None, decoder=True):
    """Seeded float32 weights under the keys and in the shapes of the training code."""
    rng = np.random.default_rng(seed)
    width, heads = block["hidden_size"], block["attention"]["num_attention_heads"]
    state = {}

    def linear(key, rows, columns, scale=1.0):
        state[key] = rng.normal(0, scale / math.sqrt(columns), (rows, columns)).astype(np.float32)

    def vector(key, length, mean):
        state[key] = rng.normal(mean, 0.2, length).astype(np.float32)

    def norm(key, length=width):
        vector(f"{key}.weight", length, 1)
        vector(f"{key}.bias", length, 0)

    state["encoder.embedding.word_embedding.weight"] = rng.normal(0, 1, (vocab, width)).astype(np.float32)
    state["encoder.embedding.pos_embedding.scale_factor"] = np.array([0.7], np.float32)
    norm("encoder.embedding.norm")
    for i in range(block["num_transformer_layers"]):
        layer = f"encoder.layers.{i}"
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
        state[f"{layer}.attn.self_attention.norm_factor"] = np.array((width // heads) ** -0.5, np.float32)
        linear(f"{layer}.attn.self_attention.query_key_value.weight", 3 * width, width)
        linear(f"{layer}.attn.dense.weight", width, width)
        size = block["intermed_size"]
        if block.get("intermed_type") == "fff":
            rows = size * (2 ** (block["intermed_depth"] + 1) - 1)
            linear(f"{layer}.ffn.linear_in.weight", rows, width)
            vector(f"{layer}.ffn.linear_in.bias", rows, 0)
            linear(f"{layer}.ffn.linear_out.weight", width, rows, math.sqrt(rows) / 3)
        else:
            linear(f"{layer}.ffn.dense_in.weight", size, width)
            linear(f"{layer}.ffn.dense_out.weight", width, size // 2 if block["nonlin"] == "GELUglu" else size)
    norm("encoder.final_norm")
    if decoder:
        if not block["skip_head_transform"]:
            linear("prediction_head.dense.weight", width, width)
            norm("prediction_head.norm")
        state["decoder.weight"] = state["encoder.embedding.word_embedding.weight"].copy()
    if labels is not None:
        pooled = block["classification_head"]["head_dim"]
        linear("pooler.dense.weight", pooled, width)
        vector("pooler.dense.bias", pooled, 0)
        linear("head.weight", labels, pooled)
        vector("head.bias", labels, 0)
    return state


def save_safetensors(path, state, metadata=None):
    """Write a safetensors file by hand: the length of the header, the header, the bytes."""
    codes = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64", "int32": "I32"}
    header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for key, value in state.items():
        raw = value.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": codes[value.dtype.name], "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def save_final(folder, block, state):
    """Write the layout "final"."""
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", state)
    (folder / "model_config.json").write_text(json.dumps(block))
    return folder


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def forward(block, state, ids, mask=None):
    """Return every tap of the encoder, the logits, and the classifier's logits, all float64.

    With a mask, one operation is float32, as the specification has it: the sum of a score and its mask. It decides
    nothing but in rows that are masked everywhere. There it rounds every score to a multiple of 2^-10, the distance
    of float32 numbers around -10000, and "rounding_margin" is how near one came to being rounded the other way.
    """
    w = {key: value.astype(np.float64) for key, value in state.items()}
    width, heads = block["hidden_size"], block["attention"]["num_attention_heads"]
    head_dim = width // heads
    batch, length = ids.shape
    margins = []

    def norm(x, key):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + block["norm_eps"]) * w[f"{key}.weight"] + w[f"{key}.bias"]

    def attention(x, layer):
        qkv = x @ w[f"{layer}.attn.self_attention.query_key_value.weight"].T
        result = np.empty_like(x)
        for b in range(batch):
            for h in range(heads):
                q, k, v = (qkv[b, :, (3 * h + i) * head_dim : (3 * h + i + 1) * head_dim] for i in range(3))
                scores = q @ k.T * head_dim**-0.5
                if mask is not None:
                    bias = np.broadcast_to((1.0 - mask[b]) * -10000, scores.shape)  # (S,): the same for every query
                    lost = scores[(bias != 0).all(axis=1)] * 2**10
                    margins.append(np.abs(lost - np.floor(lost) - 0.5).min(initial=0.5) * 2**-10)
                    scores = (scores.astype(np.float32) + bias.astype(np.float32)).astype(np.float64)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                result[b, :, h * head_dim : (h + 1) * head_dim] = weights @ v
        return result @ w[f"{layer}.attn.dense.weight"].T

    def trees(x, layer, nodes_out, logits_out):
        depth = block["intermed_depth"]
        per_tree = 2 ** (depth + 1) - 1
        w_in, bias = w[f"{layer}.ffn.linear_in.weight"], w[f"{layer}.ffn.linear_in.bias"]
        w_out = w[f"{layer}.ffn.linear_out.weight"]
        result = np.zeros_like(x)
        for b in range(batch):
            for s in range(length):
                for k in range(block["intermed_size"]):
                    n = 0
                    for level in range(depth + 1):
                        row = k * per_tree + n
                        logit = w_in[row] @ x[b, s] + bias[row]
                        result[b, s] += gelu(logit) * w_out[:, row]
                        nodes_out[b, s, k, level], logits_out[b, s, k, level] = n, logit
                        n = 2 * n + 1 + (logit > 0)
        return result

    def dense(x, layer):
        inner = x @ w[f"{layer}.ffn.dense_in.weight"].T
        if block["nonlin"] == "GELUglu":
            half = inner.shape[-1] // 2
            inner = gelu(inner[..., half:]) * inner[..., :half]
        else:
            inner = gelu(inner)
        return inner @ w[f"{layer}.ffn.dense_out.weight"].T

    table = np.empty((length, width))
    for position in range(length):
        for i in range(0, width, 2):
            angle = position * math.exp(i * -math.log(10000) / width)
            table[position, i], table[position, i + 1] = math.sin(angle), math.cos(angle)
    x = w["encoder.embedding.word_embedding.weight"][ids] + w["encoder.embedding.pos_embedding.scale_factor"] * table
    x = norm(x, "encoder.embedding.norm")
    taps = {"embedding_out": x}
    stacks = {name: [] for name in ("attn_out", "ffn_in", "ffn_out", "layer_out", "path_nodes", "path_logits")}
    for i in range(block["num_transformer_layers"]):
        layer = f"encoder.layers.{i}"
        stacks["attn_out"].append(attention(norm(x, f"{layer}.norm1"), layer))
        x = x + stacks["attn_out"][-1]
        stacks["ffn_in"].append(norm(x, f"{layer}.norm2"))
        if block.get("intermed_type") == "fff":
            path = (batch, length, block["intermed_size"], block["intermed_depth"] + 1)
            nodes, logits = np.empty(path, np.int32), np.empty(path)
            stacks["ffn_out"].append(trees(stacks["ffn_in"][-1], layer, nodes, logits))
            stacks["path_nodes"].append(nodes)
            stacks["path_logits"].append(logits)
        else:
            stacks["ffn_out"].append(dense(stacks["ffn_in"][-1], layer))
        x = x + stacks["ffn_out"][-1]
        stacks["layer_out"].append(x)
    taps.update({name: np.stack(values) for name, values in stacks.items() if values})
    x = norm(x, "encoder.final_norm")
    taps["encoder_out"] = x
    taps["rounding_margin"] = min(margins, default=2**-11)
    if "decoder.weight" in w:
        y = x
        if not block["skip_head_transform"]:
            y = norm(gelu(y @ w["prediction_head.dense.weight"].T), "prediction_head.norm")
        taps["logits"] = y @ w["decoder.weight"].T
    if "head.weight" in w:
        pooler = block["classification_head"]["pooler"]
        if pooler == "avg":
            pooled = sum(x[:, s] for s in range(length)) / length
        elif pooler == "zero_index":
            pooled = x[:, 0]
        elif pooler == "max":
            pooled = np.array([[max(x[b, :, j]) for j in range(width)] for b in range(batch)])
        else:
            pooled = np.log(sum(np.exp(x[:, s]) for s in range(length)))
        pooled = np.tanh(pooled @ w["pooler.dense.weight"].T + w["pooler.dense.bias"])
        taps["classes"] = pooled @ w["head.weight"].T + w["head.bias"]
    return taps
