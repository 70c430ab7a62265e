"""Backends: where a call is computed. Each is a file here, and ``_interop`` picks one.

``numpy`` hands NumPy's arrays to libcmm; ``dlpack_cpu`` sees arrays of other libraries as NumPy's; ``cuda`` hands
arrays on a GPU to libcmm_cuda, or to ``cupy_bmm``. What reaches a backend has been checked: arrays of its kind, which
fit each other as a Spec says. It looks after layout, memory and levels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

CPU, CUDA = 1, 2  # DLPack's device types


class Place(NamedTuple):
    """Where an array is: the name of its library, and DLPack's type and number of its device."""

    library: str
    device_type: int
    device: int

    def __str__(self) -> str:
        if self.device_type == CPU:
            where = "the CPU"
        else:
            where = f"GPU {self.device}" if self.device_type == CUDA else f"device type {self.device_type}"
        return f"a {self.library} array on {where}"


@dataclass(frozen=True, slots=True)
class Spec:
    """A fast feedforward layer but for its weights; d_out is 0 where the path alone is wanted."""

    trees: int
    depth: int
    d_in: int
    d_out: int
    dtype: str  # "float32", ...: of tokens, weights and outputs
    activation: str
    tie: str
    codes: tuple[int, ...]  # as libcmm's functions take it: dtype, activation, tie, depth, trees, d_in, d_out


class Shown(NamedTuple):
    """The weights of a prepared layer, in the shapes given; rows as they are kept, those of int8 with scales."""

    w_in: Any
    w_out: Any
    bias: Any
    scale_in: Any = None
    scale_out: Any = None
    exact_in: Any = None
    margin: Any = None


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A dense layer but for its weights."""

    neurons: int
    d_in: int
    d_out: int
    dtype: str
    activation: str
    codes: tuple[int, ...]  # dtype, activation, neurons, d_in, d_out


class Backend(Protocol):
    """What a backend does. Modules are backends too."""

    DTYPES: tuple[str, ...]
    """The names of the dtypes that it computes with."""

    NARROW: tuple[str, ...]
    """The types that prepare() can round the rows of float32 weights to."""

    def view(self, name: str, array: Any) -> Any:
        """Return an array that has no shape or dtype to be asked for, such as one of DLPack's protocol alone."""

    def bind(self, spec: Spec, w_in: Any, w_out: Any, bias: Any) -> Any:
        """Return the weights of a layer as forward() takes them, for one call; w_out may be None, and bias."""

    def prepare(
        self, spec: Spec, w_in: Any, w_out: Any, bias: Any, rows: tuple[str, str], exact: float | None
    ) -> tuple[Any, Shown]:
        """Return them for many calls, and for people to look at.

        The rows of w_in and w_out become of those types. exact: None, or an exact path: 0 for a certain one, else the
        standard deviations of a likely one.
        """

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
        """Apply a layer to tokens; return what the public function does. Without a d_out that is the path.

        path: what to take instead of what the logits say: a contiguous array of int32 of NumPy's, or on a GPU an
        array of int32 there, and whether it has leaves alone.
        """

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
        """Return the gradients dx, dw_in, dbias and dw_out.

        nodes: as a path of forward(). wanted: for each gradient True for a new array, False for none, or an array.
        """
