"""`cmm fill-mask`, `cmm embed`, `cmm classify`, `cmm explain`, `cmm export` and `cmm eval`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import cmm
from cmm import _json
from cmm._files import replacing
from cmm._quiet import quiet_encodings
from cmm.bert import evaluation, glue_tasks
from cmm.bert.trained import packaged

if TYPE_CHECKING:
    from cmm.bert import Model
    from cmm.bert.tokenizer import Text

_MODEL = "a folder or file that training or `cmm export` left, or fff or dense, models of libcmm-models"
_RANDOM = "random"
_DEFAULT = "fff"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the commands."""
    _add_fill_mask(commands)
    _add_embed(commands)
    _add_classify(commands)
    _add_explain(commands)
    _add_export(commands)
    _add_eval(commands)


def _parser(commands: Any, name: str, what: str, description: str, examples: str, run: Callable[[Any], None]) -> Any:
    parser = commands.add_parser(
        name,
        help=what,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# ---- fill-mask -----------------------------------------------------------------------------------------------------


def _add_fill_mask(commands: Any) -> None:
    parser = _parser(
        commands,
        "fill-mask",
        "say which words may stand in place of a mask",
        "Say which tokens may stand in place of each mask of a text, likeliest first.",
        """\
  cmm fill-mask "The function returns a <mask> of strings."
  cmm fill-mask MODEL "The capital of France is <mask>."
  cmm fill-mask MODEL "A <mask> has four <mask>." -k 10 --json
The mask is written as the model's tokenizer writes it. Without MODEL it is fff, of the package libcmm-models.""",
        run_fill_mask,
    )
    _add_model(parser, nargs="?")
    parser.add_argument("text", metavar="TEXT", help="a text with at least one mask")
    parser.set_defaults(take_texts=_take_a_text)
    parser.add_argument("-k", type=int, default=5, metavar="N", help="how many tokens for each mask (default 5)")
    parser.add_argument(
        "--targets", metavar="WORD,...", help="only these words, all of them, with commas between them"
    )
    parser.add_argument("--json", action="store_true", help="print json: for each mask a list of tokens")
    _add_run(parser)


def _take_a_text(options: argparse.Namespace, texts: list[str]) -> list[str]:
    """Take a text that came after an option; the first word was the model, then. Return those that are too many."""
    if options.model is None and texts:
        options.model, options.text, *texts = options.text, *texts
    return texts


def run_fill_mask(options: argparse.Namespace) -> None:
    """Print the likeliest tokens for each mask."""
    options.model = options.model or _DEFAULT
    with _warnings_in_one_line(options):
        targets = None if options.targets is None else options.targets.split(",")
        predictions = _model(options).fill_mask(options.text, options.k, targets=targets, **_run(options))
    if options.json:
        print(json.dumps([[one._asdict() for one in mask] for mask in predictions]))
        return
    for number, mask in enumerate(predictions, 1):
        if len(predictions) > 1:
            print(f"{'' if number == 1 else chr(10)}mask {number} of {len(predictions)}")
        width = max(len(_printable(one.token)) for one in mask)
        for one in mask:
            print(f"{_printable(one.token):{width}}  {one.probability:.4f}")


# ---- embed ---------------------------------------------------------------------------------------------------------


def _add_embed(commands: Any) -> None:
    parser = _parser(
        commands,
        "embed",
        "make a vector of each text",
        "Make one vector of each text: the mean of its tokens' hidden states, or what --pooler says.",
        """\
  cmm embed MODEL "A text." "Another one." --out vectors.npy
  cmm embed MODEL --file texts.txt --out vectors.npy       one text a line; numpy.load reads the vectors
  cmm embed MODEL "A text."                                 prints the numbers, a line for each text""",
        run_embed,
    )
    _add_model(parser)
    _add_texts(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a .npy file, float32, (texts, width)")
    parser.add_argument(
        "--pooler",
        choices=("avg", "zero_index", "max", "logsumexp"),
        default="avg",
        help="how tokens become one vector (default avg)",
    )
    parser.add_argument("--normalize", action="store_true", help="divide each vector by its length")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts that run together (default by their tokens)"
    )
    _add_run(parser)


def run_embed(options: argparse.Namespace) -> None:
    """Write a vector for each text."""
    out = options.out
    if out is not None and out.suffix != ".npy":
        raise cmm.ArgumentError(f"--out {out}: the name should end in .npy")
    if out is not None and not out.absolute().parent.is_dir():
        raise cmm.ArgumentError(f"--out {out}: there is no folder {out.absolute().parent}")
    texts = _texts(options)
    with _warnings_in_one_line(options):
        how = {"normalize": options.normalize, "batch_size": options.batch_size, "truncate": options.truncate}
        vectors = _model(options).embed(texts, pooler=options.pooler, **how, **_run(options))
    if out is not None:
        with replacing(out) as file:
            np.save(file, vectors)
        print(f"wrote {out}: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers")
        return
    for vector in vectors:
        print(" ".join(f"{number:.7g}" for number in vector))


# ---- classify ------------------------------------------------------------------------------------------------------


def _add_classify(commands: Any) -> None:
    parser = _parser(
        commands,
        "classify",
        "classify texts",
        "Print the likeliest label of each text and its probability, or, of a model with one label, its score.",
        """\
  cmm classify MODEL "What a film!" "I left after ten minutes."
  cmm classify MODEL --file pairs.tsv --pairs --json        two texts a line, a tab between them
Labels have the names that fine-tuning saved, or else are numbers, in the order of training.""",
        run_classify,
    )
    _add_model(parser)
    _add_texts(parser)
    parser.add_argument("--json", action="store_true", help="print json, a line for each text, with all logits")
    _add_run(parser)


def run_classify(options: argparse.Namespace) -> None:
    """Print a label for each text."""
    texts = _texts(options)
    model = _model(options)
    with _warnings_in_one_line(options):
        logits = model.classify(texts, truncate=options.truncate, **_run(options)).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    one = logits.shape[1] == 1
    names = model.label_names
    shown_names = [_printable(name) for name in names or map(str, range(logits.shape[1]))]
    width = max(5, *map(len, shown_names))
    if not options.json:
        print("score     text" if one else f"{'label':{width}}  probability  text")
    for text, row, probabilities in zip(texts, logits, weights, strict=True):
        best = int(row.argmax())
        if options.json:
            answer = {"text": text, "logits": row.tolist()}
            if not one:
                answer |= {"label": best, "probabilities": probabilities.tolist()}
                answer |= {} if names is None else {"name": names[best]}
            print(json.dumps(answer))
            continue
        shown = _printable(text if isinstance(text, str) else " | ".join(text))
        print(
            f"{row[0]:<8.4f}  {shown}"
            if one
            else f"{shown_names[best]:{width}}  {probabilities[best]:<11.4f}  {shown}"
        )


# ---- explain -------------------------------------------------------------------------------------------------------


def _add_explain(commands: Any) -> None:
    parser = _parser(
        commands,
        "explain",
        "draw the way of each token through the trees",
        "Draw, for each layer, which nodes each token visited and how tokens spread over the trees, and list the\n"
        "dead subtrees, which no token reached.",
        """\
  cmm explain MODEL "The cat sat on the mat."               writes paths.png and paths.svg
  cmm explain MODEL --file texts.txt --out corpus           how the tokens of many texts spread
  cmm explain MODEL --ids 17,4,256                          needs no tokenizer
  cmm explain random --config model_config.json --ids 1,2   a model with random weights""",
        run_explain,
    )
    _add_model(parser, f"{_MODEL}, or the word {_RANDOM}: random weights, of the released shape without --config")
    _add_texts(parser)
    parser.add_argument("--ids", type=_ids, metavar="N,...", help="the ids of a text's tokens, instead of texts")
    parser.add_argument(
        "--out", type=Path, default=Path("paths"), metavar="NAME", help="writes NAME.png and NAME.svg (default paths)"
    )
    parser.add_argument("--json", metavar="FILE", help=_json.HELP.format("every visited node and dead subtree"))
    _add_run(parser)


def run_explain(options: argparse.Namespace) -> None:
    """Draw and list where the tokens went."""
    try:
        with quiet_encodings():  # of matplotlib's list of fonts
            from cmm.bert.plot_paths import draw
    except ImportError as error:
        raise cmm.UnusableError(f"the picture needs matplotlib: pip install matplotlib ({error})") from None
    from cmm.bert import paths

    given = [bool(options.texts), options.file is not None, options.ids is not None]
    if sum(given) != 1:
        raise cmm.ArgumentError("give texts, --file or --ids, and only one of them")
    out = options.out.with_name(options.out.name.removesuffix(".png").removesuffix(".svg"))
    files = [out.with_name(f"{out.name}.{kind}") for kind in ("png", "svg")]
    for file in (*files, options.json):
        _json.check_target(None if file is None else str(file))
    model = _model(options)
    if options.ids is not None:
        found = paths.of_ids(model, [options.ids], **_run(options))
    else:
        with _warnings_in_one_line(options):
            found = paths.of_texts(model, _texts(options), truncate=options.truncate, **_run(options))
    if not found.tokens:
        raise cmm.ArgumentError("there are no texts, so there is nothing to draw")
    draw(found, files, title=_title(options))
    if options.json is not None:
        _json.write(options.json, paths.as_json(found))
    _json.say(options.json, paths.report(found))
    written = [str(file) for file in (*files, options.json) if file not in (None, _json.STANDARD_OUTPUT)]
    _json.say(options.json, "\nwrote " + ", ".join(written))


def _title(options: argparse.Namespace) -> str:
    name = "a model with random weights" if _is_random(options) else _printable(Path(options.model).absolute().name)
    if len(options.texts) == 1 and len(options.texts[0]) <= 80:
        return f"{_printable(options.texts[0])}  ({name})"
    return name


# ---- export --------------------------------------------------------------------------------------------------------


def _add_export(commands: Any) -> None:
    parser = _parser(
        commands,
        "export",
        "write a model as a folder that loads fast",
        "Write a model to a folder that loads fast: memory-mapped, with its tokenizer and configuration.",
        """\
  cmm export ultrafastbert exported
  cmm export ultrafastbert half --dtype float16
  cmm export fff exported                                   the small model of libcmm-models
  cmm export fff exported --transformers                    AutoModelForMaskedLM reads it too
  cmm export intermediate_state.pth exported --config model_config.json --tokenizer tokenizer.json
A file of PyTorch (.pth, .bin) needs PyTorch to be read. FOLDER should not exist, or be empty.""",
        run_export,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help=_MODEL)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to make")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="how weights are stored (default float32)"
    )
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="write it so that Auto classes of the package transformers read it too, with trust_remote_code=True",
    )
    _add_files(parser)


