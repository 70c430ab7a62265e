"""Arrays of other libraries in the CPU's memory: seen as NumPy's, and results given back as theirs.

Nothing is copied: a view and its array have the same memory.
"""

from importlib import import_module
from typing import Any

import numpy as np

from cmm._backend import DenseSpec, Place, Spec, numpy
from cmm.errors import ArgumentError, DtypeError


class Backend:
    """A library's arrays on the CPU."""

    DTYPES: tuple[str, ...] = numpy.DTYPES
    NARROW: tuple[str, ...] = numpy.NARROW

    def __init__(self, place: Place) -> None:
        self._library = place.library

    def view(self, name: str, array: Any, is_written: bool = False) -> Any:
        """Return NumPy's view of an array, None for None."""
        if array is None or isinstance(array, np.ndarray):
            return array
        try:
            if self._library != "torch":
                return np.from_dlpack(array)
            return array.numpy() if is_written else torch_view(array)
        except Exception as error:
            kind = getattr(array, "dtype", f"a {type(array).__name__}")
            raise DtypeError(f"{name}, {kind}, cannot become a NumPy array without a copy: {error}") from error

    def bind(self, spec: Spec, w_in: Any, w_out: Any, bias: Any) -> Any:
        """Return the weights of a layer where they are."""
        return numpy.bind(spec, *self._weights(w_in, w_out, bias))

    def prepare(
        self, spec: Spec, w_in: Any, w_out: Any, bias: Any, rows: tuple[str, str], exact: float | None
    ) -> Any:
        """Return packed copies of the weights, which are NumPy's, and views of them."""
        return numpy.prepare(spec, *self._weights(w_in, w_out, bias), rows, exact)

    def forward(
        self,
        spec: Spec,
        weights: Any,
        x: Any,
        out: Any,
        level: str,
        algorithm: str | None,
        threads: int | None,
        return_path: bool,
        path: Any = None,
    ) -> Any:
        """Apply a layer to tokens."""
        y = self._out(out)
        result = numpy.forward(spec, weights, self.view("x", x), y, level, algorithm, threads, return_path, path)
        return self._given(result, x, y, out)

    def dense(
        self,
        spec: DenseSpec,
        x: Any,
        w_in: Any,
        w_out: Any,
        bias: Any,
        out: Any,
        level: str,
        algorithm: str | None,
        threads: int | None,
    ) -> Any:
        """Apply a dense layer to tokens."""
        y = self._out(out)
        weights = self._weights(w_in, w_out, bias)
        return self._given(numpy.dense(spec, self.view("x", x), *weights, y, level, algorithm, threads), x, y, out)

    def backward(
        self,
        spec: Spec,
        x: Any,
        w_in: Any,
        w_out: Any,
        nodes: Any,
        logits: Any,
        dy: Any,
        wanted: dict[str, Any],
        accumulate: bool,
        threads: int | None,
    ) -> tuple[Any, ...]:
        """Return the gradients of a layer."""
        views = {name: one if isinstance(one, bool) else self._out(one, name) for name, one in wanted.items()}
        w_in, w_out, _ = self._weights(w_in, w_out, None)
        inputs = self.view("x", x), w_in, w_out, nodes, self.view("logits", logits), self.view("dy", dy)
        results = numpy.backward(spec, *inputs, views, accumulate, threads)
        return tuple(
            None if result is None else self._given(result, x, views[name], None if one is True else one)
            for (name, one), result in zip(wanted.items(), results, strict=True)
        )

    def _weights(self, w_in: Any, w_out: Any, bias: Any) -> tuple[Any, Any, Any]:
        return self.view("w_in", w_in), self.view("w_out", w_out), self.view("bias", bias)

    def _out(self, out: Any, name: str = "out") -> Any:
        if out is not None and self._library == "jax":
            raise ArgumentError(f"{name} is a JAX array, which cannot be written to; leave it out")
        if out is not None and self._library == "torch" and out.is_neg():
            raise ArgumentError(
                f"{name} is a view that PyTorch negates when it is read; it should be memory of its own"
            )
        return self.view(name, out, is_written=True)

    def _given(self, result: Any, like: Any, y: Any, out: Any) -> Any:
        """Return a result, or a tuple of them, as arrays of the library, but out for its own view y.

        A library without an array namespace has no way to make an array of its own: the result stays NumPy's.
        """
        if isinstance(result, tuple):
            return tuple(self._given(one, like, y, out) for one in result)
        if out is not None and result is y:
            return out
        if self._library == "torch":
            return import_module("torch").from_numpy(result)
        if self._library == "jax":
            return import_module("jax").numpy.from_dlpack(result)
        if isinstance(like, np.ndarray) or not hasattr(like, "__array_namespace__"):
            return result
        return like.__array_namespace__().from_dlpack(result)


def torch_view(tensor: Any) -> np.ndarray[Any, Any]:
    """Return NumPy's view of a tensor without its gradient; of one that PyTorch negates when it is read, a copy."""
    view: np.ndarray[Any, Any] = tensor.detach().resolve_neg().numpy()
    return view
