"""Fine-tune a trained encoder on a task in GLUE's format, and write the classifier.

    python docs/examples/finetune.py run-16x5 SST-2 glue/SST-2 sst2
    cmm eval sst2/model SST-2 glue/SST-2
    cmm classify sst2/model "A film to remember."

The task's folder has train.tsv and dev.tsv as GLUE has them; classification, pairs and regression are tasks with the
columns of docs/examples/tasks.py and labels of their own. As the paper did it: 5 epochs at 4e-5, 15 for CoLA. The
learning rate falls to 0 in a straight line. A batch's texts of equal length run together, without padding, as
`cmm classify` runs them. The run's folder gets scores.csv, a line for each epoch and file, and model/, in the layout
that `cmm classify` and cmm.bert.load read.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import torch
except ImportError:
    raise SystemExit("finetune.py needs PyTorch: pip install torch") from None

import cmm.bert
import numpy as np
from cmm.bert import glue_tasks
from cmm.bert.text import batches, encode
from cmm.bert.tokenizer import checked_texts
from cmm.torch import Classifier, training
from torch.nn import functional


def main() -> None:
    """Fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, help="a folder that training or `cmm export` left")
    add("task", choices=glue_tasks.TASKS, help="whose columns and scores to use")
    add("data", type=Path, help="the folder of train.tsv and dev.tsv")
    add("out", type=Path, help="the folder to make")
    add("--epochs", type=training.at_least_1, metavar="N", help="(default 5, for CoLA 15)")
    add("--rate", type=float, default=4e-5, help="learning rate at the start (default 4e-5)")
    add("--batch", type=training.at_least_1, default=16, metavar="N", help="texts of a step (default 16)")
    add("--seed", type=int, default=0, metavar="N", help="of the head's weights and of the order (default 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default a GPU if there is one)")
    options = parser.parse_args()

    options.device = training.usable_device(options.device)
    torch.manual_seed(options.seed)
    task = glue_tasks.with_labels(glue_tasks.TASKS[options.task], options.data / "train.tsv")
    pretrained = cmm.bert.load(options.model)
    model = classifier(pretrained, max(1, len(task.labels)), task.labels).to(options.device)
    limit = pretrained.config.max_seq_length
    files = {
        file: (encode(pretrained.tokenizer, limit, checked_texts(texts, file), truncate=True), labels)
        for file in ("train.tsv", *task.dev)
        for texts, labels in [glue_tasks.read(options.data / file, task)]
    }
    ids, labels = files.pop("train.tsv")
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "scores.csv", "w", newline="", encoding="utf-8") as out:
        log = csv.DictWriter(out, ["epoch", "file", "loss", *task.scores])
        log.writeheader()
        epochs = options.epochs or task.epochs
        for epoch, loss in enumerate(epochs_of(model, ids, labels, epochs, options), 1):
            for file, (texts, right) in files.items():
                row = {"epoch": epoch, "file": file, "loss": round(loss, 4)}
                scores = glue_tasks.scores(task, predict(model, texts), right)
                row |= {name: round(score, 4) for name, score in scores.items()}
                log.writerow(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    training.save_final(options.out / "model", model, pretrained.tokenizer.file.parent)
    print(f"wrote {options.out / 'model'}")


def classifier(pretrained: cmm.bert.Model, labels: int, names: Sequence[str] = ()) -> Classifier:
    """Return a classifier with a new head on a trained encoder; the names of its labels are saved with it."""
    arch = dict(pretrained.config.arch)
    arch["embedding"] = {**arch["embedding"], "vocab_size": len(pretrained.weights.word)}
    arch["label_names"] = list(names) or None
    head = {"pooler": "avg", "include_ff_layer": True, "head_dim": pretrained.config.hidden, "nonlin": "Tanh"}
    model = Classifier({**arch, "num_labels": labels, "classification_head": arch.get("classification_head", head)})
    weights = training.state_dict(pretrained)
    model.encoder.load_state_dict(
        {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
    )
    return model


def epochs_of(
    model: Classifier, ids: list[list[int]], labels: np.ndarray, epochs: int, options: argparse.Namespace
) -> Iterator[float]:
    """Train, and yield the mean loss after each epoch."""
    optimizer = training.make_optimizer(model, options.rate)
    rng = np.random.default_rng(options.seed)
    steps = -(-len(ids) // options.batch)
    for epoch in range(epochs):
        losses = []
        order = rng.permutation(len(ids))
        for number, some in enumerate(np.array_split(order, steps)):
            total = torch.zeros((), device=options.device)
            for same in batches([len(ids[index]) for index in some]):
                total = total + loss_sum(model, [ids[index] for index in some[same]], labels[some[same]])
            loss = total / len(some)
            losses.append(float(loss.detach()))
            training.descend(model, optimizer, loss, options.rate * (1 - (epoch * steps + number) / (epochs * steps)))
        yield float(np.mean(losses))


def loss_sum(model: Classifier, texts: list[list[int]], labels: np.ndarray) -> torch.Tensor:
    """Return the summed loss of texts of one length: cross-entropy, or squared errors of a score."""
    device = model.head.weight.device
    logits, right = model(torch.tensor(texts, device=device)), torch.from_numpy(labels).to(device)
    if labels.dtype == np.int64:
        return functional.cross_entropy(logits, right, reduction="sum")
    return functional.mse_loss(logits[:, 0], right, reduction="sum")


def predict(model: Classifier, ids: list[list[int]]) -> np.ndarray:
    """Return the logits of texts, (texts, labels), computed in eval(), so that libcmm runs the layers."""
    result = np.empty((len(ids), model.head.out_features), np.float32)
    device = model.head.weight.device
    model.eval()
    with torch.no_grad():
        for some in batches([len(one) for one in ids]):
            result[some] = model(torch.tensor([ids[index] for index in some], device=device)).cpu().numpy()
    model.train()
    return result


if __name__ == "__main__":
    training.run_script(main)
