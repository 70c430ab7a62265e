"""Training and fine-tuning on tiny sizes on the CPU: scripts run, resume bit for bit, cmm.bert reads the models."""

import csv
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from building import ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
pytest.importorskip("safetensors", reason="the package safetensors is not installed")
from cmm.torch import FFF, Classifier, Encoder, MaskedLanguageModel, data, glue_tasks, training  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

TINY = ("--layers=2", "--hidden=16", "--heads=2", "--vocabulary=300", "--length=16")
TINY += ("--batch=8", "--log-every=10", "--save-every=20")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs/examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch):
    """Run a script of docs/examples."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        script(name).main()

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """This repository's own pages as a text to train on."""
    folder = tmp_path_factory.mktemp("corpus")
    pages = sorted(ROOT.glob("docs/**/*.md"))
    assert len(pages) > 5
    for name, some in (("train", pages[2:]), ("heldout", pages[:1]), ("heldout-packages", pages[1:2])):
        (folder / f"{name}.txt").write_text("\n\n".join(page.read_text() for page in some))
    return folder


def log_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
@pytest.mark.parametrize("layer", ["2x2", "dense:14"])
def test_training_and_resuming(run, corpus, tmp_path, layer):
    """A run that was stopped between two states ends with the same bits as one that was not."""
    run("train", corpus, tmp_path / "whole", "--layer", layer, "--steps", 60, *TINY, "--rate", "1e-2")
    run(
        "train",
        corpus,
        tmp_path / "halves",
        "--layer",
        layer,
        "--steps",
        60,
        *TINY,
        "--rate",
        "1e-2",
        "--stop-after",
        33,
    )
    assert not (tmp_path / "halves/model.safetensors").exists()
    shutil.copy(tmp_path / "halves/log.csv", tmp_path / "log-33.csv")
    run("train", corpus, tmp_path / "halves", "--layer", layer, "--steps", 60, *TINY, "--rate", "1e-2")
    whole, halves = (tmp_path / name / "model.safetensors" for name in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()

    rows = log_of(tmp_path / "whole")
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [bool(row["held_out_loss"]) for row in rows] == [False, True] * 3
    assert float(rows[0]["loss"]) == pytest.approx(np.log(300), abs=0.3)  # as if it guessed
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.3
    resumed = log_of(tmp_path / "halves")
    assert [int(row["step"]) for row in resumed] == [10, 20, 30, 33, 40, 50, 60]
    assert resumed[-1]["held_out_loss"] == rows[-1]["held_out_loss"]
    result, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "halves"))
    assert result["held_out"]["loss"] == float(rows[-1]["held_out_loss"])
    assert result["held_out_packages"]["loss"] != result["held_out"]["loss"]
    assert {**result, "seconds": 0} == {**other, "seconds": 0, "options": {**other["options"], "stop_after": None}}
    assert [leaves["of"] for leaves in result["leaves"]] == ([8, 8] if layer == "2x2" else [])

    model = cmm.bert.load(tmp_path / "whole")
    assert model.config.arch["embedding"]["vocab_size"] is None
    assert len(model.fill_mask("the <mask> of a token", 3)[0]) == 3
    state = cmm.bert.load(tmp_path / "whole" / training.STATE, config=of_file(model, tmp_path / "whole").config.arch)
    assert all(np.array_equal(state.tensors[key], value) for key, value in model.tensors.items())
    assert model.parameters == sum(p.numel() for p in of_file(model, tmp_path / "whole").parameters())


def of_file(model, folder):
    """The PyTorch model of a final folder."""
    arch = cmm.bert.config.read_json(folder / "model_config.json")
    arch["embedding"]["vocab_size"] = len(model.weights.word)
    torch_model = MaskedLanguageModel(arch)
    torch_model.load_state_dict(training.state_dict(model))
    return torch_model


