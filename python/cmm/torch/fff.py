"""The fast feedforward layer as a PyTorch module: by libcmm's operators, or by PyTorch's products."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from cmm._check import check_choice, check_tokens
from cmm._dispatch import why_not
from cmm._native import ACTIVATIONS, TIES, lib
from cmm.errors import ArgumentError, listed
from cmm.torch.operators import CPU_DTYPES, Conditional, apply, fff_forward
from cmm.typing import Activation, Tie

BackwardWay: TypeAlias = Literal["auto", "visited", "dense"]
WAYS: tuple[BackwardWay, ...] = ("auto", "visited", "dense")

# Each is 0 at 0, which is what nodes that were not visited get.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "identity": lambda x: x,
}
assert _ACTIVATIONS.keys() == ACTIVATIONS.keys()

_DEEP, _FEW_TOKENS = 3, 64  # from which depth on, and else up to how many tokens, visited nodes are faster than all
_CUDA_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class FFF(nn.Module):
    """A fast feedforward layer of K trees of depth D, with the names and shapes of the authors' training code.

    What it computes is :func:`cmm.fff_forward`. The path is chosen without gradient; gradients flow through the
    visited nodes only. What is not visited has no influence, also where its weights are not finite.

    There are two ways. libcmm's operators, ``torch.ops.cmm.fff_forward`` and ``fff_backward``, compute the visited
    nodes and no others, on the memory of the tensors: on a CPU float32 and float64, and on a GPU forward passes,
    also of float16 and bfloat16, where libcmm_cuda can be used. They use at most ``torch.get_num_threads()``
    threads. The dense way computes every neuron, by two products of PyTorch, and sets those that a token did not
    visit to 0; it costs what a dense layer costs, runs on every device, and has derivatives of every order and in
    forward mode. There a visited node whose output weights are not finite makes the token's whole output NaN.

    In ``eval()``, where no gradient is asked for, the operators compute wherever they can, the dense way elsewhere,
    and under autocast. Where a gradient may be asked for, `backward` decides. The choice is part of what
    ``torch.compile`` and ``torch.export`` record.

    libcmm reads ``linear_out.weight`` transposed. ``eval()`` makes that form, and ``train()`` drops it;
    ``load_state_dict``, ``to()`` and its like make it anew. A sharded parameter (DTensor), another parameter in
    its place, and one that a gradient is asked for have none: each forward pass then transposes. Whoever writes to
    the weight in ``eval()`` in another way calls ``eval()`` again.

    Parameters
    ----------
    d_in : int
        The width of a token.
    trees, depth : int
        K and D. A tree has N = 2^(D+1) - 1 nodes.
    d_out : int, optional
        The width of an output, d_in if not given.
    bias : bool, optional
        Whether nodes have a bias.
    activation : {"gelu", "gelu_tanh", "relu", "silu", "identity"}, optional
    tie : {"left", "right"}, optional
        Where a logit of exactly 0 goes. NaN goes left.
    backward : {"auto", "visited", "dense"}, optional
        How forward passes with a gradient are computed, and all in training: "visited" by libcmm's operators,
        "dense" by PyTorch's products, "auto" by what is faster for this device, layer and batch, as it was
        measured. Also an attribute that may be set.
    device, dtype
        As for ``torch.nn.Linear``.

    Attributes
    ----------
    linear_in : torch.nn.Linear
        Weight (K*N, d_in) and bias (K*N,): node n of tree k is row k*N + n.
    linear_out : torch.nn.Linear
        Weight (d_out, K*N), without a bias.

    Raises
    ------
    ArgumentError
        A size is not a whole number in its range, or activation, tie or backward is not one of those.
    """

    _rows_out: Tensor | None

    def __init__(
        self,
        d_in: int,
        trees: int,
        depth: int,
        d_out: int | None = None,
        *,
        bias: bool = True,
        activation: Activation = "gelu",
        tie: Tie = "left",
        backward: BackwardWay = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        limits = {"d_in": (1, 2**31), "trees": (1, 2**31), "depth": (0, lib.CMM_MAX_DEPTH), "d_out": (1, 2**31)}
        for (name, (low, high)), value in zip(limits.items(), (d_in, trees, depth, d_out), strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ArgumentError(f"{name} is {value!r}; it should be a whole number from {low} to {high}")
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("tie", tie, TIES)
        _check_way(backward)
        self.d_in, self.trees, self.depth, self.d_out = d_in, trees, depth, d_out
        self.nodes = 2 ** (depth + 1) - 1
        self.activation, self.tie = activation, tie
        self.backward: BackwardWay = backward
        rows = trees * self.nodes
        self.linear_in = nn.Linear(d_in, rows, bias=bias, device=device, dtype=dtype)
        self.linear_out = nn.Linear(rows, d_out, bias=False, device=device, dtype=dtype)
        self.register_buffer("_rows_out", None, persistent=False)
        self._rows_of: tuple[Tensor, ...] = ()  # what they are the transposed form of; no parameter of this module
        self._is_ready = False  # in eval(), with that form, on a CPU
        self.register_load_state_dict_post_hook(_renew)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights as the paper did: N(0, 0.02), biases 0."""
        nn.init.normal_(self.linear_in.weight, std=0.02)
        nn.init.normal_(self.linear_out.weight, std=0.02)
        if self.linear_in.bias is not None:
            nn.init.zeros_(self.linear_in.bias)
        self._prepare()

    def extra_repr(self) -> str:
        """Return what ``print`` says of the layer."""
        way = "" if self.backward == "auto" else f", backward={self.backward!r}"
        return f"{self.trees}x{self.depth}, activation={self.activation!r}, tie={self.tie!r}{way}"

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to tokens.

        Parameters
        ----------
        x : tensor, shape (..., d_in)

        Returns
        -------
        tensor, shape (..., d_out)

        Raises
        ------
        ShapeError
            x has another width.
        ArgumentError
            backward is "visited", and libcmm has no gradient for this tensor.
        """
        linear_in, w_out = self.linear_in, self.linear_out.weight
        w_in, bias = linear_in.weight, linear_in.bias
        if self._is_ready and not torch.is_grad_enabled() and _is_plain(x, w_in, bias) and w_out is self._rows_of[0]:
            return apply(x, w_in, bias, self._rows_out, self.trees, self.activation, self.tie)
        check_tokens(x, self.d_in)
        gradient = torch.is_grad_enabled() and (
            x.requires_grad or w_in.requires_grad or w_out.requires_grad or (bias is not None and bias.requires_grad)
        )
        if self._rows_of and gradient and w_out.requires_grad:
            self._drop()  # who asks for its gradient is about to change it
        if self._by_operators(x, gradient or self.training):
            rows = self._rows(w_out)
            if not torch.is_grad_enabled():
                y, _, _ = fff_forward(x, w_in, bias, rows, self.trees, self.activation, self.tie, False)
            else:
                # In a graph that is compiled the operator has its gradient; torch.func sees that of a Function.
                call = fff_forward if torch.compiler.is_compiling() else Conditional.apply
                y, _, _ = call(x, w_in, bias, rows, self.trees, self.activation, self.tie, True)
            return y
        return self._by_products(x, w_in, bias, w_out)

    def _by_operators(self, x: Tensor, is_chosen: bool) -> bool:
        """Whether libcmm's operators compute; where `backward` chooses, only if it says so."""
        if not is_chosen:
            return not _autocasts(x.device.type) and _computable(x)
        _check_way(self.backward)
        if self.backward == "visited":
            if x.device.type != "cpu" or x.dtype not in CPU_DTYPES:
                raise ArgumentError(
                    f"x is on {x.device} and of {x.dtype}; backward='visited' is for float32 and float64 on a CPU"
                )
            return True
        if self.backward == "dense" or x.device.type != "cpu" or x.dtype not in CPU_DTYPES or _autocasts("cpu"):
            return False
        return self._visited_is_faster(x)

    def _visited_is_faster(self, x: Tensor) -> bool:
        """Whether it was, on a CPU, where docs/internals/performance.md has the table."""
        if self.depth >= _DEEP:  # at most 27 % of the neurons are visited
            return True
        # A compiled graph is for any number of tokens, and has one way.
        return not torch.compiler.is_compiling() and x.numel() <= _FEW_TOKENS * self.d_in

    # ---- all neurons -----------------------------------------------------------------------------------------------

    def _by_products(self, x: Tensor, w_in: Tensor, bias: Tensor | None, w_out: Tensor) -> Tensor:
        lead = x.shape[:-1]
        x = x.reshape(-1, self.d_in)  # (T, d_in)
        device = x.device.type
        if _autocasts(device) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        to_nodes = _ToNodes if torch.compiler.is_compiling() else _ToNodesForward
        logits = to_nodes.apply(x, w_in, bias)  # (T, K*N)
        nodes = self._walk(logits.detach())  # (T, K*(D+1))
        visited = torch.zeros_like(logits, dtype=torch.bool).scatter(1, nodes, 1)
        hidden = _ACTIVATIONS[self.activation](torch.where(visited, logits, 0))
        y = functional.linear(hidden, _finite(w_out))  # (T, d_out)
        broken = (~torch.isfinite(w_out).all(dim=0))[nodes].any(dim=1)  # (T,)
        # Its last step makes a new tensor: a view would not do for FSDP.
        return torch.where(broken.reshape(*lead, 1), torch.nan, y.reshape(*lead, self.d_out))

    def _walk(self, logits: Tensor) -> Tensor:
        """Return the flat numbers of the visited nodes, (T, K*(D+1)), for logits (T, K*N)."""
        first = torch.arange(self.trees, device=logits.device) * self.nodes  # the roots
        node = torch.zeros(logits.shape[0], self.trees, dtype=torch.int64, device=logits.device)
        path = [node + first]
        for _ in range(self.depth):
            logit = logits.gather(1, path[-1])
            right = logit > 0 if self.tie == "left" else logit >= 0
            node = 2 * node + 1 + right
            path.append(node + first)
        return torch.cat(path, dim=1)

    # ---- the transposed form of linear_out -------------------------------------------------------------------------

    def _rows(self, w_out: Tensor) -> Tensor:
        """Return the output weights node by node, (K*N, d_out)."""
        kept = self._rows_out
        if kept is not None:
            # Export puts fake parameters in the place of these.
            its_own = torch.compiler.is_exporting() or w_out is self._rows_of[0]
            if its_own:
                return kept
        return w_out.t().contiguous()

    def _prepare(self) -> None:
        """Make the form anew in eval(), and have none in training or of a parameter that is no plain tensor."""
        weight: Any = getattr(self.linear_out, "weight", None)
        if self.training or type(weight) not in (Tensor, nn.Parameter):
            self._drop()
        else:
            self._rows_out = weight.detach().t().contiguous()
            self._rows_of = (weight,)
            self._is_ready = weight.is_cpu and weight.dtype in CPU_DTYPES

    def _drop(self) -> None:
        self._rows_out, self._rows_of, self._is_ready = None, (), False

    def train(self, mode: bool = True) -> "FFF":
        """Set training, which drops the transposed form, or evaluation, which makes it anew."""
        super().train(mode)
        self._prepare()
        return self

    def _apply(self, *arguments: Any, **how: Any) -> "FFF":
        """Convert or move the parameters, as ``half()`` and ``to()`` do, and make the transposed form anew."""
        self._drop()
        super()._apply(*arguments, **how)
        self._prepare()
        return self


