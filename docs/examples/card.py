"""Measure what the card of the two models says: on the held-out text, nothing picked.

    python docs/examples/card.py corpus > figures.md

Prints, as Markdown: loss and accuracy on masked tokens from PyTorch and from numpy, how tokens spread over the
leaves, and the first ten held-out sentences with one word hidden. That word is the one nearest the middle of those
that are one token of the vocabulary and have letters only.
"""

import argparse
import re
from pathlib import Path

try:
    import torch
except ImportError:
    raise SystemExit("card.py needs PyTorch: pip install torch") from None

import cmm
import cmm.bert
import numpy as np
from cmm.bert.trained import TRAINED
from cmm.torch import MaskedLanguageModel, training

_BATCH = 64
_SENTENCES = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="the folder of heldout.txt and heldout.npy that training left")
    parser.add_argument(
        "--models", nargs=2, default=("fff", "dense"), help="two folders instead of the trained models"
    )
    options = parser.parse_args()
    models = [cmm.bert.trained(name) if name in TRAINED else cmm.bert.load(name) for name in options.models]
    sequences = np.load(options.corpus / "heldout.npy")

    print("| model | weights | tokens hidden | loss, PyTorch | accuracy, PyTorch | loss, numpy | accuracy, numpy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, model in zip(options.models, models, strict=True):
        rows = [on_hidden_tokens(forward, sequences, model) for forward in (in_torch(model), on_numpy(model))]
        figures = [f"{loss:.4f} | {right} ({right / count:.2%})" for loss, right, count in rows]
        print(f"| {Path(name).name} | {model.parameters} | {rows[0][2]} | {' | '.join(figures)} |")

    print("\n| layer | leaves visited | leaves that share half of the tokens | most in one leaf | dead leaves |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for layer, counts in enumerate(leaves(models[0], sequences)):
        print(f"| {layer} | {spread(counts)} |")

    print(
        "\n| sentence | hidden | "
        + " | ".join(Path(name).name for name in options.models)
        + " |\n"
        + "| --- " * 4
        + "|"
    )
    hits = np.zeros((2, 2), int)
    text = (options.corpus / "heldout.txt").read_text(encoding="utf-8")
    for masked, word in first_sentences(text, models[0]):
        cells = []
        for number, model in enumerate(models):
            best = [one.token for one in model.fill_mask(masked, 5)[0]]
            hits[number] += word == best[0], word in best
            cells.append(
                " ".join(f"**`{token}`**" if token == word else f"`{token}`" for token in best).replace("|", "\\|")
            )
        shown = masked.replace("|", "\\|").replace("<mask>", "`<mask>`")
        print(f"| {shown} | {word} | {' | '.join(cells)} |")
    for name, (first, five) in zip(options.models, hits, strict=True):
        print(
            f"\n{Path(name).name}: the right word first in {first}, among the first five in {five} of {_SENTENCES}."
        )


def in_torch(model):
    """Return a function from ids and places to logits, computed by PyTorch as in training, in float32."""
    arch = dict(model.config.arch)
    arch["embedding"] = {**arch["embedding"], "vocab_size": len(model.weights.word)}
    network = MaskedLanguageModel(arch)
    network.load_state_dict(training.state_dict(model))

    def forward(ids: torch.Tensor, places: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return network(ids, places=places).numpy()

    return forward


def on_numpy(model):
    """Return the same function, computed by cmm.bert."""

    def forward(ids: torch.Tensor, places: torch.Tensor) -> np.ndarray:
        hidden = model(ids.numpy())
        return model.decode(np.take_along_axis(hidden, places.numpy()[:, :, None], axis=1))

    return forward


def on_hidden_tokens(forward, sequences: np.ndarray, model) -> tuple[float, int, int]:
    """Return the mean loss, how many tokens are right, and of how many."""
    loss, right, count = 0.0, 0, 0
    tokens = torch.from_numpy(sequences.astype(np.int32))
    for masked in training.held_out_batches(tokens, _BATCH, len(model.weights.word)):
        logits = forward(masked.ids, masked.places).astype(np.float64)
        labels = masked.labels.numpy()
        logits -= logits.max(axis=2, keepdims=True)
        of_label = np.take_along_axis(logits, labels[:, :, None], axis=2)[:, :, 0]
        loss += float(np.sum(np.log(np.exp(logits).sum(axis=2)) - of_label))
        right += int(np.sum(logits.argmax(axis=2) == labels))
        count += labels.size
    return loss / count, right, count


def leaves(model, sequences: np.ndarray) -> np.ndarray:
    """Return how many tokens ended in each leaf, (layers, trees, leaves)."""
    config = model.config
    usage = np.zeros((config.layers, config.trees, config.nodes), np.int64)
    for some in np.array_split(sequences, -(-len(sequences) // _BATCH)):
        for layer, nodes in enumerate(model.trace(some.astype(np.int64)).path_nodes):
            usage[layer] += cmm.node_usage(nodes, config.nodes)
    return usage[..., config.nodes // 2 :]


def spread(counts: np.ndarray) -> str:
    """Return the cells of a row for one layer's leaves, (trees, leaves)."""
    ordered = -np.sort(-counts, axis=1)
    total = counts[0].sum()
    half = (np.cumsum(ordered, axis=1) < total / 2).sum(axis=1) + 1
    dead = int((counts == 0).sum())
    most = counts.max() / total
    shared = f"{half.min()} to {half.max()} of {counts.shape[1]} in a tree"
    return f"{counts.size - dead} of {counts.size} | {shared} | {most:.1%} | {dead}"


def first_sentences(text: str, model) -> list[tuple[str, str]]:
    """Return the first sentences of a text with one word hidden, and that word."""
    known = {model.tokenizer.token(id) for id in model.tokenizer.ids}
    mask = model.tokenizer.token(model.tokenizer.id_of("mask"))
    found = []
    for paragraph in text.splitlines():
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph):
            words = list(re.finditer(r"(?<![\w'-])[A-Za-z]{2,}(?![\w'-])", sentence))
            words = [word for word in words if word[0].lower() in known]
            if words:
                word = min(words, key=lambda word: abs(word.start() + word.end() - len(sentence)))
                found.append((sentence[: word.start()] + mask + sentence[word.end() :], word[0].lower()))
            if len(found) == _SENTENCES:
                return found
    return found


if __name__ == "__main__":
    training.run_script(main)
