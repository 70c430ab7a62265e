"""Environment variables, which are looked up in every call, so that a change takes effect at once."""

import os
from collections.abc import Callable
from typing import Any

# os.environ.get() takes 0.7 us for a variable that is not set, because it catches an exception of its own. The
# dictionary that os.environ wraps takes 0.02, which counts in every call.
_data: Any = getattr(os.environ, "_data", None)

data: dict[bytes, bytes] | None = _data if type(_data) is dict and os.name == "posix" else None
"""That dictionary, None where there is none of bytes."""

raw: Callable[[bytes], Any] = data.get if data is not None else lambda name: os.environ.get(name.decode())
"""The value of a variable, which may be empty, in a form that can be compared; None when it is unset."""


def variable(name: bytes) -> str | None:
    """Return the value of an environment variable, None when it is unset or empty."""
    return os.environ.get(name.decode()) or None if raw(name) else None