def _renew(layer: FFF, _: Any) -> None:
    """Make the transposed form of what load_state_dict has loaded."""
    layer._prepare()


def _check_way(backward: Any) -> None:
    if backward not in WAYS:
        raise ArgumentError(f"backward is {backward!r}; it should be one of {listed(WAYS)}")


class _ToNodes(torch.autograd.Function):
    """``x @ weight.T + bias``, where weights that are not finite have no part in the gradient of x.

    That gradient is a product with zeros for all nodes that were not visited, and 0 times infinity is NaN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        return gradient @ _finite(weight), gradient.t() @ x, gradient.sum(0) if ctx.has_bias else None


class _ToNodesForward(_ToNodes):
    """The same with a derivative in forward mode, which torch.compile has no rule for."""

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = [] if dx is None else [dx @ weight.t()]
        parts += [] if dweight is None else [x @ dweight.t()]
        parts += [] if dbias is None else [dbias.expand(len(x), -1)]
        return sum(parts[1:], parts[0])


def _is_plain(x: Tensor, w_in: Tensor, bias: Tensor | None) -> bool:
    """Whether these are tensors on a CPU that nobody traces, transforms, records or casts."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and type(w_in) is nn.Parameter
        and (bias is None or type(bias) is nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not is_functorch_wrapped_tensor(x)
        and not is_in_torch_dispatch_mode()
        and not x.is_neg()
    )


def _finite(weight: Tensor) -> Tensor:
    return torch.where(torch.isfinite(weight), weight, 0)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _computable(x: Tensor) -> bool:
    """Whether libcmm has a forward pass for this tensor."""
    device = x.device.type
    if device == "cuda":
        return x.dtype in _CUDA_DTYPES and _cuda_is_usable()
    return device == "cpu" and x.dtype in CPU_DTYPES


@cache
def _cuda_is_usable() -> bool:
    return not why_not("cuda")