@pytest.mark.full
def test_a_time_becomes_a_number_of_steps(run, corpus, tmp_path, monkeypatch):
    """The trial steps leave no trace: the result is that of a run of so many steps."""
    train = script("train")
    monkeypatch.setattr(train, "affordable", lambda *arguments: tried(*arguments) and 7)
    tried, script_main = script("train").affordable, train.main
    monkeypatch.setattr(sys, "argv", ["train", str(corpus), str(tmp_path / "timed"), "--minutes", "1", *TINY])
    script_main()
    run("train", corpus, tmp_path / "counted", "--steps", 7, *TINY)
    timed, counted = (tmp_path / name / "model.safetensors" for name in ("timed", "counted"))
    assert timed.read_bytes() == counted.read_bytes()


@pytest.mark.full
def test_neurons_that_are_always_on(run, corpus, tmp_path):
    """They are trained with the trees, counted, and make a model that is not written, for cmm.bert has none such."""
    run("train", corpus, tmp_path / "both", "--layer", "2x2", "--steps", 2, *TINY, "--always-on", 3)
    result = json.loads((tmp_path / "both/result.json").read_text())
    trees = MaskedLanguageModel(training.architecture("2x2", layers=2, hidden=16, heads=2, vocab_size=300))
    assert result["parameters"] - sum(p.numel() for p in trees.parameters()) == 2 * 2 * 3 * 16  # layers, in and out
    assert [leaves["of"] for leaves in result["leaves"]] == [8, 8]
    state = torch.load(tmp_path / "both" / training.STATE, weights_only=True)["model"]
    assert state["encoder.layers.0.ffn.dense.dense_in.weight"].shape == (3, 16)
    assert not (tmp_path / "both/model.safetensors").exists()


