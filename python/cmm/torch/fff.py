"""The fast feedforward layer as a PyTorch module: by libcmm's operators, or by PyTorch's products."""

from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from cmm._check import check_choice, check_tokens
from cmm._dispatch import why_not
from cmm._native import ACTIVATIONS, TIES, lib
from cmm.errors import ArgumentError, ShapeError, listed
from cmm.torch.operators import (
    ACTIVATIONS_OF_TENSORS,
    CPU_DTYPES,
    CUDA_DTYPES,
    Conditional,
    Recorded,
    SparseConditional,
    apply,
    autocast,
    fff_forward,
    fff_hidden,
    fff_visited,
)
from cmm.typing import Activation, Tie

BackwardWay: TypeAlias = Literal["auto", "visited", "dense"]
WAYS: tuple[BackwardWay, ...] = ("auto", "visited", "dense")

_DEEP, _FEW_TOKENS = 3, 64  # from which depth on, and else up to how many tokens, visited nodes are faster than all
# The compiler of PyTorch 2.11 cannot trace this question.
_AUTOCAST_DEVICES = {name for name in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(name)}
_PLAIN = (nn.Parameter, Tensor)  # no subclass, whose memory may be another matter


class Routing(NamedTuple):
    """How the tokens of a forward pass spread over the trees of a layer."""

    counts: Tensor
    """int64, (K, N): how many tokens visited each node."""
    leaves: Tensor
    """int64, (K,): how many leaves of a tree were visited."""
    perplexity: Tensor
    """(K,): exp of the entropy of the leaves, so that many leaves that share the tokens evenly have this number."""


class _Routed(NamedTuple):
    """What a forward pass keeps of its paths: logits where visited nodes were computed, sums where all were."""

    nodes: Tensor  # (T, K, D+1)
    logits: Tensor | None  # (T, K, D+1)
    sums: Tensor | None  # (2, K*N): how many tokens visited a node, and the sum of their sigmoid(z)


class _Form(NamedTuple):
    """The transposed form of an output weight: one tuple, so that threads see all of it or nothing."""

    rows: Tensor
    weight: Tensor  # the parameter
    memory: Tensor  # which it had then; held, so that no other has this address
    version: int | None  # of inference tensors, which have none
    is_ready: bool  # for apply()

    def is_stale(self) -> bool:
        """Whether the parameter has been written to since, or has got other memory, as half() on a child gives it."""
        weight = self.weight
        return self.memory.data_ptr() != weight.data_ptr() or (
            self.version is not None and self.version != _version(weight)
        )