def run_export(options: argparse.Namespace) -> None:
    """Export a model."""
    how = {"config": options.config, "tokenizer": options.tokenizer, "dtype": options.dtype}
    folder = cmm.bert.export(options.source, options.folder, **how, transformers=options.transformers)
    model = cmm.bert.load(folder)
    tokenizer = "its tokenizer" if (folder / "tokenizer.json").exists() else "no tokenizer (--tokenizer adds one)"
    print(f"wrote {folder}: {model.parameters} weights, {tokenizer}")


# ---- eval ----------------------------------------------------------------------------------------------------------

_TEXT = "text"


def _add_eval(commands: Any) -> None:
    parser = _parser(
        commands,
        "eval",
        "measure how good a model is",
        "Measure how well a model foretells masked tokens of a text, or how well a classifier does a task.",
        f"""\
  cmm eval MODEL text heldout.txt          one text a line: masked accuracy, pseudo-perplexity
  cmm eval sst2/model SST-2 glue/SST-2     the scores of GLUE for dev.tsv
  cmm eval MODEL pairs FOLDER --file test.tsv
  cmm eval --suite RUNS TASKS              medians over seeds, as the paper's Table 1: RUNS/NAME/TASK/SEED/model
TASK is {_TEXT} or one of {", ".join(glue_tasks.TASKS)}.
The last four have the columns sentence, or sentence1 and sentence2, and label, and labels of their own.""",
        run_eval,
    )
    _add_model(parser, f"{_MODEL}; with --suite a folder of runs")
    parser.add_argument("task", metavar="TASK", help="what to measure; with --suite the folder of the tasks")
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, help="of the task; a file or folder of text"
    )
    parser.add_argument("--suite", action="store_true", help="several models, tasks and seeds, and the paper's rows")
    parser.add_argument("--file", action="append", default=[], metavar="NAME", help="of FOLDER (default: dev.tsv)")
    parser.add_argument("--at-most", type=int, metavar="N", help=f"of {_TEXT}: use the first N texts")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"of {_TEXT}: of what is hidden (default 0)")
    parser.add_argument("--json", action="store_true", help="print json")
    _add_run(parser)


