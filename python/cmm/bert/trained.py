"""The models that come with the package, trained as docs/guide/training.md tells: an FFF one and its dense twin."""

import os
from pathlib import Path
from typing import Any

from cmm.bert.checkpoint import load
from cmm.bert.model import Model
from cmm.errors import ArgumentError

#: Their folders by name.
TRAINED = {name: Path(__file__).parents[1] / "models" / name for name in ("fff", "dense")}


def packaged(source: Any) -> Any:
    """Return the folder of a model of this package where its name is given and nothing else has it, or the source."""
    if isinstance(source, str | os.PathLike) and not os.path.lexists(source):
        return TRAINED.get(os.fspath(source), source)
    return source


def trained(name: str = "fff") -> Model:
    """Load one of the two models that come with the package.

    Both have about 3.9 million weights, of which 1020 neurons in each of 5 layers, and were trained alike on English
    text of documentation packages: they know words like "function" and "file", and little else.

    Parameters
    ----------
    name : {"fff", "dense"}, optional
        "fff" has 4 trees of depth 7 in each layer, of whose 1020 neurons a token uses 32; "dense" uses all.

    Returns
    -------
    Model
        With a tokenizer, which needs the package ``tokenizers``.

    Raises
    ------
    ArgumentError
        There is no model of that name.
    """
    if not isinstance(name, str) or name not in TRAINED:
        raise ArgumentError(f"name is {name!r}; it should be one of {', '.join(TRAINED)}")
    return load(TRAINED[name])