class FFF(nn.Module):
    """A fast feedforward layer of K trees of depth D, with the names and shapes of the authors' training code.

    What it computes is :func:`cmm.fff_forward`. The path is chosen without gradient; gradients flow through the
    visited nodes only. What is not visited has no influence, also where its weights are not finite, but in the soft
    phase, with `straight_through`, and where `linear_in` and `linear_out` are called.

    There are two ways. libcmm's operators, ``torch.ops.cmm.fff_forward`` and ``fff_backward``, compute the visited
    nodes and no others, on the memory of the tensors: on a CPU float32 and float64, and on a GPU, where libcmm_cuda
    can be used, also float16 and bfloat16. They use at most ``torch.get_num_threads()`` threads. On a GPU the
    gradients of a forest of which a token visits a sixteenth of the nodes or more are products of all neurons.
    The dense way computes every neuron, by two products of PyTorch, and sets those that a token did not visit to 0;
    it costs what a dense layer costs, runs on every device, and has derivatives of every order and in
    forward mode. There a visited node whose output weights are not finite makes the token's whole output NaN.

    In ``eval()``, where no gradient is asked for, the operators compute wherever they can, the dense way elsewhere,
    and under autocast on a CPU. Under autocast on a GPU the operators narrow tokens and weights. Where a gradient
    may be asked for, `backward` decides. The choice is part of what ``torch.compile`` and ``torch.export`` record.

    libcmm reads ``linear_out.weight`` transposed. ``eval()`` makes that form, and ``train()`` drops it;
    ``load_state_dict``, ``to()`` and its like make it anew, and so does a forward pass that finds the weight
    written to. A sharded parameter (DTensor), another parameter in its place, and one that a gradient is asked for
    have none: each forward pass then transposes. Whoever writes to the weight in ``eval()`` where PyTorch does not
    count it (``weight.data``, inference tensors), or compiles or exports the layer, calls ``eval()`` again.

    In the soft phase of training, ``layer.softness = alpha``, all neurons act, those off the path by a factor of
    alpha: ``activation(z) * (1 on the path, alpha off it)``. Setting it to 0 ends that phase; ``eval()`` is hard in
    any case. A change of alpha within the phase compiles nothing anew.

    ``linear_in`` and ``linear_out`` may be replaced by modules that call them or compute otherwise (adapters,
    quantised or parametrised ones), and may have hooks: they are then called, on all neurons, in training and in
    ``eval()``.

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
    sparse : bool, optional
        Whether gradients of weights and bias are sparse tensors (COO) of the visited rows, as
        ``torch.optim.SparseAdam`` takes them. ``linear_out`` is then a module whose weight is (K*N, d_out), a row
        for each node; in a ``state_dict`` it is (d_out, K*N) all the same. Training is by visited nodes, on a CPU,
        and not compiled.
    straight_through : bool, optional
        Whether the choice of a child has a gradient in training: of a visited inner node, from how much better the
        subtree to its right would have done than the one to its left, times the slope of the sigmoid. It needs all
        neurons, and lets unvisited ones have an influence. Also an attribute.
    track_routing : bool, optional
        Whether each forward pass keeps its paths, for :meth:`balance_loss` and :meth:`routing`. Also an attribute.
    device, dtype
        As for ``torch.nn.Linear``.

    Attributes
    ----------
    softness : float
        alpha, and 0 outside of the soft phase. May be set, to a number from 0 to 1.
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
    alpha: Tensor

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
        sparse: bool = False,
        straight_through: bool = False,
        track_routing: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        check_sizes(d_in, trees, depth, d_out)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("tie", tie, TIES)
        _check_way(backward)
        self.d_in, self.trees, self.depth, self.d_out = d_in, trees, depth, d_out
        self.nodes = 2 ** (depth + 1) - 1
        self.activation, self.tie = activation, tie
        self.backward: BackwardWay = backward
        if sparse and backward == "dense":
            raise ArgumentError("backward is 'dense', and sparse is True; it should be 'auto' or 'visited'")
        self.sparse = bool(sparse)
        self.straight_through, self._tracks = straight_through, track_routing
        self._is_soft = False  # which of two graphs training is; how soft is a number in it
        self._routed: _Routed | None = None  # of the last forward pass
        rows = trees * self.nodes
        self.linear_in = nn.Linear(d_in, rows, bias=bias, device=device, dtype=dtype)
        self.linear_out: nn.Module
        if sparse:
            self.linear_out = _NodeRows(rows, d_out, device=device, dtype=dtype)
        else:
            self.linear_out = nn.Linear(rows, d_out, bias=False, device=device, dtype=dtype)
        self.register_buffer("alpha", torch.zeros((), device=device), persistent=False)
        self.register_buffer("_rows_out", None, persistent=False)
        self._form: _Form | None = None  # in eval(); its rows are the buffer too, which is a constant of exports
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
        if not torch.compiler.is_compiling():
            y = self._at_once(x)
            if y is not None:
                return y
        linear_in, linear_out = self.linear_in, self.linear_out
        if self.sparse:
            return self._sparsely(x, linear_in, linear_out)
        if not type(linear_in) is type(linear_out) is nn.Linear or _is_hooked(linear_in) or _is_hooked(linear_out):
            return self._by_calls(x)
        w_in, bias, w_out = linear_in.weight, linear_in.bias, linear_out.weight
        form = self._form_of(w_out)
        exports = torch.compiler.is_exporting()  # which puts fake parameters in the place of these
        if not (exports or (type(w_in) in _PLAIN and type(w_out) in _PLAIN)):
            return self._by_calls(x)
        check_tokens(x, self.d_in)
        gradient = _is_asked(x, w_in, bias, w_out)
        if form and gradient and w_out.requires_grad and not exports:
            self._drop()  # who asks for its gradient is about to change it
            form = None
        forward_mode = _is_forward_mode(x, w_in, bias, w_out)
        if self._by_operators(x, gradient or self.training or forward_mode):
            # In a graph that is compiled the operator has its gradient; torch.func sees that of a Function, which
            # is also what refuses forward mode.
            records = torch.is_grad_enabled()
            functions = not torch.compiler.is_compiling() and (
                records or forward_mode or is_functorch_wrapped_tensor(x)
            )
            call = fff_forward
            if functions:
                call = Conditional.apply if forward_mode or get_interpreter_stack() else Recorded.apply
            wants_path = records or self._tracks
            weights: tuple[Tensor | None, ...] = w_in, bias, self._rows(w_out, form)
            if _autocasts(x.device.type):
                x = autocast(x)
                if x.is_cpu:  # on a GPU the operators take weights of float32, and give gradients of float32
                    weights = tuple(None if one is None else one.to(x.dtype) for one in weights)
            y, nodes, logits = call(x, *weights, self.trees, self.activation, self.tie, wants_path)
            if self._tracks:
                self._keep(nodes, logits)
            return y
        return self._by_products(x, w_in, bias, w_out)

    def _at_once(self, x: Tensor) -> Tensor | None:
        """Return y by a call of libcmm; None where PyTorch has to be asked or told.

        One token takes libcmm a few microseconds, and PyTorch's dispatcher ten more.
        """
        form = self._form
        if form is None or not form.is_ready or torch.is_grad_enabled():
            return None
        linear_in, linear_out = self.linear_in, self.linear_out
        if not type(linear_in) is type(linear_out) is nn.Linear or _is_hooked(linear_in) or _is_hooked(linear_out):
            return None
        w_in, bias, w_out = linear_in.weight, linear_in.bias, linear_out.weight
        if not _is_plain(x, w_in, bias) or self._form_of(w_out) is not form:
            return None
        return apply(x, w_in, bias, form.rows, self.trees, self.activation, self.tie)

    def _sparsely(self, x: Tensor, linear_in: nn.Module, linear_out: nn.Module) -> Tensor:
        """Compute visited nodes, so that the gradients of weights are sparse."""
        check_tokens(x, self.d_in)
        if type(linear_in) is not nn.Linear or type(linear_out) is not _NodeRows or _is_hooked(linear_in):
            raise ArgumentError("sparse is True, for which linear_in and linear_out should be as the layer made them")
        w_in, bias, w_out = linear_in.weight, linear_in.bias, linear_out.weight
        trains = self.training or _is_asked(x, w_in, bias, w_out)
        if not trains and (_autocasts(x.device.type) or not _computable(x.device.type, x.dtype)):
            return self._by_products(x, w_in, bias, w_out.t())
        if self.backward == "dense" or (self.training and (self._is_soft or self.straight_through)):
            raise ArgumentError(
                "sparse is True, for which backward should not be 'dense', softness be 0 and straight_through False"
            )
        if trains and (x.device.type != "cpu" or x.dtype not in CPU_DTYPES or torch.compiler.is_compiling()):
            raise ArgumentError(
                f"x is on {x.device} and of {x.dtype}; sparse=True is for training in float32 and float64 on a CPU, "
                "without torch.compile"
            )
        records = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        functions = not torch.compiler.is_compiling() and (
            records or _is_forward_mode(x, w_in, bias, w_out) or is_functorch_wrapped_tensor(x)
        )
        call = SparseConditional.apply if functions else fff_forward
        layer = w_in, bias, w_out, self.trees, self.activation, self.tie
        y, nodes, logits = call(x, *layer, records or self._tracks)
        if self._tracks:
            self._keep(nodes, logits)
        return y

    def _by_operators(self, x: Tensor, is_chosen: bool) -> bool:
        """Whether libcmm's operators compute; where `backward` chooses, only if it says so."""
        device, dtype = x.device.type, _dtype_of(x)
        if not is_chosen:
            return (device == "cuda" or not _autocasts(device)) and _computable(device, dtype)
        _check_way(self.backward)
        needs_all = self.training and (self._is_soft or self.straight_through)
        if self.backward == "visited":
            if needs_all:
                why = f"softness is {self.softness}" if self._is_soft else "straight_through is True"
                raise ArgumentError(f"{why}, for which all neurons are computed; backward should not be 'visited'")
            if not _computable(device, dtype):
                raise ArgumentError(
                    f"x is on {x.device} and of {x.dtype}; backward='visited' is for float32 and float64 on a CPU, "
                    "and with libcmm_cuda also float16 and bfloat16 on a GPU"
                )
            return True
        if needs_all or self.backward == "dense" or not _computable(device, dtype):
            return False
        if device == "cuda":
            return self.depth > 0  # with a gradient that chooses again
        return not _autocasts("cpu") and self._visited_is_faster(x)

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
        if self._has_kernel(logits) and not self._needs_more():
            hidden, path = fff_hidden(logits, self.trees, self.activation, self.tie, True)
            nodes = (path + self._roots(path)).flatten(1)
        else:
            nodes, visited = self._walk(logits.detach())
            hidden = self._hidden(logits, nodes, visited)
        if self.training and self._is_soft:
            return functional.linear(hidden, w_out).reshape(*lead, self.d_out)
        y = functional.linear(hidden, _finite(w_out))  # (T, d_out)
        broken = (~torch.isfinite(w_out).all(dim=0))[nodes].any(dim=1)  # (T,)
        # Its last step makes a new tensor: a view would not do for FSDP.
        return torch.where(broken.reshape(*lead, 1), torch.nan, y.reshape(*lead, self.d_out))

    def _has_kernel(self, logits: Tensor) -> bool:
        """Whether libcmm_cuda walks trees by these logits."""
        return (
            logits.is_cuda
            and self.depth > 0
            and type(logits) is Tensor
            and (torch.compiler.is_compiling() or not is_functorch_wrapped_tensor(logits))
            and not _is_forward_mode(logits)
            and _computable("cuda", logits.dtype)
        )

    def _needs_more(self) -> bool:
        """Whether hidden neurons are more than the activations of visited ones."""
        return self._tracks or (self.training and (self._is_soft or self.straight_through))

    def _by_calls(self, x: Tensor) -> Tensor:
        """Compute as the modules in place of linear_in and linear_out do."""
        check_tokens(x, self.d_in)
        if self._form and not torch.compiler.is_exporting():
            self._drop()  # an adapter may be merged into the weight
        if self.backward == "visited":
            called = next(name for name in ("linear_in", "linear_out") if _is_called(getattr(self, name)))
            kind = type(getattr(self, called)).__name__
            raise ArgumentError(
                f"{called} is a {kind} that has to be called, for all neurons; backward should not be 'visited'"
            )
        logits = self.linear_in(x)
        rows = self.trees * self.nodes
        if logits.shape != (*x.shape[:-1], rows):
            should = (*x.shape[:-1], rows)
            raise ShapeError(f"linear_in has given shape {tuple(logits.shape)}; it should be {should}")
        flat = logits.reshape(-1, rows)
        if self._has_kernel(flat) and not self._needs_more():
            hidden, _ = fff_hidden(flat, self.trees, self.activation, self.tie, False)
        else:
            hidden = self._hidden(flat, *self._walk(flat.detach()))
        y: Tensor = self.linear_out(hidden.reshape(logits.shape))
        return y

    def _hidden(self, logits: Tensor, nodes: Tensor, visited: Tensor) -> Tensor:
        """Return what neurons (T, K*N) give to the output, for the rows of the visited ones, and which those are."""
        if self._tracks:
            own = (nodes.reshape(-1, self.trees, self.depth + 1) - self._roots(nodes)).to(torch.int32)
            # Sums over the rows of what is there anyway: on a GPU additions to single nodes wait for each other.
            count = visited.sum(0, dtype=_wide(logits).dtype)
            # Masked before the sigmoid: a row off the path may be NaN, and so would its share and its gradient be.
            turns = torch.where(visited, _wide(logits), 0).sigmoid() * visited
            self._routed = _Routed(own, None, torch.stack((count, turns.sum(0))))
        activation = ACTIVATIONS_OF_TENSORS[self.activation]
        if self.training and self._is_soft:
            hidden = activation(logits) * torch.where(visited, 1, self.alpha.to(logits.dtype))
        else:
            hidden = activation(torch.where(visited, logits, 0))
        if self.training and self.straight_through:
            hidden = hidden + _Choice.apply(logits, visited, self.trees, self.depth, self.activation, self.tie)
        return hidden

    def _roots(self, beside: Tensor) -> Tensor:
        """Return the row of each tree's root, (K, 1)."""
        return torch.arange(self.trees, device=beside.device)[:, None] * self.nodes

    def _walk(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of visited nodes, (T, K*(D+1)), and which are visited, (T, K*N), for logits (T, K*N)."""
        if self._has_kernel(logits):
            visited, path = fff_visited(logits, self.trees, self.tie)
            return (path + self._roots(path)).flatten(1), visited
        first = self._roots(logits).flatten()
        node = torch.zeros(logits.shape[0], self.trees, dtype=torch.int64, device=logits.device)
        levels = [node + first]
        for _ in range(self.depth):
            logit = logits.gather(1, levels[-1])
            right = logit > 0 if self.tie == "left" else logit >= 0
            node = 2 * node + 1 + right
            levels.append(node + first)
        nodes = torch.stack(levels, dim=2).flatten(1)
        return nodes, torch.zeros_like(logits, dtype=torch.bool).scatter(1, nodes, 1)

    # ---- softness, balance ----------------------------------------------------------------------------------------

    @property
    def track_routing(self) -> bool:
        """Whether forward passes keep their paths."""
        return self._tracks

    @track_routing.setter
    def track_routing(self, wanted: bool) -> None:
        self._tracks = wanted
        self._prepare()

    @property
    def softness(self) -> float:
        """How much neurons off the path act in training, from 0 to 1."""
        return float(self.alpha) if self._is_soft else 0.0

    @softness.setter
    def softness(self, alpha: float) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise ArgumentError(f"softness is {alpha!r}; it should be a number from 0 to 1")
        with torch.no_grad():
            self.alpha.fill_(alpha)
        self._is_soft = alpha > 0

    def balance_loss(self) -> Tensor:
        """Return how unevenly the inner nodes shared out the tokens of the last forward pass, from 0 to 1.

        Of each inner node n, p_n is the mean of ``sigmoid(z_n)`` over the tokens that visited it. The loss is the
        mean over the trees of ``sum over n of (share of the tokens that visited n) * (2 p_n - 1)^2 / D``; of trees
        of one node it is 0. It has a gradient where the forward pass had one. What worked: 0.2 times it, added to
        the loss.

        Returns
        -------
        tensor without dimensions, float32, or float64 where the layer is

        Raises
        ------
        ArgumentError
            No forward pass has kept its paths.
        """
        nodes, logits, sums = self._last()
        if sums is None:
            assert logits is not None
            first = torch.arange(self.trees, device=nodes.device)[:, None] * self.nodes
            right = torch.sigmoid(_wide(logits)).flatten()
            row = (nodes + first).flatten()
            zeros = right.new_zeros(self.trees * self.nodes)
            sums = torch.stack((zeros.index_add(0, row, torch.ones_like(right)), zeros.index_add(0, row, right)))
        count, right = sums.reshape(2, self.trees, self.nodes)[..., : self.nodes // 2]  # of inner nodes
        p = right / count.clamp(min=1)
        return (count * (2 * p - 1) ** 2).sum() / max(1, len(nodes) * self.depth * self.trees)

    def routing(self) -> Routing:
        """Return how the tokens of the last forward pass spread over the trees.

        Raises
        ------
        ArgumentError
            No forward pass has kept its paths.
        """
        nodes = self._last().nodes
        first = torch.arange(self.trees, device=nodes.device)[:, None] * self.nodes
        counts = torch.bincount((nodes + first).flatten(), minlength=self.trees * self.nodes)
        counts = counts.reshape(self.trees, self.nodes)
        leaves = counts[:, self.nodes // 2 :]
        share = leaves / leaves.sum(1, keepdim=True).clamp(min=1)
        return Routing(counts, (leaves > 0).sum(1), torch.exp(torch.special.entr(share).sum(1)))

    def _keep(self, nodes: Tensor, logits: Tensor) -> None:
        path = (-1, self.trees, self.depth + 1)
        self._routed = _Routed(nodes.reshape(path), logits.reshape(path), None)

    def _last(self) -> _Routed:
        if self._routed is None:
            raise ArgumentError(
                "no forward pass has kept its paths; track_routing should be True before the one that is asked about"
            )
        return self._routed

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one forward pass."""
        return {**self.__dict__, "_routed": None}

    # ---- the transposed form of linear_out -------------------------------------------------------------------------

    def _form_of(self, w_out: Tensor) -> _Form | None:
        """Return the form of this parameter, made anew if it is stale and nobody traces or transforms that."""
        form = self._form
        if form is None or form.weight is not w_out:
            return None
        if torch.compiler.is_compiling() or not form.is_stale():
            return form
        if get_interpreter_stack() or is_in_torch_dispatch_mode():
            return None
        self._prepare()
        return self._form

    def _rows(self, w_out: Tensor, form: _Form | None) -> Tensor:
        """Return the output weights node by node, (K*N, d_out)."""
        rows = self._rows_out if torch.compiler.is_exporting() else form and form.rows
        return w_out.t().contiguous() if rows is None else rows

    def _prepare(self) -> None:
        """Make the form anew in eval(), and have none in training or of a parameter that is no plain tensor."""
        weight: Any = None if self.training or _is_called(self.linear_out) else self.linear_out.weight
        if type(weight) not in _PLAIN:
            self._drop()
        else:
            # Also in inference mode a tensor that a later backward pass can keep.
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                version, memory = _version(weight), weight.detach()
                rows = memory.t().contiguous()
            is_ready = weight.is_cpu and weight.dtype in CPU_DTYPES and not self._tracks
            self._form = _Form(rows, weight, memory, version, is_ready)
            self._rows_out = rows

    def _drop(self) -> None:
        self._form = self._rows_out = None

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


def check_sizes(d_in: int, trees: int, depth: int, d_out: int) -> None:
    """Check the sizes of a layer."""
    limits = {"d_in": (1, 2**31), "trees": (1, 2**31), "depth": (0, lib.CMM_MAX_DEPTH), "d_out": (1, 2**31)}
    for (name, (low, high)), value in zip(limits.items(), (d_in, trees, depth, d_out), strict=True):
        check_whole(name, value, low, high)


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArgumentError(f"{name} is {value!r}; it should be a whole number from {low} to {high}")


def set_softness(model: nn.Module, alpha: float) -> None:
    """Set the softness of every :class:`FFF` in a model, from 1, where all neurons act, to 0, the true operation.

    Raises
    ------
    ArgumentError
        alpha is no number from 0 to 1.
    """
    for module in model.modules():
        if isinstance(module, FFF):
            module.softness = alpha


class _NodeRows(nn.Module):
    """The second half of a layer node by node: a weight (K*N, d_out), and in a state_dict that of a linear layer."""

    def __init__(self, rows: int, d_out: int, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, d_out, device=device, dtype=dtype))
        self.register_state_dict_post_hook(_save_transposed)
        self.register_load_state_dict_pre_hook(_load_transposed)

    def extra_repr(self) -> str:
        """Return what ``print`` says of it."""
        return "{}, {}".format(*self.weight.shape)


