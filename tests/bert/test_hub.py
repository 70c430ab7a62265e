"""An export with ``transformers=True``: Auto classes read it, compute what cmm.bert does, and write it again."""

import json
import sys
from pathlib import Path

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.__main__ import main
from cmm.bert import CheckpointError
from cmm.bert._safetensors import SafeTensors

# As in test_bert_encoder.py, of the same models: values of order 1, sums of at most 200 terms in float32.
TOLERANCE = 1e-5
LIMIT = 16
BLOCKS = {
    "2x3": reference.architecture(),
    "16x4": reference.architecture(intermed_size=16, intermed_depth=4),
    "transform": reference.architecture(skip_head_transform=False),
    "dense": reference.architecture(intermed_type="ff", intermed_size=37),
    "gated": reference.architecture(intermed_type="ff", intermed_size=38, nonlin="GELUglu"),
}
CODE = Path(cmm.bert.__file__).parent / "hub"


def exported(path, block=BLOCKS["2x3"], *, vocab=50, tokenizer=None, **how):
    """A folder, and the weights that it was made of."""
    state = reference.state_dict(block, seed=3, vocab=vocab, **how)
    source = tokenizer if tokenizer is None else tokenizer / "tokenizer.json"
    return cmm.bert.export(state, path, config=block, tokenizer=source, transformers=True), state


def same(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name])


def padded(rng, batch=4, length=7):
    ids, mask = rng.integers(0, 50, (batch, length)), np.ones((batch, length), int)
    mask[1, 4:] = mask[2, 1:] = 0
    return ids, mask


# ---- without transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask", "classifier", "both"])
@pytest.mark.parametrize("name", BLOCKS)
def test_cmm_bert_reads_the_folder(tmp_path, name, kind):
    how = {"labels": None if kind == "mask" else 3, "decoder": kind != "classifier"}
    out, state = exported(tmp_path / "out", BLOCKS[name], **how)
    expected, model = cmm.bert.from_state_dict(state, BLOCKS[name]), cmm.bert.load(out)
    same(model, expected)
    assert model.has_decoder == expected.has_decoder == (kind != "classifier")
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "configuration_cmm.py",
        "modeling_cmm.py",
    }
    for file in ("configuration_cmm.py", "modeling_cmm.py"):
        assert (out / file).read_bytes() == (CODE / file).read_bytes()
    metadata = SafeTensors(out / "model.safetensors").metadata
    assert metadata["format"] == "pt"
    assert metadata["source_layout"] == "state_dict"
    config = json.loads((out / "config.json").read_text())
    assert config["arch"]["embedding"]["vocab_size"] == 50
    assert ("AutoModelForMaskedLM" in config["auto_map"]) == (kind != "classifier")
    same(cmm.bert.load(cmm.bert.export(out, tmp_path / "again")), expected)  # and back to the layout that is mapped


def test_half_of_the_size(tmp_path):
    state = reference.state_dict(BLOCKS["2x3"])
    out = cmm.bert.export(state, tmp_path / "out", config=BLOCKS["2x3"], transformers=True, dtype="float16")
    assert {entry.dtype for entry in SafeTensors(out / "model.safetensors").entries.values()} == {"F16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    same(
        cmm.bert.load(out),
        cmm.bert.load(cmm.bert.export(state, tmp_path / "a", config=BLOCKS["2x3"], dtype="float16")),
    )


def test_an_argument_that_is_no_choice(tmp_path):
    state = reference.state_dict(BLOCKS["2x3"])
    with pytest.raises(cmm.ArgumentError, match="transformers is 'yes'; it should be True or False"):
        cmm.bert.export(state, tmp_path / "out", config=BLOCKS["2x3"], transformers="yes")
    assert not (tmp_path / "out").exists()


def tokenizer_json(path, *special, **others):
    """A tokenizer's file, as far as the names of its tokens go, and files that name parts."""
    added = [{"id": number, "content": token, "special": True} for number, token in enumerate(special)]
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": {"a": 9}}}))
    for name, block in others.items():
        (path / f"{name}.json").write_text(json.dumps(block))
    return path


