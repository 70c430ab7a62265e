"""The models that come with the package, trained as docs/guide/training.md tells: an FFF one and its dense twin."""

from pathlib import Path

from cmm.bert.checkpoint import load
from cmm.bert.model import Model
from cmm.errors import ArgumentError

#: Their folders by name.
TRAINED = {name: Path(__file__).parents[1] / "models" / name for name in ("fff", "dense")}


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
