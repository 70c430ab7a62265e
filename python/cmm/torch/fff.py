"""The fast feedforward layer as a PyTorch module: trained by PyTorch, evaluated by libcmm."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from cmm._check import check_choice, check_tokens
from cmm._dispatch import why_not
from cmm._native import ACTIVATIONS, TIES, lib
from cmm.errors import ArgumentError
from cmm.layers import fff_forward
from cmm.typing import Activation, Tie

# Each is 0 at 0, which is what nodes that were not visited get.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "identity": lambda x: x,
}
assert _ACTIVATIONS.keys() == ACTIVATIONS.keys()

_CPU_DTYPES = (torch.float32, torch.float64)
_CUDA_DTYPES = (*_CPU_DTYPES, torch.float16, torch.bfloat16)

_steps = [0]  # of all optimizers: PyTorch does not count what a fused one does as a change of the parameter


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


class FFF(nn.Module):
    """A fast feedforward layer of K trees of depth D, with the names and shapes of the authors' training code.

    What it computes is :func:`cmm.fff_forward`. In training every neuron is computed, by two matrix products, and
    those that a token did not visit are set to 0: that is the fast way on a GPU, and costs what a dense layer costs.
    The path is chosen without gradient; gradients flow through the visited nodes only. What is not visited has no
    influence, also where its weights are not finite. A visited node whose output weights are not finite makes the
    token's whole output NaN.

    In ``eval()``, where no gradient is asked for (``torch.no_grad()``, ``torch.inference_mode()``), libcmm computes
    the visited nodes only, on the memory of the tensors: on the CPU float32 and float64, on a GPU also float16 and
    bfloat16 where libcmm_cuda can be used. It uses at most ``torch.get_num_threads()`` threads. Under autocast, for
    other dtypes and on other devices it computes as in training.

    libcmm reads ``linear_out.weight`` transposed, and the layer keeps that copy until the parameter changes, as
    optimizers and ``load_state_dict`` change it. Writing through ``.data`` or another view that PyTorch does not
    track goes unnoticed until the next call of ``train()`` or ``eval()``.

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
        A size is not a whole number in its range, or activation or tie is not one of those.
    """

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
        self.d_in, self.trees, self.depth, self.d_out = d_in, trees, depth, d_out
        self.nodes = 2 ** (depth + 1) - 1
        self.activation, self.tie = activation, tie
        rows = trees * self.nodes
        self.linear_in = nn.Linear(d_in, rows, bias=bias, device=device, dtype=dtype)
        self.linear_out = nn.Linear(rows, d_out, bias=False, device=device, dtype=dtype)
        self._transposed: tuple[Any, Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights as the paper did: N(0, 0.02), biases 0."""
        nn.init.normal_(self.linear_in.weight, std=0.02)
        nn.init.normal_(self.linear_out.weight, std=0.02)
        if self.linear_in.bias is not None:
            nn.init.zeros_(self.linear_in.bias)

    def extra_repr(self) -> str:
        """Return what ``print`` says of the layer."""
        return f"{self.trees}x{self.depth}, activation={self.activation!r}, tie={self.tie!r}"

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
        """
        check_tokens(x, self.d_in)
        if not self.training and not self._wants_gradient(x) and _computable(x):
            return self._by_libcmm(x)
        return self._by_torch(x)

    # ---- by PyTorch ------------------------------------------------------------------------------------------------

    def _by_torch(self, x: Tensor) -> Tensor:
        w_in, bias, w_out = self.linear_in.weight, self.linear_in.bias, self.linear_out.weight
        lead = x.shape[:-1]
        x = x.reshape(-1, self.d_in)  # (T, d_in)
        device = x.device.type
        if _autocasts(device) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        logits = _ToNodes.apply(x, w_in, bias)  # (T, K*N)
        nodes = self._walk(logits.detach())  # (T, K*(D+1))
        visited = torch.zeros_like(logits, dtype=torch.bool).scatter(1, nodes, 1)
        hidden = _ACTIVATIONS[self.activation](torch.where(visited, logits, 0))
        y = functional.linear(hidden, _finite(w_out))  # (T, d_out)
        broken = ~torch.isfinite(w_out).all(dim=0)  # (K*N,)
        y = torch.where(broken[nodes].any(dim=1, keepdim=True), torch.nan, y)
        return y.reshape(*lead, self.d_out)

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

    # ---- by libcmm -------------------------------------------------------------------------------------------------

    def _wants_gradient(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    @torch.compiler.disable
    def _by_libcmm(self, x: Tensor) -> Tensor:
        w_in, bias = self.linear_in.weight.detach(), self.linear_in.bias
        result: Tensor = fff_forward(
            x.detach().resolve_neg(),
            w_in.view(self.trees, self.nodes, self.d_in),
            self._w_out(),
            None if bias is None else bias.detach().view(self.trees, self.nodes),
            activation=self.activation,
            tie=self.tie,
            threads=torch.get_num_threads() if x.device.type == "cpu" else None,
        )
        return result

    def _w_out(self) -> Tensor:
        """Return the output weights node by node, (K, N, d_out)."""
        weight = self.linear_out.weight
        # PyTorch counts the changes of a tensor, but not of one that was made in inference mode.
        changes = None if weight.is_inference() else weight._version
        key = changes, _steps[0], weight.data_ptr(), weight.dtype, weight.device
        kept = self._transposed
        if changes is None or kept is None or kept[0] != key:
            source = weight.detach()  # kept too, so that no other tensor can come to lie at its address
            w_out = source.t().contiguous().view(self.trees, self.nodes, self.d_out)
            self._transposed = kept = key, source, w_out
        return kept[2]

    def train(self, mode: bool = True) -> "FFF":
        """Set training or evaluation, and forget the transposed copy."""
        self._transposed = None
        super().train(mode)
        return self

    def _apply(self, *arguments: Any, **how: Any) -> "FFF":
        """Convert or move the parameters, as ``half()`` and ``to()`` do, and forget the transposed copy."""
        self._transposed = None
        super()._apply(*arguments, **how)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transposed": None}


class _ToNodes(torch.autograd.Function):
    """``x @ weight.T + bias``, where weights that are not finite have no part in the gradient of x.

    That gradient is a product with zeros for all nodes that were not visited, and 0 times infinity is NaN.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        return gradient @ _finite(weight), gradient.t() @ x, gradient.sum(0) if ctx.has_bias else None


def _finite(weight: Tensor) -> Tensor:
    return torch.where(torch.isfinite(weight), weight, 0)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _computable(x: Tensor) -> bool:
    """Whether libcmm can compute on this tensor; what PyTorch records could not be computed again."""
    device = x.device.type
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or _autocasts(device):
        return False
    if device == "cuda":
        return x.dtype in _CUDA_DTYPES and _cuda_is_usable()
    return device == "cpu" and x.dtype in _CPU_DTYPES


@cache
def _cuda_is_usable() -> bool:
    return not why_not("cuda")
