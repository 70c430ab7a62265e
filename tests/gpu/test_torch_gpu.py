"""cmm.torch.FFF on a GPU: in eval() libcmm_cuda computes it, on the memory of the tensors."""

import cmm
import cmm.torch.operators
import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_eval_is_libcmm_cuda(dtype, monkeypatch):
    torch.manual_seed(0)
    layer = cmm.torch.FFF(64, trees=3, depth=4, device="cuda", dtype=dtype).eval()
    x = torch.randn(5, 7, 64, device="cuda", dtype=dtype)
    calls = []

    def recorded(*arrays, **options):
        calls.append([array.data_ptr() for array in arrays])
        return cmm.fff_forward(*arrays, **options)

    monkeypatch.setattr(cmm.torch.operators, "forward_anywhere", recorded)
    w_in = layer.linear_in.weight.detach().view(3, 31, 64)
    bias = layer.linear_in.bias.detach().view(3, 31)
    for _ in range(2):
        w_out = layer.linear_out.weight.detach().t().contiguous().view(3, 31, 64)
        with torch.no_grad():
            assert torch.equal(layer(x), cmm.fff_forward(x, w_in, w_out, bias))
            layer.linear_out.weight.mul_(2)
            layer.eval()
    assert [call[:2] for call in calls] == 2 * [[x.data_ptr(), layer.linear_in.weight.data_ptr()]]
    assert layer(x).requires_grad
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
def test_the_operator_is_compiled_and_exported():
    torch.manual_seed(0)
    layer = cmm.torch.FFF(64, trees=3, depth=4, device="cuda").eval()
    x = torch.randn(35, 64, device="cuda")
    with torch.no_grad():
        want = layer(x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), want)
        exported = torch.export.export(layer, (x,))
        assert "cmm.fff_forward.default" in [str(node.target) for node in exported.graph.nodes]
        assert torch.equal(exported.module()(x), want)


def test_visited_nodes_alone_have_no_gradient_on_a_gpu():
    layer = cmm.torch.FFF(64, trees=3, depth=4, device="cuda")
    x = torch.randn(35, 64, device="cuda")
    layer(x).sum().backward()
    layer.backward = "visited"
    with pytest.raises(cmm.ArgumentError, match=r"x is on cuda:0 .*; backward='visited' is for float32 and float64"):
        layer(x)
    rows = layer.linear_out.weight.t().contiguous()
    operands = x, layer.linear_in.weight, layer.linear_in.bias, rows, 3, "gelu", "left", True
    y, _, _ = torch.ops.cmm.fff_forward(*operands)
    with pytest.raises(cmm.ArgumentError, match="x is on a GPU; cmm::fff_backward is for tensors on a CPU"):
        y.sum().backward()
