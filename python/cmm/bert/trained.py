"""The trained models of the package libcmm-models, as docs/guide/training.md tells: an FFF one, its dense twin."""

import os
from pathlib import Path
from typing import Any

from cmm.bert.checkpoint import load
from cmm.bert.model import Model
from cmm.errors import ArgumentError, UnusableError
from cmm.typing import Weights

#: Their names.
TRAINED = ("fff", "dense")


def folder_of(name: str) -> Path:
    """Return the folder of one of them, or say how to get it."""
    try:
        from cmm_models import FOLDERS
    except ImportError:
        raise UnusableError(
            f"{name} is a trained model of the package libcmm-models, which is not installed: "
            "pip install libcmm-models, or in a checkout pip install ./python/libcmm-models"
        ) from None
    return FOLDERS[name]


def packaged(source: Any) -> Any:
    """Return the folder of a trained model where its name is given and nothing else has it, or the source.

    Raises
    ------
    UnusableError
        It is one's name, and they are not installed.
    """
    if isinstance(source, str | os.PathLike) and not os.path.lexists(source) and os.fspath(source) in TRAINED:
        return folder_of(str(os.fspath(source)))
    return source


def trained(name: str = "fff", *, weights: Weights | None = None, exact_path: bool | float = False) -> Model:
    """Load one of the two models of the package ``libcmm-models``.

    Both have about 3.9 million weights, with 1008 and 1020 neurons in each of 5 layers, and were trained on the same
    English text of documentation packages: they know words like "function" and "file", and little else.

    Parameters
    ----------
    name : {"fff", "dense"}, optional
        "fff" has 16 trees of depth 5 in each layer, of whose 1008 neurons a token uses 96; "dense" uses all.
    weights, exact_path
        As for :func:`load`.

    Returns
    -------
    Model
        With a tokenizer, which needs the package ``tokenizers``.

    Raises
    ------
    ArgumentError
        There is no model of that name.
    UnusableError
        The package ``libcmm-models`` is not installed.
    """
    if not isinstance(name, str) or name not in TRAINED:
        raise ArgumentError(f"name is {name!r}; it should be one of {', '.join(TRAINED)}")
    return load(folder_of(name), weights=weights, exact_path=exact_path)
