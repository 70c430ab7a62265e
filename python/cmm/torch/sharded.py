"""A fast feedforward layer that is larger than one GPU: top levels on every rank, subtrees each on one of them.

>>> import torch, cmm.torch                                       # under torchrun, one process a GPU
>>> torch.distributed.init_process_group("nccl")
>>> layer = cmm.torch.ShardedFFF(12288, trees=1, depth=15, device="cuda", dtype=torch.bfloat16)
>>> y = layer(x)                                                  # the process's own tokens, however many

A tree is cut below its `top_depth` first levels. A forward pass walks those where the tokens are, sends each token to
the rank that has the subtree it arrives at, and adds what comes back to what the top levels gave: two all-to-alls of
rows, as of the experts of a mixture, for each subtree that a rank has. The wire is busy with one of them while the
subtree before is computed. docs/internals/sharding.md says what that costs.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, Literal, TypeAlias, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from cmm._check import check_choice, check_tokens
from cmm._native import ACTIVATIONS, TIES
from cmm.errors import ArgumentError, CmmError, DtypeError, ShapeError
from cmm.torch.fff import check_sizes, check_whole
from cmm.torch.operators import CPU_DTYPES, CUDA_DTYPES, autocast, fff_forward
from cmm.typing import Activation, Tie

__all__ = ["ShardedFFF", "balanced_placement", "sharded_parameters"]

Placement: TypeAlias = Literal["contiguous"] | Sequence[int]

# Of a rank, where top_depth is not given: while one is computed, tokens of the next are on their way.
_SUBTREES_PER_RANK = 2
_CODES = {dtype: code for code, dtype in enumerate(CUDA_DTYPES)}


class ShardedFFF(nn.Module):
    """A fast feedforward layer of K trees of depth D, whose subtrees are spread over the ranks of a process group.

    What it computes is what :class:`FFF` does, along the same paths; y is summed in parts, each rounded to the dtype
    of x. Every rank calls it with tokens of its own, any number of them, and gets their outputs. No
    token is dropped, and there is no capacity: a rank to whose subtrees all tokens go computes all. Calls, backward
    passes and the methods that say so are collective: all ranks of the group take part, in the same order.

    Parameters of ``top`` are the same on every rank, and their gradients are those of the rank's own tokens: average
    them over the ranks, as ``DistributedDataParallel`` does. Parameters of ``subtrees`` exist on one rank each, which
    is given gradients from all tokens: they stay where they are. With ``DistributedDataParallel``, name them by
    :func:`sharded_parameters`.

    libcmm's operators compute: on a CPU float32 and float64, on a GPU with libcmm_cuda also float16 and bfloat16.
    Under autocast tokens are narrowed before they are sent.

    Parameters
    ----------
    d_in, trees, depth, d_out, bias, activation, tie, device, dtype
        As of :class:`FFF`.
    top_depth : int, optional
        How many levels of each tree every rank has, from 0 to D: there are K * 2^top_depth subtrees, of depth
        D - top_depth, numbered tree by tree from the left. If it is not given, the fewest levels that leave each
        rank two subtrees, or D.
    placement : "contiguous" or sequence of int, optional
        The rank of each subtree. "contiguous" gives each rank equally many (or one more), side by side;
        :func:`balanced_placement` makes a placement of measured loads.
    group : torch.distributed.ProcessGroup, optional
        The ranks, by default all. Without a process group there is one rank.
    overlap : bool, optional
        Whether a subtree is computed while tokens of others are on their way. The results are the same.
    gradients : {"mean", "sum"}, optional
        Of what the gradients of ``subtrees`` are: of the mean of the ranks' losses, as those of ``top`` are when they
        have been averaged, or of their sum.

    Attributes
    ----------
    top : torch.nn.Module or None
        The top levels of all trees: ``w_in`` (K*(2^top_depth - 1), d_in), ``bias``, ``w_out`` (..., d_out), node by
        node; None if top_depth is 0.
    subtrees : torch.nn.ModuleDict
        The subtrees of this rank, by number, each with ``w_in`` (2^(D-top_depth+1) - 1, d_in), ``bias``, ``w_out``.
        So ``torch.distributed.checkpoint`` saves and loads ``state_dict()`` as it is, also for other ranks or
        another placement.

    Raises
    ------
    ArgumentError
        An argument is not one of those that it can be, or there are more ranks than subtrees. All ranks raise alike.
        In a forward pass: ``DistributedDataParallel`` was not told of the subtrees.
    """

    _keys: Tensor
    _bounds: Tensor

    def __init__(
        self,
        d_in: int,
        trees: int,
        depth: int,
        d_out: int | None = None,
        *,
        top_depth: int | None = None,
        placement: Placement = "contiguous",
        group: Any = None,
        overlap: bool = True,
        gradients: Literal["mean", "sum"] = "mean",
        bias: bool = True,
        activation: Activation = "gelu",
        tie: Tie = "left",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        grouped = group is not None or (dist.is_available() and dist.is_initialized())
        self.group = group
        self.ranks: int = dist.get_world_size(group) if grouped else 1
        self.rank: int = dist.get_rank(group) if grouped else 0
        sizes = d_in, trees, depth, d_in if d_out is None else d_out
        choices = gradients, activation, tie
        found = _attempt(lambda: self._checked_placement(sizes, top_depth, placement, *choices))
        self._raise_alike(found, (sizes, found, choices, bool(bias)))
        assert not isinstance(found, CmmError)
        self.d_in, self.trees, self.depth, self.d_out = sizes
        self.top_depth, self.placement = found
        self.activation, self.tie, self.overlap, self.gradients = activation, tie, overlap, gradients
        d_out = self.d_out
        layer: dict[str, Any] = {"bias": bias, "activation": activation, "tie": tie, "device": device, "dtype": dtype}
        self.top = _Trees(d_in, trees, self.top_depth - 1, d_out, **layer) if self.top_depth else None
        own = [number for number, rank in enumerate(self.placement) if rank == self.rank]
        below = depth - self.top_depth
        self.subtrees = nn.ModuleDict({str(number): _Trees(d_in, 1, below, d_out, **layer) for number in own})
        # A turn is a pair of all-to-alls. In each, every rank computes one of its subtrees, or none.
        turns, keys = [0] * self.ranks, []
        for rank in self.placement:
            keys.append(turns[rank] * self.ranks + rank)
            turns[rank] += 1
        self._turns = max(turns)
        self.register_buffer("_keys", torch.tensor(keys, device=device), persistent=False)
        bounds = torch.arange(self._turns * self.ranks + 1, device=device)
        self.register_buffer("_bounds", bounds, persistent=False)
        self._replicas = 0  # which DistributedDataParallel has been checked
        self._loads = [0] * self._turns  # tokens of the last forward pass, of each of this rank's subtrees
        self.reset_parameters()

    def _checked_placement(
        self,
        sizes: tuple[int, int, int, int],
        top_depth: int | None,
        placement: Placement,
        gradients: str,
        activation: str,
        tie: str,
    ) -> tuple[int, tuple[int, ...]]:
        """Return the depth of the top and the rank of each subtree."""
        check_sizes(*sizes)
        _, trees, depth, _ = sizes
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("tie", tie, TIES)
        if gradients not in ("mean", "sum"):
            raise ArgumentError(f"gradients is {gradients!r}; it should be one of 'mean', 'sum'")
        if top_depth is None:
            wanted = 1 if self.ranks == 1 else _SUBTREES_PER_RANK * self.ranks
            top_depth = 0
            while top_depth < depth and trees << top_depth < wanted:
                top_depth += 1
        check_whole("top_depth", top_depth, 0, depth)
        count = trees << top_depth
        if count < self.ranks:
            raise ArgumentError(
                f"there are {self.ranks} ranks and {count} subtrees, of {trees} trees of depth {depth} with "
                f"top_depth {top_depth}; there should be at least one for each rank"
            )
        if isinstance(placement, str):
            if placement != "contiguous":
                raise ArgumentError(f"placement is {placement!r}; it should be 'contiguous' or the ranks of subtrees")
            return top_depth, tuple(number * self.ranks // count for number in range(count))
        try:
            ranks = tuple(map(index, placement))
        except TypeError:
            raise ArgumentError(
                f"placement is {placement!r}; it should be 'contiguous' or a whole number for each subtree, its rank"
            ) from None
        if len(ranks) != count:
            raise ArgumentError(f"placement has {len(ranks)} ranks; it should have {count}, one for each subtree")
        for number, rank in enumerate(ranks):
            check_whole(f"placement[{number}]", rank, 0, self.ranks - 1)
        for rank in range(self.ranks):
            if rank not in ranks:
                raise ArgumentError(f"placement has no subtree on rank {rank}; it should have one on each rank")
        return top_depth, ranks

    def reset_parameters(self) -> None:
        """Draw new weights: N(0, 0.02), biases 0. Collective.

        They do not depend on the number of ranks or the placement, but on rank 0's random state.
        """
        seed = [int(torch.randint(2**62, (), device="cpu"))]
        if self.ranks > 1:
            dist.broadcast_object_list(seed, self._global_rank(0), group=self.group)
        for number, part in self._parts():
            part.draw(torch.Generator(self._keys.device).manual_seed(seed[0] + number + 1))

    def extra_repr(self) -> str:
        """Return what ``print`` says of the layer."""
        on = f"{len(self.subtrees)} of {len(self.placement)} subtrees on rank {self.rank} of {self.ranks}"
        return f"{self.trees}x{self.depth}, top_depth={self.top_depth}, {on}"

    # ---- the forward pass ------------------------------------------------------------------------------------------

    @overload
    def forward(self, x: Tensor, return_path: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_path: Literal[True]) -> tuple[Tensor, Tensor, Tensor]: ...
    @torch.compiler.disable
    def forward(self, x: Tensor, return_path: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Apply the layer to this rank's tokens. Collective.

        Parameters
        ----------
        x : tensor, shape (..., d_in)
        return_path : bool, optional
            Whether to return the path too, which takes an exchange more for each subtree of a rank.

        Returns
        -------
        y : tensor, shape (..., d_out)
        nodes : tensor of int32, shape (..., K, D+1)
            The visited nodes, where `return_path` asks for them.
        logits : tensor, shape (..., K, D+1)
            Their logits, likewise; without a gradient.

        Raises
        ------
        ShapeError, DtypeError, ArgumentError
            x is not such a tensor, of the dtype and on the device of the weights. All ranks raise alike.
        """
        walked = _attempt(lambda: self._walk_top(x))
        refused = isinstance(walked, CmmError)
        if not refused:
            tokens, above, nodes, logits, subtree = walked
            order, inverse, counts = self._sorted(subtree)
            copies = _Copies(order // self.trees, inverse, self.trees)
            rows = _Sent.apply(tokens, copies)
        else:
            counts = self._bounds[1:].new_zeros(self._turns, self.ranks)
        needs_gradient = not refused and self._needs_gradient(x)
        code = -1 if refused else 4 * _CODES[tokens.dtype] + 2 * return_path + torch.is_grad_enabled()
        sent, received, needs_gradient = self._agree(code, needs_gradient, counts, walked)
        assert not refused
        self._loads = [sum(counts) for counts in received]
        if self.ranks == 1:
            results = [self._compute(turn, part) for turn, part in enumerate(rows.split(self._loads))]
            back = torch.cat([y for y, _, _ in results])
        else:
            back, results = self._exchanged(rows, sent, received, needs_gradient)
        y = _Received.apply(back, copies)
        y = (y if above is None else above + y).reshape(*x.shape[:-1], self.d_out)
        if not return_path:
            return y
        return y, *self._whole_path(x, nodes, logits, subtree, results, sent, received, inverse)

    def _check_replicas(self) -> None:
        """Refuse a DistributedDataParallel that would give each rank the subtrees of rank 0 and average gradients."""
        replicas = getattr(DistributedDataParallel, "_get_active_ddp_module", lambda: None)()
        if self.ranks == 1 or replicas is None or id(replicas) == self._replicas:
            return
        own = {id(parameter) for parameter in self.subtrees.parameters()}
        for name, parameter in replicas.module.named_parameters():
            if id(parameter) in own and name not in replicas.parameters_to_ignore:
                raise ArgumentError(
                    f"DistributedDataParallel treats {name} as the same on all ranks; before it wraps the model, "
                    "sharded_parameters(model) should name what it is to leave alone"
                )
        self._replicas = id(replicas)

    def _walk_top(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        """Return tokens (T, d_in), what the top gives to y, its nodes and logits, and where tokens arrive (T, K)."""
        self._check_replicas()
        if not isinstance(x, Tensor):
            raise ArgumentError(f"x is a {type(x).__name__}; it should be a tensor")
        check_tokens(x, self.d_in)
        weight = next(self.parameters())
        if x.device != weight.device:
            raise ArgumentError(f"x is on {x.device}; it should be on {weight.device}, where the weights are")
        expected = weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            x = autocast(x)
            expected = x.dtype if x.is_cuda else expected
        if x.dtype is not expected or x.dtype not in (CUDA_DTYPES if x.is_cuda else CPU_DTYPES):
            should = (
                "one that libcmm computes with there" if x.dtype is expected else f"{expected}, that of the weights"
            )
            raise DtypeError(f"x has dtype {x.dtype} on {x.device}; it should be {should}")
        x = x.reshape(-1, self.d_in)
        first = torch.arange(self.trees, device=x.device) << self.top_depth
        if self.top is None:
            return x, None, None, None, first.expand(len(x), -1)
        y, nodes, logits = self.top(x)
        last = logits.detach()[..., -1]
        right = last > 0 if self.tie == "left" else last >= 0
        leftmost = 2**self.top_depth - 1
        return x, y, nodes, logits.detach(), 2 * nodes[..., -1] + 1 + right - leftmost + first

    def _sorted(self, subtree: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the order in which pairs of token and tree are sent, its inverse, and counts (turns, ranks)."""
        keys, order = self._keys[subtree.reshape(-1)].sort(stable=True)
        counts = torch.searchsorted(keys.contiguous(), self._bounds).diff().reshape(self._turns, self.ranks)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return order, inverse, counts

    def _needs_gradient(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(one.requires_grad for one in self.parameters()))

    def _agree(
        self, code: int, needs_gradient: bool, counts: Tensor, error: Any
    ) -> tuple[list[list[int]], list[list[int]], bool]:
        """Tell each rank how many tokens it gets, and hear so; raise alike where ranks differ or one has refused."""
        if self.ranks == 1:
            self._raise_alike(error)
            sent = counts.tolist()
            return sent, sent, needs_gradient
        head = torch.tensor([code, needs_gradient], device=counts.device).expand(self.ranks, -1)
        told = torch.cat((head, counts.t()), dim=1).contiguous()
        heard = torch.empty_like(told)
        dist.all_to_all_single(heard, told, group=self.group)
        mine, others = torch.stack((told, heard)).tolist()  # the one time that the host waits for the device
        codes = [row[0] for row in others]
        if min(codes) < max(codes):
            self._raise_alike(error)
            raise ArgumentError(
                "the dtype of x, return_path, or whether gradients are recorded is not the same on all ranks; "
                "it should be"
            )
        if code < 0:
            self._raise_alike(error)
        by_turn = [[list(turn) for turn in zip(*(row[2:] for row in table), strict=True)] for table in (mine, others)]
        return by_turn[0], by_turn[1], any(row[1] for row in others)

    def _exchanged(
        self, rows: Tensor, sent: list[list[int]], received: list[list[int]], needs_gradient: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Send rows to the subtrees, compute these, and return what came back, (T*K, d_out), and each turn's result.

        The backward pass runs through the nodes in the opposite order of their making: so what comes back is awaited
        last here, and there all of its gradients are on their way before the first one is awaited.
        """
        there, back = (_Transfer(self.group, sent, received) for _ in range(2))
        # Gradients are exchanged on all ranks or on none, whatever a rank's own tensors ask for.
        anchor = rows.new_empty(0, requires_grad=needs_gradient)
        departures = _Depart.apply(rows, anchor, there)
        turns = range(self._turns)
        results, returns = [], []
        if self.overlap:
            for turn in turns:
                results.append(self._compute(turn, _Land.apply(departures[turn], there, turn)))
                returns.append(_Leave.apply(results[-1][0], back, turn))
        else:
            landed = [_Land.apply(departures[turn], there, turn) for turn in turns]
            results = [self._compute(turn, landed[turn]) for turn in turns]
            returns = [_Leave.apply(results[turn][0], back, turn) for turn in turns]
        return _Arrive.apply(back, *returns), results

    def _compute(self, turn: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply this rank's subtree of a turn."""
        if turn < len(self.subtrees):
            subtree = list(self.subtrees.children())[turn]
            found: tuple[Tensor, Tensor, Tensor] = subtree(x, self.ranks if self.gradients == "mean" else 1)
            return found
        levels = self.depth - self.top_depth + 1
        nodes = x.new_empty(0, 1, levels, dtype=torch.int32)
        return x[:, :1].expand(-1, self.d_out), nodes, nodes.to(torch.promote_types(x.dtype, torch.float32))

    def _whole_path(
        self,
        x: Tensor,
        nodes: Tensor | None,
        logits: Tensor | None,
        subtree: Tensor,
        results: list[tuple[Tensor, Tensor, Tensor]],
        sent: list[list[int]],
        received: list[list[int]],
        inverse: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the path: that of the top, and those that each subtree has found, brought back."""
        levels = self.depth - self.top_depth + 1
        found = []
        for which in (1, 2):
            parts = [result[which].detach().reshape(-1, levels) for result in results]
            if self.ranks > 1:
                transfer = _Transfer(self.group, sent, received)
                for turn, part in enumerate(parts):
                    transfer.gather(turn, part)
                parts = [transfer.whole_of()]
            found.append(torch.cat(parts)[inverse].reshape(-1, self.trees, levels))
        level = torch.arange(levels, device=x.device)
        first = (2**self.top_depth + subtree % 2**self.top_depth)[..., None] << level  # + 1: leftmost of a level
        below = (found[0] - (2**level - 1) + first - 1).to(torch.int32)
        shape = (*x.shape[:-1], self.trees, self.depth + 1)
        if nodes is None or logits is None:
            return below.reshape(shape), found[1].reshape(shape)
        return torch.cat((nodes, below), -1).reshape(shape), torch.cat((logits, found[1]), -1).reshape(shape)

    # ---- loads, states ---------------------------------------------------------------------------------------------

    def loads(self) -> Tensor:
        """Return how many tokens each subtree had in the last forward pass, of all ranks. Collective.

        Returns
        -------
        tensor of int64 on the CPU, shape (K * 2^top_depth,)
        """
        found = torch.zeros(len(self.placement), dtype=torch.int64, device=self._keys.device)
        for turn, number in enumerate(self.subtrees):
            found[int(number)] = self._loads[turn]
        if self.ranks > 1:
            dist.all_reduce(found, group=self.group)
        return found.cpu()

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the parameters of this rank out of the state of an :class:`FFF`; of one in a file, read nothing else.

        Parameters
        ----------
        state : mapping
            ``linear_in.weight`` (K*N, d_in), ``linear_in.bias`` (K*N,) if there is a bias, and ``linear_out.weight``
            (d_out, K*N), as ``torch.load(..., mmap=True)`` gives them.

        Raises
        ------
        ShapeError
            A tensor has another shape.
        ArgumentError
            A tensor is missing, or there is one more.
        """
        shapes = self._full_shapes()
        if state.keys() != shapes.keys():
            raise ArgumentError(f"state has {sorted(state)}; it should have {sorted(shapes)}")
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise ShapeError(f"{name} has shape {tuple(state[name].shape)}; it should be {shape}")
        with torch.no_grad():
            for number, part in self._parts():
                rows = self._rows(number)
                for name, parameter in part.named_parameters():
                    full = state[_FULL_NAMES[name]]
                    parameter.copy_(full[:, rows].t() if name == "w_out" else full[rows])

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return the state of an :class:`FFF` on rank 0, in its CPU's memory, and an empty one on others. Collective.

        A GPU holds one subtree more while it does so.
        """
        weight = next(self.parameters())
        names = [name for name, _ in next(part for _, part in self._parts()).named_parameters()]
        state = {}
        if self.rank == 0:
            shapes = self._full_shapes()
            state = {name: torch.empty(shape, dtype=weight.dtype) for name, shape in shapes.items()}
        parts = dict(self._parts())
        size = 2 ** (self.depth - self.top_depth + 1) - 1
        for number, owner in [(-1, 0)] * (self.top is not None) + list(enumerate(self.placement)):
            if self.rank not in (0, owner):
                continue
            for name in names:
                if self.rank == owner:
                    tensor = parts[number].get_parameter(name).detach()
                else:
                    width = {"w_in": (self.d_in,), "w_out": (self.d_out,)}.get(name, ())
                    tensor = weight.new_empty(size, *width, requires_grad=False)
                if owner:
                    if self.rank:
                        dist.send(tensor, self._global_rank(0), group=self.group)
                    else:
                        dist.recv(tensor, self._global_rank(owner), group=self.group)
                if self.rank == 0:
                    full, rows = state[_FULL_NAMES[name]], self._rows(number)
                    if name == "w_out":
                        full[:, rows] = tensor.cpu().t()
                    else:
                        full[rows] = tensor.cpu()
        return state

    def _full_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = self.trees * (2 ** (self.depth + 1) - 1)
        shapes: dict[str, tuple[int, ...]] = {
            "linear_in.weight": (rows, self.d_in),
            "linear_out.weight": (self.d_out, rows),
        }
        if next(part for _, part in self._parts()).bias is not None:
            shapes["linear_in.bias"] = (rows,)
        return shapes

    def _parts(self) -> Iterable[tuple[int, "_Trees"]]:
        """Yield the top as -1, and this rank's subtrees by their numbers."""
        if self.top is not None:
            yield -1, self.top
        for number, part in self.subtrees.items():
            assert isinstance(part, _Trees)
            yield int(number), part

    def _rows(self, number: int) -> Tensor:
        """Return which rows of an FFF a part has, in its order."""
        nodes = 2 ** (self.depth + 1) - 1
        if number < 0:
            return (torch.arange(self.trees)[:, None] * nodes + torch.arange(2**self.top_depth - 1)).reshape(-1)
        tree, place = divmod(number, 2**self.top_depth)
        root = 2**self.top_depth + place  # counted from 1: the leftmost of its level l is root * 2^l
        levels = [torch.arange(2**level) + (root << level) - 1 for level in range(self.depth - self.top_depth + 1)]
        return torch.cat(levels) + tree * nodes

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    # ---- one error for all -----------------------------------------------------------------------------------------

    def _raise_alike(self, found: Any, settings: Any = None) -> None:
        """Raise the first rank's error on every rank, or say that ranks have other settings. Collective."""
        error = found if isinstance(found, CmmError) else None
        if self.ranks == 1:
            if error is not None:
                raise error
            return
        all_found: list[Any] = [None] * self.ranks
        dist.all_gather_object(all_found, (error, settings), group=self.group)
        for rank, (its, _) in enumerate(all_found):
            if its is not None:
                raise type(its)(f"rank {rank}: {its}")
        for rank, (_, its) in enumerate(all_found):
            if its != all_found[0][1]:
                raise ArgumentError(f"rank {rank} has another layer than rank 0; all should have the same arguments")


_FULL_NAMES = {"w_in": "linear_in.weight", "bias": "linear_in.bias", "w_out": "linear_out.weight"}


def balanced_placement(loads: Sequence[int] | Tensor, ranks: int) -> list[int]:
    """Return the rank of each subtree, so that ranks have equally many subtrees (or one more) and like loads.

    The heaviest subtree that is left goes to the rank with the least load that may have one more (the rule of the
    longest processing time).

    Parameters
    ----------
    loads : sequence of numbers
        Tokens of each subtree: :meth:`ShardedFFF.loads`, or of an :class:`FFF` what
        ``routing().counts[:, 2**top_depth - 1 : 2**(top_depth + 1) - 1]`` has.
    ranks : int

    Raises
    ------
    ArgumentError
        There are fewer subtrees than ranks, or ranks is no whole number.
    """
    amounts = [float(load) for load in torch.as_tensor(loads).reshape(-1)]
    check_whole("ranks", ranks, 1, max(1, len(amounts)))
    # Each rank may have the same number of subtrees; so many of them one more.
    least, more = divmod(len(amounts), ranks)
    free = [(0.0, rank) for rank in range(ranks)]
    counts, placement = [0] * ranks, [0] * len(amounts)
    for number in sorted(range(len(amounts)), key=lambda number: -amounts[number]):
        while True:
            load, rank = heapq.heappop(free)
            if counts[rank] < least or more:
                break
        more -= counts[rank] == least
        counts[rank] += 1
        placement[number] = rank
        if counts[rank] <= least:
            heapq.heappush(free, (load + amounts[number], rank))
    return placement


def sharded_parameters(model: nn.Module) -> list[str]:
    """Return the names of those parameters of a model that differ from rank to rank.

    ``DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded_parameters(model))``, before
    it wraps the model, has it leave them alone.
    """
    return [
        f"{name}.subtrees.{own}" if name else f"subtrees.{own}"
        for name, module in model.named_modules()
        if isinstance(module, ShardedFFF)
        for own, _ in module.subtrees.named_parameters()
    ]


def _attempt(call: Any) -> Any:
    """Return what a call returns, or the error of this package that it raises."""
    try:
        return call()
    except CmmError as error:
        return error


# ---- a part of the trees -------------------------------------------------------------------------------------------


class _Trees(nn.Module):
    """Whole trees of one rank, node by node: what ``cmm::fff_forward`` takes."""

    bias: nn.Parameter | None

    def __init__(
        self,
        d_in: int,
        trees: int,
        depth: int,
        d_out: int,
        *,
        bias: bool,
        activation: Activation,
        tie: Tie,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        rows = trees * (2 ** (depth + 1) - 1)
        self.trees, self.activation, self.tie = trees, activation, tie
        self.w_in = nn.Parameter(torch.empty(rows, d_in, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.w_out = nn.Parameter(torch.empty(rows, d_out, device=device, dtype=dtype))

    def draw(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.w_in, std=0.02, generator=generator)
        nn.init.normal_(self.w_out, std=0.02, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, ranks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, nodes and logits; weights get gradients of the mean of so many ranks' losses."""
        weights: tuple[Tensor | None, ...] = self.w_in, self.bias, self.w_out
        if ranks > 1 and torch.is_grad_enabled():
            weights = tuple(None if one is None else _Averaged.apply(one, ranks) for one in weights)
        found: tuple[Tensor, Tensor, Tensor] = fff_forward(x, *weights, self.trees, self.activation, self.tie, True)
        return found


class _Averaged(Function):
    """A parameter whose gradient is divided by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.ranks, None


# ---- tokens in the order they are sent in --------------------------------------------------------------------------


class _Copies:
    """Which token each row that is sent is a copy of, and the row of each token and tree."""

    def __init__(self, token: Tensor, inverse: Tensor, trees: int) -> None:
        self.token, self.inverse, self.trees = token, inverse, trees

    def made(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(0, self.token)

    def added(self, rows: Tensor) -> Tensor:
        """Return the sums of each token's rows, which no two threads add to: gathered, not scattered."""
        found = rows.index_select(0, self.inverse)
        return found if self.trees == 1 else found.reshape(-1, self.trees, rows.shape[1]).sum(1)


class _Sent(Function):
    """Copies of tokens."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, copies: _Copies) -> Tensor:
        ctx.copies = copies
        return copies.made(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.copies.added(gradient), None


class _Received(Function):
    """The sum of what came back for each token."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, copies: _Copies) -> Tensor:
        ctx.copies = copies
        return copies.added(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.copies.made(gradient), None


# ---- all-to-alls, one for each turn --------------------------------------------------------------------------------


class _Transfer:
    """All-to-alls between one tensor, of all that this rank sends, and a tensor for each turn, of what it receives.

    Forward, tokens are scattered and outputs gathered; backward, gradients of outputs are scattered and those of
    tokens gathered. Each is started at one time and awaited at another.
    """

    def __init__(self, group: Any, sent: list[list[int]], received: list[list[int]]) -> None:
        self.group, self.sent, self.received = group, sent, received
        self.sizes = [sum(counts) for counts in sent]
        self.works: dict[int, Any] = {}
        self.parts: dict[int, Tensor] = {}
        self.whole: Tensor | None = None

    def scatter(self, whole: Tensor, *, last_first: bool = False) -> None:
        """Start sending all turns' rows, in the order in which they are awaited."""
        all_rows = list(enumerate(whole.contiguous().split(self.sizes)))
        for turn, rows in reversed(all_rows) if last_first else all_rows:
            part = whole.new_empty(sum(self.received[turn]), whole.shape[1])
            self.parts[turn] = part
            self._start(turn, part, rows, self.received[turn], self.sent[turn])

    def part_of(self, turn: int) -> Tensor:
        """Await a turn's rows."""
        self.works.pop(turn).wait()
        return self.parts.pop(turn)

    def gather(self, turn: int, part: Tensor) -> None:
        """Start sending back a turn's rows."""
        if self.whole is None:
            self.whole = part.new_empty(sum(self.sizes), part.shape[1])
        rows = self.whole.split(self.sizes)[turn]
        self._start(turn, rows, part.contiguous(), self.sent[turn], self.received[turn])

    def whole_of(self) -> Tensor:
        """Await all turns' rows."""
        for turn in sorted(self.works):
            self.works.pop(turn).wait()
        whole, self.whole = self.whole, None
        assert whole is not None
        return whole

    def _start(self, turn: int, into: Tensor, rows: Tensor, sizes: list[int], its: list[int]) -> None:
        self.works[turn] = dist.all_to_all_single(into, rows, sizes, its, group=self.group, async_op=True)


# What is on its way has no tensor yet: a ticket of no elements stands for it in the graph, so that the backward pass,
# too, starts in one node and awaits in another.


class _Depart(Function):
    """Start the scattering of rows; backward, await the gradients of all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor, there: _Transfer) -> tuple[Tensor, ...]:
        ctx.there = there
        there.scatter(rows)
        return tuple(rows.new_empty(0) for _ in there.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tickets: Tensor) -> tuple[Tensor, None, None]:
        return ctx.there.whole_of(), None, None


class _Land(Function):
    """Await a turn's rows; backward, start the gathering of their gradients."""

    @staticmethod
    def forward(ctx: Any, ticket: Tensor, there: _Transfer, turn: int) -> Tensor:
        ctx.there, ctx.turn = there, turn
        return there.part_of(turn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.there.gather(ctx.turn, gradient)
        return gradient.new_empty(0), None, None


class _Leave(Function):
    """Start the gathering of a turn's outputs; backward, await their gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, back: _Transfer, turn: int) -> Tensor:
        ctx.back, ctx.turn = back, turn
        back.gather(turn, part)
        return part.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ticket: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back.part_of(ctx.turn), None, None


class _Arrive(Function):
    """Await all outputs; backward, start the scattering of their gradients."""

    @staticmethod
    def forward(ctx: Any, back: _Transfer, *tickets: Tensor) -> Tensor:
        ctx.back = back
        return back.whole_of()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.back.scatter(gradient, last_first=True)  # autograd goes through the turns from the last
        return None, *(gradient.new_empty(0) for _ in ctx.back.sizes)
