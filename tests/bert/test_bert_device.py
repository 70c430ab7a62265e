"""The encoder on another device: what a model does with it. A stand-in for CuPy on the CPU is here.

The functions of the CPU run through it. The GPU's own steps, and what they compute, are for tests/gpu.
"""

import copy
import re
import sys
from types import SimpleNamespace
from typing import ClassVar

import bert_reference as reference
import cmm
import cmm.bert
import cupy_standin
import numpy as np
import pytest
from cmm.bert import encoder, gpu
from cmm.bert.device import CPU

BLOCKS = {
    "fff": reference.architecture(),
    "transform": reference.architecture(skip_head_transform=False, intermed_size=1, intermed_depth=5),
    "dense": reference.architecture(intermed_type="ff", intermed_size=37),
    "gated": reference.architecture(intermed_type="ff", intermed_size=38, nonlin="GELUglu"),
    **{pooler: reference.architecture(classification_head__pooler=pooler) for pooler in encoder.POOLERS},
}
IDS = np.random.default_rng(5).integers(0, 50, (4, 7))
MASK = (np.random.default_rng(6).random((4, 7)) < 0.7).astype(int)
TRACED = ("embedding_out", "attn_out", "ffn_in", "ffn_out", "layer_out", "encoder_out", "path_nodes", "path_logits")


@pytest.fixture
def cupy(monkeypatch):
    cupy_standin.used.clear()
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", SimpleNamespace(ndtr=cupy_standin.ndtr))
    monkeypatch.setattr(gpu, "GpuOps", Recorded)
    Recorded.made.clear()
    return cupy_standin


class Recorded(encoder.ArrayOps):
    """The steps of an array module in place of the GPU's, which say what they were made for."""

    made: ClassVar[list[tuple[object, ...]]] = []

    def __init__(self, device, dtype, width, heads):
        self.made.append((device.name, dtype, width, heads))
        self.dtype = dtype

    def stored(self, name, tensor):
        return tensor.astype(np.float16) if self.dtype != "float32" and ".ffn." in name else tensor

    def wide(self, value):
        return value.astype(np.float32)


def made(name="fff", **how):
    return cmm.bert.from_state_dict(reference.state_dict(BLOCKS[name], labels=3, **how), BLOCKS[name])


def same(there, here):
    """The stand-in computes what numpy computes, so every bit is the same."""
    assert isinstance(there, cupy_standin.ndarray)
    np.testing.assert_array_equal(cupy_standin.asnumpy(there), here, strict=True)


@pytest.mark.parametrize("mask", [None, MASK, np.tril(np.ones((4, 7, 7), int))], ids=["none", "2-d", "3-d"])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_function_runs_through_the_module_of_the_device(cupy, name, mask):
    here = made(name)
    there = here.to("cuda")
    assert all(isinstance(tensor, cupy.ndarray) for tensor in there.tensors.values())
    same(there(IDS, mask), here(IDS, mask))
    same(there.logits(IDS, mask), here.logits(IDS, mask))
    same(there.classify_ids(IDS, mask), here.classify_ids(IDS, mask))
    mine, theirs = here.trace(IDS, mask), there.trace(IDS, mask)
    for tap in TRACED:
        if getattr(mine, tap) is None:
            assert getattr(theirs, tap) is None
        else:
            same(getattr(theirs, tap), getattr(mine, tap))
    assert {"matmul", "take", "exp", "sqrt", "tanh", "einsum", "stack"} <= cupy.used.keys()


def test_the_layers_get_arrays_of_the_device(cupy, monkeypatch):
    got = []

    def watched(*arrays, **how):
        got.extend([*arrays, how["out"]])
        return cmm.fff_forward(*arrays, **how)

    monkeypatch.setattr(encoder, "fff_forward", watched)
    made().to("cuda")(IDS)
    assert len(got) == 2 * 5  # of both layers x, w_in, w_out, bias and out
    assert all(isinstance(array, cupy.ndarray) for array in got)


