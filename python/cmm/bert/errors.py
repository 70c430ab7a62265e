"""The one family of errors for files and configurations that cannot be loaded."""

from cmm.errors import CmmError


class CheckpointError(CmmError, ValueError):
    """A checkpoint or its configuration is missing, broken, or of a model that this encoder does not compute.

    Attributes
    ----------
    file : str
        The file or folder, or what stood in its place (``"config"``, ``"state_dict"``).
    problem : str
        What is wrong and what would be right.
    key : str or None
        The tensor or the configuration flag it is about.
    """

    def __init__(self, file: object, problem: str, key: str | None = None) -> None:
        # All three go to args, so that the exception survives pickling between processes.
        super().__init__(str(file), problem, key)
        self.file = str(file)
        self.problem = problem
        self.key = key

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.problem}" if self.key else f"{self.file}: {self.problem}"


def shown(value: object) -> str:
    """Return a short, printable, one-line form of a value read from a file that nobody vouches for."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def shown_key(key: str) -> str:
    """Return a key as it is where it looks like one, and quoted, escaped and shortened where it does not."""
    plain = len(key) <= 200 and key.isascii() and key.replace(".", "").replace("_", "").replace("-", "").isalnum()
    return key if plain else shown(key)