def run_eval(options: argparse.Namespace) -> None:
    """Print what was measured."""
    if options.suite != (options.folder is None):
        wanted = "RUNS TASKS" if options.suite else "MODEL TASK FOLDER"
        raise cmm.ArgumentError(f"cmm eval {'--suite ' if options.suite else ''}should be given {wanted}")
    is_text = not options.suite and options.task == _TEXT
    for name, is_for, given in (
        ("--file", not is_text, options.file),
        ("--at-most", is_text, options.at_most is not None),
        ("--seed", is_text, options.seed != 0),
    ):
        if given and not is_for:
            raise cmm.ArgumentError(f"{name} is given; it is {'not ' * is_text}of TASK {_TEXT}")
    if options.suite:
        with _warnings_in_one_line(options):
            table = evaluation.suite(Path(options.model), Path(options.task), options.file, **_run(options))
        print(json.dumps(table) if options.json else evaluation.as_table(table, paper=True))
        return
    if options.task != _TEXT and options.task not in glue_tasks.TASKS:
        raise cmm.ArgumentError(
            f"TASK is {options.task!r}; it should be one of {', '.join((_TEXT, *glue_tasks.TASKS))}"
        )
    model = _model(options)
    if options.task == _TEXT:
        _eval_text(options, model)
        return
    with _warnings_in_one_line(options):
        found = evaluation.of_task(model, options.task, options.folder, options.file, **_run(options))
    if options.json:
        print(json.dumps(found))
        return
    for file, scores in found.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "texts")
        print(f"{file}: {scores['texts']} texts  {shown}")


