"""The two trained models: what PyTorch recorded after training is what numpy computes, without PyTorch."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import bert_reference
import cmm.bert
import numpy as np
import pytest
from building import ROOT
from cmm.__main__ import main
from cmm.bert.trained import TRAINED
from reference import gamma

cmm_models = pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")

CARD = ROOT / "python/libcmm-models/cmm_models/MODEL_CARD.md"
BOTH = pytest.mark.parametrize("name", TRAINED)
U = 2.0**-24


def recorded(name):
    """What PyTorch computed in float32 from the float16 weights for two sequences: tests/support/record_models.py."""
    file = np.load(Path(__file__).parent / "recorded" / f"{name}.npz")
    for number in (0, 1):
        yield {key.removesuffix(f"_{number}"): file[key] for key in file if key.endswith(f"_{number}")}


@BOTH
def test_logits_are_those_of_pytorch(name):
    model = cmm.bert.trained(name)
    for answer in recorded(name):
        logits = model.logits(answer["ids"][np.newaxis].astype(np.int64))[0]
        assert np.abs(logits[answer["places"]] - answer["logits"]).max() <= 1e-4


def test_paths_are_those_of_pytorch():
    """But where a decision lies within its bound.

    The two programs' logits of a node differ by their own rounding, gamma(H + 1) times the sum of magnitudes each,
    and by what their inputs differ, times the weights. A path that parts does so at such a node; what comes after it
    is another path's.
    """
    model = cmm.bert.trained()
    parted = compared = 0
    for answer in recorded("fff"):
        trace = model.trace(answer["ids"][np.newaxis].astype(np.int64))
        nodes, logits = trace.path_nodes[:, 0], answer["path_logits"].astype(np.float64)
        same = nodes == answer["path_nodes"]
        compared += same.shape[0] * same.shape[1] * same.shape[2]
        for layer, token, tree in np.argwhere(~same.all(axis=-1)):
            last = int(np.argmin(same[layer, token, tree])) - 1  # where they were together for the last time
            node = nodes[layer, token, tree, last]
            ffn = model.weights.layers[layer].ffn
            row = np.abs(ffn.w_in[tree, node].astype(np.float64))
            mine = trace.ffn_in[layer, 0, token].astype(np.float64)
            other = answer["ffn_in"][layer, token].astype(np.float64)
            size = row @ np.abs(mine) + row @ np.abs(other) + 2 * abs(ffn.bias[tree, node])
            bound = gamma(model.config.hidden + 1, U) * size + row @ np.abs(mine - other)
            assert abs(logits[layer, token, tree, last]) <= bound
            parted += 1
    assert compared == 5 * 64 * 16
    assert parted <= 0.01 * compared


@BOTH
def test_the_answers_are_not_all_alike(name):
    """So that the two tests above compare something."""
    for answer in recorded(name):
        assert len(set(answer["ids"].tolist())) > 10
        assert np.ptp(answer["logits"].argmax(axis=1)) > 0
        if name == "fff":
            assert len(np.unique(answer["path_nodes"][..., -1])) > 25  # of 32 leaves


def test_what_they_are():
    fff, dense = (cmm.bert.trained(name) for name in ("fff", "dense"))
    assert (fff.config.trees, fff.config.depth) == (16, 5)
    neurons = fff.config.trees * fff.config.nodes
    assert neurons <= dense.config.neurons <= 1.02 * neurons  # what is not equal is in favour of the twin
    assert {key for key in fff.config.arch if fff.config.arch[key] != dense.config.arch.get(key)} == {
        "intermed_type",
        "intermed_size",
        "intermed_depth",
    }
    assert tuple(cmm_models.FOLDERS) == TRAINED
    files = [file for folder in cmm_models.FOLDERS.values() for file in folder.iterdir()]
    assert len(files) == 10
    assert sum(file.stat().st_size for file in files) < 16e6
    sizes = {name: (folder / "model.safetensors").stat().st_size for name, folder in cmm_models.FOLDERS.items()}
    assert sizes["fff"] <= sizes["dense"]
    assert Path(cmm_models.__file__).with_name(CARD.name).read_text() == CARD.read_text()  # the wheel has it too
    with pytest.raises(cmm.ArgumentError, match="name is 'bert'"):
        cmm.bert.trained("bert")


def test_numpy_needs_no_pytorch():
    """In a process where importing it fails."""
    code = (
        "import sys; sys.modules['torch'] = None; import cmm.bert; print(cmm.bert.trained().logits([[7, 8]]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 2, 6144)\n"


def test_without_pytorch_cmm_torch_says_so():
    code = "import sys; sys.modules['torch'] = None; import cmm.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "cmm.errors.UnusableError: cmm.torch needs PyTorch: pip install torch ("
    )


@pytest.mark.parametrize(
    ("script", "package", "words"),
    [
        ("train", "torch", "train.py needs PyTorch: pip install torch"),
        ("finetune", "torch", "finetune.py needs PyTorch: pip install torch"),
        ("card", "torch", "card.py needs PyTorch: pip install torch"),
        ("corpus", "lxml", "corpus.py needs lxml: pip install lxml"),
    ],
)
def test_scripts_say_in_one_line_what_is_missing(script, package, words):
    code = (
        f"import sys, runpy; sys.modules[{package!r}] = None; "
        f"runpy.run_path({str(ROOT / 'docs/examples' / script)!r} + '.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, words + "\n")


# ---- the card ------------------------------------------------------------------------------------------------------


def sentences():
    rows = re.findall(r"^\| (.*`<mask>`.*) \| (\w+) \| (.*) \| (.*) \|$", CARD.read_text(), re.MULTILINE)
    assert len(rows) == 10
    return [(text.replace("`<mask>`", "<mask>").replace("\\|", "|"), word, cells) for text, word, *cells in rows]


def test_the_cards_sentences():
    """Each is answered as the card says, and the hits are counted right."""
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    for number, name in enumerate(("fff", "dense")):
        model, hits = cmm.bert.trained(name), [0, 0]
        for text, word, cells in sentences():
            (best,) = model.fill_mask(text, 6)
            shown = [token.replace("\\|", "|") for token in re.findall(r"`([^`]+)`", cells[number])]
            assert len(shown) == 5
            # Another machine's rounding may swap neighbours: two errors of 1e-4, as above.
            for place, token in enumerate(shown):
                assert abs(best[[one.token for one in best].index(token)].logit - best[place].logit) <= 2e-4
            hits[0] += shown[0] == word
            hits[1] += word in shown
        said = re.search(
            rf"^{name}: the right word first in (\d+), among the first five in (\d+)", CARD.read_text(), re.M
        )
        assert [int(count) for count in said.groups()] == hits


def test_the_readmes_blank(capsys):
    """What the README shows of its first command is what the command prints, but for the last digit."""
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    readme = (ROOT / "README.md").read_text()
    text = re.search(r'<!-- command: main -->\n```sh\n.* && cmm fill-mask "(.*)"\n```', readme)[1]
    shown = re.search(r'```sh\ncmm fill-mask "(.*)"\n```\n\n```text\n(.*?)```', readme, re.DOTALL)
    assert shown[1] == text
    assert main(["fill-mask", text]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[::2] == shown[2].split()[::2]
    # A logit that is off by 1e-4 changes a probability by less than 1e-4, and each side is rounded to 4 digits.
    for one, other in zip(printed[1::2], shown[2].split()[1::2], strict=True):
        assert abs(float(one) - float(other)) <= 2.01e-4


def test_a_model_by_its_name(capsys, tmp_path, monkeypatch):
    """fff and dense are words for the trained models, unless there is a folder of that name."""
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    answers = {}
    for arguments in ([], ["fff"], ["dense"]):
        assert main(["fill-mask", *arguments, "a <mask> of it", "-k", "2"]) == 0
        answers[tuple(arguments)] = capsys.readouterr().out
    assert answers[()] == answers["fff",] != answers["dense",]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fff").mkdir()
    assert main(["fill-mask", "fff", "a <mask> of it"]) == 2
    assert "fff: has no weights" in capsys.readouterr().err


def test_float16_exports(tmp_path):
    """Half the size, every weight rounded once; what is too large is refused."""
    block = bert_reference.architecture(num_labels=None)
    state = bert_reference.state_dict(block, seed=2)
    model = cmm.bert.from_state_dict(state, block)
    half = cmm.bert.load(cmm.bert.export(model, tmp_path / "half", dtype="float16"))
    whole = cmm.bert.export(model, tmp_path / "whole")
    for name, tensor in model.tensors.items():
        assert np.array_equal(half.tensors[name], tensor.astype(np.float16).astype(np.float32))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", whole)]
    assert sizes[0] < 0.6 * sizes[1]
    tensors = {**model.tensors, "embedding.word": model.tensors["embedding.word"] * 1e6}
    model = cmm.bert.Model(model.config, tensors, has_decoder=True, source=model.source)
    with pytest.raises(
        cmm.bert.CheckpointError, match=r"embedding\.word: has a weight that is too large for float16"
    ):
        cmm.bert.export(model, tmp_path / "large", dtype="float16")
    assert not (tmp_path / "large").exists()
    with pytest.raises(cmm.ArgumentError, match="dtype is 'int8'"):
        cmm.bert.export(model, tmp_path / "int8", dtype="int8")


# ---- cmm bench --model ---------------------------------------------------------------------------------------------


@pytest.mark.full
def test_bench_model(capsys, tmp_path):
    file = tmp_path / "model.json"
    assert main(["bench", "--model", "--passes", "2", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "its dense twin, trained alike" in out
    lines = json.loads(file.read_text())["lines"]
    with_torch = importlib.util.find_spec("torch") is not None
    assert ("PyTorch is not installed" in out) != with_torch
    assert len(lines) == 3 * 2 * (3 if with_torch else 2)
    assert {line["what"] for line in lines} >= {"numpy", "numpy, feedforward layers alone"}
    assert [line["layers"] for line in lines] == ["fff", "dense"] * (len(lines) // 2)
    assert all(0 < line["us_q1"] <= line["us"] <= line["us_q3"] for line in lines)


def test_bench_of_another_model(capsys, tmp_path):
    """Its twin has random weights, and says so."""
    block = bert_reference.architecture(num_labels=None)
    bert_reference.save_final(tmp_path / "model", block, bert_reference.state_dict(block))
    assert main(["bench", "--model", str(tmp_path / "model"), "--passes", "1"]) == 0
    assert "a dense model with random weights" in capsys.readouterr().out
    for arguments, problem in ((["dense"], "dense layers"), (["--tokens", "5"], "not with --tokens")):
        assert main(["bench", "--model", *arguments]) == 2
        assert problem in capsys.readouterr().err
