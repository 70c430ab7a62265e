"""The encoder on a GPU: the answers of the float64 reference, those of the CPU, and what 16 bits promise."""

from __future__ import annotations

import pickle
import threading

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from bert_steps import TINY, UNITS, Near, along_paths, context, nearest, product, rounded, steps
from cmm.bert import encoder, gpu

cupy = pytest.importorskip("cupy")

# As in test_bert_encoder.py: products are float32 too.
TOLERANCE = 1e-5

BLOCKS = {
    "2x3": reference.architecture(),
    "1x5": reference.architecture(intermed_size=1, intermed_depth=5),
    "5x0": reference.architecture(intermed_size=5, intermed_depth=0),
    "transform": reference.architecture(skip_head_transform=False),
    "dense": reference.architecture(intermed_type="ff", intermed_size=37),
    "gated": reference.architecture(intermed_type="ff", intermed_size=38, nonlin="GELUglu"),
    **{pooler: reference.architecture(classification_head__pooler=pooler) for pooler in encoder.POOLERS},
}
TAPS = ("embedding_out", "attn_out", "ffn_in", "ffn_out", "layer_out", "encoder_out", "path_logits")
IDS = np.random.default_rng(5).integers(0, 50, (4, 7))


def masks() -> dict[str, np.ndarray | None]:
    padding = np.ones((4, 7), int)
    padding[1, 4:] = padding[2, 1:] = 0
    square = np.random.default_rng(6).integers(0, 2, (4, 7, 7))
    square[..., 0] |= ~square.any(axis=-1)
    return {"none": None, "2-d": padding, "3-d": square}


