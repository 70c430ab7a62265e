"""Development mode, warnings as errors and `-X warn_default_encoding`: silent in every command and function."""

import importlib.util
import re
import subprocess
import sys
import textwrap

import bert_reference as reference
import pytest
from cmm.__main__ import main

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
import bert_tokenizer as tiny

PYTHON = [sys.executable, "-X", "dev", "-X", "warn_default_encoding", "-W", "error"]
BENCH = ["bench", "--tokens", "16", "--width", "16", "--trees", "1x3", "--passes", "1", "--json", "a.json"]
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "info": ["info"],
    "fill-mask": ["fill-mask", "a <mask>"],
    "embed": ["embed", "fff", "--file", "texts", "--out", "a.npy"],
    "classify": ["classify", "model", "the cat"],
    "explain": ["explain", "fff", "a file", "--json", "a.json"],
    "export": ["export", "dense", "out"],
    "eval": ["eval", "fff", "text", "texts"],
    "convert": ["convert", "--help"],  # the rest is PyTorch's, which need not be here and may warn
    "bench": [*BENCH, "--plot", "a.svg"],
    "bench --curve": [*BENCH, "--curve", "--plot", "a.png"],
    "bench --model": ["bench", "--model", "--passes", "1", "--json", "a.json"],
    "demo": ["demo"],
    "completion": ["completion", "bash"],
}
SLOW = ("bench", "bench --curve", "bench --model", "demo")


@pytest.fixture
def folder(tmp_path):
    block = reference.architecture(num_labels=None)
    reference.save_final(tmp_path / "model", block, reference.state_dict(block, vocab=tiny.SIZE, labels=3))
    tiny.save(tmp_path / "model")
    (tmp_path / "texts").write_text("a file\na function\n")
    return tmp_path


def silent(words, folder):
    done = subprocess.run([*PYTHON, *words], cwd=folder, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.full] * (name in SLOW)) for name in COMMANDS])
def test_every_command(folder, name):
    assert silent(["-m", "cmm", *COMMANDS[name]], folder)


def test_every_command_is_here(capsys):
    with pytest.raises(SystemExit):
        main(["nosuch"])
    commands = re.findall(r"'([a-z-]+)'", capsys.readouterr().err.partition("choose from")[2])
    assert {name.split()[0] for name in COMMANDS} == {*commands, "--help", "--version"}


FUNCTIONS = """
    import copy, gc, pickle, numpy as np, cmm, cmm.bert
    rng = np.random.default_rng(0)
    x, w_in, w_out = (rng.standard_normal(shape, np.float32) for shape in ((5, 8), (2, 7, 8), (2, 7, 6)))
    for level in cmm.levels():
        if level.available and not level.name.startswith("cuda"):
            y, nodes, logits = cmm.fff_forward(x, w_in, w_out, level=level.name, return_path=True)
    cmm.dead_subtrees(cmm.node_usage(nodes, 7))
    cmm.cmm_forward(x, w_in), cmm.ff_forward(x, w_in[0], w_out[0]), cmm.get_include()
    layer = pickle.loads(pickle.dumps(cmm.FFF(w_in, w_out)))
    layer(x, out=np.empty((5, 6), np.float32))
    with cmm.blas.use(cmm.blas.current()):
        cmm.ff_forward(x, w_in[0], w_out[0], level="blas3")
    for how in ({}, {"mmap": False}):
        model = copy.deepcopy(cmm.bert.load("model", **how))
        model.fill_mask(["the <mask>", ("the cat", "a <mask>")])
        model.embed("the cat"), model.embed(["the cat"] * 100, threads=2), model.classify(["the cat"], progress=True)
        model.logits([[1, 2]]), model.classify_ids([[1, 2]]), model.trace([[1, 2]] * 80, threads=2), repr(model)
        model.to("cpu").tokenizer.encode("the cat")
    cmm.bert.load(cmm.bert.export(model, "a", dtype="float16"))
    cmm.bert.export("fff", "b")
    cmm.bert.random(model.config.arch | {"embedding": {"vocab_size": 21, "max_seq_length": 16}})
    for wrong in (lambda: cmm.bert.load("none"), lambda: cmm.bert.load("texts"), lambda: cmm.bert.export("fff", "b")):
        try:
            wrong()
        except (cmm.CmmError, OSError):
            pass
    del model
    gc.collect()  # what was not closed would be said here
"""
OF_TORCH = """
    import pathlib, torch, cmm.bert, cmm.torch
    from cmm.torch import data, training
    torch.manual_seed(0)
    text = pathlib.Path("texts")
    text.write_text("a file and a function\\n" * 50, encoding="utf-8")
    data.train_tokenizer(text, 60, pathlib.Path("words"))
    vocabulary = data.vocabulary_of(pathlib.Path("words/tokenizer.json"))
    sequences = data.pack(text, pathlib.Path("words/tokenizer.json"), 16)
    arch = training.architecture("2x2", layers=1, hidden=16, heads=2, vocab_size=vocabulary, length=16)
    model = cmm.torch.MaskedLanguageModel(arch)
    optimizer = training.make_optimizer(model, 1e-3)
    masked = data.hide(data.Batches(sequences, 4, 0, torch.device("cpu"))[0], 0, vocabulary)
    training.descend(model, optimizer, training.masked_loss(model, masked)[0], 1e-3)
    pathlib.Path("final").mkdir()
    training.save_state(pathlib.Path("final"), model, optimizer, {"step": 1})
    training.load_state(pathlib.Path("final"), model, optimizer)
    cmm.bert.load("final/intermediate_state.pth", config=arch), cmm.bert.load("final", config=arch, mmap=False)
    training.save_final(pathlib.Path("final"), model, pathlib.Path("words"))
    loaded = cmm.bert.load("final")
    loaded.fill_mask("a <mask>"), training.state_dict(loaded)
"""


def test_every_function(folder):
    silent(["-c", textwrap.dedent(FUNCTIONS)], folder)


@pytest.mark.full
@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("safetensors")),
    reason="PyTorch or the package safetensors is not installed",
)
def test_every_function_for_training(folder):
    silent(["-c", textwrap.dedent(OF_TORCH)], folder)
