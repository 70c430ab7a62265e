"""The six tasks and the comparison on them: nothing is in two files, padding changes nothing, the table is right."""

import importlib.util
import json
import sys
from argparse import Namespace

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from building import ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from cmm.bert import glue_tasks  # noqa: E402


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "docs/examples"))
    modules = {}
    try:
        for name in ("tasks", "finetune", "compare"):
            spec = importlib.util.spec_from_file_location(name, ROOT / "docs/examples" / f"{name}.py")
            modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
        yield Namespace(**modules)
    finally:
        sys.path.remove(str(ROOT / "docs/examples"))
        for name in modules:
            del sys.modules[name]


WORDS = "one two three four five six seven eight nine ten eleven twelve"


def test_what_belongs_together_is_in_one_file(script, tmp_path):
    rows = [script.tasks.Row(f"group {n // 3}", (f"text {n}",), "ab"[n % 2]) for n in range(600)]
    script.tasks.write(tmp_path, [*rows, *rows[:5]])
    task = glue_tasks.with_labels(glue_tasks.TASKS["classification"], tmp_path / "train.tsv")
    where = {}
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        texts, labels = glue_tasks.read(tmp_path / file, task)
        assert len(texts) > 30
        for text, label in zip(texts, labels, strict=True):
            number = int(text.split()[1])
            assert label == number % 2
            where.setdefault(number // 3, []).append(file)
    assert len(where) == 200
    assert all(len(files) == 3 and len({*files}) == 1 for files in where.values())


def test_descriptions_have_their_sections_and_synopses(script):
    packages = "\n\n".join(f"Package: p{n}\nSource: s{n} (1.0)\nSection: {'ab'[n % 2]}" for n in range(40))
    texts = "\n\n".join(
        f"Package: p{n}\nDescription-md5: {n}\nDescription-en: short {n}\n {WORDS}\n .\n number {n}"
        for n in range(40)
    )
    found = list(script.tasks.read_packages((packages, texts)))
    assert found[3] == script.tasks.Package("s3", "b", "short 3", f"{WORDS} number 3")
    assert {(row.texts[0].split()[-1], row.label) for row in script.tasks.sections(found)} == {
        (str(n), "ab"[n % 2]) for n in range(40)
    }
    rows = script.tasks.synopses(found)
    assert {row.label for row in rows} == {"0", "1"}
    for row in rows:
        short, text = (int(part.split()[-1]) for part in row.texts)
        assert row.group == f"s{text}"
        assert (short == text) == (row.label == "1")
        assert short % 2 == text % 2  # of one section
        assert script.tasks.goes_to(f"s{short}") == script.tasks.goes_to(f"s{text}")


@pytest.fixture(scope="module")
def classifier(script):
    block = reference.architecture()
    pretrained = cmm.bert.from_state_dict(reference.state_dict(block, seed=1), block)
    torch.manual_seed(0)
    return script.finetune.classifier(pretrained, 3, ("a", "b", "c"))


TEXTS = [np.arange(1, n + 1, dtype=np.uint16) for n in (3, 16, 1, 9, 9, 2)]


@pytest.mark.full
def test_padding_changes_nothing_but_rounding(script, classifier):
    found = script.compare.predict(classifier, TEXTS)
    classifier.eval()
    with torch.no_grad():
        each = [classifier(torch.from_numpy(text.astype(np.int64))[None])[0].numpy() for text in TEXTS]
    classifier.train()
    # Of values of order 1, means of at most 16 tokens in another order: some units of 2^-24, and a few layers deep.
    np.testing.assert_allclose(found, each, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-3  # or a model that says the same of all would pass


@pytest.mark.full
def test_the_names_of_labels_are_kept(classifier):
    assert classifier.config.label_names == ("a", "b", "c")


def test_the_table_has_medians_of_the_best_rate(script, tmp_path, capsys):
    tasks, results, page = tmp_path / "tasks", tmp_path / "results", tmp_path / "page.md"
    rows = [("a b", "no"), ("c d", "yes"), ("e f", "yes"), ("g h", "yes")]
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        (tasks / "mine").mkdir(parents=True, exist_ok=True)
        (tasks / "mine" / file).write_text(
            "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
        )
    (tasks / "tasks.json").write_text(json.dumps({"mine": "classification"}))
    results.mkdir()
    about = json.dumps({"card": "a card"})

    def write(name, rate, seed, dev, test):
        found = {"dev.tsv": np.eye(2)[dev], "test.tsv": np.eye(2)[test]}
        np.savez(results / f"{name}-mine-{rate}-{seed}.npz", about=about, **found)

    write("fff", "0.001", 0, [0, 0, 0, 0], [0, 1, 1, 1])  # not the best on dev.tsv, so not looked at
    for seed, test in enumerate(([0, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0])):
        write("fff", "0.0003", seed, [0, 1, 1, 1], test)
        write("dense", "0.001", seed, [0, 1, 1, 1], [0, 1, 1, 1])
    page.write_text(f"before\n{script.compare._BEGIN}old\n{script.compare._END}after\n")
    script.compare.table(Namespace(tasks=tasks, results=results, page=page))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| mine | accuracy | **75.0** (100.0, 0.0, 75.0) | **100.0** (100.0, 100.0, 100.0) | 75.0 |" in text
    assert "mine FFF 0.0003, mine dense twin 0.001" in text
    assert "has 75.0 % of" in text
    assert "Fine-tuned on: a card." in text