def close(actual: object, expected: np.ndarray) -> None:
    assert isinstance(actual, cupy.ndarray)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(cupy.asnumpy(actual), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("level", ["auto", "cuda-naive", "cuda-bmm"])
@pytest.mark.parametrize("kind", ["none", "2-d", "3-d"])
@pytest.mark.parametrize("name", BLOCKS)
def test_against_the_reference(name: str, kind: str, level: str) -> None:
    block, mask = BLOCKS[name], masks()[kind]
    state = reference.state_dict(block, seed=3, labels=3)
    expected = reference.forward(block, state, IDS, mask)
    model = cmm.bert.from_state_dict(state, block).to("cuda")
    trace = model.trace(IDS, mask, level=level)
    if "path_nodes" in expected:
        # No decision may be nearer to 0 than the tolerance, or two right answers could part.
        assert np.abs(expected["path_logits"][..., :-1]).min(initial=1) > 10 * TOLERANCE
        np.testing.assert_array_equal(cupy.asnumpy(trace.path_nodes), expected["path_nodes"])
    for tap in TAPS:
        if tap in expected:
            close(getattr(trace, tap), expected[tap])
    close(model(IDS, mask, level=level), expected["encoder_out"])
    close(model.logits(IDS, mask, level=level), expected["logits"])
    close(model.classify_ids(IDS, mask, level=level), expected["classes"])


def test_ids_and_masks_of_either_side_and_no_sequences() -> None:
    block, mask = BLOCKS["2x3"], masks()["2-d"]
    model = cmm.bert.from_state_dict(reference.state_dict(block), block).to("cuda")
    expected = cupy.asnumpy(model(IDS, mask))
    close(model(cupy.asarray(IDS), cupy.asarray(mask)), expected)
    close(model(IDS.tolist(), mask.tolist()), expected)
    assert model(np.empty((0, 7), int)).shape == (0, 7, 24)


def test_there_and_back() -> None:
    block = BLOCKS["2x3"]
    here = cmm.bert.from_state_dict(reference.state_dict(block), block)
    there = here.to("cuda:0")
    assert there.device.name == "cuda:0"
    assert all(np.array_equal(cupy.asnumpy(there.tensors[name]), tensor) for name, tensor in here.tensors.items())
    np.testing.assert_array_equal(there.to("cpu")(IDS), here(IDS))
    with pytest.raises(cmm.UnusableError, match="device is 'cuda:99', and there are"):
        here.to("cuda:99")


def test_on_a_stream_of_its_own() -> None:
    """The layers run on CuPy's current stream, after what was put there before and before what comes after."""
    block = BLOCKS["1x5"]
    model = cmm.bert.from_state_dict(reference.state_dict(block), block).to("cuda")
    expected = cupy.asnumpy(model(IDS))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(20):
            hidden = model(IDS)
        stream.synchronize()
    close(hidden, expected)


def test_texts_come_back_as_numpy(tmp_path: object) -> None:
    tokenizer = pytest.importorskip("bert_tokenizer", reason="the package tokenizers is not installed")
    block = BLOCKS["2x3"]
    tokenizer.save(tmp_path)
    here = cmm.bert.from_state_dict(reference.state_dict(block, labels=3, vocab=tokenizer.SIZE), block)
    here.tokenizer = cmm.bert.Tokenizer(tmp_path)
    there = here.to("cuda")
    texts = ["the cat sat", "a dog", ("a moon", "the mat")]
    how = {"rtol": 2 * TOLERANCE, "atol": 2 * TOLERANCE, "strict": True}  # both sides have an error
    np.testing.assert_allclose(there.embed(texts), here.embed(texts), **how)
    np.testing.assert_allclose(there.classify(texts), here.classify(texts), **how)
    mine, theirs = (model.fill_mask("the <mask> sat", 3) for model in (here, there))
    np.testing.assert_allclose([p.logit for p in theirs[0]], [p.logit for p in mine[0]], **how)


def test_a_model_of_real_width() -> None:
    """Two layers of the released shape; a token whose decisions are all clear takes the same path as on the CPU.

    In the first layer, where a difference has no earlier difference to grow from.
    """
    config = {**cmm.bert.ULTRAFASTBERT_1X11_LONG, "num_transformer_layers": 2}
    here = cmm.bert.random(config)
    ids = np.random.default_rng(0).integers(0, 32768, (8, 128))
    mine, theirs = here.trace(ids), here.to("cuda").trace(ids)
    # Hidden states of order 1 and sums of 768 terms: errors of about sqrt(768) * 6e-8 * a few = 1e-5.
    close_by = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(cupy.asnumpy(theirs.ffn_in[0]), mine.ffn_in[0], **close_by)
    clear = (np.abs(mine.path_logits[0, ..., :-1]) > 1e-3).all(axis=(-1, -2))  # (B, S)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(cupy.asnumpy(theirs.path_nodes[0])[clear], mine.path_nodes[0][clear])
    np.testing.assert_allclose(cupy.asnumpy(theirs.layer_out[0])[clear], mine.layer_out[0][clear], **close_by)


# ---- every step, of every dtype, against float64 -------------------------------------------------------------------

DTYPES = ("float32", "bfloat16", "float16")


def shape(width: int, heads: int, trees: int = 1, depth: int = 5, **how: object) -> dict[str, object]:
    sizes = {"hidden_size": width, "attention__num_attention_heads": heads, "embedding__embedding_dim": width}
    return reference.architecture(
        **sizes, intermed_size=trees, intermed_depth=depth, embedding__max_seq_length=300, **how
    )


# Heads of 8, 11, 64, 128 and 160: padded, odd, the usual one, the widest on tensor cores, one beyond.
SHAPES = {
    "8": (shape(24, 3), (4, 7)),
    "11": (shape(22, 2, 2, 3), (3, 65)),
    "40": (shape(120, 3, 1, 0), (2, 33)),
    "64": (shape(128, 2, 1, 11), (2, 128)),
    "64 long": (shape(128, 2, 5, 2), (2, 200)),
    "64 short": (shape(64, 1, 1, 4), (5, 1)),
    "128": (shape(256, 2, 16, 3), (2, 130)),
    "160": (shape(320, 2), (2, 40)),
    "600": (shape(600, 1, 3, 1), (1, 18)),
    "wide": (shape(1200, 20), (1, 16)),
    "dense": (shape(128, 2, intermed_type="ff"), (2, 20)),
    "gated": (shape(128, 2, intermed_type="ff", nonlin="GELUglu"), (2, 20)),
}
for _name in ("dense", "gated"):
    SHAPES[_name][0]["intermed_size"] = 74


def made(name: str, dtype: str, **how: object) -> tuple[cmm.bert.Model, np.ndarray]:
    block, (batch, length) = SHAPES[name]
    model = cmm.bert.from_state_dict(reference.state_dict(block, seed=7, **how), block).to("cuda", dtype)
    return model, np.random.default_rng(8).integers(0, 50, (batch, length))


def mask_for(kind: str, ids: np.ndarray) -> np.ndarray | None:
    rng, (batch, length) = np.random.default_rng(9), ids.shape
    if kind == "none":
        return None
    if kind == "2-d":
        mask = np.arange(length) < rng.integers(1, length + 1, batch)[:, None]
        mask[-1] = False  # masked everywhere
        return mask
    return rng.random((batch, length, length)) < 0.5


def shown(trace: object) -> dict[str, object]:
    values = vars(trace)
    return {name: None if value is None else cupy.asnumpy(value) for name, value in values.items()}


@pytest.mark.parametrize("level", ["auto", "cuda-naive"])
@pytest.mark.parametrize("kind", ["none", "2-d", "3-d"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_step_is_near_float64(dtype: str, name: str, kind: str, level: str) -> None:
    model, ids = made(name, dtype)
    mask = mask_for(kind, ids)
    trace = shown(model.trace(ids, mask, level=level))
    tensors = {key: cupy.asnumpy(value) for key, value in model.tensors.items()}
    config = model.config
    for step, value, near in steps(tensors, trace, ids, mask, config.heads, config.eps, dtype):
        assert np.isfinite(value).all(), step
        worst = (np.abs(value - near.value) / np.maximum(near.error, 1e-30)).max()
        assert worst <= 1, f"{step}: {worst:.3g} times the bound"
    hidden = model(ids, mask, level=level)
    assert hidden.dtype == np.float32
    np.testing.assert_array_equal(cupy.asnumpy(hidden), trace["encoder_out"])  # a trace is of the same kernels
    states = rounded(Near(trace["encoder_out"].astype(np.float64), 0), dtype)
    logits, near = cupy.asnumpy(model.decode(hidden)), product(states, tensors["embedding.word"].astype(np.float64))
    assert logits.dtype == np.float32
    assert (np.abs(logits - near.value) <= near.error).all()


@pytest.mark.parametrize("kind", ["none", "2-d", "3-d"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 15), (2, 64), (2, 65), (1, 128), (1, 129), (2, 300)])
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("64 long", "64 short", "dense", "gated")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_alone(dtype: str, name: str, batch: int, length: int, kind: str) -> None:
    """From queries, keys and values that are known to the bit, some of them large."""
    model, _ = made(name, dtype)
    width, heads = model.config.hidden, model.config.heads
    rng = np.random.default_rng(batch * length)
    qkv = nearest(rng.normal(0, 2, (batch * length, 3 * width)), dtype)
    mask = mask_for(kind, np.empty((batch, length)))
    stored = model._ops.stored("made.qkv", cupy.asarray(qkv, np.float32))
    found = cupy.zeros((batch * length, width), stored.dtype)
    held = None if mask is None else cupy.asarray(mask, np.uint8)
    model._ops._attention(gpu.Buffers(None, stored, found, None, held, batch, length))
    near = rounded(context(Near(qkv, np.zeros_like(qkv)), heads, mask, (batch, length), dtype), dtype)
    off = np.abs(cupy.asnumpy(model._ops.wide(found)) - near.value)
    assert (off <= near.error).all(), (off / np.maximum(near.error, 1e-30)).max()
    assert np.median(near.error) < 0.03  # of values around 0.7: sharp enough to see keys that are left out


def test_levels_by_cupy() -> None:
    """cuda-bmm has no bfloat16; in float16 it takes the paths of its own logits."""
    model, ids = made("8", "float16")
    trace = shown(model.trace(ids, level="cuda-bmm"))
    tensors = {key: cupy.asnumpy(value) for key, value in model.tensors.items()}
    for step, value, near in steps(tensors, trace, ids, None, 3, model.config.eps, "float16"):
        assert (np.abs(value - near.value) <= near.error).all(), step
    with pytest.raises(cmm.LevelError, match="level is 'cuda-bmm', and the model's dtype is 'bfloat16'"):
        made("8", "bfloat16")[0](ids, level="cuda-bmm")
    with pytest.raises(cmm.LevelError, match="level is 'native'; for arrays on a GPU"):
        model(ids, level="native")


# ---- graphs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_has_the_bits_of_the_first_run(dtype: str) -> None:
    """Shapes in turn, with other tokens and masks each time, on streams in turn; the buffers grow in between."""
    model, _ = made("64", dtype)
    rng = np.random.default_rng(1)
    cases = []
    for batch, length, kind in ((2, 20, "none"), (2, 20, "2-d"), (2, 20, "3-d"), (9, 128, "none"), (3, 7, "2-d")):
        for _ in range(3):
            ids = rng.integers(0, 50, (batch, length))
            mask = mask_for(kind, ids)
            cases.append((ids, mask, cupy.asnumpy(made("64", dtype)[0](ids, mask))))  # of a model that never replays
    streams = cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True)
    results = []
    for turn in range(4):
        for case, (ids, mask, _) in enumerate(cases):
            with streams[(turn + case) % 2] as stream:
                results.append((case, model(ids, mask)))
    for stream in streams:
        stream.synchronize()
    for case, hidden in results:
        np.testing.assert_array_equal(cupy.asnumpy(hidden), cases[case][2])


def test_many_shapes_keep_few_graphs() -> None:
    model, _ = made("8", "bfloat16")
    for length in range(1, 60):
        ids = np.full((1, length), 3)
        first = model(ids)
        assert (model(ids) == first).all()
        assert (model(ids) == first).all()
    assert 0 < len(model._ops._graphs) <= 32


def test_threads_share_a_model() -> None:
    model, ids = made("64", "bfloat16")
    batches = [np.random.default_rng(seed).integers(0, 50, ids.shape) for seed in range(4)]
    expected = [cupy.asnumpy(model(batch)) for batch in batches]
    found: list[list[np.ndarray]] = [[] for _ in batches]

    def work(index: int) -> None:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            mine = [model(batches[index]) for _ in range(20)]
            stream.synchronize()
        found[index] = [cupy.asnumpy(hidden) for hidden in mine]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, hidden in zip(found, expected, strict=True):
        assert len(mine) == 20
        assert all(np.array_equal(one, hidden) for one in mine)


# ---- what users do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_there_and_back_in_16_bits(dtype: str, tmp_path: object) -> None:
    block, _ = SHAPES["8"]
    here = cmm.bert.from_state_dict(reference.state_dict(block, labels=3), block)
    there = here.to("cuda", dtype)
    assert (here.dtype, there.dtype, there.to("cuda", dtype)) == ("float32", dtype, there)
    assert there.parameters == here.parameters
    assert f"{dtype} on cuda:0" in repr(there)
    back, u = there.to("cpu"), UNITS[dtype]
    assert back.dtype == "float32"
    for key, tensor in here.tensors.items():
        assert cupy.asnumpy(there.tensors[key]).dtype == np.float32
        np.testing.assert_array_equal(cupy.asnumpy(there.tensors[key]), back.tensors[key])
        np.testing.assert_allclose(back.tensors[key], tensor, rtol=u, atol=TINY[dtype])
    # what was rounded is rounded no more
    again, wide = back.to("cuda", dtype), there.to("cuda", "float32")
    ids = np.arange(6).reshape(1, 6)
    assert (again(ids) == there(ids)).all()
    assert all((wide.tensors[key] == again.tensors[key]).all() for key in here.tensors)
    cmm.bert.export(there, tmp_path / "exported")
    np.testing.assert_array_equal(cmm.bert.load(tmp_path / "exported")(ids), back(ids))
    copied = pickle.loads(pickle.dumps(there))
    assert copied.dtype == dtype
    assert (copied(ids) == there(ids)).all()
    assert there.classify_ids(ids).dtype == there.logits(ids).dtype == np.float32
    assert model_of_no_sequences(there) == (0, 7, 24)


def model_of_no_sequences(model: cmm.bert.Model) -> tuple[int, ...]:
    model.trace(np.empty((0, 7), int))
    return model(np.empty((0, 7), int)).shape


def test_a_padded_sequence_is_as_one_alone() -> None:
    """Masked keys have weights of exactly 0, wherever the others' scores are not 9900 smaller than theirs."""
    model, ids = made("64", "bfloat16")
    mask = np.ones(ids.shape, int)
    mask[0, 50:] = 0
    padded, alone = (
        cupy.asnumpy(model.trace(ids, mask).attn_out[0, 0]),
        cupy.asnumpy(model.trace(ids[:1, :50]).attn_out[0, 0]),
    )
    # the same products, of another size, so that cuBLAS may add up in another order
    np.testing.assert_allclose(padded[:50], alone, rtol=2.0**-6, atol=2.0**-6)


# A model of 4 layers of the released width, against float64 along the paths that it took. Roundings to 16 bits, seven
# a layer, act as noise of u / sqrt(3) of what is rounded: of the norm, q, k and v, weights, the context, the norm,
# the outputs. Each layer adds as much to the hidden state as the others, so that relative to it 4 layers have about
# sqrt(7) * u / sqrt(3) = 1.5 u; here they add less than the embedding is. Sums of 768 terms in float32: some 1e-6.
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_deep_model_along_its_paths(dtype: str) -> None:
    config = {**cmm.bert.ULTRAFASTBERT_1X11_LONG, "num_transformer_layers": 4}
    here = cmm.bert.random(config)
    there = here.to("cuda", dtype)
    ids = np.random.default_rng(0).integers(0, 32768, (2, 128))
    trace = shown(there.trace(ids))
    tensors = {key: cupy.asnumpy(value).astype(np.float64) for key, value in there.tensors.items()}
    exact = along_paths(tensors, ids, trace["path_nodes"], there.config.heads, there.config.eps)
    error = np.linalg.norm(trace["encoder_out"] - exact) / np.linalg.norm(exact)
    print(f"\n{dtype}: hidden states off by {error:.2e}, {error / UNITS[dtype]:.2f} u")
    assert error <= 1.5 * UNITS[dtype] + 1e-6
    mine = here.trace(ids)
    same = (mine.path_nodes == trace["path_nodes"]).all(axis=(-1, -2)).mean(axis=(1, 2))
    print(f"{dtype}: tokens on float32's path, by layer: {np.round(same, 3)}")
