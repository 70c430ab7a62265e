"""`cmm convert`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from cmm import _json

_EXAMPLE = """\
examples:
  cmm convert dense converted --layer 16x5 --text corpus/train.txt --steps 5000 --device cuda --bfloat16 --compile
  cmm convert MODEL converted --layer 32x4 --text train.txt --held-out heldout.txt --json report.json
  cmm fill-mask converted "The function returns a <mask> of strings."
It needs PyTorch (pip install torch), for a BERT of Hugging Face also the package transformers."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        help="turn a model's dense feedforward layers into fast ones",
        description=(
            "Turn the dense feedforward layers of a trained model into fast feedforward layers: a start by regions\n"
            "and least squares, distillation layer by layer, and a short training of the whole. Print each layer's\n"
            "R2 and what held-out text loses."
        ),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model of cmm.bert with dense layers, dense, or the folder of an HF BERT")
    add("folder", metavar="FOLDER", type=Path, help="the folder to make")
    add("--layer", required=True, metavar="KxD", help="trees x depth, as in 16x5")
    add("--text", required=True, type=Path, metavar="FILE", help="text, a paragraph a line, or ids (n, S) as .npy")
    add("--held-out", type=Path, metavar="FILE", help="text to measure on (default: the last 2%% of the text)")
    add("--steps", type=int, default=1000, metavar="N", help="steps of training in all (default 1000)")
    add("--batch", type=int, default=64, metavar="N", help="sequences of a step (default 64)")
    add("--length", type=int, metavar="N", help="tokens of a sequence (default 128, or what the model takes)")
    add("--distillation", type=float, default=0.3, metavar="SHARE", help="of the steps, layer by layer (default .3)")
    add("--start", choices=("regions", "neurons"), default="regions", help="how layers start (default regions)")
    add("--rate", type=float, default=2e-3, help="peak learning rate (default 2e-3)")
    add("--seed", type=int, default=0, metavar="N", help="of order, masks and start (default 0)")
    add("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, or cuda:1")
    add("--bfloat16", action="store_true", help="matrix products of training in bfloat16, by autocast")
    add("--compile", action="store_true", help="torch.compile what is trained")
    add("--json", metavar="FILE", help=_json.HELP.format("the report"))


def run(options: argparse.Namespace) -> None:
    """Convert a model."""
    from cmm.torch.convert import convert_model

    _json.check_target(options.json)
    found = convert_model(
        options.model,
        options.folder,
        layer=options.layer,
        text=options.text,
        held_out=options.held_out,
        steps=options.steps,
        batch=options.batch,
        length=options.length,
        distillation=options.distillation,
        start=options.start,
        rate=options.rate,
        seed=options.seed,
        device=options.device,
        bfloat16=options.bfloat16,
        compile=options.compile,
        say=lambda line: _json.say(options.json, line),
    )
    lines = ["", "layer  R2 at the start  R2 distilled"]
    lines += [f"{number:<5}  {one.start:<15.4f}  {one.distilled:.4f}" for number, one in enumerate(found.layers)]
    lines.append("\nheld-out text")
    for name, quality in (("dense", found.dense), ("distilled", found.start), ("converted", found.converted)):
        if quality:
            lines.append(f"{name:<9}  " + "  ".join(f"{key} {value:.4f}" for key, value in quality.items()))
    if found.dense:
        lost = 100 * (found.dense["accuracy"] - found.converted["accuracy"])
        lines.append(f"lost: {lost:.2f} points of accuracy")
    lines.append(f"\nwrote {options.folder} in {found.seconds:.0f} s")
    if options.json is not None:
        _json.write(options.json, asdict(found))
    _json.say(options.json, "\n".join(lines))
