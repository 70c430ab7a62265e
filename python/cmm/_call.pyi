from collections.abc import Callable
from typing import Any

def apply(
    bound: Any,
    x: Any,
    level: str,
    algorithm: str | None,
    threads: int | None,
    out: Any,
    return_path: bool,
    path: Any,
    /,
) -> Any: ...
def bind(prepared: Any, dtype: Any, layer: int, recomputed: int, /) -> Any: ...
def set_up(
    ndarray: type,
    empty: Callable[..., Any],
    automatic: str,
    environment: dict[bytes, bytes] | None,
    variables: tuple[bytes, ...],
    plan: Callable[[int | None], bytes | None],
    long_way: Callable[..., Any],
    large: int,
    /,
) -> None: ...
