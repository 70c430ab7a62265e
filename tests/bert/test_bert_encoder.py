"""The encoder computes what the specification says: against recorded answers, and against a float64 reference."""

import os
import threading
from pathlib import Path

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import encoder
from cmm.bert.device import CPU
from cmm.bert.state_dict_map import tensors

# The recorded answers come with this tolerance: they are float32 themselves and were seen to agree to 1.5e-6. It
# holds for the reference too: every tap is a LayerNorm or two away from values of order 1 (at most 10), and its sums
# have at most 200 terms, whose float32 rounding is at most 200 * 6e-8 = 1.2e-5 of the sum of magnitudes, and about
# sqrt(200) * 6e-8 = 1e-6 of it in practice.
TOLERANCE = 1e-5

TAPS = ("embedding_out", "attn_out", "ffn_in", "ffn_out", "layer_out", "encoder_out", "path_logits")
LEVELS = ("auto", *(level.name for level in cmm.levels() if level.available and "cuda" not in level.name))


def close(actual, expected):
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


# ---- the recorded answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors():
    folder = os.environ.get("CMM_VECTORS")
    if not folder:
        pytest.skip("CMM_VECTORS, the folder of the recorded answers, is not set")
    return Path(folder) / "ultrafastbert-tiny-1x4"


@pytest.fixture(scope="module")
def recorded(vectors):
    with np.load(vectors / "io.npz") as file:
        return dict(file)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["nomask", "mask"])
def test_every_recorded_tap(vectors, recorded, kind, level):
    model = cmm.bert.load(vectors)
    ids, mask = recorded["input_ids"], recorded["attention_mask"] if kind == "mask" else None
    trace = model.trace(ids, mask, level=level)
    compared = set()
    for name, key in (
        *((name, f"{name}_{kind}") for name in ("attn_out", "ffn_in", "ffn_out", "layer_out", "path_logits")),
        ("encoder_out", f"encoder_{kind}"),
        ("encoder_out", f"encoder_{kind}_f64"),
        ("embedding_out", "embedding_out"),
    ):
        if key in recorded:
            close(getattr(trace, name), recorded[key])
            compared.add(key)
    assert trace.path_nodes.dtype == np.int32
    np.testing.assert_array_equal(trace.path_nodes, recorded[f"path_nodes_{kind}"])
    logits = model.logits(ids, mask, level=level)
    close(logits, recorded[f"logits_{kind}"])
    close(logits, recorded[f"logits_{kind}_f64"])
    close(model(ids, mask, level=level), recorded[f"encoder_{kind}"])
    compared |= {f"path_nodes_{kind}", f"logits_{kind}", f"logits_{kind}_f64"}
    taps = {key for key in recorded if key.endswith((f"_{kind}", f"_{kind}_f64"))} | {"embedding_out"}
    assert compared == taps - {"attention_mask"}, "a recorded tap was not compared"


def test_recorded_positions(recorded):
    close(encoder.position_table(32, 64), recorded["pos_pe"])


def test_recorded_classifier(vectors, recorded):
    with np.load(vectors / "cls_avg.npz") as file:
        recorded = dict(file)
    mlm = cmm.bert.load(vectors)
    head = {key: recorded[key] for key in recorded if key.startswith(("pooler.", "head."))}
    names = tensors(mlm.config, vocab_size=128, num_labels=None)
    model = cmm.bert.from_state_dict({**training_state(mlm, names), **head}, mlm.config.arch)
    close(model.classify_ids(recorded["input_ids"]), recorded["logits_nomask"])
    close(model.classify_ids(recorded["input_ids"], recorded["attention_mask"]), recorded["logits_mask"])


def training_state(model, names):
    """The encoder's weights under training's keys."""
    state = {}
    for tensor in names:
        value = model.tensors[tensor.name]
        state[tensor.key] = value.reshape(-1, 64).T if tensor.transposed else value.reshape(tensor.stored)
    heads = model.config.hidden // model.config.heads
    for i in range(model.config.layers):
        state[f"encoder.layers.{i}.attn.self_attention.norm_factor"] = np.array(heads**-0.5, np.float32)
    return state


