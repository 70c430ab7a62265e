"""Every layout that training leaves loads to the same model, and says what is wrong where it cannot."""

import builtins
import hashlib
import importlib.util
import io
import json
import os
import pickle
import stat
import sys
import time

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import CheckpointError, _safetensors
from cmm.bert._safetensors import ALIGNMENT, SafeTensors

IDS = [[1, 2, 3, 4], [49, 0, 7, 5]]
WORD, DECODER = "encoder.embedding.word_embedding.weight", "decoder.weight"
W_IN = "encoder.layers.0.ffn.linear_in.weight"

BLOCKS = {
    "fff": reference.architecture(),
    "fff, transform": reference.architecture(skip_head_transform=False),
    "dense": reference.architecture(intermed_type="ff", intermed_size=30),
    "gated": reference.architecture(intermed_type="ff", intermed_size=30, nonlin="GELUglu"),
}

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch, which writes these files, is not installed"
)


@pytest.fixture
def block():
    return reference.architecture()


@pytest.fixture
def state(block):
    return reference.state_dict(block)


def same(model, other):
    assert model.tensors.keys() == other.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name])
    # Equal weights elsewhere in memory: a BLAS may add in another order there, by a few units in the last place.
    np.testing.assert_allclose(model(IDS), other(IDS), rtol=0, atol=5e-6)
    np.testing.assert_allclose(model.logits(IDS), other.logits(IDS), rtol=0, atol=5e-6)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def hub(block):
    arch = {**block, "embedding": {**block["embedding"], "vocab_size": 50}}
    return {"architectures": ["ScriptableLMForPreTraining"], "arch": arch, "model_type": "crammedBERT"}


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_final(tmp_path, name):
    block = BLOCKS[name]
    state = reference.state_dict(block)
    model = cmm.bert.load(reference.save_final(tmp_path, block, state))
    expected = reference.forward(block, state, np.array(IDS))["logits"]
    np.testing.assert_allclose(model.logits(IDS), expected, rtol=0, atol=1e-5)
    same(model, cmm.bert.load(tmp_path / "model.safetensors"))  # the file alone finds its configuration
    same(model, cmm.bert.load(str(tmp_path)))
    assert model.folder == tmp_path
    assert str(tmp_path) in repr(model)
    for tensor in model.tensors.values():
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        assert tensor.flags.aligned


def test_hub(tmp_path, block, state):
    reference.save_safetensors(tmp_path / "model.safetensors", state, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hub(block)))
    same(cmm.bert.load(tmp_path), cmm.bert.from_state_dict(state, block))


def test_both_configurations(tmp_path, block, state):
    reference.save_final(tmp_path, block, state)
    (tmp_path / "config.json").write_text(json.dumps(hub(block)))
    same(cmm.bert.load(tmp_path), cmm.bert.from_state_dict(state, block))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of another tool"}))
    cmm.bert.load(tmp_path)
    other = hub(reference.architecture(attention__num_attention_heads=6))
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r"heads: model_config\.json and config\.json contradict each other"):
        cmm.bert.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hub(BLOCKS["dense"])))
    with pytest.raises(CheckpointError, match=r"trees: model_config\.json and config\.json contradict each other"):
        cmm.bert.load(tmp_path)
    (tmp_path / "model_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of another tool"}))
    with pytest.raises(CheckpointError, match=r"config\.json: model_type"):
        cmm.bert.load(tmp_path)


