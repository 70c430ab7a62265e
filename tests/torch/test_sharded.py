"""cmm.torch.ShardedFFF: the unsharded layer's paths, outputs and gradients, on one rank and on several by gloo."""

import pytest
from ranks import run_ranks

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)
import sharded_process  # noqa: E402
from cmm.errors import ArgumentError, DtypeError  # noqa: E402
from cmm.torch import ShardedFFF, balanced_placement, sharded_parameters  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", sharded_process.CASES)
def test_one_rank(name, dtype):
    sharded_process.check(name, dtype, 0, 1)


def test_what_one_rank_is_refused():
    for words, options in (
        ("top_depth is 4; it should be a whole number from 0 to 3", {"top_depth": 4}),
        ("top_depth is True; it should be", {"top_depth": True}),
        ("placement is 'by load'; it should be 'contiguous' or the ranks of subtrees", {"placement": "by load"}),
        ("placement has 1 ranks; it should have 2, one for each subtree", {"placement": [0]}),
        (r"placement\[1\] is 1; it should be a whole number from 0 to 0", {"placement": [0, 1]}),
        ("gradients is 'all'; it should be one of 'mean', 'sum'", {"gradients": "all"}),
        ("activation is 'tanh'; it should be one of", {"activation": "tanh"}),
        ("tie is 'up'; it should be one of", {"tie": "up"}),
    ):
        with pytest.raises(ArgumentError, match=words):
            ShardedFFF(8, 2, 3, **options)
    with pytest.raises(ArgumentError, match="x is on meta; it should be on cpu, where the weights are"):
        ShardedFFF(8, 2, 3)(torch.empty(2, 8, device="meta"))
    with pytest.raises(DtypeError, match=r"dtype torch.bfloat16 on cpu; it should be one that libcmm computes with"):
        ShardedFFF(8, 2, 3, dtype=torch.bfloat16)(torch.zeros(2, 8, dtype=torch.bfloat16))


def test_tokens_have_any_leading_dimensions():
    layer, x = ShardedFFF(8, 2, 3, 5, top_depth=1), torch.randn(3, 4, 8)
    y, nodes, logits = layer(x, return_path=True)
    assert (y.shape, nodes.shape, logits.shape) == ((3, 4, 5), (3, 4, 2, 4), (3, 4, 2, 4))
    assert torch.equal(layer(x.reshape(12, 8)), y.reshape(12, 5))
    assert layer.loads().sum() == 12 * 2


def test_autocast_on_a_cpu_is_float32():
    layer, x = ShardedFFF(8, 2, 3, top_depth=1), torch.randn(4, 8)
    want = layer(x.bfloat16().float())
    with torch.autocast("cpu"):
        assert torch.equal(layer(x.bfloat16()), want)


def test_a_balanced_placement():
    """Equally many subtrees on each rank, and the difference of two loads is at most the largest subtree's."""
    for loads, ranks in (
        ([9, 7, 6, 5, 5, 4, 2, 2], 3),
        (list(range(32)), 4),
        ([0, 0, 0], 3),
        ([5], 1),
        ([1, 1, 1, 9], 2),
    ):
        placement = balanced_placement(torch.tensor(loads), ranks)
        counts = [placement.count(rank) for rank in range(ranks)]
        assert max(counts) - min(counts) <= 1
        sums = [sum(load for load, at in zip(loads, placement, strict=True) if at == rank) for rank in range(ranks)]
        assert max(sums) - min(sums) <= max(loads)
    with pytest.raises(ArgumentError, match="ranks is 3; it should be a whole number from 1 to 2"):
        balanced_placement([1, 2], 3)


def test_parameters_of_subtrees_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), ShardedFFF(8, 1, 2, top_depth=1, bias=False))
    assert sharded_parameters(model) == [f"1.subtrees.{n}.{name}" for n in (0, 1) for name in ("w_in", "w_out")]
    assert sharded_parameters(model[1]) == [name[2:] for name in sharded_parameters(model)]
    assert "1x2, top_depth=1, 2 of 2 subtrees on rank 0 of 1" in repr(model)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 3])
def test_some_processes(tmp_path, ranks):
    """All cases and errors; states, checkpoints and DDP."""
    run_ranks("sharded_process.py", ranks, tmp_path)
