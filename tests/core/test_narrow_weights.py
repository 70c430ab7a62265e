"""FFF(..., weights="bfloat16" | "float16"): the layer with the rounded rows, in half the memory."""

import pickle
from typing import Any

import cmm
import numpy as np
import pytest
from other_library import PLAIN, Other
from reference import Reference
from strategies import ISAS, Case, forced_isa

every_type = pytest.mark.parametrize("weights", ["bfloat16", "float16"])

CASES = [
    Case(batch=300, d_in=33, d_out=1, depth=5, seed=1),
    Case(batch=700, d_in=65, d_out=41, depth=9, seed=2),
    Case(batch=50, d_in=1, d_out=33, trees=13, depth=2, seed=3),
    Case(batch=5, d_in=768, d_out=768, depth=4, seed=4),
    Case(batch=3, d_in=40, d_out=30, trees=3072, depth=0, seed=5),
    Case(batch=7, d_in=3, d_out=2, depth=15, seed=6),
    Case(batch=0, d_in=8, d_out=8, depth=1, seed=7),
]


def rounded(array: Any, weights: str) -> Any:
    """Return float32 numbers as close as the type has them; of bfloat16 by its definition: 8 bits of significand."""
    if weights == "float16":
        return array.astype(np.float16).astype(np.float32)
    significand, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.rint(significand * 2**8), exponent - 8).astype(np.float32)


@every_type
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("level", ["naive", "native"])
def test_it_is_the_layer_with_the_rounded_rows(weights: str, case: Case, level: str) -> None:
    """To the bit, on every instruction set; and as the oracle says."""
    x, w_in, w_out, bias = case.arrays(np.float32, with_bias=True)
    narrow = cmm.FFF(w_in, w_out, bias, weights=weights)
    near_in, near_out = rounded(w_in, weights), rounded(w_out, weights)
    assert np.array_equal(narrow.w_in, near_in)
    assert np.array_equal(narrow.w_out, near_out)
    for isa in ISAS:
        with forced_isa(isa):
            got = narrow(x, level=level, return_path=True)
            want = cmm.fff_forward(x, near_in, near_out, bias, level=level, return_path=True)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
    if case.batch:
        Reference(x, near_in, bias, near_out).check("gelu", *got)


@every_type
def test_a_layer_says_what_its_weights_are(weights: str) -> None:
    x, w_in, w_out, _ = CASES[1].arrays(np.float32, with_bias=False)
    layer, wide = cmm.FFF(w_in, w_out, weights=weights), cmm.FFF(w_in, w_out, weights="float32")
    assert (layer.weights, layer.dtype, wide.weights) == (weights, np.float32, "float32")
    assert cmm.FFF(w_in.astype(float), w_out.astype(float)).weights == "float64"
    assert repr(layer).endswith(f", weights='{weights}')")
    assert "weights" not in repr(wide)
    assert not layer.w_in.flags.writeable
    assert (
        layer._prepared[2].memory.nbytes <= wide._prepared[2].memory.nbytes * 0.7
    )  # rows are padded to lines of the cache
    again = pickle.loads(pickle.dumps(layer))
    assert again.weights == weights
    assert again(x).tobytes() == layer(x).tobytes()
    assert pickle.loads(pickle.dumps(wide))(x).tobytes() == wide(x).tobytes()


@every_type
def test_where_it_does_not_exist_yet(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: PLAIN[name].astype(np.float32) for name in ("w_in", "w_out", "bias")}
    with pytest.raises(
        cmm.ArgumentError, match=f"^weights is '{weights}', which is for float32 layers, and this one is float64$"
    ):
        cmm.FFF(**{name: array.astype(float) for name, array in arrays.items()}, weights=weights)
    on_gpu = {name: Other(array, (2, 0)) for name, array in arrays.items()}
    with pytest.raises(
        cmm.ArgumentError, match=f"^weights is '{weights}', which is for arrays on a CPU, and these are on a GPU"
    ):
        cmm.FFF(**on_gpu, weights=weights)
    layer, x = cmm.FFF(**arrays, weights=weights), PLAIN["x"].astype(np.float32)
    message = "^level is 'blas1', which takes no narrow weights; it should be auto, naive or native$"
    with pytest.raises(cmm.UnusableError, match=message):
        layer(x, level="blas1")
    monkeypatch.setenv("CMM_LEVEL", "blas1")
    with pytest.raises(cmm.UnusableError, match=message):
        layer(x)


@pytest.mark.parametrize(
    "weights",
    ["int4", "", "Float16", "bf16", "float64", 16, np.float16, ["float16"], True, ("int8",) * 3, ("int8", 8)],
)
def test_other_weights_are_refused(weights: Any) -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(cmm.ArgumentError, match=r"^weights is .*; it should be None or one of 'float32', 'bfloat16'"):
        cmm.FFF(one, one, weights=weights)
