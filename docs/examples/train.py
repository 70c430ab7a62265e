"""Train an encoder with fast feedforward layers, or dense ones, as the paper did: masked language modelling.

    python docs/examples/corpus.py *.deb --out corpus
    python docs/examples/train.py corpus run-4x7   --layer 4x7        --minutes 6 --bfloat16 --compile
    python docs/examples/train.py corpus run-dense --layer dense:1020 --minutes 6 --bfloat16 --compile
    cmm fill-mask run-4x7 "The function returns a <mask> of strings."

The corpus is a folder with train.txt and heldout.txt: a paragraph a line, an empty line after each document. The
tokenizer and the packed sequences are made there on the first run. The run's folder gets log.csv, the training state,
and at the end the model, in the layout that `cmm export` and cmm.bert.load read. A run that was stopped goes on where
its last state was saved, and ends as it would have.
"""

import argparse
import copy
import csv
import time
from functools import partial
from pathlib import Path

try:
    import torch
except ImportError:
    raise SystemExit("train.py needs PyTorch: pip install torch") from None

import numpy as np
from cmm.errors import ArgumentError
from cmm.torch import MaskedLanguageModel, training
from cmm.torch import data as text


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, number = parser.add_argument, partial(parser.add_argument, type=training.at_least_1, metavar="N")
    add("corpus", type=Path, help="the folder of train.txt and heldout.txt")
    add("out", type=Path, help="the folder of the run")
    add("--layer", default="4x7", metavar="KxD", help="trees x depth, or dense:NEURONS (default 4x7)")
    number("--layers", default=5, help="transformer layers (default 5)")
    number("--hidden", default=192, help="width (default 192)")
    number("--heads", default=4, help="attention heads (default 4)")
    number("--vocabulary", default=6144, help="tokens of the tokenizer (default 6144)")
    number("--length", default=128, help="tokens of a sequence (default 128)")
    number("--batch", default=512, help="sequences of a step (default 512)")
    add("--rate", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    how_long = parser.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--steps", type=training.at_least_1, metavar="N", help="how many steps")
    how_long.add_argument("--minutes", type=float, help="as many steps as fit in these, measured by some trial steps")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and masks (default 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default a GPU if there is one)")
    add("--bfloat16", action="store_true", help="matrix products in bfloat16, by autocast")
    add("--compile", action="store_true", help="torch.compile the model")
    number("--log-every", default=100, help="steps between lines of the log (default 100)")
    number("--save-every", default=1000, help="steps between held-out losses and states saved")
    add("--keep", action="store_true", help="keep every state, in folders of its own")
    number("--stop-after", help="stop after that step, as if interrupted")
    return parser.parse_args()


def main() -> None:
    """Train."""
    options = parse_options()
    device = training.usable_device(options.device)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    sequences, held_out = prepare(options.corpus, options.vocabulary, options.length)
    batches = text.Batches(sequences, options.batch, options.seed, device)
    shape = {"layers": options.layers, "hidden": options.hidden, "heads": options.heads}
    arch = training.architecture(options.layer, **shape, vocab_size=options.vocabulary, length=sequences.shape[1])
    model = MaskedLanguageModel(arch).to(device)
    optimizer = training.make_optimizer(model, options.rate)
    forward = torch.compile(model) if options.compile else model

    def step(number: int, total: int) -> torch.Tensor:
        masked = text.hide(batches[number], options.seed * 1_000_003 + number, options.vocabulary)
        with training.autocast(device, options.bfloat16):
            loss, _ = training.masked_loss(forward, masked)
        training.descend(model, optimizer, loss, options.rate * training.triangle(number / total))
        return loss.detach()

    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / training.STATE).exists():
        state = training.load_state(options.out, model, optimizer)
        done, total = state["steps"], state["total"]
        print(f"going on after step {done} of {total}", flush=True)
    else:
        done, total = 0, options.steps or affordable(step, model, optimizer, 60 * options.minutes)
    began, spent, losses = time.perf_counter(), read_log(options.out / "log.csv", done), []
    log = options.out / "log.csv"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, {total} steps of {options.batch * sequences.shape[1]} tokens", flush=True)
    for number in range(done, total):
        losses.append(step(number, total))
        done = number + 1
        saving = done % options.save_every == 0 or done in (total, options.stop_after)
        if saving or done % options.log_every == 0:
            row = {"step": done, "seconds": round(spent + time.perf_counter() - began, 1)}
            row["loss"] = round(float(torch.stack(losses).mean()), 5)
            losses.clear()
            if saving:
                loss, accuracy = training.held_out(
                    model, torch.from_numpy(held_out.astype(np.int32)), options.batch, options.bfloat16
                )
                row |= {"held_out_loss": round(loss, 5), "held_out_accuracy": round(accuracy, 5)}
                training.save_state(options.out, model, optimizer, {"steps": done, "total": total})
                if options.keep:
                    kept = options.out / f"step-{done}"
                    kept.mkdir(exist_ok=True)
                    training.save_state(kept, model, optimizer, {"steps": done, "total": total})
            write_log(log, row)
        if done == options.stop_after:
            return
    training.save_final(options.out, model, options.corpus)
    print(f"wrote {options.out}", flush=True)


def prepare(corpus: Path, vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed sequences, training's and held out; make what is not there."""
    if not (corpus / "tokenizer.json").exists():
        print("training the tokenizer", flush=True)
        text.train_tokenizer(corpus / "train.txt", vocabulary, corpus)
    for name in ("train", "heldout"):
        if not (corpus / f"{name}.npy").exists():
            print(f"packing {name}.txt", flush=True)
            np.save(corpus / f"{name}.npy", text.pack(corpus / f"{name}.txt", corpus / "tokenizer.json", length))
    train, held_out = (np.load(corpus / f"{name}.npy") for name in ("train", "heldout"))
    made = {"--vocabulary": text.vocabulary_of(corpus / "tokenizer.json"), "--length": train.shape[1]}
    for (option, there), wanted in zip(made.items(), (vocabulary, length), strict=True):
        if there != wanted:
            raise ArgumentError(f"{corpus} was made with {option} {there}, not {wanted}: use that, or another folder")
    return train, held_out


def affordable(step, model, optimizer, seconds: float, trial: int = 30) -> int:
    """Return how many steps fit in a time, and leave model and optimizer as they were."""
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for number in range(2 * trial):
        if number == trial:  # what came before compiled and warmed up
            began = _now()
        step(number, 2 * trial)
    took = (_now() - began) / trial
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    return max(1, int(seconds / took))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


_COLUMNS = ("step", "seconds", "loss", "held_out_loss", "held_out_accuracy")


def write_log(file: Path, row: dict[str, float]) -> None:
    """Add a line to the log, and say it."""
    new = not file.exists()
    with open(file, "a", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, _COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def read_log(file: Path, done: int) -> float:
    """Drop what a run that was stopped has logged after its last state; return the seconds until then."""
    if not file.exists():
        return 0.0
    with open(file, newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= done]
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return float(rows[-1]["seconds"]) if rows else 0.0


if __name__ == "__main__":
    training.run_script(main)
