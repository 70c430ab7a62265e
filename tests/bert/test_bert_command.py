"""The commands for models: what they print is what Python says, and what is wrong is said in one line."""

import io
import json
import subprocess
import sys

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.__main__ import main

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
import bert_tokenizer as tiny

BLOCK = reference.architecture(num_labels=None)
pytestmark = pytest.mark.filterwarnings("ignore::cmm.bert.EmptyTextWarning")
COMMANDS = ("fill-mask", "embed", "classify", "explain", "export", "eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    reference.save_final(path, BLOCK, reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE, labels=3))
    tiny.save(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return cmm.bert.load(folder)


@pytest.fixture
def ran(capsys):
    """Run a command, which must succeed; its output."""

    def run(*arguments, stderr=""):
        assert main([str(argument) for argument in arguments]) == 0
        out, err = capsys.readouterr()
        assert stderr in err if stderr else err == ""
        return out

    return run


@pytest.fixture
def refused(capsys):
    """Run a command, which must say no in one line; that line."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert err.startswith(f"cmm {arguments[0]}:")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: cmm {command} " in out
    assert f"  cmm {command} " in out.partition("examples:\n")[2]


# ---- fill-mask -----------------------------------------------------------------------------------------------------


def test_fill_mask(ran, folder, model):
    text = "the <mask> sat on the <mask>"
    expected = model.fill_mask(text, 3)
    out = ran("fill-mask", folder, text, "-k", 3)
    blocks = out.split("\n\n")
    assert len(blocks) == 2
    for number, (block, mask) in enumerate(zip(blocks, expected, strict=True), 1):
        lines = block.splitlines()
        assert lines[0] == f"mask {number} of 2"
        assert [line.split() for line in lines[1:]] == [[one.token, f"{one.probability:.4f}"] for one in mask]
    assert json.loads(ran("fill-mask", folder, text, "-k", 3, "--json")) == [
        [one._asdict() for one in mask] for mask in expected
    ]
    assert len(ran("fill-mask", folder, "the <mask>").splitlines()) == 5


def test_fill_mask_says_no(refused, folder, tmp_path):
    assert "has no mask; the one of this tokenizer is <mask>" in refused("fill-mask", folder, "the cat")
    assert "k is 0" in refused("fill-mask", folder, "the <mask>", "-k", "0")
    assert "invalid int value" in refused("fill-mask", folder, "the <mask>", "-k", "x")
    assert "the model's limit is 16" in refused("fill-mask", folder, "the " * 20)
    assert "has no weights" in refused("fill-mask", tmp_path, "the <mask>")
    assert "cannot be read" in refused("fill-mask", tmp_path / "none", "the <mask>")
    assert "has no mask" in refused("fill-mask", folder)  # one argument is the text
    assert "required: TEXT" in refused("fill-mask")
    assert "level is 'x'" in refused("fill-mask", folder, "the <mask>", "--level", "x")
    assert "threads is -1" in refused("fill-mask", folder, "the <mask>", "--threads", "-1")


def test_without_the_package(refused, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install tokenizers" in refused("fill-mask", folder, "the <mask>")


def test_files_from_elsewhere(ran, folder, tmp_path):
    """Weights alone, with the configuration and the tokenizer given."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    given = ["--config", folder / "model_config.json", "--tokenizer", folder / "tokenizer.json"]
    text = "the <mask>"
    assert ran("fill-mask", weights, text, *given) == ran("fill-mask", folder, text)


# ---- embed ---------------------------------------------------------------------------------------------------------


def test_embed(ran, folder, model, tmp_path):
    texts = ["the cat", "a dog ran on", "moon"]
    expected = model.embed(texts)
    printed = np.loadtxt(io.StringIO(ran("embed", folder, *texts)))
    np.testing.assert_allclose(printed, expected, rtol=1e-6)  # 7 digits
    out = tmp_path / "vectors.npy"
    assert ran("embed", folder, *texts, "--out", out) == f"wrote {out}: 3 vectors of 24 numbers\n"
    np.testing.assert_array_equal(np.load(out), expected)
    ran("embed", folder, *texts, "--out", out, "--pooler", "max")
    np.testing.assert_array_equal(np.load(out), model.embed(texts, pooler="max"))


def test_texts_from_a_file_and_from_the_standard_input(ran, folder, model, tmp_path):
    texts = ["the cat", "", "a dög\u2028ran"]
    expected = model.embed(texts)
    out, file = tmp_path / "vectors.npy", tmp_path / "texts.txt"
    for content in ("\n".join(texts), "\n".join(texts) + "\n", "\r\n".join(texts), "\ufeff" + "\n".join(texts)):
        file.write_bytes(content.encode())
        ran("embed", folder, "--file", file, "--out", out, stderr="texts[1] '': nothing but special tokens is left")
        np.testing.assert_array_equal(np.load(out), expected)
    command = [sys.executable, "-m", "cmm", "embed", folder, "--file", "-", "--out", out]
    for mark in ("", "\ufeff"):
        text = mark + "\n".join(texts)
        subprocess.run(command, input=text.encode(), timeout=120, check=True, capture_output=True)
        np.testing.assert_array_equal(np.load(out), expected)
        out.unlink()


def test_a_byte_order_mark_is_no_part_of_the_first_text(ran, folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\ufeffthe cat\nmoon\n", encoding="utf-8")
    lines = ran("classify", folder, "--file", tmp_path / "texts.txt", "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["the cat", "moon"]


def test_what_is_nothing_but_special_tokens_is_said_in_a_line(ran, folder, tmp_path):
    for command in (["embed"], ["classify"], ["explain", "--out", tmp_path / "a"]):
        ran(*command, folder, "moon", "\u65e5", stderr=f"cmm {command[0]}: texts[1] '\\u65e5': nothing but special")


def test_pairs(ran, folder, model, tmp_path):
    out = tmp_path / "vectors.npy"
    ran("embed", folder, "the cat\ta dog", "--pairs", "--out", out)
    np.testing.assert_array_equal(np.load(out), model.embed([("the cat", "a dog")]))


def test_truncation_is_said(ran, refused, folder):
    long = "the " * 20
    assert "texts[1] 'the the" in (line := refused("embed", folder, "moon", long))
    assert "has 21 tokens; the model's limit is 16" in line
    ran("embed", folder, "moon", long, "--truncate", stderr="cmm embed: 1 of 2 texts were cut")


def test_embed_says_no(refused, folder, tmp_path):
    assert "give texts or --file" in refused("embed", folder)
    assert "give texts or --file" in refused("embed", folder, "a", "--file", "-")
    assert "No such file" in refused("embed", folder, "--file", tmp_path / "none.txt")
    assert "text 2 has 0 tabs" in refused("embed", folder, "a\tb", "a", "--pairs")
    assert "should end in .npy" in refused("embed", folder, "a", "--out", tmp_path / "x.txt")
    assert "there is no folder" in refused("embed", folder, "a", "--out", tmp_path / "no" / "x.npy")
    assert "invalid choice: 'mean'" in refused("embed", folder, "a", "--pooler", "mean")
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    assert "is not UTF-8" in refused("embed", folder, "--file", tmp_path / "latin1.txt")


# ---- classify ------------------------------------------------------------------------------------------------------


def test_classify(ran, folder, model):
    texts = ["the cat", "a dog ran"]
    logits = model.classify(texts).astype(np.float64)
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    lines = ran("classify", folder, *texts).splitlines()
    assert lines[0].split() == ["label", "probability", "text"]
    for line, text, row in zip(lines[1:], texts, weights, strict=True):
        assert line.split(maxsplit=2) == [str(row.argmax()), f"{row.max():.4f}", text]
    for line, text, row, chances in zip(
        ran("classify", folder, *texts, "--json").splitlines(), texts, logits, weights, strict=True
    ):
        answer = json.loads(line)
        assert (answer["text"], answer["label"], answer["logits"]) == (text, row.argmax(), row.tolist())
        np.testing.assert_allclose(answer["probabilities"], chances)


def test_classify_with_one_label_prints_scores(ran, tmp_path):
    reference.save_final(tmp_path, BLOCK, reference.state_dict(BLOCK, vocab=tiny.SIZE, labels=1))
    tiny.save(tmp_path)
    score = cmm.bert.load(tmp_path).classify(["the cat"])[0, 0]
    header, line = ran("classify", tmp_path, "the cat").splitlines()
    assert header.split() == ["score", "text"]
    assert line.split(maxsplit=1) == [f"{score:.4f}", "the cat"]
    assert json.loads(ran("classify", tmp_path, "the cat", "--json")) == {"text": "the cat", "logits": [float(score)]}


def test_classify_shows_texts_harmlessly(ran, folder):
    assert "the\\x1b[2J cat" in ran("classify", folder, "the\x1b[2J cat")


def test_classify_says_no(refused, tmp_path):
    reference.save_final(tmp_path, BLOCK, reference.state_dict(BLOCK, vocab=tiny.SIZE))
    assert "has no classifier" in refused("classify", tmp_path, "the cat")


# ---- explain -------------------------------------------------------------------------------------------------------


def test_explain(ran, folder, model, tmp_path):
    text = "the cat sat on the moon"
    out = ran("explain", folder, text, "--out", tmp_path / "ways", "--json", tmp_path / "ways.json")
    ids = model.tokenizer.encode([text])
    nodes = model.trace(ids).path_nodes[:, 0]
    data = json.loads((tmp_path / "ways.json").read_text())
    assert data["tokens"] == ["the", "cat", "sat", "on", "the", "moon", "<sep>"]
    np.testing.assert_array_equal([layer["nodes"] for layer in data["layers"]], nodes)
    assert out.startswith("7 tokens through 2 layers of 2x3")
    assert out.splitlines()[-1] == "wrote " + ", ".join(
        str(tmp_path / f"ways.{kind}") for kind in ("png", "svg", "json")
    )
    svg = (tmp_path / "ways.svg").read_text()
    assert "moon" in svg
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")


def test_explain_writes_both_pictures_whatever_the_name_ends_in(ran, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.svg", "a"):
        assert "wrote a.png, a.svg" in ran("explain", folder, "moon", "--out", name)
    assert "wrote paths.png, paths.svg" in ran("explain", folder, "moon")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.svg", "paths.png", "paths.svg"]


def test_explain_of_many_texts(ran, folder, tmp_path):
    (tmp_path / "texts.txt").write_text("the cat sat\n" * 30)
    out = ran("explain", folder, "--file", tmp_path / "texts.txt", "--out", tmp_path / "a")
    assert out.startswith("120 tokens")


def test_explain_of_ids_needs_no_tokenizer(ran, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    reference.save_final(tmp_path / "model", BLOCK, reference.state_dict(BLOCK))
    assert ran("explain", tmp_path / "model", "--ids", "3,1,4", "--out", tmp_path / "a").startswith("3 tokens")
    (tmp_path / "config.json").write_text(json.dumps(reference.architecture(embedding__vocab_size=50)))
    given = ["--config", tmp_path / "config.json", "--ids", "3,1,4", "--out", tmp_path / "b"]
    assert ran("explain", "random", *given).startswith("3 tokens through 2 layers of 2x3")


def test_explain_says_no(refused, folder, tmp_path, monkeypatch):
    out = ["--out", tmp_path / "a"]
    assert "give texts, --file or --ids" in refused("explain", folder, *out)
    assert "give texts, --file or --ids" in refused("explain", folder, "moon", "--ids", "1", *out)
    assert "'1,x' should be whole numbers" in refused("explain", folder, "--ids", "1,x", *out)
    assert "ids[0, 1] is 99" in refused("explain", folder, "--ids", "1,99", *out)
    assert "there is no folder" in refused("explain", folder, "moon", "--out", tmp_path / "no" / "a")
    assert "the word random" not in refused("embed", "random", "moon")
    assert "there are no texts" in refused("explain", folder, "--file", "/dev/null", *out)
    monkeypatch.setitem(sys.modules, "cmm.bert.plot_paths", None)
    assert "pip install matplotlib" in refused("explain", folder, "moon", *out)
    assert list(tmp_path.iterdir()) == []


# ---- export --------------------------------------------------------------------------------------------------------


def test_export(ran, folder, model, tmp_path):
    out = ran("export", folder, tmp_path / "a")
    assert out == f"wrote {tmp_path / 'a'}: {model.parameters} weights, its tokenizer\n"
    assert ran("fill-mask", tmp_path / "a", "the <mask>") == ran("fill-mask", folder, "the <mask>")


def test_export_of_weights_alone(ran, folder, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    config = ["--config", folder / "model_config.json"]
    assert "no tokenizer (--tokenizer adds one)" in ran("export", weights, tmp_path / "a", *config)
    ran("export", weights, tmp_path / "b", *config, "--tokenizer", folder)
    assert ran("fill-mask", tmp_path / "b", "the <mask>") == ran("fill-mask", folder, "the <mask>")


@pytest.mark.parametrize("name", ["fff", "dense"])
def test_export_of_a_trained_model(ran, tmp_path, name):
    pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    assert "its tokenizer" in ran("export", name, tmp_path / "a")
    assert ran("fill-mask", tmp_path / "a", "a <mask>") == ran("fill-mask", name, "a <mask>")


def test_json_of_explain_on_the_standard_output(capsys, folder, tmp_path):
    words = ["explain", str(folder), "--ids", "1,2", "--out", str(tmp_path / "a"), "--json"]
    assert main([*words, "-"]) == 0
    out, err = capsys.readouterr()
    assert main([*words, str(tmp_path / "a.json")]) == 0
    assert json.loads(out) == json.loads((tmp_path / "a.json").read_text())
    assert err.endswith("a.svg\n")
    assert capsys.readouterr().out == err.replace("a.svg\n", f"a.svg, {tmp_path / 'a.json'}\n")


def test_export_says_no(refused, folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not an empty folder" in refused("export", folder, tmp_path / "full")
    assert "has no weights" in refused("export", tmp_path / "full", tmp_path / "a")
    assert "cannot be read" in refused("export", folder, tmp_path / "a", "--tokenizer", tmp_path / "none.json")
    (tmp_path / "bare.pth").write_bytes(b"\x80\x04N.")
    assert "might run code" in refused("export", tmp_path / "bare.pth", tmp_path / "a")


def test_a_file_of_pytorch_without_pytorch(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "state.pth").write_bytes(b"PK\x03\x04" + b"\0" * 30)
    assert "reading it needs PyTorch: pip install torch" in refused("export", tmp_path / "state.pth", tmp_path / "a")


def test_starting_the_command_is_light():
    """What draws and what reads text is imported when a command needs it."""
    heavy = {"cmm.bert.plot_paths", "cmm.bert.paths", "matplotlib", "tokenizers", "torch", "tqdm"}
    code = "import sys; from cmm.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"found = {heavy!r} & set(sys.modules)\nassert not found, found"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True, capture_output=True)
