"""Models whose FFF layers keep their rows in fewer bits: load(weights=, exact_path=), trained(...), the commands."""

import pickle
from typing import Any

import cmm.bert
import numpy as np
import pytest

pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
IDS = np.random.default_rng(1).integers(5, 6000, (9, 40))


@pytest.mark.parametrize("weights", ["int8", "bfloat16", "float16", ("int8", "bfloat16")], ids=str)
def test_with_the_exact_path_every_token_goes_where_float32_sends_it(weights: Any) -> None:
    """Layer by layer, on the same inputs: behind the first one, hidden states differ as the outputs do."""
    model, wide = cmm.bert.trained(weights=weights, exact_path=True), cmm.bert.trained()
    found = wide.trace(IDS)
    off = 0
    for layer, x in enumerate(found.ffn_in):
        ffn = model.weights.layers[layer].ffn
        assert isinstance(ffn, cmm.FFF)
        _, nodes, _ = ffn(np.ascontiguousarray(x), return_path=True)
        off += int((nodes != found.path_nodes[layer]).any(axis=(-2, -1)).sum())
        assert 0 < ffn.recomputed + (weights == "float16") <= nodes[..., :-1].size  # the models' weights are float16
    assert off == 0


@pytest.mark.parametrize("exact_path", [False, True, 6.0])
def test_the_encoder_computes_with_those_layers(exact_path: Any) -> None:
    """To the bit what the layers of these rows give for their inputs, with and without a trace."""
    model, wide = cmm.bert.trained(weights="int8", exact_path=exact_path), cmm.bert.trained()
    found = model.trace(IDS)
    for layer, x in enumerate(found.ffn_in):
        ffn = wide.weights.layers[layer].ffn
        alone = cmm.FFF(ffn.w_in, ffn.w_out, ffn.bias, weights="int8", exact_path=exact_path)
        y, nodes, logits = alone(np.ascontiguousarray(x), return_path=True)
        assert y.tobytes() == np.ascontiguousarray(found.ffn_out[layer]).tobytes()
        assert np.array_equal(nodes, found.path_nodes[layer])
        assert np.array_equal(logits, found.path_logits[layer])
    assert np.array_equal(found.encoder_out, model(IDS))


def test_a_model_can_be_pickled_and_shows_its_weights() -> None:
    model = cmm.bert.trained(weights="int8", exact_path=6.0)
    again = pickle.loads(pickle.dumps(model))
    assert again(IDS).tobytes() == model(IDS).tobytes()
    wide = cmm.bert.trained()
    assert model.parameters == wide.parameters
    assert model.tensors.keys() == wide.tensors.keys()
    for name, tensor in model.tensors.items():
        assert tensor.shape == wide.tensors[name].shape
        # half a step of 127 to the largest magnitude of a row, and its roundings
        assert np.abs(tensor - wide.tensors[name]).max() <= np.abs(wide.tensors[name]).max() * (0.5 / 127 + 2**-20)


def test_what_it_is_not_for() -> None:
    message = r"^weights is 'int8', which is for FFF layers, and .* has dense ones$"
    with pytest.raises(cmm.ArgumentError, match=message):
        cmm.bert.trained("dense", weights="int8")
    with pytest.raises(cmm.ArgumentError, match=r"^exact_path is True, which is for FFF layers"):
        cmm.bert.trained("dense", exact_path=True)
    with pytest.raises(cmm.ArgumentError, match=r"^exact_path is True, which is for rows of w_in that are narrower"):
        cmm.bert.trained(exact_path=True)
    with pytest.raises(cmm.ArgumentError, match=r"^weights is 'int4'; it should be None or one of"):
        cmm.bert.trained(weights="int4")


def test_the_commands_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    from cmm.__main__ import main

    text = "a <mask> of values"
    assert main(["fill-mask", "fff", text, "--weights", "int8,bfloat16", "--exact-path"]) == 0
    exact = capsys.readouterr().out
    assert main(["fill-mask", "fff", text, "--weights", "int8", "--exact-path", "6"]) == 0
    assert main(["fill-mask", "fff", text]) == 0
    assert exact.split()[0] in capsys.readouterr().out
    assert main(["fill-mask", "fff", text, "--weights", "int3"]) == 2
    assert "weights is 'int3'; it should be" in capsys.readouterr().err
    assert main(["fill-mask", "dense", text, "--weights", "int8"]) == 2
    assert "has dense ones" in capsys.readouterr().err
