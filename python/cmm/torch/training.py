"""What training and fine-tuning share: optimizer, schedules, a step, files. The procedure is crammedBERT's.

Masked language modelling of a quarter of the tokens, no dropout, AdamW with betas .9 and .98 and weight decay .01 but
for norms and biases, gradients clipped at norm .5. Fast feedforward layers start soft and are kept balanced.
"""

import argparse
import json
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import cmm.bert
from cmm.bert import state_dict_map
from cmm.bert.tokenizer import FILE, stored_files
from cmm.errors import ArgumentError, CmmError, UnusableError
from cmm.torch.data import Masked, hide
from cmm.torch.fff import FFF
from cmm.torch.model import Classifier, MaskedLanguageModel

#: The training state, in the layout of the authors' code: "model", "optim", "metadata" and two that are not used.
STATE = "intermediate_state.pth"

_CLIP = 0.5
_HELD_OUT_SEED = 0  # the masks of what is held out are always the same


def architecture(
    layer: str,
    *,
    layers: int = 5,
    hidden: int = 192,
    heads: int = 4,
    vocab_size: int = 6144,
    length: int = 128,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """Return an architecture block, as ``model_config.json`` has it.

    Parameters
    ----------
    layer : str
        The feedforward layers: ``"4x7"`` for 4 trees of depth 7, ``"dense:1020"`` for 1020 neurons.
    layers, hidden, heads, vocab_size, length : int, optional
    head_dim : int, optional
        The width of a classifier's pooler, hidden if not given.

    Raises
    ------
    ArgumentError
        layer is neither.
    """
    kind, _, size = layer.partition(":")
    trees, _, depth = layer.partition("x")
    if kind == "dense" and size.isdecimal():
        intermediate: dict[str, Any] = {"intermed_type": "ff", "intermed_size": int(size)}
    elif trees.isdecimal() and depth.isdecimal():
        intermediate = {"intermed_type": "fff", "intermed_size": int(trees), "intermed_depth": int(depth)}
    else:
        raise ArgumentError(f"layer is {layer!r}; it should be trees x depth, as in 4x7, or dense:neurons")
    return {
        "architectures": ["ScriptableCrammedBERT"],
        "num_transformer_layers": layers,
        "hidden_size": hidden,
        **intermediate,
        "norm": "LayerNorm",
        "norm_eps": 1e-12,
        "norm_scheme": "pre",
        "nonlin": "GELU",
        "tie_weights": True,
        "decoder_bias": False,
        "embedding": {
            "vocab_size": vocab_size,
            "pos_embedding": "scaled-sinusoidal",
            "max_seq_length": length,
            "embedding_dim": hidden,
            "normalization": True,
        },
        "attention": {"type": "self-attention", "num_attention_heads": heads, "qkv_bias": False},
        "skip_head_transform": True,
        "use_bias": False,
        "final_norm": True,
        "num_labels": None,
        "classification_head": {
            "pooler": "avg",
            "include_ff_layer": True,
            "head_dim": head_dim or hidden,
            "nonlin": "Tanh",
        },
    }


# ---- command lines -------------------------------------------------------------------------------------------------


def run_script(main: Callable[[], None]) -> None:
    """Run a script, and say in one line what is wrong with a file or an argument."""
    try:
        main()
    except (CmmError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


def at_least_1(text: str) -> int:
    """Return an option's whole number."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, at least 1")
    return int(text)


def usable_device(name: str) -> torch.device:
    """Return a device of that name, which is there."""
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise UnusableError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None


# ---- steps ---------------------------------------------------------------------------------------------------------


def make_optimizer(model: nn.Module, rate: float, factor: float = 1.0) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices only, and a learning rate factor * rate for feedforward layers."""
    layers = getattr(getattr(model, "encoder", None), "layers", ())
    feedforward = {id(parameter) for layer in layers for parameter in layer.ffn.parameters()}
    groups = []
    for matrices in (True, False):
        for share in sorted({1.0, factor}):
            some = [
                parameter
                for parameter in model.parameters()
                if (parameter.ndim > 1) == matrices and (factor if id(parameter) in feedforward else 1.0) == share
            ]
            if some:
                groups.append({"params": some, "weight_decay": 0.01 * matrices, "factor": share})
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-12, fused=fused)


def triangle(progress: float) -> float:
    """Return the share of the peak learning rate: up from 1/4 until 3/4 of the way, then down to 0."""
    return min(0.25 + progress, 4 * (1 - progress))


def cosine(progress: float, warm_up: float = 0.125, last: float = 0.05) -> float:
    """Return the share of the peak learning rate: up from 0 in the warm-up, then half a cosine down to the last."""
    if progress < warm_up:
        return progress / warm_up
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def linear(progress: float, warm_up: float = 0.125) -> float:
    """Return the share of the peak learning rate: up from 0 in the warm-up, then down to 0 in a straight line."""
    return progress / warm_up if progress < warm_up else (1 - progress) / (1 - warm_up)


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear, "triangle": triangle}