@pytest.mark.full
def test_two_processes_train_as_one_does(corpus, tmp_path):
    """By DDP, each half of a batch: to the bit what one process has that takes the halves one after the other."""
    how = ["--layer=2x2", "--steps=10", *TINY, "--rate=1e-3", "--balance=0.1", "--device=cpu"]
    one = [sys.executable, str(ROOT / "tests/support/train_by_halves.py"), str(corpus), str(tmp_path / "one"), *how]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for call in (one, [*two, str(ROOT / "docs/examples/train.py"), str(corpus), str(tmp_path / "two"), *how]):
        done = subprocess.run(
            call, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "wrote" in done.stdout
    single, double = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert (single["processes"], double["processes"]) == (1, 2)
    assert single["held_out"] == double["held_out"]
    assert abs(single["held_out"]["loss"] - np.log(300)) > 1e-2  # it has learnt something
    found, want = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert found.keys() == want.keys()
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_a_batch_that_processes_cannot_share(run, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(cmm.ArgumentError, match="--batch is 8; it should be a multiple of the 3 processes"):
        run("train", corpus, tmp_path / "run", "--steps", 1, *TINY)


@pytest.mark.parametrize("value", ["1.5", "-1", "nan", "half"])
def test_what_is_no_share(run, corpus, tmp_path, capsys, value):
    with pytest.raises(SystemExit):
        run("train", corpus, tmp_path / "run", "--steps", 1, f"--soft-until={value}")
    assert f"{value!r} should be a number from 0 to 1" in capsys.readouterr().err


def test_the_schedules():
    assert [training.cosine(x) for x in (0, 0.0625, 0.125, 1)] == pytest.approx([0, 0.5, 1, 0.05])
    assert training.cosine(0.5625) == pytest.approx(0.05 + 0.95 / 2)  # half way down
    assert [training.linear(x) for x in (0, 0.0625, 0.125, 0.5625, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [training.softness(x, 0.12, 0.3) for x in (0, 0.12, 0.21, 0.3, 1)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert [training.softness(x, 0, 0) for x in (0, 1)] == [0, 0]
    assert [training.softness(x, 0.5, 0.5) for x in (0.49, 0.5)] == [1, 0]
    assert [training.softness(x, 0.5, 0.3) for x in (0.2, 0.29, 0.3)] == [1, 1, 0]


def test_a_rate_for_feedforward_layers():
    model = MaskedLanguageModel(training.architecture("2x2", layers=1, hidden=16, heads=2, vocab_size=50))
    optimizer = training.make_optimizer(model, 1e-3, factor=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = sum(parameter.sum() for parameter in model.parameters())
    training.descend(model, optimizer, loss, 1e-3)
    for name, parameter in model.named_parameters():
        # The first step of AdamW is the rate times the sign of the gradient, and the decay, below 1e-2 of its rate.
        step = float((before[name] - parameter.detach()).mean())
        assert step == pytest.approx(2e-3 if ".ffn." in name else 1e-3, rel=1e-2), name
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 2e-3}


def test_the_objective_is_the_loss_and_the_balance():
    model = MaskedLanguageModel(training.architecture("2x2", layers=2, hidden=16, heads=2, vocab_size=50))
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    masked = data.hide(ids, 0, 50)
    total, plain = training.Objective(model, 0.5)(masked)
    balance = sum(layer.balance_loss() for layer in model.modules() if isinstance(layer, FFF))
    balance = float(balance.detach())
    assert 0 < balance <= 2
    assert float(total.detach()) == pytest.approx(float(plain) + 0.5 * balance, rel=1e-6)
    assert float(plain) == pytest.approx(float(training.masked_loss(model, masked)[0].detach()), rel=1e-6)
    alone, plain = training.Objective(model)(masked)
    assert alone == plain


def test_leaves_are_counted_in_eval_and_nothing_else_changes():
    model = MaskedLanguageModel(training.architecture("3x2", layers=2, hidden=16, heads=2, vocab_size=50))
    layers = [layer for layer in model.modules() if isinstance(layer, FFF)]
    for layer in layers:
        layer.softness = 1.0
    sequences = torch.randint(5, 50, (5, 12), generator=torch.Generator().manual_seed(0))
    counts = training.leaves(model, sequences, 2, bfloat16=False)
    assert [count.shape for count in counts] == [(3, 4)] * 2
    assert all((count.sum(1) == 5 * 12).all() for count in counts)
    assert model.training
    assert all(layer.softness == 1 and not layer.track_routing for layer in layers)
    soft = training.masked_loss(model, data.hide(sequences, 0, 50))[0].detach()
    assert float(soft) != pytest.approx(training.held_out(model, sequences, 5, bfloat16=False)[0], rel=1e-6)


@pytest.mark.parametrize(
    "block",
    [
        reference.architecture(num_labels=None),
        reference.architecture(num_labels=None, intermed_type="ff", intermed_size=24),
        reference.architecture(num_labels=None, intermed_type="ff", intermed_size=24, nonlin="GELUglu"),
        reference.architecture(num_labels=None, skip_head_transform=False),
    ],
    ids=["fff", "dense", "gated", "head-transform"],
)
def test_a_state_dict_goes_either_way(block):
    """What the authors' code writes loads here, computes what the float64 reference does, and goes back unchanged."""
    block = {**block, "embedding": {**block["embedding"], "vocab_size": 50}}
    state = reference.state_dict(block, seed=3)
    model = MaskedLanguageModel(block)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    assert model.state_dict().keys() == state.keys()
    ids = np.random.default_rng(0).integers(0, 50, (3, 7))
    on_numpy = cmm.bert.from_state_dict(model.state_dict(), block)
    expected = on_numpy.logits(ids)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            found = model(torch.from_numpy(ids)).numpy()
        # Both are float32 programs of a handful of layers; test_bert_encoder.py holds cmm.bert to 1e-5 of float64's
        # answer relative to its largest value, and this one is held to as much beside it.
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    for key, value in training.state_dict(on_numpy).items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
def test_a_compiled_models_state_dict():
    model = MaskedLanguageModel(training.architecture("2x2", layers=1, hidden=16, heads=2, vocab_size=50))
    state = torch.compile(model).state_dict()
    assert all(key.startswith("_orig_mod.") for key in state)
    on_numpy = cmm.bert.from_state_dict(state, model.config.arch)
    again = MaskedLanguageModel(model.config)
    again.load_state_dict(training.state_dict(on_numpy))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_masks_of_attention():
    block = reference.architecture(num_labels=None)
    block = {**block, "embedding": {**block["embedding"], "vocab_size": 50}}
    torch.manual_seed(0)
    encoder = Encoder(block)
    ids = torch.randint(50, (2, 9))
    mask = torch.ones(2, 9)
    mask[0, 6:] = 0
    changed = ids.clone()
    changed[0, 6:] = 1
    with torch.no_grad():
        assert torch.equal(encoder(ids, mask)[0, :6], encoder(changed, mask)[0, :6])
        assert not torch.equal(encoder(ids)[0, :6], encoder(changed)[0, :6])
    with pytest.raises(cmm.ShapeError, match="mask has shape"):
        encoder(ids, mask[:, :5])
    with pytest.raises(cmm.ShapeError, match="ids has shape"):
        encoder(ids[0])


def test_hiding_tokens():
    """A quarter of each sequence, no special token while there is another one, 80% masks, 10% anything, 10% as is."""
    ids = torch.randint(5, 1000, (400, 64), generator=torch.Generator().manual_seed(0))
    ids[:, ::8] = data.SPECIAL_IDS["sep"]
    hidden, places, labels = data.hide(ids, 7, 1000)
    assert places.shape == labels.shape == (400, 16)
    assert (places.sort(1).values.diff(dim=1) > 0).all()
    assert torch.equal(labels, ids.gather(1, places))
    assert (labels >= len(data.SPECIAL)).all()
    assert torch.equal(hidden.scatter(1, places, labels), ids)
    now = hidden.gather(1, places)
    # Standard deviations of these shares of 6400 are 0.005 and 0.004.
    assert float((now == data.SPECIAL_IDS["mask"]).float().mean()) == pytest.approx(0.8, abs=0.025)
    assert float((now == labels).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(data.hide(ids, 7, 1000).ids, hidden)
    assert not torch.equal(data.hide(ids, 8, 1000).ids, hidden)


def test_batches_go_through_every_sequence_once_an_epoch():
    sequences = np.arange(60, dtype=np.uint16).reshape(20, 3)
    batches = data.Batches(sequences, 6, seed=1, device=torch.device("cpu"))
    first, second = (torch.cat([batches[step] for step in steps]) for steps in (range(3), range(3, 6)))
    for epoch in (first, second):
        assert len(set(epoch[:, 0].tolist())) == 18
    assert not torch.equal(first, second)
    assert torch.equal(batches[1], first[6:12])
    with pytest.raises(cmm.ArgumentError, match="a batch is 21"):
        data.Batches(sequences, 21, 0, torch.device("cpu"))


def test_the_learning_rate_is_a_triangle():
    assert [training.triangle(x) for x in (0, 0.375, 0.75, 0.875, 1)] == [0.25, 0.625, 1, 0.5, 0]


def test_packing_loses_nothing(corpus, tmp_path):
    data.train_tokenizer(corpus / "train.txt", 300, tmp_path)
    packed = data.pack(corpus / "train.txt", tmp_path / "tokenizer.json", 16)
    tokenizer = cmm.bert.Tokenizer(tmp_path)
    lines = [line for line in (corpus / "train.txt").read_text().splitlines() if line.strip()]
    stream = np.concatenate(tokenizer.encode(lines))
    assert np.array_equal(packed.ravel(), stream[: packed.size])
    assert len(stream) - packed.size < 16
    assert tokenizer.special == {part: data.SPECIAL_IDS[part] for part in ("mask", "sep", "cls")}
    (tmp_path / "short.txt").write_text("a\n")
    with pytest.raises(cmm.ArgumentError, match="less than one sequence"):
        data.pack(tmp_path / "short.txt", tmp_path / "tokenizer.json", 16)


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    command = [sys.executable, ROOT / "docs/examples/train.py", tmp_path / "no", tmp_path / "run", "--steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"train\.py: error: .*No such file or directory: '.*train\.txt'\n", done.stderr)
    assert not (tmp_path / "no").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--vocabulary=301",), "made with --vocabulary 300, not 301"),
        (("--length=17",), "made with --length 16, not 17"),
        (("--device=nowhere",), "device 'nowhere' cannot be used here"),
        (("--layer=2x3",), "is no training state, or not one of this model"),
    ],
)
def test_options_that_do_not_fit(run, corpus, tmp_path, options, problem):
    run("train", corpus, tmp_path, "--layer=2x2", "--steps=2", *TINY, "--stop-after=1")
    with pytest.raises(cmm.CmmError, match=problem):
        run("train", corpus, tmp_path, "--layer=2x2", "--steps=2", *TINY, *options)


def test_another_rate_of_layers_than_the_states(run, corpus, tmp_path):
    common = (corpus, tmp_path, "--layer", "2x2", *TINY, "--steps", 20)
    run("train", *common, "--layer-rate", 2, "--stop-after", 10)
    for rate in (1, 3):  # with 1 the optimizer has other groups
        with pytest.raises(ValueError, match=f"layer_rate is {rate}.*it is 2"):
            run("train", *common, "--layer-rate", rate)


def test_a_broken_state(run, corpus, tmp_path):
    (tmp_path / training.STATE).write_text("broken")
    with pytest.raises(cmm.ArgumentError, match="is no training state"):
        run("train", corpus, tmp_path, "--steps=2", *TINY)


@pytest.mark.parametrize("steps", ["0", "-1", "1.5", "x"])
def test_a_number_of_steps(run, corpus, tmp_path, capsys, steps):
    with pytest.raises(SystemExit):
        run("train", corpus, tmp_path / "run", f"--steps={steps}", *TINY)
    assert "should be a whole number, at least 1" in capsys.readouterr().err


def test_texts_that_cannot_be_used(tmp_path):
    text = tmp_path / "train.txt"
    text.write_text("")
    with pytest.raises(cmm.ArgumentError, match="is empty"):
        data.train_tokenizer(text, 300, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    text.write_text("some words " * 20)
    data.train_tokenizer(text, 300, tmp_path)
    text.write_bytes(b"some \xff words")
    with pytest.raises(cmm.ArgumentError, match="is not UTF-8"):
        data.pack(text, tmp_path / "tokenizer.json", 2)


# ---- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus):
    """A model with random weights and a tokenizer, in the final layout."""
    folder = tmp_path_factory.mktemp("pretrained")
    data.train_tokenizer(corpus / "train.txt", 300, folder)
    torch.manual_seed(0)
    arch = training.architecture("2x2", layers=2, hidden=16, heads=2, vocab_size=300, length=32)
    training.save_final(folder, MaskedLanguageModel(arch), folder)
    return folder


@pytest.mark.full
def test_fine_tuning(run, pretrained, tmp_path):
    """A task that can be learned is learned; numpy's classifier says what PyTorch's said."""
    for name, count in (("train.tsv", 60), ("dev.tsv", 20)):
        lines = [f"{('tree ' if n % 2 else 'token ') * (1 + n % 3)}\t{n % 2}" for n in range(count)]
        (tmp_path / name).write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    run("finetune", pretrained, "SST-2", tmp_path, tmp_path / "out", "--rate", "1e-2", "--epochs", 3)
    with open(tmp_path / "out/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["accuracy"]) == 1
    model = cmm.bert.load(tmp_path / "out/model")
    assert model.classify(["token token", "tree"]).argmax(1).tolist() == [0, 1]


def test_pairs_and_scores(run, pretrained, tmp_path):
    header = "sentence1\tsentence2\tscore\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(header + "".join(f"a token\ta {word}\t{n}.5\n" for n, word in enumerate("xyz")))
    run("finetune", pretrained, "STS-B", tmp_path, tmp_path / "out", "--epochs", 1)
    assert cmm.bert.load(tmp_path / "out/model").classify([("a token", "a x")]).shape == (1, 1)


def test_the_task_of_this_repository(run, tmp_path):
    run("origin_task", ROOT, tmp_path)
    task = glue_tasks.TASKS["SST-2"]
    (texts, labels), (dev, dev_labels) = (glue_tasks.read(tmp_path / name, task) for name in ("train.tsv", "dev.tsv"))
    assert len(texts) > 300
    assert len(dev) > 50
    assert not set(texts) & set(dev)
    assert {0, 1} == set(labels.tolist()) == set(dev_labels.tolist())


def test_what_is_not_the_repositorys_own(run, tmp_path, capsys):
    """Environments and builds within it are left out; a folder with nothing is refused before anything is written."""
    for folder in (".venv/lib", "build", "env/site-packages"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text("this is (no Python")
    with pytest.raises(SystemExit):
        run("origin_task", tmp_path, tmp_path / "out")
    assert "has too few sentences" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_columns_of_glue(tmp_path):
    """As its files have them: CoLA without a header, quotes that are plain characters, lines that are cut short."""
    cola = "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tHe \"said so.\ngj04\t1\n"
    (tmp_path / "dev.tsv").write_text(cola)
    texts, labels = glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["CoLA"])
    assert texts == ["Our friends won't buy this.", 'He "said so.']
    assert labels.tolist() == [1, 0]
    # A byte order mark, as MRPC has, and characters that are no ends of lines.
    mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tOne\x85one\u2028.\tTwo\x0b\x1c.\r\n"
    (tmp_path / "dev.tsv").write_bytes(mrpc.encode())
    texts, labels = glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["MRPC"])
    assert (texts, labels.tolist()) == ([("One\x85one\u2028.", "Two\x0b\x1c.")], [1])
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\nA \xff.\t1\n")
    with pytest.raises(cmm.ArgumentError, match="is not UTF-8"):
        glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["SST-2"])
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\nOne.\tTwo.\tfour\n")
    with pytest.raises(cmm.ArgumentError, match=r"a score that is no number.*four"):
        glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["STS-B"])
    rte = "index\tsentence1\tsentence2\tlabel\n0\tOne.\tTwo.\tnot_entailment\n"
    (tmp_path / "dev.tsv").write_text(rte)
    texts, labels = glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["RTE"])
    assert (texts, labels.tolist()) == ([("One.", "Two.")], [1])
    for text, problem in (
        ("sentence\n", "no column 'sentence1'"),
        (rte.replace("not_", "un"), "a label 'unentailment'; it should be one of the task's"),
        ("", "no column 'sentence1'; it has none"),
        (rte.partition("\n")[0], "no line with 4 columns"),
    ):
        (tmp_path / "dev.tsv").write_text(text)
        with pytest.raises(cmm.ArgumentError, match=problem):
            glue_tasks.read(tmp_path / "dev.tsv", glue_tasks.TASKS["RTE"])


def test_scores():
    """By hand: of 6 answers 1 1 1 0 0 0 the truth is 1 1 0 0 0 1."""
    found, right = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    assert glue_tasks.accuracy(found, right) == pytest.approx(4 / 6)
    assert glue_tasks.f1(found, right) == pytest.approx(2 / 3)
    assert glue_tasks.matthews(found, right) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert glue_tasks.matthews(np.ones(6), right) == 0
    assert glue_tasks.spearman(np.array([1, 20, 300.0]), np.array([1, 2, 3])) == pytest.approx(1)


def test_documented_names():
    page = (ROOT / "docs/guide/training.md").read_text()
    documented = dict(re.findall(r"^\| `cmm\.torch\.(\w+)(\(.*?\))` \|", page, re.MULTILINE))
    assert documented.keys() == set(cmm.torch.__all__)
    for name, arguments in documented.items():
        parameters = inspect.signature(getattr(cmm.torch, name)).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert arguments == str(inspect.Signature(bare)), name


def test_a_classifier_needs_labels():
    with pytest.raises(cmm.ArgumentError, match="num_labels"):
        Classifier(training.architecture("1x1", vocab_size=50))
    with pytest.raises(cmm.ArgumentError, match="layer is '4by7'"):
        training.architecture("4by7")


def test_the_tasks_have_their_old_name_too() -> None:
    old = importlib.import_module("cmm.torch.glue")
    assert old.TASKS is glue_tasks.TASKS
    assert {name: getattr(old, name) for name in old.__all__} == {
        name: getattr(glue_tasks, name) for name in old.__all__
    }
