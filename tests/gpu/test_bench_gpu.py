"""The GPU columns of `cmm bench`, on a GPU: checked, timed, and a wrong result is not timed."""

import cmm
import pytest
from cmm.bench import check
from cmm.bench.gpu import COLUMNS, measure_gpu
from cmm.bench.harness import Data, Layer, dense

pytest.importorskip("cupy", reason="CuPy is not installed")
LAYERS = [dense(31), dense(30), Layer(1, 4), Layer(2, 3)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_level_is_checked_and_timed(dtype: str) -> None:
    found = measure_gpu(Data(LAYERS, 300, 64, dtype), LAYERS, 31, lambda: None)
    assert found.absent == {}
    assert found.name
    assert {(line.layer, line.level) for line in found.lines} == {(la.name, lv) for la in LAYERS for lv in COLUMNS}
    assert all(line.us > 0 for line in found.lines)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, out: object, **options: object) -> None:
        out.fill(1)  # type: ignore[attr-defined]

    monkeypatch.setattr(cmm, "ff_forward", wrong)
    with pytest.raises(check.WrongResultError, match="not timed"):
        measure_gpu(Data(LAYERS, 300, 64), LAYERS, 31, lambda: None)
