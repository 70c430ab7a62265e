"""What cmm eval measures is what the definitions give, and what cannot be measured is said in one line."""

import json
import math

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.__main__ import main

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
import bert_tokenizer as tiny
from cmm.bert import evaluation, glue_tasks

BLOCK = reference.architecture(embedding__max_seq_length=8)
TEXTS = ["the cat sat on the mat.", "a dog ran, and the cat ran under the moon and sat on a mat.", ""]
# The same products over other numbers of rows add in another order; logits are of order 1, and 24 terms of each sum
# have relative errors of 2^-24: a mean of logarithms is off by far less than this.
CLOSE = 1e-4


def made(path, labels=None, names=None, **how):
    block = {**BLOCK, "label_names": names} if names else BLOCK
    reference.save_final(path, block, reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE, labels=labels, **how))
    tiny.save(path)
    return path


def pieces(model):
    for text in TEXTS[:2]:
        ids = model.tokenizer.encode(text)
        yield from (ids[start : start + 8] for start in range(0, len(ids), 8))


def test_pseudo_perplexity_masks_each_token_alone(tmp_path):
    model = cmm.bert.load(made(tmp_path))
    mask, sep = (model.tokenizer.id_of(role) for role in ("mask", "sep"))
    losses, right = [], []
    for ids in pieces(model):
        for place, id in enumerate(ids):
            if id != sep:
                row = model.logits([[*ids[:place], mask, *ids[place + 1 :]]])[0, place].astype(np.float64)
                losses.append(math.log(np.exp(row).sum()) - row[id])
                right.append(row.argmax() == id)
    found = evaluation.masked(model, TEXTS)
    assert found.tokens == len(losses) > 20
    assert found.loss == pytest.approx(np.mean(losses), abs=CLOSE)
    assert found.accuracy == np.mean(right)


def test_a_share_is_hidden_at_once(tmp_path):
    model = cmm.bert.load(made(tmp_path))
    sep = model.tokenizer.id_of("sep")
    words = [sum(id != sep for id in ids) for ids in pieces(model)]
    assert evaluation.masked(model, TEXTS, share=0.25).tokens == sum(max(1, round(0.25 * n)) for n in words if n)
    assert evaluation.masked(model, TEXTS, share=0.5, seed=1) == evaluation.masked(model, TEXTS, share=0.5, seed=1)
    assert evaluation.masked(model, TEXTS, share=0.5, seed=1) != evaluation.masked(model, TEXTS, share=0.5, seed=2)


def write(folder, rows, *, file="dev.tsv", header=("sentence", "label")):
    folder.mkdir(exist_ok=True)
    (folder / file).write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n")
    return folder


ROWS = [("the cat", "yes"), ("a dog ran", "no"), ("the moon", "no"), ("a cat sat", "yes"), ("the dog sat", "yes")]