def _eval_text(options: argparse.Namespace, model: Model) -> None:
    if options.at_most is not None and options.at_most < 1:
        raise cmm.ArgumentError(f"--at-most is {options.at_most}; it should be at least 1")
    if options.seed < 0:
        raise cmm.ArgumentError(f"--seed is {options.seed}; it should be at least 0")
    texts = evaluation.read_texts(options.folder)[: options.at_most]
    quarter = evaluation.masked(model, texts, share=0.25, seed=options.seed, **_run(options))
    alone = evaluation.masked(model, texts, **_run(options))
    perplexity = float(np.exp(alone.loss))
    if options.json:
        found = {"texts": len(texts), "masked": quarter._asdict(), "alone": alone._asdict()}
        print(json.dumps({**found, "pseudo_perplexity": perplexity}))
        return
    print(f"{len(texts)} texts")
    print(f"a quarter of each piece of text hidden: accuracy {quarter.accuracy:.4f}, loss {quarter.loss:.4f}")
    print(f"each of {alone.tokens} tokens alone: accuracy {alone.accuracy:.4f}, pseudo-perplexity {perplexity:.4g}")


# ---- what they share -----------------------------------------------------------------------------------------------


def _add_model(parser: Any, what: str = _MODEL, **settings: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help=what, **settings)