# ---- the reference -------------------------------------------------------------------------------------------------

SHAPES = {
    "2x3": reference.architecture(),
    "1x5": reference.architecture(intermed_size=1, intermed_depth=5),
    "5x0": reference.architecture(intermed_size=5, intermed_depth=0),
    "1x0": reference.architecture(intermed_size=1, intermed_depth=0),
    "16x4": reference.architecture(intermed_size=16, intermed_depth=4),
    "1x9": reference.architecture(intermed_size=1, intermed_depth=9),
    "one head": reference.architecture(attention__num_attention_heads=1),
    "heads of 2": reference.architecture(attention__num_attention_heads=12),
    "one layer": reference.architecture(num_transformer_layers=1),
    "large eps": reference.architecture(norm_eps=0.1),
    "transform": reference.architecture(skip_head_transform=False),
    "dense": reference.architecture(intermed_type="ff", intermed_size=37),
    "dense, type absent": {k: v for k, v in reference.architecture(intermed_size=8).items() if k != "intermed_type"},
    "one neuron": reference.architecture(intermed_type="ff", intermed_size=1),
    "gated": reference.architecture(intermed_type="ff", intermed_size=38, nonlin="GELUglu"),
    "gated, transform": reference.architecture(
        intermed_type="ff", intermed_size=2, nonlin="GELUglu", skip_head_transform=False
    ),
    **{
        pooler: reference.architecture(classification_head__pooler=pooler)
        for pooler in ("zero_index", "max", "logsumexp")
    },
}


def masks(rng, batch, length):
    padding = np.ones((batch, length), int)
    padding[1, 4:] = 0
    padding[2, 1:] = 0
    square = rng.integers(0, 2, (batch, length, length))
    square[..., 0] |= ~square.any(axis=-1)  # rows with nothing to attend to have a test of their own
    return {"none": None, "2-d": padding, "3-d": square}


@pytest.mark.parametrize("kind", ["none", "2-d", "3-d"])
@pytest.mark.parametrize("name", SHAPES)
def test_against_the_reference(name, kind):
    block = SHAPES[name]
    rng = np.random.default_rng(5)
    state = reference.state_dict(block, seed=3, labels=3)
    ids = rng.integers(0, 50, (4, 7))
    mask = masks(rng, 4, 7)[kind]
    expected = reference.forward(block, state, ids, mask)
    model = cmm.bert.from_state_dict(state, block)
    trace = model.trace(ids, mask)
    if "path_nodes" in expected:
        # No decision may be nearer to 0 than the tolerance, or two right answers could part: seeds 3 and 5 see to it.
        assert np.abs(expected["path_logits"][..., :-1]).min(initial=1) > 10 * TOLERANCE
        np.testing.assert_array_equal(trace.path_nodes, expected["path_nodes"])
    else:
        assert trace.path_nodes is None
        assert trace.path_logits is None
    for tap in TAPS:
        if tap in expected:
            close(getattr(trace, tap), expected[tap])
    close(model(ids, mask), expected["encoder_out"])
    close(model.logits(ids, mask), expected["logits"])
    close(model.classify_ids(ids, mask), expected["classes"])