def _save_transposed(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()  # a view is refused by some formats


def _load_transposed(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()


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


class _Choice(torch.autograd.Function):
    """Zeros to be added to the hidden neurons, whose gradient is that of the choice of a child, straight through.

    With g the gradient of the neurons and v = activation(z) g, let V(n) = v(n) + V(the child that z(n) chooses), from
    the leaves up. A visited inner node gets (V(right) - V(left)) sigmoid'(z).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, visited: Tensor, trees: int, depth: int, activation: str, tie: str) -> Tensor:
        return torch.zeros_like(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, visited, ctx.trees, ctx.depth, ctx.activation, ctx.tie = inputs
        ctx.save_for_backward(logits, visited)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, visited = ctx.saved_tensors
        of_tree = (*logits.shape[:-1], ctx.trees, 2 ** (ctx.depth + 1) - 1)
        z = logits.reshape(of_tree)
        v = (ACTIVATIONS_OF_TENSORS[ctx.activation](logits) * gradient).reshape(of_tree)
        best = v[..., 2**ctx.depth - 1 :]  # V of a level
        levels = [torch.zeros_like(best)]
        for level in reversed(range(ctx.depth)):
            some = slice(2**level - 1, 2 ** (level + 1) - 1)
            left, right = best[..., 0::2], best[..., 1::2]
            sigmoid = torch.sigmoid(z[..., some])
            levels.append((right - left) * sigmoid * (1 - sigmoid))
            goes_right = z[..., some] > 0 if ctx.tie == "left" else z[..., some] >= 0
            best = v[..., some] + torch.where(goes_right, right, left)
        dz = torch.cat(levels[::-1], dim=-1).reshape(logits.shape)
        return torch.where(visited, dz, 0), None, None, None, None, None


def _is_hooked(linear: nn.Linear) -> bool:
    """Whether a call of a linear layer does more than its product."""
    return bool(
        linear._forward_hooks
        or linear._forward_pre_hooks
        or linear._backward_hooks
        or linear._backward_pre_hooks
        or "forward" in linear.__dict__
    )


def _is_called(linear: nn.Module) -> bool:
    """Whether a module is more than the weights of a linear layer, so that it has to be called."""
    return type(linear) is not nn.Linear or type(linear.weight) not in _PLAIN or _is_hooked(linear)


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
        and not _is_forward_mode(x)
        and not is_in_torch_dispatch_mode()
        and not x.is_neg()
    )


def _is_asked(x: Tensor, w_in: Tensor, bias: Tensor | None, w_out: Tensor) -> bool:
    """Whether a gradient may be asked for."""
    return torch.is_grad_enabled() and (
        x.requires_grad or w_in.requires_grad or w_out.requires_grad or (bias is not None and bias.requires_grad)
    )


def _is_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether derivatives in forward mode are asked for, which no_grad() does not prevent."""
    if torch.compiler.is_compiling():
        return False
    levels = get_interpreter_stack()
    if levels and any(level.key() == TransformType.Jvp for level in levels):
        return True
    for one in tensors:
        if one is None or is_functorch_wrapped_tensor(one):
            continue
        if forward_ad.unpack_dual(one).tangent is not None:
            return True
    return False


def _version(weight: Tensor) -> int | None:
    """Return how often a tensor has been written to, if PyTorch counts it."""
    return None if weight.is_inference() else weight._version


def _wide(logits: Tensor) -> Tensor:
    """Return logits in the type that sums over tokens are in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _finite(weight: Tensor) -> Tensor:
    return torch.where(torch.isfinite(weight), weight, 0)


def _autocasts(device: str) -> bool:
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def _dtype_of(x: Tensor) -> torch.dtype:
    """Return the dtype in which operators would compute, which autocast may choose."""
    if x.dtype is torch.float64 or not x.is_floating_point() or not _autocasts(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype("cuda") if x.is_cuda else torch.float32


def _computable(device: str, dtype: torch.dtype) -> bool:
    """Whether libcmm computes with such tensors."""
    if device == "cuda":
        return dtype in CUDA_DTYPES and _cuda_is_usable()
    return device == "cpu" and dtype in CPU_DTYPES


@cache
def _cuda_was_usable() -> bool:
    return not why_not("cuda")


@torch.compiler.assume_constant_result
def _cuda_is_usable() -> bool:
    return _cuda_was_usable()
