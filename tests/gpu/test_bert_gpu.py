"""The encoder on a GPU, through CuPy: the answers of the float64 reference, and those of the CPU."""

from __future__ import annotations

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import encoder

cupy = pytest.importorskip("cupy")

# As in test_bert_encoder.py: CuPy's products are float32 too (TF32 only where the environment asks for it).
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


def test_the_layers_get_arrays_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing travels to the CPU and back between the layers."""
    got = []

    def watched(*arrays: object, **how: object) -> object:
        got.extend([*arrays, how["out"]])
        return cmm.fff_forward(*arrays, **how)

    monkeypatch.setattr(encoder, "fff_forward", watched)
    block = BLOCKS["2x3"]
    cmm.bert.from_state_dict(reference.state_dict(block), block).to("cuda")(IDS)
    assert len(got) == 2 * 5
    assert all(isinstance(array, cupy.ndarray) for array in got)


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