@pytest.mark.parametrize("kind", ["2-d", "3-d"])
def test_rows_that_are_masked_everywhere(kind):
    """They attend to what they would attend to without a mask, by scores rounded to multiples of 2^-10.

    The rounding makes them depend on the last bits of a score: one that lies within its own error of the middle
    between two multiples may go either way, and the weights then differ by up to 2^-10 of themselves. So the
    reference does the same rounding, and seeds are such that no score is nearer to a middle than the tolerance, which
    is more than the error of any value here (scores are of order 1, and their sums have 8 terms). Nothing else needs
    a bound of its own: after equal roundings, the weights are functions of equal scores.
    """
    block = reference.architecture()
    state = reference.state_dict(block, seed=15)
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 50, (2, 4))
    lost = {"2-d": [(1, 0), (1, 1), (1, 2), (1, 3)], "3-d": [(0, 1), (1, 3)]}[kind]  # sequences and queries
    mask = np.ones((2, 4), int) if kind == "2-d" else rng.integers(0, 2, (2, 4, 4))
    if kind == "3-d":
        mask[..., 0] = 1
    for sequence, query in lost:
        mask[(sequence,) if kind == "2-d" else (sequence, query)] = 0
    expected = reference.forward(block, state, ids, mask)
    assert expected["rounding_margin"] > TOLERANCE
    model = cmm.bert.from_state_dict(state, block)
    trace, unmasked = model.trace(ids, mask), model.trace(ids)
    np.testing.assert_array_equal(trace.path_nodes, expected["path_nodes"])
    for tap in TAPS:
        close(getattr(trace, tap), expected[tap])
    if kind == "2-d":  # where all of a sequence is masked, nothing but the rounding differs from no mask at all
        assert np.abs(trace.attn_out[0, 1] - unmasked.attn_out[0, 1]).max() > 2 * TOLERANCE


def test_sequences_in_several_blocks():
    """Attention takes as many sequences at a time as fit the cache; more than one block, the last one smaller."""
    block = reference.architecture(attention__num_attention_heads=12, embedding__max_seq_length=64)
    model = cmm.bert.from_state_dict(reference.state_dict(block), block)
    ids = np.random.default_rng(0).integers(0, 50, (13, 64))
    mask = np.random.default_rng(1).integers(0, 2, (13, 64))
    assert 13 % len(encoder.Buffers.make(CPU, 13, 64, 24, 12).scores)
    alone = np.concatenate([model(ids[i : i + 1], mask[i : i + 1]) for i in range(13)])
    close(model(ids, mask), alone)


# ---- the door ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    block = reference.architecture()
    return cmm.bert.from_state_dict(reference.state_dict(block, labels=2), block)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4"]
)
def test_ids_of_every_integer_dtype(model, dtype):
    ids = np.array([[1, 2, 3], [49, 0, 7]])
    close(model(ids.astype(dtype)), model(ids))


def test_ids_as_lists_views_and_read_only_arrays(model):
    ids = np.arange(12).reshape(3, 4)
    expected = model(ids)
    close(model(ids.tolist()), expected)
    close(model(np.asfortranarray(ids)), expected)
    close(model(np.repeat(ids, 2, axis=1)[:, ::2]), expected)
    ids.flags.writeable = False
    close(model(ids), expected)


def test_masks_of_every_kind(model):
    ids = np.arange(8).reshape(2, 4)
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 1]])
    expected = model(ids, mask)
    for dtype in (bool, np.int8, np.uint64, np.float16, np.float64):
        close(model(ids, mask.astype(dtype)), expected)
    close(model(ids, mask.tolist()), expected)
    close(model(ids, np.repeat(mask[:, None], 4, axis=1)), expected)
    close(model(ids, np.ones((2, 4))), model(ids))
    assert not np.array_equal(expected, model(ids))


def test_empty_batch(model):
    for empty in (np.empty((0, 5), int), np.empty((0, 5))):
        assert model(empty).shape == (0, 5, 24)
    ids = np.empty((0, 5), int)
    assert model(ids, np.empty((0, 5), int)).shape == (0, 5, 24)
    assert model(ids, np.empty((0, 5, 5), int)).shape == (0, 5, 24)
    assert model.logits(ids).shape == (0, 5, 50)
    assert model.classify_ids(ids).shape == (0, 2)
    assert model.trace(ids).path_nodes.shape == (2, 0, 5, 2, 4)


def test_shortest_and_longest_sequences(model):
    assert model([[3]]).shape == (1, 1, 24)
    longest = model(np.arange(16)[None])
    assert longest.shape == (1, 16, 24)
    assert np.isfinite(longest).all()