def test_arguments_from_either_side(cupy):
    here = made()
    there = here.to("cuda")
    ids, mask = cupy.asarray(IDS), cupy.asarray(MASK)
    same(there(ids, mask), here(IDS, MASK))
    same(there(IDS.tolist(), MASK.tolist()), here(IDS, MASK))
    hidden = here(IDS)
    same(there.decode(hidden), here.decode(hidden))
    same(there.decode(there(IDS)[0, [1, 2]]), here.decode(hidden[0, [1, 2]]))
    with pytest.raises(cmm.DtypeError, match="ids is a ndarray that is not in the CPU's memory"):
        here(ids)
    with pytest.raises(cmm.DtypeError, match="mask is a ndarray that is not in the CPU's memory"):
        here(IDS, mask)
    with pytest.raises(cmm.ArgumentError, match=r"ids\[0, 1\] is 50"):
        there([[1, 50]])
    with pytest.raises(cmm.ArgumentError, match=r"mask\[0, 1\] is 2"):
        there([[1, 2]], [[1, 2]])


def test_there_and_back(cupy):
    here = made()
    there = here.to("cuda:1")
    assert (here.device, there.device.name) == (CPU, "cuda:1")
    assert " on cuda:1, from state_dict>" in repr(there)
    assert "cuda" not in repr(here)
    assert here.to("cpu") is here
    assert there.to("cuda:1") is there
    back = there.to("cpu")
    assert isinstance(back(IDS), np.ndarray)
    np.testing.assert_array_equal(back(IDS), here(IDS))
    assert there.to("cuda").device.name == "cuda:0"
    for name, tensor in here.tensors.items():  # copies: what happens there does not reach this one
        assert not np.shares_memory(there.tensors[name]._a, tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype(cupy, tmp_path, dtype):
    """Weights are stored as the steps say, and shown, exported and taken back as float32."""
    here = made()
    there = here.to("cuda", dtype)
    assert Recorded.made[-1][:2] == ("cuda:0", dtype)
    assert (here.dtype, there.dtype) == ("float32", dtype)
    assert f" {dtype} on cuda:0, from state_dict>" in repr(there)
    assert there.to("cuda") is there.to("cuda:0", dtype) is there
    assert there.to("cuda:1").dtype == dtype
    assert there.parameters == here.parameters
    back = there.to("cpu")
    assert back.dtype == "float32"
    for name, tensor in here.tensors.items():
        rounded = tensor.astype(np.float16) if ".ffn." in name else tensor
        same(there.tensors[name], rounded.astype(np.float32))
        np.testing.assert_array_equal(back.tensors[name], rounded, strict=False)
    cmm.bert.export(there, tmp_path / "exported")
    np.testing.assert_array_equal(cmm.bert.load(tmp_path / "exported")(IDS), back(IDS))
    wide = there.to("cuda", "float32")
    assert (wide.dtype, Recorded.made[-1][1]) == ("float32", "float32")
    same(wide(IDS), back(IDS))


def test_a_copy_has_steps_of_its_own(cupy):
    there = made().to("cuda", "float16")
    Recorded.made.clear()
    copied = copy.copy(there)
    assert (copied.dtype, copied.device) == (there.dtype, there.device)
    assert [what[:2] for what in Recorded.made] == [("cuda:0", "float16")]


@pytest.mark.parametrize("dtype", ["int3", "", "FLOAT16", "float64", 16, np.float16, ["float16"]])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_that_are_no_dtypes(cupy, device, dtype):
    expected = re.escape(f"dtype is {dtype!r}; it should be None or one of 'float32', 'bfloat16', 'float16'")
    with pytest.raises(cmm.ArgumentError, match=expected):
        made().to(device, dtype)


def test_dtypes_of_another_place(cupy):
    expected = "dtype is 'bfloat16', and device is 'cpu', where it should be 'float32'; load"
    for model in (made(), made().to("cuda", "bfloat16")):
        with pytest.raises(cmm.ArgumentError, match=expected):
            model.to("cpu", "bfloat16")
    assert made().to("cpu", "float32").dtype == "float32"
    state = reference.state_dict(BLOCKS["fff"])
    state["encoder.layers.1.attn.dense.weight"][2, 3] = -65520
    model = cmm.bert.from_state_dict(state, BLOCKS["fff"])
    expected = "dtype is 'float16', and layers.1.dense has a weight that is too large for it; 'bfloat16' has"
    with pytest.raises(cmm.ArgumentError, match=expected):
        model.to("cuda", "float16")
    state["encoder.layers.1.attn.dense.weight"][2, 3] = -65519
    assert cmm.bert.from_state_dict(state, BLOCKS["fff"]).to("cuda", "float16").dtype == "float16"
    assert model.to("cuda", "bfloat16").dtype == "bfloat16"


def test_narrow_rows_stay_on_the_cpu(cupy, tmp_path):
    cmm.bert.export(made(), tmp_path / "exported")
    narrow = cmm.bert.load(tmp_path / "exported", weights="int8")
    for dtype in (None, "bfloat16"):
        with pytest.raises(cmm.ArgumentError, match="device is 'cuda', and the model's rows are 'int8', which are"):
            narrow.to("cuda", dtype)
    assert narrow.to("cpu") is narrow


def test_texts_come_back_as_numpy(cupy, tmp_path):
    tokenizer = pytest.importorskip("bert_tokenizer", reason="the package tokenizers is not installed")
    tokenizer.save(tmp_path)
    here = made(vocab=tokenizer.SIZE)
    here.tokenizer = cmm.bert.Tokenizer(tmp_path)
    there = here.to("cuda")
    texts = ["the cat sat", "a dog", ("a moon", "the mat")]
    for pooler in encoder.POOLERS:
        np.testing.assert_array_equal(
            there.embed(texts, pooler=pooler), here.embed(texts, pooler=pooler), strict=True
        )
    np.testing.assert_array_equal(there.classify(texts), here.classify(texts), strict=True)
    assert there.fill_mask("the <mask> sat on a <mask>", 3) == here.fill_mask("the <mask> sat on a <mask>", 3)


def test_export_from_there(cupy, tmp_path):
    here = made()
    cmm.bert.export(here.to("cuda"), tmp_path / "exported")
    np.testing.assert_array_equal(cmm.bert.load(tmp_path / "exported")(IDS), here(IDS))


def test_paths_from_there(cupy):
    from cmm.bert import paths

    here = made()
    found = paths.of_ids(here.to("cuda"), IDS)
    np.testing.assert_array_equal(found.nodes, paths.of_ids(here, IDS).nodes)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "", "cuda:-1", 0, None])
def test_names_that_are_no_devices(cupy, name):
    with pytest.raises(cmm.ArgumentError, match="it should be 'cpu', 'cuda', or 'cuda:' and a number"):
        made().to(name)


def test_a_gpu_that_is_not_there(cupy):
    with pytest.raises(cmm.UnusableError, match="device is 'cuda:2', and there are 2 GPUs"):
        made().to("cuda:2")


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(cmm.UnusableError, match="device 'cuda' needs CuPy, which cannot be imported") as caught:
        made().to("cuda")
    assert "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line(monkeypatch, tmp_path, capsys):
    from cmm.__main__ import main

    monkeypatch.setitem(sys.modules, "cupy", None)
    folder = reference.save_final(tmp_path / "model", BLOCKS["fff"], reference.state_dict(BLOCKS["fff"]))
    for command, *rest in (("fill-mask", "x"), ("embed", "x"), ("classify", "x"), ("explain", "--ids", "1")):
        assert main([command, str(folder), *rest, "--device", "cuda"]) == 2
        said = capsys.readouterr().err
        assert "device 'cuda' needs CuPy" in said
        assert said.count("\n") == 1