def softness(progress: float, until: float, gone: float) -> float:
    """Return how much neurons off the path act: 1 until a share of the steps, then less, and 0 from another on."""
    return 0.0 if progress >= gone else min(1.0, (gone - progress) / max(gone - until, 1e-9))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """Take one step of the optimizer."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Objective(nn.Module):
    """What training makes small: the loss of the hidden tokens, and how unevenly trees are used.

    Parameters
    ----------
    model : MaskedLanguageModel
    balance : float
        The weight of the sum over the layers of :meth:`cmm.torch.FFF.balance_loss`.
    """

    def __init__(self, model: MaskedLanguageModel, balance: float = 0.0) -> None:
        super().__init__()
        self.model, self.balance = model, balance
        self.trees = [module for module in model.modules() if isinstance(module, FFF)]
        for layer in self.trees:
            layer.track_routing = balance > 0

    def forward(self, masked: Masked) -> tuple[Tensor, Tensor]:
        """Return what to descend on, and the loss of the hidden tokens alone, without a gradient."""
        loss, _ = masked_loss(self.model, masked)
        plain = loss.detach()
        if self.balance > 0:
            for layer in self.trees:
                loss = loss + self.balance * layer.balance_loss()
        return loss, plain


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Return a context in which matrix products are bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def masked_loss(model: nn.Module, masked: Masked) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of the hidden tokens, and the share whose likeliest token is the right one."""
    logits = model(masked.ids, places=masked.places).flatten(0, 1)
    labels = masked.labels.flatten()
    right = (logits.detach().argmax(1) == labels).float().mean()
    return functional.cross_entropy(logits.float(), labels), right


def held_out(model: MaskedLanguageModel, sequences: Tensor, batch: int, bfloat16: bool) -> tuple[float, float]:
    """Return loss and accuracy on sequences (n, S) in eval(), with the same masks in every call, by PyTorch."""
    losses = torch.zeros(2, dtype=torch.float64)
    device = model.decoder.weight.device
    with _evaluation(model), autocast(device, bfloat16):
        for masked in held_out_batches(sequences, batch, model.decoder.out_features):
            share = len(masked.ids) / len(sequences)
            there = Masked(*(part.to(device) for part in masked))
            losses += share * torch.stack(masked_loss(model, there)).double().cpu()
    return float(losses[0]), float(losses[1])


def leaves(model: MaskedLanguageModel, sequences: Tensor, batch: int, bfloat16: bool) -> list[Tensor]:
    """Return for each fast feedforward layer how many tokens of sequences (n, S) end in each leaf, (K, 2^D)."""
    layers = [module for module in model.modules() if isinstance(module, FFF)]
    device, tracked = model.decoder.weight.device, [layer.track_routing for layer in layers]
    counts = [torch.zeros(layer.trees, 2**layer.depth, dtype=torch.int64) for layer in layers]
    for layer in layers:
        layer.track_routing = True
    try:
        with _evaluation(model), autocast(device, bfloat16):
            for some in sequences.long().split(batch) if layers else ():
                model.encoder(some.to(device))
                for layer, count in zip(layers, counts, strict=True):
                    count += layer.routing().counts[:, layer.nodes // 2 :].cpu()
    finally:
        for layer, before in zip(layers, tracked, strict=True):
            layer.track_routing = before
    return counts


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Have a model in eval() and no gradients; afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def held_out_batches(sequences: Tensor, batch: int, vocab_size: int) -> Iterator[Masked]:
    """Yield held-out sequences (n, S), on the CPU, with their masks, which depend on the size of a batch."""
    for number, some in enumerate(sequences.long().split(batch)):
        yield hide(some, _HELD_OUT_SEED + number, vocab_size)


# ---- files ---------------------------------------------------------------------------------------------------------


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, metadata: Mapping[str, Any]) -> None:
    """Write the training state, so that the file is always whole."""
    state = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "scheduler": {},
        "scaler": {},
        "metadata": dict(metadata),
    }
    torch.save(state, folder / f".{STATE}")
    os.replace(folder / f".{STATE}", folder / STATE)


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    expected: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Load a training state into a model and its optimizer; return the metadata, in which is what is expected.

    Raises
    ------
    ArgumentError
        The file is no training state, or that of another model, or of a training with other metadata.
    """
    other = {}
    try:
        state = torch.load(folder / STATE, map_location=next(model.parameters()).device, weights_only=True)
        metadata: dict[str, Any] = state["metadata"]
        other = {name: metadata[name] for name in expected.keys() & metadata if metadata[name] != expected[name]}
        if not other:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optim"])
    except (EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ArgumentError(f"{folder / STATE} is no training state, or not one of this model") from error
    for name, value in other.items():
        problem = f"{name} is {expected[name]!r}, and {folder / STATE} is of a training where it is {value!r}"
        raise ArgumentError(problem)
    return metadata


def save_final(folder: Path, model: MaskedLanguageModel | Classifier, tokenizer: Path) -> None:
    """Write the layout that training ends with, which ``cmm.bert.load`` and ``cmm export`` read.

    Parameters
    ----------
    folder : Path
    model : MaskedLanguageModel or Classifier
    tokenizer : Path
        The folder of the tokenizer's files, which are copied.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UnusableError("writing a model needs the package safetensors: pip install safetensors") from None
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    arch = dict(model.config.arch)
    arch["embedding"] = {**arch["embedding"], "vocab_size": None}
    (folder / "model_config.json").write_text(json.dumps(arch, indent=1) + "\n", encoding="utf-8")
    if tokenizer.absolute() != folder.absolute() and (tokenizer / FILE).exists():
        for name, content in stored_files(tokenizer):
            (folder / name).write_bytes(content)


def state_dict(model: cmm.bert.Model) -> dict[str, Tensor]:
    """Return the weights of an encoder on numpy by the names that training has, as ``load_state_dict`` takes them.

    ``torch_model.load_state_dict(state_dict(model), strict=False)`` leaves what the encoder has not, such as the head
    of a new classifier, as it is.
    """
    stored = state_dict_map.as_trained(model.config, model.tensors)
    state = {key: torch.from_numpy(value.copy()) for key, value in stored.items()}
    state[state_dict_map.DECODER] = state[state_dict_map.WORD]
    return state