IDS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        ([1, 2, 3], None, cmm.ShapeError, r"ids has shape \(3,\).*\[ids\]"),
        (5, None, cmm.ShapeError, r"ids has shape \(\)"),
        ([[[1]]], None, cmm.ShapeError, r"ids has shape \(1, 1, 1\)"),
        (np.empty((2, 0), int), None, cmm.ShapeError, r"ids has shape \(2, 0\).*at least one token"),
        ([[1, 2], [3]], None, cmm.ShapeError, "ids is not an array"),
        ([list(range(17))], None, cmm.ShapeError, "ids has 17 tokens.*limit is 16"),
        ([[0, 1], [2, 50]], None, cmm.ArgumentError, r"ids\[1, 1\] is 50.*0 to 49"),
        ([[-1, 1]], None, cmm.ArgumentError, r"ids\[0, 0\] is -1"),
        (np.array([[2**64 - 1]], np.uint64), None, cmm.ArgumentError, "is 18446744073709551615"),
        ([[1.0, 2.0]], None, cmm.DtypeError, "ids has dtype float64"),
        ([[True, False]], None, cmm.DtypeError, "ids has dtype bool"),
        ([["a", "b"]], None, cmm.DtypeError, "ids has dtype <U1"),
        ([[None, 1]], None, cmm.DtypeError, "ids has dtype object"),
        (IDS, [1, 1, 1], cmm.ShapeError, r"mask has shape \(3,\).*\(2, 3\) or \(2, 3, 3\)"),
        (IDS, np.ones((3, 2)), cmm.ShapeError, r"mask has shape \(3, 2\)"),
        (IDS, np.ones((2, 1, 3)), cmm.ShapeError, r"mask has shape \(2, 1, 3\)"),
        (IDS, np.ones((2, 1, 1, 3)), cmm.ShapeError, r"mask has shape \(2, 1, 1, 3\)"),
        (IDS, [[1, 1], [1]], cmm.ShapeError, "mask is not an array"),
        (IDS, np.ones((2, 3), complex), cmm.DtypeError, "mask has dtype complex128"),
        (IDS, np.full((2, 3), "1"), cmm.DtypeError, "mask has dtype <U1"),
        (IDS, [[1, 1, 1], [1, 2, 1]], cmm.ArgumentError, r"mask\[1, 1\] is 2"),
        (IDS, [[0.0, 1, 1], [1, -10000, 1]], cmm.ArgumentError, r"mask\[1, 1\] is -10000"),
        (IDS, [[0.0, np.nan, 1], [1, 1, 1]], cmm.ArgumentError, r"mask\[0, 1\] is nan"),
    ],
)
def test_wrong_calls(model, ids, mask, error, message):
    for method in (model, model.logits, model.classify_ids, model.trace):
        with pytest.raises(error, match=message) as caught:
            method(ids, mask)
        assert isinstance(caught.value, cmm.CmmError)


def test_level_and_threads_reach_the_layers(model):
    for method in (model, model.logits, model.classify_ids, model.trace):
        with pytest.raises(cmm.LevelError):
            method(IDS, level="no such level")
        with pytest.raises(cmm.ArgumentError, match="threads"):
            method(IDS, threads=-1)
    close(model(IDS, level="naive", threads=1), model(IDS))


def test_decode_some_rows(model):
    hidden = model(IDS)
    np.testing.assert_allclose(model.decode(hidden[1, 2]), model.logits(IDS)[1, 2], rtol=0, atol=TOLERANCE)
    assert model.decode(hidden[0]).shape == (3, 50)
    with pytest.raises(cmm.DtypeError, match="hidden is float64"):
        model.decode(hidden.astype(np.float64))
    with pytest.raises(cmm.ShapeError, match=r"hidden has shape \(2, 3, 23\).* 24"):
        model.decode(hidden[..., 1:])


