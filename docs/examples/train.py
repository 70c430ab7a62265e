"""Train an encoder with fast feedforward layers, or dense ones: masked language modelling.

    python docs/examples/corpus.py *.deb --out corpus
    python docs/examples/train.py corpus run-16x5  --layer 16x5       --minutes 6 --bfloat16 --compile
    python docs/examples/train.py corpus run-dense --layer dense:1008 --minutes 6 --bfloat16 --compile
    torchrun --standalone --nproc-per-node 4 docs/examples/train.py corpus run-16x5 --layer 16x5 --minutes 6
    cmm fill-mask run-16x5 "The function returns a <mask> of strings."

The corpus is a folder with train.txt and heldout.txt: a paragraph a line, an empty line after each document. The
tokenizer and the packed sequences are made there on the first run. The run's folder gets log.csv, the training state,
and at the end result.json and the model, in the layout that `cmm export` and cmm.bert.load read. A run that was
stopped goes on where its last state was saved, and ends as it would have. Under torchrun each process takes its share
of every batch, on a GPU of its own; held-out text is read, and files are written, by the first.

What each option did to a model is in docs/study.md; the defaults are those of its main rows.
"""

import argparse
import copy
import csv
import json
import os
import time
from functools import partial
from pathlib import Path

try:
    import torch
except ImportError:
    raise SystemExit("train.py needs PyTorch: pip install torch") from None

import numpy as np
import torch.distributed as dist
from cmm.errors import ArgumentError
from cmm.torch import MaskedLanguageModel, set_softness, training
from cmm.torch import data as text
from cmm.torch.model import Dense

_RATES = {True: 3e-3, False: 4e-3}  # of dense layers, and of trees


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, number = parser.add_argument, partial(parser.add_argument, type=training.at_least_1, metavar="N")
    share = partial(parser.add_argument, type=a_share, metavar="SHARE")
    add("corpus", type=Path, help="the folder of train.txt and heldout.txt")
    add("out", type=Path, help="the folder of the run")
    add("--layer", default="16x5", metavar="KxD", help="trees x depth, or dense:NEURONS (default 16x5)")
    number("--layers", default=5, help="transformer layers (default 5)")
    number("--hidden", default=192, help="width (default 192)")
    number("--heads", default=4, help="attention heads (default 4)")
    number("--vocabulary", default=6144, help="tokens of the tokenizer (default 6144)")
    number("--length", default=128, help="tokens of a sequence (default 128)")
    number("--batch", default=512, help="sequences of a step, of all processes together (default 512)")
    add("--rate", type=float, help="peak learning rate (default 4e-3, of dense layers 3e-3)")
    add("--layer-rate", type=float, default=1, metavar="F", help="times that for feedforward layers (default 1)")
    add("--schedule", choices=sorted(training.SCHEDULES), default="cosine", help="of the rate (default cosine)")
    share("--soft-until", default=0.12, help="of the steps, in which all neurons act alike (default .12)")
    share("--soft-gone", default=0.3, help="of the steps, after which only the path acts (default .3; 0: never soft)")
    add("--balance", type=float, default=0.2, metavar="W", help="weight of the loss that keeps leaves alive (.2)")
    add("--straight-through", action="store_true", help="give the choice of a child a gradient")
    number("--always-on", default=0, help="dense neurons beside the trees, for the study: cmm.bert has no such layer")
    share("--masked", default=0.25, help="of the tokens, to hide (default .25)")
    share("--masked-last", help="the same in the last step, with steady steps between (default: as --masked)")
    how_long = parser.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--steps", type=training.at_least_1, metavar="N", help="how many steps")
    how_long.add_argument("--minutes", type=float, help="as many steps as fit in these, measured by some trial steps")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and masks (default 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default a GPU if there is one)")
    add("--bfloat16", action="store_true", help="matrix products in bfloat16, by autocast")
    add("--compile", action="store_true", help="torch.compile the model and its loss")
    number("--log-every", default=100, help="steps between lines of the log (default 100)")
    number("--save-every", default=1000, help="steps between held-out losses and states saved")
    add("--keep", action="store_true", help="keep every state, in folders of its own")
    number("--stop-after", help="stop after that step, as if interrupted")
    return parser.parse_args()