WRAPPERS = ["_orig_mod", "module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"]
WRAPPERS += ["_forward_module", "model", "_orig_mod.module", "module._orig_mod", "model._orig_mod._forward_module"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_at_any_depth_of_a_key(block, state, wrapper):
    """In the place of every dot, in some keys and not in others, and in all places at once."""
    expected = cmm.bert.from_state_dict(state, block)
    for depth in range(6):
        wrapped = {}
        for key, value in state.items():
            parts = key.split(".")
            place = min(depth, len(parts) - 1)
            wrapped[".".join([*parts[:place], wrapper, *parts[place:]])] = value
        same(cmm.bert.from_state_dict(wrapped, block), expected)
    same(
        cmm.bert.from_state_dict(
            {key.replace("layers.0.", f"layers.0.{wrapper}."): v for key, v in state.items()}, block
        ),
        expected,
    )
    everywhere = {f"{wrapper}." + key.replace(".", f".{wrapper}."): value for key, value in state.items()}
    same(cmm.bert.from_state_dict(everywhere, block), expected)


@pytest.mark.parametrize("key", ["a._orig_mod", "xmodule.a", "_mods.a", "modules.a", "_orig_moda", "module", "model"])
def test_wrappers_are_whole_parts_of_a_key_and_not_its_last(block, state, key):
    with pytest.raises(CheckpointError, match="is unknown") as caught:
        cmm.bert.from_state_dict({**state, key: state[DECODER]}, block)
    assert caught.value.key == key


def test_a_hostile_key_takes_no_time(block, state):
    start = time.process_time()
    with pytest.raises(CheckpointError, match="is unknown"):
        cmm.bert.from_state_dict({**state, "module." * 200_000 + "x": state[DECODER]}, block)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes(tmp_path, block, state, prefix):
    expected = cmm.bert.from_state_dict(state, block)
    same(cmm.bert.from_state_dict(prefixed(state, prefix), block), expected)
    same(cmm.bert.load(reference.save_final(tmp_path, block, prefixed(state, prefix))), expected)


def test_one_key_with_and_without_a_prefix(block, state):
    with pytest.raises(CheckpointError, match=r"decoder\.weight: is there twice, the second time as module\."):
        cmm.bert.from_state_dict({**state, "module." + DECODER: state[DECODER]}, block)
    inner = W_IN.replace("ffn.", "ffn._orig_mod.")
    with pytest.raises(CheckpointError, match=r"linear_in\.weight: is there twice, the second time as .*_orig_mod"):
        cmm.bert.from_state_dict({**state, inner: state[W_IN]}, block)


def rounded(value, dtype):
    """A tensor as a file of that dtype has it, and what a reader makes of it."""
    if dtype == "bfloat16":
        bits = (value.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    return value.astype(dtype), value.astype(dtype).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("left_out", [WORD, DECODER])
@pytest.mark.parametrize("layout", ["final", "hub"])
@pytest.mark.parametrize("name", ["fff", "fff, transform", "dense"])
def test_tied_weights_of_which_one_was_left_out(tmp_path, name, layout, left_out, dtype):
    block = BLOCKS[name]
    stored = {key: rounded(value, dtype) for key, value in reference.state_dict(block).items()}
    expected = cmm.bert.from_state_dict({key: value for key, (_, value) in stored.items()}, block)
    reference.save_final(tmp_path, block, {key: value for key, (value, _) in stored.items() if key != left_out})
    if layout == "hub":
        (tmp_path / "model_config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(hub(block)))
    model = cmm.bert.load(tmp_path)
    assert model.has_decoder
    same(model, expected)
    same(cmm.bert.load(cmm.bert.export(tmp_path, tmp_path / "out")), expected)


def test_a_model_and_a_classifier_without_the_tied_decoder(block):
    """What a classifier's file lacks is not made up, but where the head's own layer is there, the head is."""
    state = reference.state_dict(block, labels=3)
    del state[DECODER]
    assert not cmm.bert.from_state_dict(state, block).has_decoder
    block = BLOCKS["fff, transform"]
    state = reference.state_dict(block, labels=3)
    expected = cmm.bert.from_state_dict(state, block)
    del state[DECODER]
    same(cmm.bert.from_state_dict(state, block), expected)


def test_legacy(tmp_path, block, state):
    expected = cmm.bert.from_state_dict(state, block)
    del state[WORD]
    file = tmp_path / "old.safetensors"
    reference.save_safetensors(file, state)
    same(cmm.bert.load(file, config=block), expected)
    same(cmm.bert.load(file, config=hub(block)), expected)
    (tmp_path / "block.json").write_text(json.dumps(block))
    same(cmm.bert.load(file, config=tmp_path / "block.json"), expected)
    same(cmm.bert.load(file, config=str(tmp_path / "block.json")), expected)
    with pytest.raises(CheckpointError, match=r"old\.safetensors: has no configuration beside it .*give config="):
        cmm.bert.load(file)


def test_a_given_configuration_comes_before_the_one_beside(tmp_path, block, state):
    reference.save_final(tmp_path, block, state)
    changed = reference.architecture(norm_eps=0.1)
    assert cmm.bert.load(tmp_path, config=changed).config.eps == 0.1
    assert cmm.bert.load(tmp_path).config.eps == 1e-12


@needs_torch
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_training_state(tmp_path, block, state, prefix):
    import torch

    model = {prefix + key: torch.from_numpy(value) for key, value in state.items()}
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": value * 2} for i, value in enumerate(model.values())}
    training = {
        "optim": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": list(moments)}]},
        "model": model,
        "scheduler": {"last_epoch": 3, "_last_lr": [1e-4]},
        "scaler": {"scale": 65536.0},
        "metadata": {"step": 3, "elapsed": 5.5, "name": "x", "nothing": None},
    }
    expected = cmm.bert.from_state_dict(state, block)
    file = tmp_path / "intermediate_state.pth"
    torch.save(training, file)
    same(cmm.bert.load(file, config=block), expected)
    same(cmm.bert.load(tmp_path, config=block), expected)
    with pytest.raises(CheckpointError, match=r"intermediate_state\.pth: has no configuration.*give config="):
        cmm.bert.load(file)
    torch.save(model, tmp_path / "model.pth")
    same(cmm.bert.load(tmp_path / "model.pth", config=block), expected)


@needs_torch
def test_live_state_dict_of_torch(block, state):
    import torch

    expected = cmm.bert.from_state_dict(state, block)
    live = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in state.items()}
    model = cmm.bert.from_state_dict(live, block)
    same(model, expected)
    with torch.no_grad():
        for value in live.values():
            value.zero_()
    same(model, expected)  # a copy
    half = {key: torch.from_numpy(value).bfloat16() for key, value in state.items()}
    rounded = {key: value.float().numpy() for key, value in half.items()}
    same(cmm.bert.from_state_dict(half, block), cmm.bert.from_state_dict(rounded, block))
    half[DECODER] = half[DECODER].to_sparse()
    with pytest.raises(CheckpointError, match=r"decoder\.weight: is no plain tensor"):
        cmm.bert.from_state_dict(half, block)


def test_state_dicts_are_copied(block, state):
    model = cmm.bert.from_state_dict(state, block)
    before = model(IDS)
    for value in state.values():
        value[...] = 0
    np.testing.assert_allclose(model(IDS), before, rtol=0, atol=5e-6)


def test_half_precision_files(tmp_path, block, state):
    """Both 16-bit types widen to float32 exactly, infinities and subnormals apart from what the loader refuses."""
    f16 = {key: value.astype(np.float16) for key, value in state.items()}
    f16[W_IN][0, 0] = np.float16(6e-8)  # subnormal
    expected = {key: value.astype(np.float32) for key, value in f16.items()}
    same(cmm.bert.load(reference.save_final(tmp_path / "f16", block, f16)), cmm.bert.from_state_dict(expected, block))
    bf16 = {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in state.items()}
    bf16[W_IN][0, 0] = 0x0001  # subnormal
    bf16[W_IN][0, 1] = 0x8000  # -0
    expected = {key: (value.astype(np.uint32) << 16).view(np.float32) for key, value in bf16.items()}
    assert expected[W_IN][0, 0] == 2.0**-133
    same(
        cmm.bert.load(reference.save_final(tmp_path / "bf16", block, bf16)), cmm.bert.from_state_dict(expected, block)
    )


def test_files_of_the_safetensors_package(tmp_path, block, state):
    numpy_io = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    numpy_io.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model_config.json").write_text(json.dumps(block))
    same(cmm.bert.load(tmp_path), cmm.bert.from_state_dict(state, block))
    cmm.bert.export(tmp_path, tmp_path / "out")  # and the package reads what this one writes
    written = numpy_io.load_file(tmp_path / "out" / "model.safetensors")
    for name, value in cmm.bert.load(tmp_path / "out").tensors.items():
        np.testing.assert_array_equal(written[name], value)


def test_headers_of_any_length(tmp_path, block, state):
    """A header whose length is no multiple of 4 leaves every tensor unaligned in the file."""
    expected = cmm.bert.from_state_dict(state, block)
    for extra in range(8):
        folder = tmp_path / str(extra)
        reference.save_final(folder, block, state)
        reference.save_safetensors(folder / "model.safetensors", state, {"pad": "x" * extra})
        model = cmm.bert.load(folder)
        assert all(tensor.flags.aligned for tensor in model.tensors.values())
        same(model, expected)


# ---- several files -------------------------------------------------------------------------------------------------


def save_shards(folder, block, state, parts=3, ending="safetensors", stem="model"):
    """Write a state in shards with their index; return the index as a dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(block))
    places = {key: f"{stem}-{i % parts + 1:05}-of-{parts:05}.{ending}" for i, key in enumerate(state)}
    for shard in set(places.values()):
        some = {key: state[key] for key in state if places[key] == shard}
        if ending == "safetensors":
            reference.save_safetensors(folder / shard, some, {"format": "pt"})
        else:
            import torch

            torch.save(as_torch(some), folder / shard)
    index = {"metadata": {"total_size": 5}, "weight_map": places}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return index


ENDINGS = ["safetensors", pytest.param("bin", marks=needs_torch)]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_shards(tmp_path, block, state, ending, prefix):
    stem = "pytorch_model" if ending == "bin" else "model"
    save_shards(tmp_path, block, prefixed(state, prefix), ending=ending, stem=stem)
    expected = cmm.bert.from_state_dict(state, block)
    index = tmp_path / f"{stem}.{ending}.index.json"
    for path in (tmp_path, index):
        model = cmm.bert.load(path)
        same(model, expected)
        assert model.source == str(index)
    out = cmm.bert.export(tmp_path, tmp_path / "out")
    same(cmm.bert.load(out), expected)
    metadata = SafeTensors(out / "model.safetensors").metadata
    assert metadata["source_layout"] == ("state_dict" if ending == "bin" else "final")
    shards = sorted(file for file in tmp_path.iterdir() if file.suffix == f".{ending}")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in shards)).hexdigest()
    assert metadata["source_sha256"] == digest


def test_shards_of_a_hub_and_of_a_legacy_model(tmp_path, block, state):
    expected = cmm.bert.from_state_dict(state, block)
    save_shards(tmp_path, block, {key: value for key, value in state.items() if key != DECODER})
    (tmp_path / "model_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(hub(block)))
    same(cmm.bert.load(tmp_path), expected)
    save_shards(tmp_path, block, {key: value for key, value in state.items() if key != WORD})
    same(cmm.bert.load(tmp_path), expected)
    save_shards(tmp_path, block, state, parts=len(state))
    same(cmm.bert.load(tmp_path), expected)


def test_one_file_comes_before_shards(tmp_path, block, state):
    save_shards(tmp_path, block, reference.state_dict(block, seed=1))
    reference.save_final(tmp_path, block, state)
    same(cmm.bert.load(tmp_path), cmm.bert.from_state_dict(state, block))


@pytest.mark.parametrize("ending", ENDINGS)
def test_shards_that_do_not_fit_their_index(tmp_path, block, state, ending):
    index = save_shards(tmp_path, block, state, ending=ending)
    file = tmp_path / f"model.{ending}.index.json"
    first, second = (f"model-0000{i}-of-00003.{ending}" for i in (1, 2))
    places = index["weight_map"]
    key = min(key for key, shard in places.items() if shard == first)

    def refused(changed, message, blamed=key):
        file.write_text(json.dumps({**index, "weight_map": changed}))
        with pytest.raises(CheckpointError, match=message) as caught:
            cmm.bert.load(file)
        assert caught.value.key == blamed

    refused({**places, key: second}, rf"model-00001\S*: {key}: is here, and \S* does not say so")
    refused(
        {k: v for k, v in places.items() if k != key}, rf"model-00001\S*: {key}: is here, and \S* does not say so"
    )
    refused({**places, "more": first}, "model-00001.*: is missing, and .* says that it is here", "more")
    refused({**places, "module." + key: first}, "is there twice")
    refused({**places, key: f"none.{ending}"}, rf"model-00001\S*: {key}: is here, and \S* does not say so")
    file.write_text(json.dumps(index))
    (tmp_path / second).unlink()
    with pytest.raises(CheckpointError, match=rf"{second}: cannot be read: No such file"):
        cmm.bert.load(file)


def test_a_tensor_in_two_shards(tmp_path, block, state):
    index = save_shards(tmp_path, block, state)
    shard = index["weight_map"][W_IN]
    other = next(name for name in index["weight_map"].values() if name != shard)
    some = {key: state[key] for key, name in index["weight_map"].items() if name == other}
    reference.save_safetensors(tmp_path / other, {**some, "module." + W_IN: state[W_IN]})
    index["weight_map"]["module." + W_IN] = other
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is in another shard too") as caught:
        cmm.bert.load(tmp_path)
    assert caught.value.key == W_IN


NAMES_OF_SHARDS = ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..\\b.safetensors", "C:x.safetensors"]
NAMES_OF_SHARDS += ["", ".", "..", "model.bin", "x\0.safetensors", "x\n.safetensors", 5, None, ["a.safetensors"], {}]


@pytest.mark.parametrize("name", NAMES_OF_SHARDS, ids=ascii)
def test_a_shard_stays_in_the_folder(tmp_path, block, state, name):
    index = save_shards(tmp_path / "model", block, state)
    reference.save_safetensors(tmp_path / "outside.safetensors", state)
    index["weight_map"][W_IN] = name
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"it should be the name of a \.safetensors file in the folder"
    ) as caught:
        cmm.bert.load(tmp_path / "model")
    assert caught.value.key == W_IN
    assert str(caught.value).isprintable()


def test_links_of_shards(tmp_path, block, state):
    """They are followed within the folder and within a hub cache."""
    expected = cmm.bert.from_state_dict(state, block)
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    save_shards(folder, block, state)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(f"../../blobs/{number}")
    same(cmm.bert.load(folder), expected)
    (tmp_path / "link").symlink_to(folder)
    same(cmm.bert.load(tmp_path / "link"), expected)
    file = next(file for file in folder.iterdir() if file.suffix == ".safetensors")
    outside = tmp_path / "outside"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        cmm.bert.load(folder)


INDICES = ["", "[]", "null", "{}", '{"weight_map": null}', '{"weight_map": {}}', '{"weight_map": ["a"]}', "\xff"]


@pytest.mark.parametrize("text", INDICES)
def test_what_is_no_index(tmp_path, block, state, text):
    save_shards(tmp_path, block, state)
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors\.index\.json: (weight_map: should be|is not json)"
    ):
        cmm.bert.load(tmp_path)
    (tmp_path / "x.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"should be named NAME\.safetensors\.index\.json or"):
        cmm.bert.load(tmp_path / "x.index.json", config=block)


@needs_torch
def test_a_training_state_is_no_shard(tmp_path, block, state):
    import torch

    index = save_shards(tmp_path, block, state, ending="bin")
    torch.save({"model": as_torch(state)}, tmp_path / index["weight_map"][W_IN])
    with pytest.raises(CheckpointError, match="is a training state; a shard holds tensors alone"):
        cmm.bert.load(tmp_path / "model.bin.index.json")


# ---- without a map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["one file", "shards", "exported", pytest.param("PyTorch", marks=needs_torch)])
def test_a_model_that_is_not_mapped_outlives_its_file(tmp_path, block, state, layout):
    folder = tmp_path / "model"
    reference.save_final(folder, block, state)
    if layout == "exported":
        folder = cmm.bert.export(folder, tmp_path / "out")
    elif layout != "one file":
        (folder / "model.safetensors").unlink()
        stem, ending = ("pytorch_model", "bin") if layout == "PyTorch" else ("model", "safetensors")
        save_shards(folder, block, state, ending=ending, stem=stem)
    mapped = cmm.bert.load(folder)
    ids = [[1, 2, 3, 4]] * 3
    expected, weights = mapped(ids).tobytes(), {name: value.tobytes() for name, value in mapped.tensors.items()}
    del mapped
    model = cmm.bert.load(folder, mmap=False)
    for file in folder.iterdir():
        os.truncate(file, 0)
    assert {name: value.tobytes() for name, value in model.tensors.items()} == weights
    assert model(ids).tobytes() == expected
    assert not any(tensor.flags.writeable for tensor in model.tensors.values() if layout == "exported")


def test_a_file_that_is_cut_while_it_is_read(tmp_path, block, state, monkeypatch):
    folder = reference.save_final(tmp_path, block, state)
    real = os.fstat

    def larger(number):
        found = list(real(number))
        found[stat.ST_SIZE] += 8
        return os.stat_result(found)

    monkeypatch.setattr("cmm.bert._safetensors.os.fstat", larger)
    for mmap in (False, True):
        with pytest.raises(CheckpointError, match=r"cannot be (read|mapped): "):
            cmm.bert.load(folder, mmap=mmap)


# ---- what a user has in hand ---------------------------------------------------------------------------------------


class Strange:
    def __fspath__(self):
        return b"model"


@pytest.mark.parametrize("value", [b"model", None, 5, ["model"], Strange(), io.BytesIO(), sys.stdin, {"a": 1}])
def test_what_is_no_path_is_one_line_that_names_the_argument(tmp_path, block, state, value):
    calls = {
        "path": [lambda: cmm.bert.load(value)],
        "source": [lambda: cmm.bert.export(value, tmp_path / "out")],
        "folder": [lambda: cmm.bert.export(state, value, config=block)],
    }
    if importlib.util.find_spec("tokenizers"):
        calls["path"].append(lambda: cmm.bert.Tokenizer(value))
    if value is not None:
        calls["tokenizer"] = [lambda: cmm.bert.export(state, tmp_path / "out", config=block, tokenizer=value)]
        calls["config"] = [
            lambda: cmm.bert.load(tmp_path, config=value),
            lambda: cmm.bert.from_state_dict(state, value),
        ]
    if isinstance(value, dict):  # a state_dict, and a configuration
        del calls["source"], calls["config"]
    else:
        calls["state"] = [lambda: cmm.bert.from_state_dict(value, block)]
    reference.save_final(tmp_path, block, state)
    for name, ways in calls.items():
        for call in ways:
            with pytest.raises(
                cmm.DtypeError, match=rf"^{name} is a {type(value).__name__}; it should be a "
            ) as caught:
                call()
            assert "\n" not in str(caught.value)
            if isinstance(value, bytes) and name != "state":
                assert str(caught.value).endswith(f": os.fsdecode({name})")
    assert not (tmp_path / "out").exists()


def test_a_byte_order_mark_in_json(tmp_path, block, state):
    """Some editors put one at the head of a file; in the header of a safetensors file it has no place."""
    expected = cmm.bert.from_state_dict(state, block)
    reference.save_final(tmp_path, block, state)
    for name in ("model_config.json", "config.json", "given.json"):
        (tmp_path / name).write_text(json.dumps(hub(block)), encoding="utf-8-sig")
    same(cmm.bert.load(tmp_path), expected)
    same(cmm.bert.load(tmp_path, config=tmp_path / "given.json"), expected)
    save_shards(tmp_path / "shards", block, state)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(index.read_text(), encoding="utf-8-sig")
    same(cmm.bert.load(index), expected)


# ---- classifiers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("configured", [None, 3])
def test_classifier_files(tmp_path, decoder, configured):
    block = reference.architecture(num_labels=configured, skip_head_transform=not decoder)
    state = reference.state_dict(block, labels=3, decoder=decoder)
    model = cmm.bert.load(reference.save_final(tmp_path / "in", block, state))
    expected = reference.forward(block, state, np.array(IDS))
    np.testing.assert_allclose(model.classify_ids(IDS), expected["classes"], atol=1e-5)
    assert model.has_decoder == decoder
    back = cmm.bert.load(cmm.bert.export(model, tmp_path / "out"))
    assert back.has_decoder == decoder
    np.testing.assert_allclose(back.classify_ids(IDS), model.classify_ids(IDS), rtol=0, atol=5e-6)


def test_classifiers_that_do_not_fit(block):
    state = reference.state_dict(block, labels=3)
    for labels in (2, 4):
        with pytest.raises(CheckpointError, match=rf"head\.weight: shape \(3, 10\), but num_labels is {labels}"):
            cmm.bert.from_state_dict(state, {**block, "num_labels": labels})
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight: shape \(10, 24\); it should be \(11, 24\)"):
        cmm.bert.from_state_dict(state, reference.architecture(classification_head__head_dim=11))
    with pytest.raises(CheckpointError, match="classification_head: is missing from the configuration"):
        cmm.bert.from_state_dict(state, {**block, "classification_head": None})
    # A language model is not taken for a classifier, nor the other way round.
    with pytest.raises(CheckpointError, match=r"head\.weight: is missing"):
        cmm.bert.from_state_dict(reference.state_dict(block), {**block, "num_labels": 2})
    for key in ("head.weight", "head.bias", "pooler.dense.weight", "pooler.dense.bias"):
        with pytest.raises(CheckpointError, match=f"{key}: is missing"):
            cmm.bert.from_state_dict({k: v for k, v in state.items() if k != key}, block)


# ---- what is wrong is named ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_every_missing_key_is_named(name):
    block = BLOCKS[name]
    state = reference.state_dict(block)
    for key in state:
        if key in (WORD, DECODER):
            continue  # tied: one of the two is enough
        with pytest.raises(CheckpointError, match="is missing") as caught:
            cmm.bert.from_state_dict({k: v for k, v in state.items() if k != key}, block)
        assert caught.value.key == key
    with pytest.raises(CheckpointError, match="is missing") as caught:
        cmm.bert.from_state_dict({k: v for k, v in state.items() if k not in (WORD, DECODER)}, block)
    assert caught.value.key == WORD


@pytest.mark.parametrize("name", BLOCKS)
def test_every_wrong_shape_is_named(tmp_path, name):
    block = BLOCKS[name]
    for key, value in (state := reference.state_dict(block)).items():
        wrong = [value[..., None]]
        if value.ndim:
            wrong += [np.concatenate([value, value[:1]]), value[:0]]
        if value.ndim == 2 and value.shape[0] != value.shape[1]:
            wrong.append(value.T.copy())
        for bad in wrong:
            with pytest.raises(CheckpointError, match="shape") as caught:
                cmm.bert.load(reference.save_final(tmp_path, block, {**state, key: bad}))
            # One row too many in the embedding is one too few in the decoder.
            assert caught.value.key == key or {caught.value.key, key} == {WORD, DECODER}
            assert str(tmp_path / "model.safetensors") in str(caught.value)
            assert "(" in caught.value.problem


@pytest.mark.parametrize("key", ["encoder.layers.2.norm1.weight", "decoder.bias", "x", "", "\x00\n" * 200, "\ud800"])
def test_unknown_keys_are_named(tmp_path, block, state, key):
    with pytest.raises(CheckpointError, match="is unknown") as caught:
        cmm.bert.load(reference.save_final(tmp_path, block, {**state, key: np.zeros(1, np.float32)}))
    assert caught.value.key in (key, ascii(key)) or key.startswith("\x00")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(("trees", "depth"), [(1, 3), (2, 2), (1, 4), (30, 0), (2, 30), (3, 3)])
def test_trees_that_do_not_fit_the_rows(block, state, trees, depth):
    changed = reference.architecture(intermed_size=trees, intermed_depth=depth)
    if trees * (2 ** (depth + 1) - 1) == 30:
        model = cmm.bert.from_state_dict(state, changed)  # 30 rows are 2x3 as well as 30x0: the configuration decides
        assert model.weights.layers[0].ffn.w_in.shape == (trees, 1, 24)
        return
    message = rf"shape \(30, 24\); it should be .*intermed_size {trees} and intermed_depth {depth}"
    with pytest.raises(CheckpointError, match=message) as caught:
        cmm.bert.from_state_dict(state, changed)
    assert caught.value.key == W_IN


def test_an_fff_model_is_not_a_dense_one(block, state):
    with pytest.raises(CheckpointError, match=r"ffn\.dense_in\.weight: is missing"):
        cmm.bert.from_state_dict(state, reference.architecture(intermed_type="ff"))
    dense = BLOCKS["dense"]
    with pytest.raises(CheckpointError, match=r"ffn\.linear_in\.weight: is missing"):
        cmm.bert.from_state_dict(reference.state_dict(dense), block)
    with pytest.raises(CheckpointError, match=r"dense_out\.weight: shape \(24, 30\); it should be \(24, 15\)"):
        cmm.bert.from_state_dict(reference.state_dict(dense), {**dense, "nonlin": "GELUglu"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_weight_that_is_not_finite_is_named(tmp_path, value):
    block = BLOCKS["fff, transform"]
    state = reference.state_dict(block, labels=2)
    for key in state:
        bad = state[key].copy()
        bad.reshape(-1)[-1] = value
        with pytest.raises(CheckpointError) as caught:
            cmm.bert.load(reference.save_final(tmp_path, block, {**state, key: bad}))
        assert caught.value.key == key
        last = tuple(length - 1 for length in bad.shape)
        assert ("heads of this width" if not last else f"is {value} at {last}") in caught.value.problem


def test_large_tensors_are_looked_at_to_the_end(tmp_path):
    block = reference.architecture(intermed_type="ff", intermed_size=30_000, num_transformer_layers=1)
    state = reference.state_dict(block)
    key = "encoder.layers.0.ffn.dense_in.weight"
    for index in (0, (1 << 18) - 1, 1 << 18, state[key].size - 1):
        bad = state[key].copy()
        bad.reshape(-1)[index] = np.nan
        with pytest.raises(CheckpointError, match=f"is nan at \\({index // 24}, {index % 24}\\)"):
            cmm.bert.from_state_dict({**state, key: bad}, block)


def test_constants_that_do_not_fit(block, state):
    key = "encoder.layers.0.attn.self_attention.norm_factor"
    with pytest.raises(CheckpointError, match=rf"{key}: is .*heads of this width need"):
        cmm.bert.from_state_dict(state, reference.architecture(attention__num_attention_heads=6))
    for factor in (1.01, 0.99, np.nan, 1 / float(state[key])):  # bfloat16 rounds by at most 1 part in 512
        with pytest.raises(CheckpointError, match=f"{key}: is .*heads of this width need"):
            cmm.bert.from_state_dict({**state, key: state[key] * np.float32(factor)}, block)
    for factor in (1 + 1 / 512, 1 - 1 / 512):
        cmm.bert.from_state_dict({**state, key: state[key] * np.float32(factor)}, block)


def test_untied_decoders_are_refused(block, state):
    state[DECODER][3, 4] += 1
    with pytest.raises(CheckpointError, match=r"decoder\.weight: differs from .*tied"):
        cmm.bert.from_state_dict(state, block)


def test_vocabulary_that_does_not_fit(block, state):
    with pytest.raises(
        CheckpointError, match=r"word_embedding\.weight: shape \(50, 24\), but embedding.vocab_size is 51"
    ):
        cmm.bert.from_state_dict(state, reference.architecture(embedding__vocab_size=51))


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_wrong_dtypes_are_named(tmp_path, block, state, dtype):
    state[W_IN] = state[W_IN].astype(dtype)
    for load in (
        lambda: cmm.bert.load(reference.save_final(tmp_path, block, state)),
        lambda: cmm.bert.from_state_dict(state, block),
    ):
        with pytest.raises(CheckpointError, match=r"dtype .*it should be one of F32, F16, BF16") as caught:
            load()
        assert caught.value.key == W_IN


def test_state_dicts_of_other_things(block, state):
    with pytest.raises(CheckpointError, match=r"decoder\.weight: is a list, not a tensor"):
        cmm.bert.from_state_dict({**state, DECODER: [1, 2]}, block)
    with pytest.raises(CheckpointError, match="has the key 5, which is not a string"):
        cmm.bert.from_state_dict({**state, 5: state[DECODER]}, block)
    with pytest.raises(CheckpointError, match=r"word_embedding\.weight: is missing"):
        cmm.bert.from_state_dict({}, block)
    with pytest.raises(CheckpointError, match="has no configuration: give config="):
        cmm.bert.from_state_dict(state, None)


def test_places_without_a_model(tmp_path, block, state):
    with pytest.raises(CheckpointError, match=r"nowhere: cannot be read: No such file"):
        cmm.bert.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no weights: none of model\.safetensors, "):
        cmm.bert.load(tmp_path)
    reference.save_safetensors(tmp_path / "model.safetensors", state)
    with pytest.raises(CheckpointError, match="has no configuration beside it"):
        cmm.bert.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read"):
        cmm.bert.load(tmp_path, config=tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        cmm.bert.load(tmp_path / "model.safetensors", config=tmp_path)


def test_errors_survive_pickling():
    with pytest.raises(CheckpointError) as caught:
        cmm.bert.from_state_dict({}, reference.architecture())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert (copy.file, copy.key, copy.problem) == (caught.value.file, caught.value.key, caught.value.problem)
    assert isinstance(copy, ValueError)
    assert isinstance(copy, cmm.CmmError)


def test_pytorch_is_asked_for_in_one_line(tmp_path, block, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    real = importlib.import_module

    def without_torch(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("cmm.bert.weight_files.importlib.import_module", without_torch)
    with pytest.raises(CheckpointError, match="reading it needs PyTorch: pip install torch") as caught:
        cmm.bert.load(tmp_path, config=block)
    assert "\n" not in str(caught.value)


def test_loading_imports_nothing_but_numpy(tmp_path, block, state, monkeypatch):
    """A safetensors checkpoint needs neither PyTorch nor the safetensors package."""
    reference.save_final(tmp_path, block, state)
    real = builtins.__import__

    def guarded(name, *rest):
        assert name.split(".")[0] not in ("torch", "safetensors", "tokenizers"), name
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    cmm.bert.load(tmp_path).logits(IDS)


# ---- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_export_and_back(tmp_path, name):
    block = BLOCKS[name]
    state = reference.state_dict(block)
    source = reference.save_final(tmp_path / "in", block, state)
    (source / "tokenizer.json").write_text('{"a tokenizer": 1}')
    (source / "special_tokens_map.json").write_text("{}")
    (source / "secret.txt").write_text("not to be copied")
    model = cmm.bert.load(source)
    for given, config in ((source, None), (source / "model.safetensors", None), (model, None), (state, block)):
        out = tmp_path / "deep" / "er" / str(time.monotonic_ns())
        assert cmm.bert.export(given, out, config=config) == out
        same(cmm.bert.load(out), model)
        same(cmm.bert.load(out / "model.safetensors"), model)
        expected = {"model.safetensors", "model_config.json"}
        if given is not state:
            expected |= {"tokenizer.json", "special_tokens_map.json"}
            assert (out / "tokenizer.json").read_text() == '{"a tokenizer": 1}'
        assert {file.name for file in out.iterdir()} == expected
        assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []
    again = cmm.bert.export(out, tmp_path / "again")  # an export of an export
    assert (again / "model.safetensors").stat().st_size > 0
    same(cmm.bert.load(again), model)


def as_torch(state):
    import torch

    return {key: torch.from_numpy(value) for key, value in state.items()}


def leave(layout, folder, block, state):
    """Write what training leaves in a layout; return what a user would name."""
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(block))
    if "PyTorch" in layout or layout == "training state":
        import torch

        held = {"model": as_torch(state), "optim": {}} if layout == "training state" else as_torch(state)
        torch.save(held, folder / "intermediate_state.pth")
        return folder / "intermediate_state.pth"
    if layout == "hub":
        (folder / "model_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(hub(block)))
    reference.save_safetensors(folder / "model.safetensors", state, {"format": "pt"} if layout == "hub" else None)
    return folder


LAYOUTS = ["final", "hub", *(pytest.param(name, marks=needs_torch) for name in ("training state", "PyTorch"))]


@pytest.mark.parametrize("kind", ["float32", "float16", "legacy", "compiled", "classifier", "legacy, compiled"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_of_every_layout(tmp_path, block, layout, kind):
    """And every layout loads as the state itself does."""
    classifier = kind == "classifier"
    state = reference.state_dict(block, labels=3 if classifier else None, decoder=not classifier)
    if kind == "float16":
        state = {key: value.astype(np.float16) for key, value in state.items()}
    expected = cmm.bert.from_state_dict(state, block)
    if "legacy" in kind:
        del state[WORD]
    source = leave(layout, tmp_path / "in", block, prefixed(state, "_orig_mod.") if "compiled" in kind else state)
    out = tmp_path / "out"
    cmm.bert.export(source, out)
    for model in (cmm.bert.load(source), cmm.bert.load(out)):
        assert model.has_decoder != classifier
        assert {name: tensor.tobytes() for name, tensor in model.tensors.items()} == {
            name: tensor.tobytes() for name, tensor in expected.tensors.items()
        }
        np.testing.assert_allclose(model(IDS), expected(IDS), rtol=0, atol=5e-6)
        if classifier:
            np.testing.assert_allclose(model.classify_ids(IDS), expected.classify_ids(IDS), rtol=0, atol=5e-6)
    metadata = SafeTensors(out / "model.safetensors").metadata
    assert metadata["source_layout"] == ("legacy" if "legacy" in kind else layout.replace("PyTorch", "state_dict"))


@needs_torch
def test_export_of_a_live_state_dict_of_torch(tmp_path, block, state):
    live = prefixed(as_torch(state), "module.")
    model = cmm.bert.load(cmm.bert.export(live, tmp_path / "out", config=block))
    same(model, cmm.bert.from_state_dict(state, block))
    with pytest.raises(CheckpointError, match="state_dict: has no configuration: give config="):
        cmm.bert.export(live, tmp_path / "more")


def test_exports_are_node_major_aligned_and_mapped(tmp_path, block, state):
    out = cmm.bert.export(state, tmp_path / "out", config=block)
    file = SafeTensors(out / "model.safetensors")
    entry = file.entries["layers.0.ffn.w_out"]
    assert entry.shape == (2, 15, 24)
    data = 8 + int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    sizes = {name: entry.end - entry.start for name, entry in file.entries.items()}
    aligned = [name for name, size in sizes.items() if size % ALIGNMENT == 0]
    assert aligned
    assert all((data + file.entries[name].start) % ALIGNMENT == 0 for name in aligned)
    for tensor in cmm.bert.load(out).tensors.values():
        assert not tensor.flags.owndata
        assert not tensor.flags.writeable
    arch = json.loads((out / "model_config.json").read_text())
    assert arch["embedding"]["vocab_size"] == 50


def test_export_in_float16(tmp_path, block, state):
    model = cmm.bert.from_state_dict(state, block)
    out = cmm.bert.export(model, tmp_path / "half", dtype="float16")
    assert {entry.dtype for entry in SafeTensors(out / "model.safetensors").entries.values()} == {"F16"}
    back = cmm.bert.load(out)
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor.astype(np.float16).astype(np.float32))

    large = state[WORD].copy()
    large[3, 2] = 70000
    with pytest.raises(CheckpointError, match=r"embedding\.word: has a weight that is too large for float16"):
        cmm.bert.export({**state, WORD: large, DECODER: large}, tmp_path / "large", config=block, dtype="float16")
    assert not (tmp_path / "large").exists()


def test_safetensors_by_another_name(tmp_path, block, state):
    """They are known by their header: the length before it may start as a pickle does."""
    data = (reference.save_final(tmp_path / "in", block, state) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    blanks = (0x80 - length) % 256
    file = tmp_path / "weights.bin"
    header = data[8 : 8 + length] + b" " * blanks
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert file.read_bytes()[:1] == b"\x80"
    same(cmm.bert.load(file, config=block), cmm.bert.from_state_dict(state, block))


def test_provenance(tmp_path, block, state):
    source = reference.save_final(tmp_path / "in", block, state)
    metadata = SafeTensors(cmm.bert.export(source, tmp_path / "out") / "model.safetensors").metadata
    assert metadata["format"] == "cmm.bert 1"
    assert metadata["cmm_version"] == cmm.__version__
    assert (metadata["source"], metadata["source_layout"]) == ("in/model.safetensors", "final")
    assert metadata["source_sha256"] == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()


def test_exports_never_overwrite(tmp_path, block, state):
    (tmp_path / "out").mkdir()
    cmm.bert.export(state, tmp_path / "out", config=block)  # an empty folder is fine
    with pytest.raises(FileExistsError, match="not an empty folder"):
        cmm.bert.export(state, tmp_path / "out", config=block)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        cmm.bert.export(state, tmp_path / "file", config=block)
    with pytest.raises(CheckpointError):
        cmm.bert.export({}, tmp_path / "new", config=block)
    assert not (tmp_path / "new").exists()


def test_exports_are_read_back_before_they_get_their_name(tmp_path, block, state, monkeypatch):
    real = _safetensors.write

    def one_bit_off(path, tensors, metadata):
        real(path, tensors, metadata)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(_safetensors, "write", one_bit_off)
    with pytest.raises(OSError, match="does not read back as it was written"):
        cmm.bert.export(state, tmp_path / "out", config=block)
    assert list(tmp_path.iterdir()) == []


def test_exports_hold_nothing_else(tmp_path, block, state):
    """Keys of training's files are unknown in an exported one, the decoder's too."""
    tensors = dict(cmm.bert.from_state_dict(state, block).tensors)
    metadata = {"format": "cmm.bert 1", "decoder": "yes"}
    (tmp_path / "model_config.json").write_text(json.dumps(block))
    _safetensors.write(tmp_path / "whole.safetensors", tensors, metadata)
    cmm.bert.load(tmp_path / "whole.safetensors")
    for key in (DECODER, WORD, "x"):
        file = tmp_path / f"{key}.safetensors"
        _safetensors.write(file, {**tensors, key: tensors["embedding.word"]}, metadata)
        with pytest.raises(CheckpointError, match="is unknown") as caught:
            cmm.bert.load(file)
        assert caught.value.key == key
    del tensors["embedding.word"]
    _safetensors.write(tmp_path / "less.safetensors", {**tensors, DECODER: state[DECODER]}, metadata)
    with pytest.raises(CheckpointError, match=r"embedding\.word: is missing"):
        cmm.bert.load(tmp_path / "less.safetensors")


def test_exports_of_a_later_version_are_refused(tmp_path, block, state):
    out = cmm.bert.export(state, tmp_path / "out", config=block)
    data = (out / "model.safetensors").read_bytes().replace(b"cmm.bert 1", b"cmm.bert 2")
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"was exported as 'cmm\.bert 2'"):
        cmm.bert.load(out)
