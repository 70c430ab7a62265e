"""cmm.torch.FFF on a GPU: in eval() libcmm_cuda computes it, on the memory of the tensors."""

import cmm
import cmm.torch.fff
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

    monkeypatch.setattr(cmm.torch.fff, "fff_forward", recorded)
    w_in = layer.linear_in.weight.detach().view(3, 31, 64)
    bias = layer.linear_in.bias.detach().view(3, 31)
    for _ in range(2):
        w_out = layer.linear_out.weight.detach().t().contiguous().view(3, 31, 64)
        with torch.no_grad():
            assert torch.equal(layer(x), cmm.fff_forward(x, w_in, w_out, bias))
            layer.linear_out.weight.mul_(2)
    assert [call[:2] for call in calls] == 2 * [[x.data_ptr(), layer.linear_in.weight.data_ptr()]]
    assert layer(x).requires_grad
    assert len(calls) == 2