def a_share(text: str) -> float:
    """Return an option's number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0 to 1")
    return value


def main() -> None:
    """Train."""
    options = parse_options()
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if options.batch % processes:
        raise ArgumentError(f"--batch is {options.batch}; it should be a multiple of the {processes} processes")
    name = options.device
    if processes > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" else name
        device = training.usable_device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    else:
        device = training.usable_device(name)
    try:
        train(options, device, rank, processes)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def train(options: argparse.Namespace, device: torch.device, rank: int, processes: int) -> None:
    """Train in one process, or in one of several."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    is_first = rank == 0
    if is_first:
        prepare(options.corpus, options.vocabulary, options.length)
    if processes > 1:
        dist.barrier()
    sequences, held_out = prepare(options.corpus, options.vocabulary, options.length)
    batches = text.Batches(sequences, options.batch, options.seed, device)
    shape = {"layers": options.layers, "hidden": options.hidden, "heads": options.heads}
    arch = training.architecture(options.layer, **shape, vocab_size=options.vocabulary, length=sequences.shape[1])
    model = MaskedLanguageModel(arch)
    if options.always_on:
        for layer in model.encoder.layers:
            layer.ffn = AlwaysOn(layer.ffn, options.hidden, options.always_on)
    model = model.to(device)
    objective = training.Objective(model, options.balance)
    for layer in objective.trees:
        layer.straight_through = options.straight_through
    if options.rate is None:
        options.rate = _RATES[not objective.trees]
    optimizer = training.make_optimizer(model, options.rate, options.layer_rate)
    forward: torch.nn.Module = objective
    if processes > 1:
        forward = torch.nn.parallel.DistributedDataParallel(objective)
    if options.compile:
        forward = torch.compile(forward)
    schedule = training.SCHEDULES[options.schedule]
    own = slice(rank * options.batch // processes, (rank + 1) * options.batch // processes)
    masked_last = options.masked if options.masked_last is None else options.masked_last

    def step(number: int, total: int) -> torch.Tensor:
        share = number / total
        set_softness(model, training.softness(share, options.soft_until, options.soft_gone))
        hidden = options.masked + share * (masked_last - options.masked)
        masked = text.hide(batches[number], options.seed * 1_000_003 + number, options.vocabulary, hidden)
        masked = text.Masked(*(part[own] for part in masked))
        with training.autocast(device, options.bfloat16):
            loss, plain = forward(masked)
        training.descend(model, optimizer, loss, options.rate * schedule(share))
        return plain

    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / training.STATE).exists():
        state = training.load_state(options.out, model, optimizer, {"layer_rate": options.layer_rate})
        done, total = state["steps"], state["total"]
        say(f"going on after step {done} of {total}", is_first)
    else:
        done, total = 0, options.steps or affordable(step, model, optimizer, 60 * options.minutes)
        total = of_first(total, processes)
    log = options.out / "log.csv"
    spent = read_log(log, done) if is_first else 0.0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{parameters} parameters, {total} steps of {options.batch * sequences.shape[1]} tokens", is_first)
    began, losses = time.perf_counter(), []
    for number in range(done, total):
        losses.append(step(number, total))
        done = number + 1
        saving = done % options.save_every == 0 or done in (total, options.stop_after)
        if is_first and (saving or done % options.log_every == 0):
            row = {"step": done, "seconds": round(spent + time.perf_counter() - began, 1)}
            row["loss"] = round(float(torch.stack(losses).mean()), 5)
            losses.clear()
            if saving:
                loss, accuracy = training.held_out(model, tokens(held_out), options.batch, options.bfloat16)
                row |= {"held_out_loss": round(loss, 5), "held_out_accuracy": round(accuracy, 5)}
                state = {"steps": done, "total": total, "layer_rate": options.layer_rate}
                training.save_state(options.out, model, optimizer, state)
                if options.keep:
                    kept = options.out / f"step-{done}"
                    kept.mkdir(exist_ok=True)
                    training.save_state(kept, model, optimizer, state)
            write_log(log, row)
        if done == options.stop_after:
            return
    if is_first:
        result = {"parameters": parameters, "steps": total, "processes": processes, "device": device_name(device)}
        result["options"] = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
        result["seconds"] = round(spent + time.perf_counter() - began, 1)
        result |= results(model, options, held_out)
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if not options.always_on:
            training.save_final(options.out, model, options.corpus)
        say(f"wrote {options.out}", is_first)