def test_a_head_that_is_not_there_is_said():
    block = reference.architecture()
    classifier = cmm.bert.from_state_dict(reference.state_dict(block, labels=2, decoder=False), block)
    assert classifier.classify_ids(IDS).shape == (2, 2)
    for call in (lambda: classifier.logits(IDS), lambda: classifier.decode(classifier(IDS))):
        with pytest.raises(cmm.UnusableError, match=r"decoder\.weight"):
            call()
    language = cmm.bert.from_state_dict(reference.state_dict(block), block)
    with pytest.raises(cmm.UnusableError, match=r"head\.weight"):
        language.classify_ids(IDS)


def test_a_call_changes_neither_weights_nor_arguments(model):
    before = {name: value.copy() for name, value in model.tensors.items()}
    ids, mask = np.array(IDS), np.array([[1, 0, 1], [1, 1, 0]])
    ids_before, mask_before = ids.copy(), mask.copy()
    first = model(ids, mask)
    model.logits(ids, mask)
    model.classify_ids(ids, mask)
    model.trace(ids, mask)
    close(model(ids, mask), first)
    np.testing.assert_array_equal(ids, ids_before)
    np.testing.assert_array_equal(mask, mask_before)
    for name, value in before.items():
        np.testing.assert_array_equal(model.tensors[name], value)


def test_several_threads_use_one_model():
    model = cmm.bert.random(reference.architecture(embedding__vocab_size=50), seed=1)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 50, (3, length)) for length in range(1, 17)]
    fresh = cmm.bert.random(reference.architecture(embedding__vocab_size=50), seed=1)
    expected = [fresh(ids) for ids in batches]
    failures = []

    def work(index):
        for _ in range(5):
            if not np.allclose(model(batches[index]), expected[index], rtol=0, atol=TOLERANCE):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- random models -------------------------------------------------------------------------------------------------


def test_random_models_follow_their_seed():
    block = reference.architecture(embedding__vocab_size=50, num_labels=3, skip_head_transform=False)
    one, same, other = (cmm.bert.random(block, seed) for seed in (1, 1, 2))
    for name, value in one.tensors.items():
        np.testing.assert_array_equal(value, same.tensors[name])
        if name != "embedding.scale":
            assert not np.array_equal(value, other.tensors[name])
    assert one.logits(IDS).shape == (2, 3, 50)
    assert one.classify_ids(IDS).shape == (2, 3)


def test_random_models_need_a_vocabulary():
    with pytest.raises(cmm.bert.CheckpointError, match=r"embedding\.vocab_size: is null"):
        cmm.bert.random(reference.architecture())
    with pytest.raises(cmm.bert.CheckpointError, match="classification_head"):
        cmm.bert.random(reference.architecture(embedding__vocab_size=9, num_labels=2, classification_head=None))


def test_released_configuration_has_the_published_size():
    config = cmm.bert.config.parse(cmm.bert.ULTRAFASTBERT_1X11_LONG)
    shapes = [tensor.shape for tensor in tensors(config, vocab_size=32768, num_labels=None)]
    assert sum(int(np.prod(shape)) for shape in shapes) == 163_671_025


@pytest.mark.parametrize(("trees", "depth"), [(1, 11), (4, 9), (128, 4)])
def test_random_models_route_diversely(trees, depth):
    """Tokens reach at least four fifths of the leaves that evenly spread ones would, in every layer and tree."""
    block = reference.architecture(
        num_transformer_layers=8,
        hidden_size=256,
        intermed_size=trees,
        intermed_depth=depth,
        embedding={"vocab_size": 5000, "max_seq_length": 128},
        attention={"num_attention_heads": 4},
    )
    model = cmm.bert.random(block, seed=0)
    ids = np.random.default_rng(0).integers(0, 5000, (8, 128))
    nodes = model.trace(ids).path_nodes
    leaves = 2**depth
    even = leaves * (1 - np.exp(-ids.size / leaves))  # expected distinct leaves of independent, even draws
    for layer in range(8):
        for tree in range(trees):
            assert len(np.unique(nodes[layer, ..., tree, -1])) > 0.8 * even