def test_parts_of_tokens_are_said(tmp_path):
    made = tokenizer_json(
        tmp_path / "a",
        "[PAD]",
        "<mask>",
        "<mask2>",
        special_tokens_map={"mask_token": {"content": "<mask2>"}},
        tokenizer_config={"mask_token": "<mask>", "model_max_length": 5, "more": 1},
    )
    out, _ = exported(tmp_path / "out", tokenizer=made)
    assert json.loads((out / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 5,
        "model_input_names": ["input_ids", "attention_mask"],
        "mask_token": "<mask2>",
        "more": 1,
        "pad_token": "[PAD]",
    }
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 0
    for name in ("tokenizer.json", "special_tokens_map.json"):
        assert (out / name).read_bytes() == (made / name).read_bytes()


def test_parts_of_tokens_that_are_not_there(tmp_path):
    made = tokenizer_json(tmp_path / "a", "[PAD]", special_tokens_map={"pad_token": "<pad>"})
    with pytest.raises(CheckpointError, match=r"pad_token: is '<pad>', which tokenizer.json has not"):
        exported(tmp_path / "out", tokenizer=made)
    with pytest.raises(CheckpointError, match=r"has several special tokens for 'pad'"):
        exported(tmp_path / "out", tokenizer=tokenizer_json(tmp_path / "b", "[PAD]", "<pad>"))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    block = BLOCKS["2x3"]
    source = reference.save_final(tmp_path / "in", block, reference.state_dict(block))
    assert main(["export", str(source), str(tmp_path / "out"), "--transformers"]) == 0
    assert "no tokenizer" in capsys.readouterr().out
    same(cmm.bert.load(tmp_path / "out"), cmm.bert.load(source))
    assert (tmp_path / "out/modeling_cmm.py").exists()


# ---- with it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def auto(tmp_path, monkeypatch):
    """The package, which keeps what it runs of a folder's code in one of ours."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield transformers
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    assert torch.get_default_dtype() == torch.float32


def read(auto, folder, kind="MaskedLM", **how):
    cls = getattr(auto, f"AutoModelFor{kind}" if kind else "AutoModel")
    return cls.from_pretrained(folder, trust_remote_code=True, **how)


def run(model, ids, mask=None, **how):
    import torch

    given = {"input_ids": ids, "attention_mask": mask} | how
    with torch.no_grad():
        return model(**{name: torch.as_tensor(value) for name, value in given.items() if value is not None})


def close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", BLOCKS)
def test_logits_are_the_references(auto, tmp_path, name, masked):
    """By float64, along equal paths, where no decision is nearer to 0 than the tolerance."""
    from cmm.torch import FFF

    out, state = exported(tmp_path / "out", BLOCKS[name])
    ids, mask = padded(np.random.default_rng(5))
    mask = mask if masked else None
    expected = reference.forward(BLOCKS[name], state, ids, mask)
    model = read(auto, out)
    assert not model.training
    layers = [module for module in model.modules() if isinstance(module, FFF)]
    assert len(layers) == (2 if "path_nodes" in expected else 0)
    plain = run(model, ids, mask)
    close(plain.logits.numpy(), expected["logits"])
    for layer in layers:
        layer.track_routing = True
    assert np.array_equal(run(model, ids, mask).logits, plain.logits)
    for layer, nodes, logits in zip(
        layers, expected.get("path_nodes", ()), expected.get("path_logits", ()), strict=True
    ):
        assert np.abs(logits[..., :-1]).min() > 10 * TOLERANCE
        counts = [np.bincount(nodes[:, :, tree].ravel(), minlength=layer.nodes) for tree in range(layer.trees)]
        np.testing.assert_array_equal(layer.routing().counts, counts)
    close(cmm.bert.load(out).logits(ids, mask), plain.logits.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(auto, tmp_path, dtype):
    """The bits of the same model of cmm.torch, which is converted after it was loaded."""
    import torch
    from cmm.torch import MaskedLanguageModel

    kind = getattr(torch, dtype)
    out, state = exported(tmp_path / "out")
    model = read(auto, out, dtype=kind)
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    arch = model.config.arch
    twin = MaskedLanguageModel(arch)
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    twin = twin.eval().to(kind)
    ids, mask = padded(np.random.default_rng(5))
    logits = run(model, ids, mask).logits
    assert logits.dtype == kind
    with torch.no_grad():
        assert torch.equal(logits, twin(torch.from_numpy(ids), torch.from_numpy(mask)))


def test_of_half_the_size_is_half(auto, tmp_path):
    state = reference.state_dict(BLOCKS["2x3"])
    out = cmm.bert.export(state, tmp_path / "out", config=BLOCKS["2x3"], transformers=True, dtype="float16")
    assert str(read(auto, out).dtype) == "torch.float16"
    close(run(read(auto, out, dtype="float32"), [[1, 2, 3]]).logits.numpy(), cmm.bert.load(out).logits([[1, 2, 3]]))


def test_losses_states_and_tuples(auto, tmp_path):
    import torch

    out, state = exported(tmp_path / "out")
    model, ids = read(auto, out), np.arange(14).reshape(2, 7)
    labels = np.where(np.arange(14).reshape(2, 7) % 3, -100, ids)
    found = run(model, ids, labels=labels, output_hidden_states=True)
    wanted = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), torch.from_numpy(labels).flatten())
    assert torch.equal(found.loss, wanted)
    expected = reference.forward(BLOCKS["2x3"], state, ids)
    stages = [expected["embedding_out"], *expected["layer_out"][:-1], expected["encoder_out"]]
    for one, other in zip(found.hidden_states, stages, strict=True):
        close(one.numpy(), other)
    assert run(model, ids).keys() == {"logits"}
    with torch.no_grad():
        (logits,) = model(torch.from_numpy(ids), return_dict=False)
    assert torch.equal(logits, found.logits)
    model.config.output_hidden_states = True
    assert len(run(model, ids).hidden_states) == 3
    # What a trainer divides by instead of the number of labels; and what tools pass on and leave open.
    sums = run(model, ids, labels=labels, num_items_in_batch=10).loss * 10
    assert torch.allclose(sums, wanted * (labels != -100).sum(), rtol=1e-6)  # of 5 float32 numbers, in two orders
    with torch.no_grad():
        assert torch.equal(model(torch.from_numpy(ids), inputs_embeds=None, output_attentions=False)[0], logits)
        with pytest.raises(TypeError, match="token_type_ids is given, and a model of libcmm has no such argument"):
            model(torch.from_numpy(ids), token_type_ids=torch.zeros(2, 7, dtype=torch.int64))
    base = run(read(auto, out, ""), ids)
    close(base.last_hidden_state.numpy(), expected["encoder_out"])
    assert base.keys() == {"last_hidden_state"}


def test_training_and_back(auto, tmp_path):
    """A step, and the folder that transformers writes: cmm.bert reads it, and so does it itself."""
    import torch

    out, _ = exported(tmp_path / "out")
    model = read(auto, out).train()
    ids = torch.arange(14).reshape(2, 7)
    before = model.decoder.weight.detach().clone()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert model.decoder.weight is model.get_input_embeddings().weight
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.equal(model.decoder.weight, before)
    assert model(input_ids=ids, labels=ids).loss < loss
    model.eval().save_pretrained(tmp_path / "saved")
    logits = run(model, ids).logits
    close(cmm.bert.load(tmp_path / "saved").logits(ids.numpy()), logits.numpy())
    again = read(auto, tmp_path / "saved")
    assert torch.equal(run(again, ids).logits, logits)
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "modeling_cmm.py", "configuration_cmm.py", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    assert (tmp_path / "saved/modeling_cmm.py").read_bytes() == (CODE / "modeling_cmm.py").read_bytes()


@pytest.mark.parametrize("pooler", ["avg", "zero_index", "max", "logsumexp"])
def test_a_classifier(auto, tmp_path, pooler):
    """A text has the logits that it has alone, also where a batch pads it; names go both ways."""
    import torch

    block = reference.architecture(classification_head__pooler=pooler, label_names=["no", "yes", "both"])
    out, state = exported(tmp_path / "out", block, labels=3, decoder=False)
    model = read(auto, out, "SequenceClassification")
    assert model.config.id2label == {0: "no", 1: "yes", 2: "both"}
    assert model.config.label2id["both"] == 2
    ids, mask = padded(np.random.default_rng(5))
    found = run(model, ids, mask, labels=[0, 1, 2, 0])
    for logits, own, kept in zip(found.logits.numpy(), ids, mask, strict=True):
        close(logits[None], reference.forward(block, state, own[None, kept == 1])["classes"])
    assert torch.equal(found.loss, torch.nn.functional.cross_entropy(found.logits, torch.tensor([0, 1, 2, 0])))
    close(run(model, ids).logits.numpy(), cmm.bert.load(out).classify_ids(ids))
    model.save_pretrained(tmp_path / "saved")
    back = cmm.bert.load(tmp_path / "saved")
    assert back.label_names == ("no", "yes", "both")
    assert not back.has_decoder
    same(back, cmm.bert.load(out))
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        read(auto, out)


def test_a_new_classifier(auto, tmp_path):
    """On an encoder without one, of as many labels as are asked for; float targets of one label are a regression."""
    import torch

    out, _ = exported(tmp_path / "out")
    model = read(auto, out, "SequenceClassification", num_labels=4)
    assert model.head.weight.shape == (4, 10)
    assert 0 < float(model.pooler.dense.weight.detach().std()) < 0.04
    assert not model.head.bias.any()
    model.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d"}
    model.save_pretrained(tmp_path / "saved")
    saved = cmm.bert.load(tmp_path / "saved")
    assert saved.label_names == ("a", "b", "c", "d")
    ids = np.arange(14).reshape(2, 7)
    close(saved.classify_ids(ids), run(model, ids).logits.numpy())
    one = read(auto, out, "SequenceClassification", num_labels=1)
    found = run(one, ids, labels=[0.5, 1.0])
    assert torch.equal(found.loss, torch.nn.functional.mse_loss(found.logits[:, 0], torch.tensor([0.5, 1.0])))
    one.save_pretrained(tmp_path / "one")
    assert cmm.bert.load(tmp_path / "one").label_names is None


def test_both_heads(auto, tmp_path):
    """Each class takes its own, and what it writes says which one there is."""
    out, state = exported(tmp_path / "out", labels=3)
    ids = np.arange(14).reshape(2, 7)
    expected = reference.forward(BLOCKS["2x3"], state, ids)
    for kind, key in (("MaskedLM", "logits"), ("SequenceClassification", "classes")):
        model = read(auto, out, kind)
        close(run(model, ids).logits.numpy(), expected[key])
        model.save_pretrained(tmp_path / kind)
        saved = cmm.bert.load(tmp_path / kind)
        assert saved.has_decoder == (kind == "MaskedLM")
        assert (saved.weights.classifier is None) == (kind == "MaskedLM")


def test_text(auto, tmp_path):
    """AutoTokenizer has the ids of cmm.bert's, pads, and knows the parts; the pipeline fills masks alike."""
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    import bert_tokenizer as tiny

    ids = tiny.save(tmp_path / "tokenizer", map_file=False)
    out, _ = exported(tmp_path / "out", vocab=tiny.SIZE, tokenizer=tmp_path / "tokenizer")
    tokenizer = auto.AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    own = cmm.bert.Tokenizer(out)
    assert isinstance(tokenizer, auto.PreTrainedTokenizerFast)
    for part, token in tiny.SPECIAL.items():
        assert getattr(tokenizer, f"{part}_token_id") == ids[token]
    assert tokenizer.model_max_length == LIMIT
    texts = ["The cat sat on the <mask>.", "moon", ("the cat", "the dog")]
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        assert tokenizer(*pair)["input_ids"] == own.encode(text)
    batch = tokenizer(texts[:2], padding=True, return_tensors="np")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert (batch["input_ids"][1] == ids["<pad>"]).sum() == (batch["attention_mask"][1] == 0).sum() > 0
    model = cmm.bert.load(out)
    found = run(read(auto, out), ids=batch["input_ids"], mask=batch["attention_mask"]).logits.numpy()
    length = len(own.encode("moon"))
    close(found[1, :length], model.logits([own.encode("moon")])[0])
    filled = auto.pipeline("fill-mask", model=str(out), trust_remote_code=True)(texts[0], top_k=3)
    assert [one["token"] for one in filled] == [one.id for one in model.fill_mask(texts[0], 3)[0]]


def test_without_libcmm(auto, tmp_path, monkeypatch):
    out, _ = exported(tmp_path / "out")
    message = "^this model needs libcmm 0.2 or newer: pip install -U libcmm [(]{}[)]$"
    monkeypatch.setattr(cmm, "__version__", "0.1.9")
    with pytest.raises(ImportError, match=message.format("libcmm 0.1.9 is installed")):
        read(auto, out)
    monkeypatch.setitem(sys.modules, "cmm.torch", None)
    with pytest.raises(ImportError, match=message.format("import of cmm.torch halted; None in sys.modules")):
        read(auto, out)


def test_a_configuration_without_pytorch(auto, tmp_path):
    out, _ = exported(tmp_path / "out")
    config = auto.AutoConfig.from_pretrained(out, trust_remote_code=True)
    sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (50, 24, 2, 3)
    assert config.max_position_embeddings == LIMIT
    assert type(config)().arch == {}  # as transformers makes one to compare with
    code = (CODE / "configuration_cmm.py").read_text()
    assert "torch" not in code


def test_a_block_that_is_not_computed(auto, tmp_path):
    out, _ = exported(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["arch"]["norm_scheme"] = "post"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="norm_scheme: is 'post'; this encoder computes 'pre' only"):
        read(auto, out)
