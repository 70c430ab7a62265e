"""`cmm convert`: the start of a layer, whole conversions of tiny models, and what is refused."""

import json
import math

import cmm.bert
import numpy as np
import pytest
from building import ROOT
from cmm.__main__ import main

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
pytest.importorskip("safetensors", reason="the package safetensors is not installed")
from cmm.torch import FFF, MaskedLanguageModel, data, set_softness, training  # noqa: E402
from cmm.torch.convert import convert_model, fit, load_bert, place_neurons, r2, solve_outputs  # noqa: E402
from cmm.torch.model import Dense  # noqa: E402


def tokens(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text, a tokenizer for it, and a dense model whose weights are large enough to matter."""
    folder = tmp_path_factory.mktemp("dense")
    text = folder / "text.txt"
    text.write_text((ROOT / "docs/guide/training.md").read_text())
    data.train_tokenizer(text, 300, folder)
    torch.manual_seed(0)
    arch = training.architecture("dense:24", layers=2, hidden=16, heads=2, vocab_size=300, length=16)
    model = MaskedLanguageModel(arch)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    training.save_final(folder, model, folder)
    return folder, text


# ---- the start -----------------------------------------------------------------------------------------------------


def test_r2():
    y = tokens(100, 3)
    assert r2(y, y) == 1
    assert r2(y.mean(0).expand_as(y), y) == pytest.approx(0, abs=1e-6)  # a mean in float32 of 100 numbers near 1


@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (3, 2)])
def test_output_weights_of_what_a_layer_can_give(trees, depth):
    """A layer that has the nodes of another gets its outputs back.

    The ridge of 1e-4 of the mean square m of a neuron, against an eigenvalue e of the neurons' second moments,
    leaves at most the share 1e-4 m / e of each part of the outputs.
    """
    layer, other = (FFF(6, trees, depth) for _ in range(2))
    x = tokens(2000, 6)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    other.eval()
    with torch.no_grad():
        layer.linear_in.load_state_dict(other.linear_in.state_dict())
        y = other(x)
        got = solve_outputs(layer, x, y)
        eye = FFF(6, trees, depth, trees * layer.nodes)
        eye.linear_in.load_state_dict(other.linear_in.state_dict())
        eye.linear_out.weight.copy_(torch.eye(trees * layer.nodes))
        hidden = eye.eval()(x).double()
        moments = hidden.t() @ hidden / len(x)
        eigenvalues = torch.linalg.eigvalsh(moments)
        # |error|^2 is a sum over eigenvectors of e (r / (e + r))^2 c^2 for coefficients c of the right weights.
        ridge = 1e-4 * float(moments.diagonal().mean())
        lost = ridge**2 / (eigenvalues + ridge) ** 2 * eigenvalues
        bound = float(lost.max()) * float(other.linear_out.weight.double().square().sum())
        variance = float((y - y.mean(0)).double().square().sum() / len(x))
        assert 1 - got <= bound / variance + 1e-9  # what float32's rounding of 2e-7 adds, squared, is below that
        assert bound / variance < 0.01
        assert r2(layer.eval()(x), y) == pytest.approx(got, abs=1e-6)


def test_regions_are_balanced_and_explain():
    """Each leaf of each tree gets its share to a token, and what is explained grows with the trees."""
    dense = Dense(8, 24, gated=False)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    x = tokens(2048, 8)
    with torch.no_grad():
        y = dense(x)
    found = []
    for trees in (1, 8):
        layer = FFF(8, trees, 3, track_routing=True)
        found.append(fit(layer, x, y))
        layer.eval()
        with torch.no_grad():
            assert r2(layer(x), y) == pytest.approx(found[-1], abs=1e-5)
        counts = layer.routing().counts[:, 7:]
        # A median lies between two tokens, and rounding of the logits, summed in another order, may turn those alone.
        assert (counts - 256).abs().max() <= 2 * 3
    assert 0 < found[0] < found[1] < 1
    with torch.no_grad():
        random = FFF(8, 8, 3)
        assert solve_outputs(random, x, y) < found[1]  # regions that were looked for are better than any


def test_neurons_are_the_dense_layer_where_all_act():
    dense = Dense(8, 24, gated=False)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    layer, x = FFF(8, 4, 2), tokens(512, 8)  # 28 nodes
    place_neurons(layer, dense, x)
    set_softness(layer, 1.0)
    with torch.no_grad():
        y, wanted = layer.train()(x), dense(x)
        # Two sums of 24 products of numbers below `large`, of a sum of 8 each, in other orders.
        large = float((x.abs().amax() * 8 * 0.6 * 4) * 0.6 * 4)
        assert (y - wanted).abs().max() <= 2 * (24 + 8) * 2**-24 * 24 * large
        set_softness(layer, 0.0)
        assert (layer(x) - wanted).abs().max() > 0.1


def test_too_few_tokens_for_a_layer():
    layer = FFF(4, 1, 3)
    with pytest.raises(
        cmm.ShapeError, match=r"x has 255 tokens; there should be at least 256, for 8 leaves of a tree"
    ):
        fit(layer, tokens(255, 4), tokens(255, 4))
    with pytest.raises(cmm.ShapeError, match=r"they should be \(T, 4\) and \(T, 4\)"):
        solve_outputs(layer, tokens(256, 5), tokens(256, 4))


# ---- whole models --------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("start", ["regions", "neurons"])
def test_a_model_of_cmm_bert(corpus, tmp_path, start):
    folder, _ = corpus
    out, ids = tmp_path / "converted", tmp_path / "ids.npy"
    # Of text the tokenizer would make other ids each time, for its training is not always the same.
    np.save(ids, np.minimum(4 + np.random.default_rng(0).zipf(1.3, (800, 16)), 299).astype(np.uint16))
    found = convert_model(folder, out, layer="3x2", text=ids, steps=20, batch=8, start=start)
    assert found.tokens > 32 * 4
    assert len(found.layers) == 2
    assert all(one.distilled > one.start for one in found.layers)
    assert {*found.dense} == {*found.start} == {*found.converted} == {"loss", "accuracy"}
    model = cmm.bert.load(out)
    assert (model.config.trees, model.config.depth) == (3, 2)
    assert len(model.fill_mask("the <mask> of a token", 3)[0]) == 3

    # PyTorch has the same logits: its float64's, by the bound that test_bert_encoder.py holds cmm.bert to.
    twin = MaskedLanguageModel(
        {**model.config.arch, "embedding": {**model.config.arch["embedding"], "vocab_size": 300}}
    )
    twin.load_state_dict(training.state_dict(model))
    ids = np.arange(5, 21)[None]
    with torch.no_grad():
        wanted = twin.double().eval()(torch.from_numpy(ids)).numpy()
    got = model.logits(ids)
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_command(corpus, tmp_path, capsys):
    folder, text = corpus
    ids = tmp_path / "ids.npy"
    np.save(ids, data.pack(text, folder / "tokenizer.json", 16))
    call = ["convert", str(folder), str(tmp_path / "out"), "--layer", "2x1", "--text", str(ids), "--steps", "4"]
    assert main([*call, "--batch", "4", "--json", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr().out
    assert "R2 distilled" in said
    assert "points of accuracy" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["layer"] == "2x1"
    assert math.isfinite(report["converted"]["loss"])
    assert main([*call]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_what_is_refused(corpus, tmp_path):
    folder, text = corpus

    def refused(message, kind=cmm.ArgumentError, **how):
        with pytest.raises(kind, match=message):
            convert_model(how.pop("source", folder), tmp_path / "no", **{"layer": "2x2", "text": text, **how})
        assert not (tmp_path / "no").exists()

    refused("trees x depth", layer="dense:8")
    refused("layer is '2'", layer="2")
    refused("steps is 0", steps=0)
    refused("rate is nan; it should be a number above 0", rate=float("nan"))
    refused("balance is -1.0; it should be a number, at least 0", balance=-1.0)
    refused(f"seed is {1 << 70}; it should be a whole number from 0 to 4294967295", seed=1 << 70)
    refused("batch is True", batch=True)
    refused("labels is 2", labels=2)
    refused("start is 'trees'; it should be one of 'regions', 'neurons'", start="trees")
    refused("length is 17; it should be from 4 to 16", length=17)
    refused(r"text has \d+ tokens to learn from; 2x12 needs at least 131072, 32 for each leaf", layer="2x12")
    ids = tmp_path / "ids.npy"
    np.save(ids, np.full((4, 16), 300, np.uint16))
    refused("has the id 300; the model has 300 tokens", text=ids)
    np.save(ids, np.array([[5, -1, 0, 0]]))
    refused("has the id -1; the model has 300 tokens", text=ids)
    np.save(ids, np.zeros((9, 3), np.uint16))
    refused("has sequences of 3; the model takes 4 to 16 tokens", text=ids)
    with ids.open("wb") as file:
        np.savez(file, a=np.zeros((4, 16), np.uint16))
    refused("it holds several arrays", text=ids)
    np.save(ids, np.zeros(16, np.uint16))
    refused(r"it should be whole numbers \(n, S\)", text=ids)
    ids.write_bytes(b"")
    refused("cannot be read as a .npy file", text=ids)
    fast = tmp_path / "fast"
    convert_model(folder, fast, layer="1x1", text=text, steps=1, batch=2)
    refused("has fast feedforward layers already, 1x1", source=fast)


# ---- BERT of transformers ------------------------------------------------------------------------------------------


def bert(folder, corpus, kind="BertModel", **changes):
    """A tiny BERT with random weights, in a folder with a tokenizer."""
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    import tokenizers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: id for id, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.add_special_tokens(vocabulary[:5])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=0.3, **sizes
    )
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dense.bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if changes:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return model.eval()


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
@pytest.mark.parametrize("start", ["regions", "neurons"])
def test_a_bert(corpus, tmp_path, kind, start):
    bert(tmp_path / "bert", corpus, kind)
    out = tmp_path / "out"
    found = convert_model(
        tmp_path / "bert", out, layer="3x2", text=corpus[1], length=24, steps=12, batch=8, start=start
    )
    assert all(one.distilled > one.start for one in found.layers)
    assert {*found.converted} == ({"cosine"} if kind == "BertModel" else {"loss", "accuracy"})
    model = load_bert(out)
    assert type(model).__name__ == kind
    assert sum(isinstance(module, FFF) for module in model.modules()) == 2
    with torch.no_grad():
        assert all(torch.isfinite(one).all() for one in model(input_ids=torch.arange(2, 12)[None])[:1])
    with pytest.raises(cmm.ArgumentError, match="has fast feedforward layers already, 3x2"):
        convert_model(out, tmp_path / "again", layer="2x1", text=corpus[1])
    with pytest.raises(cmm.ArgumentError, match="no BERT that was converted"):
        load_bert(tmp_path / "bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder is True; it should be False"),
        ({"model_type": "roberta"}, "model_type is 'roberta'; it should be 'bert'"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'; it should be one of gelu"),
        ({"architectures": ["BertLMHeadModel"]}, "it should be one of BertModel, BertForMaskedLM"),
    ],
)
def test_a_bert_that_is_refused(corpus, tmp_path, changes, message):
    bert(tmp_path / "bert", corpus, **changes)
    with pytest.raises(cmm.ArgumentError, match=message):
        convert_model(tmp_path / "bert", tmp_path / "out", layer="2x1", text=corpus[1])