def test_classification(tmp_path, capsys):
    folder, data = made(tmp_path / "model", labels=2, names=["no", "yes"]), write(tmp_path / "data", ROWS)
    model = cmm.bert.load(folder)
    assert model.label_names == ("no", "yes")
    said = model.classify([text for text, _ in ROWS]).argmax(1)
    right = np.array([int(label == "yes") for _, label in ROWS])
    assert 0 < said.sum() < 5  # or the order of labels would not show
    assert main(["eval", str(folder), "classification", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["dev.tsv"]
    assert found == {
        "texts": 5,
        "accuracy": np.mean(said == right),
        "f1": glue_tasks.f1(said, right),
        "matthews": pytest.approx(glue_tasks.matthews(said, right)),
    }
    assert main(["classify", str(folder), "the cat"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == ["no", "yes"][said[0]]
    # Without names those of train.tsv count, in the order of letters, as fine-tuning takes them.
    write(data, ROWS, file="train.tsv")
    (folder / "model_config.json").write_text(json.dumps(BLOCK))
    assert evaluation.of_task(cmm.bert.load(folder), "classification", data)["dev.tsv"] == found
    # A task's own labels may be in another order than the model's.
    names = ["not_entailment", "entailment"]
    other = cmm.bert.load(made(tmp_path / "other", labels=2, names=names))
    assert evaluation.task_of(other, "RTE", data).labels == glue_tasks.TASKS["RTE"].labels != tuple(names)


def test_scores_are_of_the_tasks_labels(tmp_path):
    """F1 is of label 1 of the task, wherever the model has it."""
    rows = [(text, "the mat", str(number % 2)) for number, (text, _) in enumerate(ROWS)]
    data = write(tmp_path / "data", rows, header=("#1 String", "#2 String", "Quality"))
    model = cmm.bert.load(made(tmp_path / "model", labels=2, names=["1", "0"]))
    predicted = 1 - model.classify([pair[:2] for pair in rows]).argmax(1)
    right = np.arange(5) % 2
    wrong = glue_tasks.f1(predicted == 0, right == 0)
    found = evaluation.of_task(model, "MRPC", data)["dev.tsv"]
    assert found["f1"] == glue_tasks.f1(predicted, right) != wrong
    assert found["accuracy"] == np.mean(predicted == right)


def test_regression_and_export_keep_what_they_should(tmp_path):
    from scipy import stats

    model = cmm.bert.load(made(tmp_path / "model", labels=1))
    data = write(tmp_path / "data", [(text, f"{number}.5") for number, (text, _) in enumerate(ROWS)])
    said = model.classify([text for text, _ in ROWS])[:, 0]
    found = evaluation.of_task(model, "regression", data)["dev.tsv"]
    assert found["pearson"] == pytest.approx(stats.pearsonr(said, np.arange(5))[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, np.arange(5))[0])
    named = made(tmp_path / "named", labels=2, names=["no", "yes"])
    assert cmm.bert.load(cmm.bert.export(named, tmp_path / "exported")).label_names == ("no", "yes")


def test_a_suite_takes_medians(tmp_path, capsys):
    data = tmp_path / "glue"
    for task in ("CoLA", "SST-2"):
        data.mkdir(exist_ok=True)
        if task == "CoLA":
            write(data / task, [("x", str(n % 2), "y", text) for n, (text, _) in enumerate(ROWS)], header=("a",))
        else:
            write(data / task, [(text, str(int(label == "yes"))) for text, label in ROWS])
    runs = tmp_path / "runs"
    for seed in range(3):
        state = reference.state_dict(BLOCK, seed=seed, vocab=tiny.SIZE, labels=2)
        for task in ("CoLA", "SST-2"):
            reference.save_final(runs / "mine" / task / str(seed) / "model", BLOCK, state)
            tiny.save(runs / "mine" / task / str(seed) / "model")
    found = evaluation.suite(runs, data)["mine"]
    assert {task: len(values) for task, values in found.items()} == {"CoLA": 3, "SST-2": 3}
    assert main(["eval", "--suite", str(runs), str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    middle = sorted(found["SST-2"])[1]
    assert f"| {middle:.1f} (3) |" in lines[2]
    assert lines[2].endswith(f"| {(middle + sorted(found['CoLA'])[1]) / 2:.1f} |")
    assert lines[0].endswith("| mean of 2 |")
    assert len(lines) == 3  # the paper's means are of all of GLUE's tasks
    glue = [name for name in glue_tasks.TASKS if not name.islower()]
    lines = evaluation.as_table(
        {"mine": {name: [60.0 + 20 * (name != "CoLA")] for name in glue}}, paper=True
    ).splitlines()
    assert lines[2].endswith(f"| 80.0 | {(80.0 * (len(glue) - 1) + 60) / len(glue):.1f} |")
    assert "UltraFastBERT-1x11-long (12 used; paper)" in lines[-2]
    assert len(lines) == 3 + len(evaluation.PAPER)


def test_what_cannot_be_measured_is_said_in_a_line(tmp_path, capsys):
    bare, headless = made(tmp_path / "bare"), made(tmp_path / "headless", labels=2, decoder=False)
    two = made(tmp_path / "two", labels=2, names=["no", "yes"])
    data = write(tmp_path / "data", [("the cat", "perhaps")])
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.txt").write_text("the cat sat\n")
    no_mask = made(tmp_path / "no_mask")
    tiny.save(no_mask, special={part: token for part, token in tiny.SPECIAL.items() if part != "mask"})
    for arguments, message in (
        ((headless, "text", tmp_path / "text.txt"), "has no masked-language-model head"),
        ((no_mask, "text", tmp_path / "text.txt"), "has no special token for 'mask'"),
        ((two, "text", tmp_path / "empty.txt"), "has no text"),
        ((two, "text", tmp_path / "broken.txt"), "is not UTF-8"),
        ((two, "text", tmp_path / "nowhere.txt"), "No such file or directory"),
        ((two, "text", tmp_path / "data"), "has no .txt file"),
        ((bare, "classification", data), "has no classifier"),
        ((two, "classification", data), "has a label 'perhaps'; it should be one of the task's, no, yes"),
        ((two, "MNLI", data), "has the labels no, yes, and MNLI has entailment"),
        ((two, "regression", data), "has a classifier of 2 labels, and regression has a score"),
        ((two, "pairs", data), "has no column 'sentence1'"),
        ((two, "classification", data, "--file", "test.tsv"), "No such file or directory"),
        ((two, "classification", data, "--at-most", "1"), "--at-most is given; it is of TASK text"),
        ((two, "text", tmp_path / "text.txt", "--file", "a"), "--file is given; it is not of TASK text"),
        ((two, "verse", data), "TASK is 'verse'; it should be one of text, CoLA"),
        ((two, "text"), "should be given MODEL TASK FOLDER"),
        (("--suite", tmp_path, data), "has no tasks.json"),
    ):
        assert main(["eval", *map(str, arguments)]) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("cmm eval: error: ")
        assert message in err
        assert err.count("\n") == 1


def test_names_of_labels_are_checked(tmp_path):
    for names in (["a"], ["a", "a"], "ab", [1, 2]):
        folder = made(tmp_path, labels=2)
        (folder / "model_config.json").write_text(json.dumps({**BLOCK, "num_labels": 2, "label_names": names}))
        with pytest.raises(cmm.bert.CheckpointError, match="label_names"):
            cmm.bert.load(folder)
