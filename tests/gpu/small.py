"""Small layers and encoders through every kernel, for compute-sanitizer: python tests/gpu/small.py."""

import cmm.bert
import cupy
import numpy as np
import torch
from device import ALGORITHMS, DTYPES, backward, fff, gradients_like, hidden

CASES = (
    (3, 33, 17, 2, 2),
    (37, 64, 40, 1, 11),
    (5, 128, 128, 40, 0),
    (2, 600, 24, 1, 3),
    (130, 72, 264, 9, 4),
    (257, 64, 64, 2, 7),
    (290, 136, 72, 1, 8),
)

for dtype in DTYPES:
    for batch, d_in, d_out, trees, depth in CASES:
        nodes = 2 ** (depth + 1) - 1
        shapes = ((batch, d_in), (trees, nodes, d_in), (trees, nodes, d_out), (trees, nodes))
        arrays = [torch.randn(shape).to(dtype).cuda() for shape in shapes]
        for level, algorithm in (("cuda-naive", ""), *(("cuda", algorithm) for algorithm in ALGORITHMS)):
            for tie in ("left", "right"):
                result = fff(*arrays, level=level, algorithm=algorithm, tie=tie)
                if result is None:
                    continue
                assert not any(bool(a.isnan().any()) for a in result), (dtype, algorithm)
                again = fff(*arrays, level=level, algorithm=algorithm, tie=tie, path=result[1])
                assert all(torch.equal(a, b) for a, b in zip(again, result, strict=True)), (dtype, algorithm)
        x, w_in, w_out, bias = arrays
        dy = torch.randn(batch, d_out).to(dtype).cuda()
        _, nodes, logits = fff(x, w_in, w_out, bias)
        found = [gradients_like(x, w_in, w_out, 1.0) for _ in range(2)]
        for accumulate, gradients in zip((0, 15), found, strict=True):
            assert backward(x, w_in, w_out, nodes, logits, dy, gradients, accumulate=accumulate) == -1
        assert not any(bool(one.isnan().any()) for each in found for one in each.values()), dtype
        size = 2 ** (depth + 1) - 1
        z, dz, y, dx = (torch.randn(batch, trees * size, device="cuda").to(dtype) for _ in range(4))
        hidden(z, trees, depth, dy=dz, y=y, dx=dx, visited=z > 0, nodes=torch.empty_like(nodes))
        hidden(logits, trees, depth, path=nodes, dtype=dtype, dy=dz, y=y, dx=dx)
        assert int((y != 0).sum()) <= nodes.numel(), dtype
        nodes[batch // 2, 0, depth] = -1
        hidden(logits, trees, depth, path=nodes, dtype=dtype, dy=dz, y=y, dx=dx)
        assert backward(x, w_in, w_out, nodes, logits, dy, found[0]) == batch // 2 * trees, dtype
torch.cuda.synchronize()


def zeros(size: int) -> cupy.cuda.MemoryPointer:
    """Memory of its own for every array; of zeros, for initcheck does not see all that cuBLAS writes."""
    pointer = cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    if size:
        pointer.memset(0, size)
    return pointer


cupy.cuda.set_allocator(zeros)
ENCODERS = (
    (24, 3, 7),
    (22, 2, 33),
    (120, 3, 65),
    (128, 2, 130),
    (320, 2, 20),
    (1200, 20, 16),
)  # width, heads, tokens
for dtype in ("float32", "bfloat16", "float16"):
    for width, heads, length in ENCODERS:
        config = {
            "num_transformer_layers": 1,
            "hidden_size": width,
            "intermed_type": "fff",
            "intermed_size": 2,
            "intermed_depth": 3,
            "norm_eps": 1e-12,
            "skip_head_transform": False,
            "embedding": {"vocab_size": 30, "max_seq_length": 130},
            "attention": {"num_attention_heads": heads},
        }
        model = cmm.bert.random(config).to("cuda", dtype)
        ids = np.arange(2 * length).reshape(2, length) % 30
        masks = (None, np.tril(np.ones((2, length, length), bool)))
        for mask in masks:
            first, *others = [model.logits(ids, mask) for _ in range(3)]  # run, captured, replayed
            assert bool(cupy.isfinite(first).all())
            assert all(bool((other == first).all()) for other in others)
cupy.cuda.Device().synchronize()
print("done")
