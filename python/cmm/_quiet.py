"""Warnings of other packages that say nothing to a user of this one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_encodings() -> Iterator[None]:
    """Let another package open its own files without naming an encoding, where that is an error (``-W error``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingWarning)
        yield
