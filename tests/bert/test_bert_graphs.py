"""What a model on a GPU queues, and when: graphs, buffers, the order of calls. CuPy, cuBLAS and kernels only note it.

What is computed there is for tests/gpu/test_bert_gpu.py.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import gpu
from cmm.bert.device import CPU
from cmm.bert.encoder import position_table

BLOCK = reference.architecture()
LAYERS = 2
IDS = np.random.default_rng(5).integers(0, 50, (2, 7))


class Stream:
    """A stream, or a capture, which notes what it is given."""

    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def wait_event(self, event: "Event") -> None:
        self.log.append(("wait", event.recorded))

    def begin_capture(self) -> None:
        self.log.append("begin")

    def end_capture(self) -> Any:
        self.log.append("end")
        return SimpleNamespace(launch=lambda stream: self.log.append("launch"))


class Event:
    def __init__(self, log: list[Any]) -> None:
        self.log, self.recorded = log, 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1

    def synchronize(self) -> None:
        self.log.append("synchronize")


class Library(NamedTuple):
    empty: Any = np.zeros


class There(NamedTuple):
    model: cmm.bert.Model
    log: list[Any]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> There:
    log: list[Any] = []
    cupy = SimpleNamespace(
        empty=np.zeros,
        ascontiguousarray=np.ascontiguousarray,
        stack=np.stack,
        cuda=SimpleNamespace(
            Device=lambda number: SimpleNamespace(compute_capability="90"),
            Event=lambda disable_timing: Event(log),
            Stream=lambda non_blocking: Stream(log, "capture"),
            get_current_stream=lambda: Stream(log, "current"),
        ),
    )

    def kernel(cupy: Any, device: int, dtype: str, width: int, head: int, name: str, shared: int) -> Any:
        return lambda grid, block, arguments, shared_mem=0: log.append(name)

    def multiplier(*_: object) -> Any:
        return lambda a, b, out, transposed, add: log.append("product")

    def run_fff(library: Library, place: object, level: str, *_: object) -> None:
        library.empty((99,), "uint8")
        log.append(f"fff {level}")

    device = CPU._replace(name="cuda:0", xp=cupy, put=np.array, host=lambda value: value, active=nullcontext)
    monkeypatch.setattr("cmm.bert.model.find", lambda name: device)
    monkeypatch.setattr(gpu, "_kernel", kernel)
    monkeypatch.setattr(gpu, "multiplier", multiplier)
    monkeypatch.setattr(gpu, "run_fff", run_fff)
    monkeypatch.setattr(gpu, "library_at", lambda place: Library())
    monkeypatch.setattr(gpu, "choose_cuda", lambda level, algorithm: "cuda" if level == "auto" else level)
    model = cmm.bert.from_state_dict(reference.state_dict(BLOCK), BLOCK).to("cuda", "bfloat16")
    model._positions = position_table(64, model.config.hidden)  # as after a first call
    log.clear()
    return There(model, log)


LAYER = ["add_norm", "product", "attention_mma", "product", "add_norm", "fff cuda"]


def queued(there: There, ids: Any = IDS, mask: Any = None, **how: Any) -> list[Any]:
    there.log.clear()
    there.model(ids, mask, **how)
    return [what for what in there.log if what[0] != "wait"]


def test_a_shape_is_run_then_captured_then_replayed(there: There) -> None:
    assert queued(there) == ["embed", *LAYERS * LAYER, "add_norm_wide"]
    assert queued(there) == ["embed", "begin", *LAYERS * LAYER, "end", "launch", "add_norm_wide"]
    for _ in range(3):
        assert queued(there) == ["embed", "launch", "add_norm_wide"]


def test_another_shape_or_kind_of_mask_has_a_graph_of_its_own(there: There) -> None:
    mask, square = np.ones((2, 7), bool), np.ones((2, 7, 7), bool)
    mask[0, 3] = square[0, 1, 2] = False
    cases = [(IDS, square), (IDS, mask), (IDS, None), (IDS[:1], None), (IDS[:, :4], None)]
    for found in ("add_norm", "begin", "launch"):
        for ids, given in cases:
            assert queued(there, ids, given)[1] == found
    assert queued(there, IDS, np.ones((2, 7)))[1] == "launch"  # a mask of ones is none


def test_larger_buffers_end_the_graphs(there: There) -> None:
    """They hold the addresses of the smaller ones, which other streams may still read."""
    for _ in range(3):
        queued(there)
    assert "synchronize" in queued(there, np.tile(IDS, (2, 1)))
    assert queued(there)[1] == "add_norm"
    assert queued(there)[1] == "begin"
    assert queued(there)[1] == "launch"
    assert "synchronize" not in there.log


def test_few_graphs_are_kept_the_last_used(there: There) -> None:
    queued(there, np.zeros((9, 16), int))  # as large as any below
    for _ in range(2):
        queued(there)
    for batch in range(1, 9):
        for length in (8, 9, 10, 11, 12):
            queued(there, np.zeros((batch, length), int))
        assert queued(there)[1] == "launch"
    assert queued(there, np.zeros((1, 8), int))[1] == "add_norm"  # forgotten that it has come
    assert queued(there, np.zeros((8, 12), int))[1] == "begin"


def test_a_trace_and_other_levels_are_not_captured(there: There) -> None:
    for _ in range(3):
        assert queued(there, level="cuda-naive").count("fff cuda-naive") == LAYERS
        there.log.clear()
        there.model.trace(IDS)
        assert not {"begin", "launch"} & set(map(str, there.log))
        assert there.log.count("fff cuda") == LAYERS


def test_a_call_waits_for_the_last_one(there: There) -> None:
    """By events, on the device: whatever the stream, for calls share buffers."""
    for calls in range(3):
        there.log.clear()
        there.model(IDS)
        assert [what for what in there.log if what[0] == "wait"] == ([("wait", calls)] if calls else [])


def test_what_fails_in_a_capture_ends_it(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    queued(there)
    real = gpu.run_fff

    def fails(*_: object) -> None:
        raise cmm.UnusableError("it cannot")

    monkeypatch.setattr(gpu, "run_fff", fails)
    with pytest.raises(cmm.UnusableError, match="it cannot"):
        queued(there)
    assert there.log[-1] == "end"
    monkeypatch.setattr(gpu, "run_fff", real)
    assert queued(there)[1] == "add_norm"
    assert queued(there)[1] == "begin"


def test_no_sequences_queue_no_kernels_of_attention(there: There) -> None:
    for _ in range(3):
        assert "attention_mma" not in queued(there, np.empty((0, 7), int))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_old_gpu_is_refused(there: There, dtype: Any) -> None:
    there.model.device.xp.cuda.Device = lambda number: SimpleNamespace(compute_capability="75")
    here = cmm.bert.from_state_dict(reference.state_dict(BLOCK), BLOCK)
    with pytest.raises(cmm.UnusableError, match=r"needs a GPU of compute capability 8\.0, and cuda:0 has 7\.5"):
        here.to("cuda", dtype)


def test_weights_and_positions_are_there_for_every_stream(there: There) -> None:
    """They were put by the stream of the moment, and a call may come on another."""
    other = there.model.to("cuda", "float16")
    assert there.log[-1] == "synchronize"
    there.log.clear()
    other(IDS)
    assert there.log[0] == "synchronize"  # the table of positions is made on first use
    there.log.clear()
    other(IDS)
    assert "synchronize" not in there.log


def test_bmm_has_no_bfloat16(there: There) -> None:
    with pytest.raises(cmm.LevelError, match="level is 'cuda-bmm', and the model's dtype is 'bfloat16'"):
        queued(there, level="cuda-bmm")
    assert there.log == []


def test_a_buffer_goes_before_a_larger_one_comes(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """There need not be room for both; where there is not even for one, the error is NumPy's kind."""
    queued(there)

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        assert "x" not in there.model._ops._memory
        raise cmm.errors.ArrayMemoryError("no memory")

    monkeypatch.setattr(gpu, "library_at", lambda place: Library(empty))
    with pytest.raises(MemoryError, match="no memory"):
        queued(there, np.tile(IDS, (9, 1)))
