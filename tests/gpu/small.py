"""Small layers through every kernel, for compute-sanitizer: python tests/gpu/small.py."""

import torch
from device import ALGORITHMS, DTYPES, fff

CASES = (
    (3, 33, 17, 2, 2),
    (37, 64, 40, 1, 11),
    (5, 128, 128, 40, 0),
    (2, 600, 24, 1, 3),
    (130, 72, 264, 9, 4),
    (257, 64, 64, 2, 7),
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
torch.cuda.synchronize()
print("done")