def _add_files(parser: Any) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration, where none lies beside MODEL")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the tokenizer, where none lies beside MODEL")


def _weights(text: str) -> Any:
    names = text.split(",")
    return names[0] if len(names) == 1 else tuple(names)


def _add_run(parser: Any) -> None:
    _add_files(parser)
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="TYPE[,TYPE]",
        help="keep the rows of FFF layers in bfloat16, float16 or int8; two types: of w_in and of w_out",
    )
    parser.add_argument(
        "--exact-path",
        type=float,
        nargs="?",
        const=True,
        default=False,
        metavar="SIGMAS",
        help="take the paths of float32 rows nevertheless; with a number, only as likely as so many deviations",
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, or cuda:1")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: every core)")
    parser.add_argument(
        "--level", default="auto", metavar="NAME", help="how to compute, of `cmm info` (default auto)"
    )


def _take_texts(options: argparse.Namespace, texts: list[str]) -> list[str]:
    options.texts += texts
    return []


def _add_texts(parser: Any) -> None:
    parser.set_defaults(take_texts=_take_texts)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="the texts")
    parser.add_argument("--file", metavar="FILE", help="texts, one a line; - is the standard input")
    parser.add_argument("--pairs", action="store_true", help="each is two texts with a tab between them")
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long instead of refusing them"
    )


def _is_random(options: argparse.Namespace) -> bool:
    return options.command == "explain" and options.model == _RANDOM and not Path(_RANDOM).exists()


def _model(options: argparse.Namespace) -> Model:
    if _is_random(options):
        config = cmm.bert.ULTRAFASTBERT_1X11_LONG
        model = cmm.bert.random(config if options.config is None else cmm.bert.config.read_json(options.config))
        if options.weights is not None or options.exact_path is not False:
            raise cmm.ArgumentError("--weights and --exact-path are for a model that is read, and this one is random")
    else:
        how = {"weights": options.weights, "exact_path": options.exact_path}
        model = cmm.bert.load(packaged(options.model), config=options.config, **how)
    if options.tokenizer is not None:
        model.tokenizer = cmm.bert.Tokenizer(options.tokenizer)
    return model.to(options.device)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    return {"level": options.level, "threads": options.threads}


def _texts(options: argparse.Namespace) -> list[Text]:
    if bool(options.texts) == (options.file is not None):
        raise cmm.ArgumentError("give texts or --file, and only one of them")
    lines: list[str] = options.texts
    if options.file is not None:
        if options.file == "-" and sys.stdin is None:
            raise cmm.ArgumentError("--file - is the standard input, which is closed")
        try:
            with open(
                0 if options.file == "-" else options.file, encoding="utf-8-sig", closefd=options.file != "-"
            ) as file:  # a byte order mark is no part of the first text
                lines = [line.removesuffix("\n") for line in file]
        except UnicodeDecodeError as error:
            raise cmm.ArgumentError(
                f"--file {options.file} is not UTF-8: {error.reason} at byte {error.start}"
            ) from None
    if not options.pairs:
        return [*lines]
    pairs = [tuple(line.split("\t")) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise cmm.ArgumentError(f"text {number} has {len(pair) - 1} tabs; with --pairs each should have one")
    return [(first, second) for first, second in pairs]


def _ids(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} should be whole numbers with commas between them") from None


def _printable(text: str) -> str:
    """Return a text that does nothing to a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


@contextmanager
def _warnings_in_one_line(options: argparse.Namespace) -> Iterator[None]:
    """Say what was cut, and of what nothing is left, without Python's file and line."""
    with warnings.catch_warnings(record=True, category=UserWarning, action="always") as caught:
        yield
    for warning in caught:
        print(f"cmm {options.command}: {warning.message}", file=sys.stderr)