class AlwaysOn(torch.nn.Module):
    """A feedforward layer, and beside it some dense neurons that act for every token."""

    def __init__(self, layer: torch.nn.Module, width: int, neurons: int) -> None:
        super().__init__()
        self.layer, self.dense = layer, Dense(width, neurons, gated=False)
        for linear in (self.dense.dense_in, self.dense.dense_out):
            torch.nn.init.normal_(linear.weight, std=0.02)  # as all other matrices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.layer(x) + self.dense(x)


def results(model: MaskedLanguageModel, options: argparse.Namespace, held_out: np.ndarray) -> dict:
    """Return how well a trained model does, on held-out documents and packages, and how it uses its leaves."""
    found = {}
    texts = {"held_out": held_out}
    if (options.corpus / f"{PACKAGES}.npy").exists():
        texts["held_out_packages"] = np.load(options.corpus / f"{PACKAGES}.npy")
    for name, some in texts.items():
        loss, accuracy = training.held_out(model, tokens(some), options.batch, options.bfloat16)
        found[name] = {"loss": round(loss, 5), "accuracy": round(accuracy, 5)}
    counts = training.leaves(model, tokens(held_out), options.batch, options.bfloat16)
    found["leaves"] = [
        {"dead": int((count == 0).sum()), "of": count.numel(), "perplexity": round(perplexity(count), 2)}
        for count in counts
    ]
    return found


def perplexity(count: torch.Tensor) -> float:
    """Return the mean over the trees (K, leaves) of exp of the entropy of their leaves."""
    share = count / count.sum(1, keepdim=True)
    return float(torch.exp(torch.special.entr(share).sum(1)).mean())


def tokens(sequences: np.ndarray) -> torch.Tensor:
    """Return packed sequences as PyTorch takes them."""
    return torch.from_numpy(sequences.astype(np.int32))


def say(what: str, is_first: bool) -> None:
    """Print a line, in the first process."""
    if is_first:
        print(what, flush=True)


def of_first(value: int, processes: int) -> int:
    """Return the number that the first process has."""
    values = [value]
    if processes > 1:
        dist.broadcast_object_list(values)
    return values[0]


def device_name(device: torch.device) -> str:
    """Return what a device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


#: What corpus.py calls the text of packages of which nothing is trained on.
PACKAGES = "heldout-packages"


def prepare(corpus: Path, vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed sequences, training's and held out; make what is not there."""
    if not (corpus / "tokenizer.json").exists():
        print("training the tokenizer", flush=True)
        text.train_tokenizer(corpus / "train.txt", vocabulary, corpus)
    for name in ("train", "heldout", *([PACKAGES] if (corpus / f"{PACKAGES}.txt").exists() else [])):
        if not (corpus / f"{name}.npy").exists():
            print(f"packing {name}.txt", flush=True)
            packed = text.pack(corpus / f"{name}.txt", corpus / "tokenizer.json", length)
            np.save(corpus / f".{name}.npy", packed)  # so that a file is whole where there is one
            os.replace(corpus / f".{name}.npy", corpus / f"{name}.npy")
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
        step(number % trial, trial)  # both times over the whole schedule: soft steps take longer
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
