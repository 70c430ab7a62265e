"""The benchmark: what it times is right, random, taken in turn, and reported as it was measured."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import cmm
import numpy as np
import pytest
from cmm.bench import check, harness
from cmm.bench.gpu import GpuLine, GpuReport, measure_gpu
from cmm.bench.harness import (
    Case,
    Data,
    Layer,
    Packing,
    dense,
    every_blas,
    measure,
    parse_layer,
    parse_packing,
    products,
)
from cmm.bench.machine import this_machine
from cmm.bench.roofline import Roofline, _no_slower, measure_roofline
from cmm.bench.table import Line, Report, curve_text, grid, line, rows_text, table_text

TREE = Layer(2, 3)
LAYERS = [TREE, Layer(1, 0), dense(30)]
ROOM = {True: 1.0, False: 1.0}  # seconds: enough for any layer here to keep its batch


def cases(data, layers, batch=64):
    return [
        Case(data, layer, level.name, blas, batch, threads=1)
        for layer in layers
        for level in cmm.levels()
        if level.available and "cuda" not in level.name and not (layer.dense and level.name == "native")
        for blas in (every_blas().items() if level.name.startswith("blas") else [None])
    ]


# ---- the check before the timing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("routing", harness.ROUTINGS)
def test_every_level_passes_the_check(dtype, routing):
    data = Data(LAYERS, 64, 33, dtype, routing)
    for case in cases(data, LAYERS):
        case.check()
        assert case.rows <= case.pass_rows <= case.layer.neurons


def spoil(monkeypatch, layer, how):
    """Let the call of a layer compute, and then spoil what it computed."""
    name = "ff_forward" if layer.dense else "fff_forward"
    call = getattr(cmm, name)

    def spoilt(*args, out=None, return_path=False, **options):
        y, nodes, logits = (
            (call(*args, **options), None, None) if layer.dense else call(*args, return_path=True, **options)
        )
        how(y, nodes)
        if out is not None:
            out[:] = y
        return (y, nodes, logits) if return_path else y

    monkeypatch.setattr(cmm, name, spoilt)


def one_output_off(y, nodes):
    y[-1, 3] += 0.01


def nan_output(y, nodes):
    y[0, 0] = np.nan


def nothing_written(y, nodes):
    y[:] = 0


def other_leaf(y, nodes):
    nodes[0, 0, -1] += 1 if nodes[0, 0, -1] % 2 else -1  # its sibling: a legal path, but not that of this token


def not_a_child(y, nodes):
    nodes[0, 0, 1] = 3


def root_missing(y, nodes):
    nodes[0, 0, 0] = 1


def outside_the_tree(y, nodes):
    nodes[-1, -1, -1] = 2**20


@pytest.mark.parametrize("how", [one_output_off, nan_output, nothing_written])
@pytest.mark.parametrize("layer", [TREE, dense(30)], ids=lambda layer: layer.name)
def test_a_wrong_output_is_refused(monkeypatch, how, layer):
    spoil(monkeypatch, layer, how)
    case = Case(Data([layer], 64, 33), layer, "naive", None, 64, threads=1)
    with pytest.raises(check.WrongResultError, match=rf"{layer.name} naive: .* not timed"):
        case.check()


@pytest.mark.parametrize("how", [other_leaf, not_a_child, root_missing, outside_the_tree])
def test_a_wrong_path_is_refused(monkeypatch, how):
    spoil(monkeypatch, TREE, how)
    case = Case(Data([TREE], 64, 33), TREE, "naive", None, 64, threads=1)
    with pytest.raises(check.WrongResultError, match="path"):
        case.check()


def test_a_call_that_writes_nothing_is_refused_though_another_has_written_the_answer():
    data = Data([dense(30)], 64, 33)
    right, idle = (Case(data, dense(30), "naive", None, 64, threads=1) for _ in range(2))
    right.check()
    idle.__dict__["forward"] = lambda x: None
    with pytest.raises(check.WrongResultError, match="nan"):
        idle.check()


def test_a_forgotten_activation_is_refused(monkeypatch):
    original = cmm.fff_forward
    monkeypatch.setattr(
        cmm, "fff_forward", lambda *args, **options: original(*args, activation="identity", **options)
    )
    case = Case(Data([TREE], 64, 33), TREE, "naive", None, 64, threads=1)
    with pytest.raises(check.WrongResultError, match="an output is"):
        case.check()


def test_a_decision_within_rounding_may_go_either_way_and_is_set_aside():
    x = np.array([1, -1], np.float32)
    w_in = np.array([[[1, 1], [1, 0], [0, 1]]], np.float32)  # the root's logit is exactly 0
    w_out = np.ones((1, 3, 2), np.float32)
    for child in (1, 2):
        assert check.along_path("either", x, w_in, w_out, np.array([[0, child]])).close
    w_in[0, 0] = [1, 0]
    assert not check.along_path("right", x, w_in, w_out, np.array([[0, 2]])).close
    with pytest.raises(check.WrongResultError):
        check.along_path("left", x, w_in, w_out, np.array([[0, 1]]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_is_tight_enough_to_mean_something(dtype):
    # A logit sums 768 products of about 0.8 * 0.8 / sqrt(768): 18 in absolute values, times gamma(769). Twelve rows
    # of w_out of about 0.8 carry 1.13 of it: 200 gamma(769), and up to 2.5 times that for the largest output.
    layer = Layer(1, 11)
    data = Data([layer], 8, 768, dtype)
    _, nodes, _ = cmm.fff_forward(data.x[:8], *data.weights(layer), level="naive", return_path=True)
    gamma = 769 * (np.finfo(dtype).eps + np.finfo(np.float64).eps) / 2
    for token in range(8):
        bound = data.reference("", layer, token, nodes[token]).bound
        assert 10 * gamma < bound.min() <= bound.max() < 500 * gamma


# ---- narrow rows ---------------------------------------------------------------------------------------------------

PACKINGS = [
    "float32",
    "bfloat16",
    "float16",
    "int8",
    "int8/bfloat16",
    "bfloat16+exact",
    "float16+exact",
    "int8+exact",
    "int8+1",
    "int8/float32+6",
]


def narrow(name, layer=TREE, tokens=256, calls=1, pool=256):
    data = Data([layer], pool, 33)
    return Case(data, layer, "native", None, tokens, threads=1, packing=parse_packing(name), calls=calls)


@pytest.mark.parametrize("name", PACKINGS)
def test_every_packing_passes_the_check(name):
    case = narrow(name, Layer(3, 5), tokens=64, calls=4)
    case.check()
    packing, inner = case.packing, 15
    assert (case.name, packing.name) == (f"3x5 native {name}", name)
    assert (case.recomputed is None) == (not packing.exact_path)
    if packing.exact_path:
        counted = case.data.prepared(case.layer, packing)
        counted(case.data.x[:256])
        assert 0 < case.recomputed == counted.recomputed / 256 < inner
        assert 0 < case.rows_again <= case.pass_rows_again <= 3 * 31
        assert case.rows_again <= 64 * case.recomputed * 1.05 + 1
    wide = cmm.fff_forward(case.data.x[:256], *case.data.weights(case.layer), return_path=True)[1]
    taken = case.data.prepared(case.layer, packing)(case.data.x[:256], return_path=True)[1]
    assert case.off_path == (wide != taken).any((1, 2)).sum()
    if packing.exact_path is True or name == "float32":
        assert case.off_path == 0
    if name == "int8":
        assert case.off_path > 0


def spoil_layer(monkeypatch, how):
    """Let a prepared layer compute, and then spoil the results of a call with a path."""
    call = cmm.FFF.__call__

    def spoilt(self, x, **options):
        results = call(self, x, **options)
        if options.get("return_path"):
            how(*results)
        return results

    monkeypatch.setattr(cmm.FFF, "__call__", spoilt)


@pytest.mark.parametrize("name", ["int8", "int8+exact", "bfloat16+6"])
@pytest.mark.parametrize("node", [0, -1])
def test_a_wrong_logit_of_narrow_rows_is_refused(monkeypatch, name, node):
    def off(y, nodes, logits):
        logits[0, 0, node] += 1e-3

    spoil_layer(monkeypatch, off)
    with pytest.raises(check.WrongResultError, match="a logit is not what float64 gives; not timed"):
        narrow(name).check()


def test_a_path_that_is_not_float32s_is_refused(monkeypatch):
    # Without the exact path, some tokens go elsewhere, rightly for int8 and wrongly for what is said to be exact.
    def prepared(self, layer, packing=None):
        return cmm.FFF(*self.weights(layer), weights="int8")

    monkeypatch.setattr(Data, "prepared", prepared)
    narrow("int8", Layer(3, 5)).check()
    with pytest.raises(
        check.WrongResultError, match=r"3x5 native int8\+exact: \d+ tokens of 256 are off float32's path"
    ):
        narrow("int8+exact", Layer(3, 5)).check()


def test_a_logit_that_was_not_computed_again_is_refused(monkeypatch):
    class Boasting(cmm.FFF):
        __slots__ = ()

        @property
        def recomputed(self):
            return 10**6

    monkeypatch.setattr(cmm, "FFF", Boasting)
    with pytest.raises(check.WrongResultError, match="a logit computed again is not float32's"):
        narrow("int8+exact").check()


@pytest.mark.parametrize(
    "text",
    [
        *("", "int4", "float64", "int8/", "/int8", "int8/int8/int8"),
        *("int8+", "int8+yes", "int8+0", "int8+-1", "int8+nan", "int8+inf", "float32+exact", "float32/int8+6"),
    ],
)
def test_what_is_no_packing(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_packing(text)


def test_packings():
    assert parse_packing(" int8 ") == Packing(("int8", "int8"))
    assert parse_packing("int8/bfloat16+exact") == Packing(("int8", "bfloat16"), True)
    assert parse_packing("bfloat16+2.5").exact_path == 2.5
    assert parse_packing("int8+1").exact_path is not True
    assert parse_packing("int8/bfloat16").pair_bytes(768) == 768 + 4 + 1536
    assert parse_packing("float32").pair_bytes(768) == 2 * 3072


# ---- the data ------------------------------------------------------------------------------------------------------


def test_data_is_seeded_and_shared():
    layers = [Layer(1, 4), Layer(3, 2), dense(5)]
    data, again, other = (Data(layers, 16, 8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(data.x, again.x)
    assert not np.array_equal(data.x, other.x)
    for layer in layers:
        w_in, w_out = data.weights(layer)
        assert w_in.shape == w_out.shape == ((5, 8) if layer.dense else (layer.trees, layer.nodes, 8))
        assert np.shares_memory(w_in, data.w_in)


def test_random_paths_spread_over_the_leaves_and_same_paths_do_not():
    layer = Layer(1, 8)
    leaves = {}
    for routing in harness.ROUTINGS:
        case = Case(Data([layer], 4096, 64, routing=routing), layer, "naive", None, 4096, threads=1)
        case.check()
        leaves[routing] = case.leaves
    assert leaves["same"] == 1
    # 4096 tokens on 256 leaves that are about as likely as each other: 16 each. Empty ones are those of extreme rows.
    assert leaves["random"] > 230


def test_small_batches_are_drawn_from_many_tokens():
    case = Case(Data([TREE], 1, 8), TREE, "naive", None, 1, threads=1, calls=100)
    tokens = np.concatenate(case.tokens())
    assert len(np.unique(tokens, axis=0)) == case.pass_tokens == 100


def test_data_that_does_not_fit_is_refused_before_it_is_made():
    with pytest.raises(cmm.ArrayMemoryError, match=r"[\d.]+ GB, but [\d.]+ GB of memory are free: choose fewer"):
        Data([Layer(1, 30)], 1, 1 << 20)


@pytest.mark.parametrize("text", ["", "1", "x", "1x", "x3", "0x3", "1x31", "1x-1", "1 x 3", "1x2x3", "01x3"])
def test_what_is_no_layer(text):
    with pytest.raises(ValueError, match="KxD"):
        parse_layer(text)


def test_layers():
    layer = parse_layer(" 128x4 ")
    assert (layer.name, layer.nodes, layer.neurons, layer.used) == ("128x4", 31, 3968, 640)
    assert (dense(3072).name, dense(3072).neurons, dense(3072).used) == ("dense 3072", 3072, 3072)


# ---- the timing ----------------------------------------------------------------------------------------------------


def test_contestants_are_timed_in_turn(monkeypatch):
    turns = []
    monkeypatch.setattr(Case, "time_pass", lambda self: turns.append(self) or float(len(turns)))
    data = Data([TREE], 4, 8)
    three = [Case(data, TREE, "naive", None, batch, 1) for batch in (1, 2, 4)]
    steps = []
    measure(three, 5, lambda: steps.append(1))
    assert len(steps) == len(turns) == 15
    for first in range(0, 15, 3):
        assert set(turns[first : first + 3]) == set(three)
    assert len({tuple(turns[first : first + 3]) for first in range(0, 15, 3)}) > 1  # in changing order
    assert all(len(case.seconds) == 5 for case in three)


def test_time_is_per_token(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    case = Case(Data([TREE], 4, 8), TREE, "naive", None, 4, threads=1, calls=3)
    assert case.time_pass() == 6.0 / 12


@pytest.mark.parametrize(
    ("batch", "us", "limit", "expected"),
    [(16384, 1.0, 1.0, 16384), (16384, 1000.0, 0.25, 128), (16384, 1e6, 0.25, 16), (8, 1e6, 0.25, 8)],
)
def test_slow_layers_are_timed_on_fewer_tokens(monkeypatch, batch, us, limit, expected):
    monkeypatch.setattr(Case, "time_pass", lambda self: us * 1e-6)
    case = Case(Data([dense(30)], batch, 8), dense(30), "naive", None, batch, threads=1)
    case.calibrate(limit)
    assert (case.batch, case.calls >= 1) == (expected, True)


def test_the_yardstick_is_timed_at_full_speed(monkeypatch):
    monkeypatch.setattr(Case, "time_pass", lambda self: 1.0)
    case = Case(Data([dense(30)], 4096, 8), dense(30), "blas3", None, 4096, threads=1)
    case.calibrate(0.25)
    assert case.batch == 1024


def test_short_calls_are_repeated_in_a_pass(monkeypatch):
    monkeypatch.setattr(Case, "time_pass", lambda self: 10e-6)
    case = Case(Data([TREE], 1, 8), TREE, "naive", None, 1, threads=1)
    case.calibrate(1.0)
    assert case.calls * 10e-6 >= 0.02


def test_every_blas_is_there_once_and_the_current_one_first():
    blases = list(every_blas().values())
    assert blases[0].name == cmm.blas.current().name
    assert len({blas.name for blas in blases}) == len(blases)
    assert cmm.blas._from_scipy().name in {blas.name for blas in blases}


def test_a_contestant_uses_its_blas(monkeypatch):
    used = []
    original = cmm.ff_forward
    monkeypatch.setattr(cmm, "ff_forward", lambda *a, **k: (used.append(cmm.blas.current()), original(*a, **k))[1])
    data, before = Data([dense(30)], 4, 8), cmm.blas.current()
    for blas in every_blas().items():
        case = Case(data, dense(30), "blas1", blas, 4, threads=1)
        case.check()
        case.time_pass()
        assert [found.name for found in used] == [blas[1].name] * 2
        used.clear()
    assert cmm.blas.current() is before


# ---- the floors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def floors():
    machine, dtype = this_machine(), np.dtype("float32")
    return measure_roofline(machine, 1, dtype, products(every_blas().values(), 1, dtype))


def test_floors_are_those_of_a_machine(floors):
    for rates in (floors.read, floors.copy):
        assert list(rates) == [*this_machine().caches, "memory"]
        values = list(rates.values())
        assert values == sorted(values, reverse=True)  # no level is slower than one farther away
        assert 0.1 < values[-1] <= values[0] < 100_000
    assert 0.1 < floors.gflops < 100_000


def test_no_floor_is_below_that_of_a_farther_level():
    rates = {"L1": 5.0, "L2": 9.0, "L3": 4.0, "memory": 6.0}
    assert _no_slower(rates) == {"L1": 9.0, "L2": 9.0, "L3": 6.0, "memory": 6.0}


FLOORS = Roofline(
    gflops=100.0,
    read={"L1": 200.0, "L2": 100.0, "L3": 50.0, "memory": 10.0},
    copy={"L1": 100.0, "L2": 80.0, "L3": 40.0, "memory": 20.0},
    caches={"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
    threads=1,
)


def test_floors_in_microseconds():
    sizes = (1, 32 << 10, (32 << 10) + 1, 2 << 20, 1 << 30)
    assert [FLOORS.home(size) for size in sizes] == ["L1", "L1", "L2", "L3", "memory"]
    assert FLOORS.arithmetic_us(1e5) == 1.0
    assert FLOORS.read_us(1e4, "memory") == 1.0
    assert FLOORS.copy_us(1e4, 1 << 30) == 1.0  # 10 KB are read and 10 KB written
    better = FLOORS.or_better(replace(FLOORS, gflops=50.0, read=FLOORS.read | {"L3": 60.0}))
    assert (better.gflops, better.read["L3"], better.read["L1"]) == (100.0, 60.0, 200.0)


# ---- the report ----------------------------------------------------------------------------------------------------


def timed(layer, level, blas, us, batch=16384):
    """A case as if it had been timed: us are its passes."""
    case = Case(DATA, layer, level, (blas, None) if blas else None, batch, threads=1)
    case.seconds = [1e-6 * each for each in us]
    case.rows = case.pass_rows = layer.neurons
    case.leaves = 0 if layer.dense else 2048
    return case


DATA = Data([TREE], 1, 768)  # nothing runs on it: only its width and type are read
BIG = Layer(1, 11)


@pytest.fixture
def report():
    found = [
        (dense(4095), "naive", "", [7900, 8000, 8100], 64),
        (dense(4095), "blas1", "MKL", [900, 1000, 1100], 512),
        (dense(4095), "blas1", "Open", [700, 800, 900], 512),
        (dense(4095), "blas3", "MKL", [99, 100, 103], 1024),
        (dense(4095), "blas3", "Open", [119, 120, 121], 1024),
        (dense(3072), "blas3", "MKL", [74, 75, 76], 16384),
        (BIG, "naive", "", [39, 40, 41], 16384),
        (BIG, "blas1", "MKL", [7, 8, 9], 16384),
        (BIG, "blas1", "Open", [9, 10, 11], 16384),
        (BIG, "blas3", "MKL", [4, 5, 6], 16384),
        (BIG, "native", "", [0.9, 1.0, 1.2], 16384),
    ]
    lines = [line(timed(*case), FLOORS, 16384) for case in found]
    absent = {"blas2": "of a reason"}
    return Report(this_machine(), FLOORS, lines, 4095, "random", absent, {"MKL": "the MKL", "Open": "the other"})


def test_a_line_says_what_was_measured():
    found = line(timed(BIG, "blas1", "MKL", [3.0, 1.0, 2.0, 5.0, 4.0]), FLOORS, 16384)
    assert (found.us, found.us_q1, found.us_q3, found.us_min, found.us_max) == pytest.approx((3, 2, 4, 1, 5))
    assert found.gflops == pytest.approx(4 * 12 * 768 / 3e3)
    assert found.weights_gbs == pytest.approx(12 * 2 * 768 * 4 / 3e3)
    assert (found.layer, found.level, found.blas, found.d_in, found.passes) == ("1x11", "blas1", "MKL", 768, 5)
    assert not found.scaled
    # the largest of: arithmetic 0.369; x and y of 16384 tokens from and to memory, 6144 B at 20 GB/s;
    # 4095 rows of 6144 B once a call, from L3 at 50 GB/s, for 16384 tokens: 0.031
    assert (found.floor, found.floor_us) == ("arithmetic", pytest.approx(4 * 12 * 768 / 1e5))
    one = line(timed(BIG, "blas1", "MKL", [3.0], batch=1), FLOORS, 1)
    assert (one.floor, one.floor_us) == ("rows", pytest.approx(4095 * 6144 / 50e3))


def test_a_line_of_narrow_rows_says_what_they_need():
    case = timed(BIG, "native", "", [2.0, 2.0, 2.0])
    case.packing, case.recomputed, case.off_path = parse_packing("int8+exact"), 2.2, 0
    case.rows_again, case.pass_rows_again = 1000.0, 1000
    found = line(case, FLOORS, 16384)
    assert (found.weights, found.exact_path, found.off_path) == ("int8", True, 0)
    assert found.recomputed == pytest.approx(2.2 / 11)
    assert found.flops == pytest.approx(4 * 12 * 768 + 2.2 * 2 * 768)
    assert found.used_bytes == pytest.approx(12 * 2 * 772 + 2.2 * 3072)
    assert found.arithmetic_us == pytest.approx(found.flops / 1e5)
    assert found.copy_us == pytest.approx(2 * 3072 / 20e3)
    # once a call, from L3: 9.4 MB in all
    assert found.rows_us == pytest.approx((4095 * 2 * 772 + 1000 * 3072) / 16384 / 50e3)
    assert (found.floor, found.floor_us) == ("arithmetic", found.arithmetic_us)
    assert found.gflops == pytest.approx(found.flops / 2e3)
    assert found.weights_gbs == pytest.approx(found.used_bytes / 2e3)


def test_rows_stand_beside_their_floors(report):
    case = timed(BIG, "native", "", [2.0, 2.0, 2.0])
    case.packing, case.recomputed, case.off_path = parse_packing("int8+6"), 1.1, 3
    lines = [*report.lines[3:6], replace(line(case, FLOORS, 16384), pass_tokens=16384)]
    other = replace(lines[0], d_in=192, us=7.0)  # of another width: no yardstick for this one
    text = rows_text(replace(report, lines=[*lines, other], table="narrow"))
    row = next(row.split() for row in text.splitlines() if "sigmas" in row.split())
    expected = ["1x11", "int8", "6", "sigmas", "768", "16384", "2.00", "2.00..2.00", "0.39", "0.31", "0.01", "19%"]
    assert row == [*expected, "50.00", "0.15", "10.0%", "3/16384"]
    assert max(map(len, text.splitlines())) <= 132
    assert "width 768, 192, float32" in text


def test_speedups_divide_by_the_right_dense_layer(report):
    def best(layer, level):
        return report.best(layer, level, 16384)

    assert best("1x11", "blas1").blas == "MKL"
    assert best("dense 4095", "blas1").blas == "Open"
    assert report.over_level(best("1x11", "blas1")) == pytest.approx(800 / 8)  # the better BLAS on both sides
    assert report.over_level(best("1x11", "naive")) == pytest.approx(8000 / 40)
    assert report.over_level(best("1x11", "native")) == pytest.approx(100 / 1)  # of the fastest: it has none itself
    assert report.over_level(best("dense 3072", "blas3")) == pytest.approx(100 / 75)
    assert report.over_fastest(best("1x11", "blas1")) == pytest.approx(100 / 8)
    assert best("1x11", "blas2") is None


def test_the_table_shows_ours_beside_the_papers(report):
    text = table_text(report)
    for expected in (
        "100.0x (130.7x)",
        "12.5x (48x)",
        "1.33x (1.39x)",
        "20.0x (-)",
        "dense 4095: blas3 MKL, ~100 us",
        "1x11 341.2x",
        "Level blas2 was not measured: of a reason.",
        "MKL, Open",
        this_machine().cpu,
        "1 thread",
        "2048",
        "100 GFLOP/s",
        "37% arithmetic",  # of native's 1 us a token
        "copy x to y",
        *(f"rows from {level}" for level in FLOORS.read),
    ):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 132
    assert "ONE PATH" not in text
    assert "ONE PATH" in table_text(replace(report, routing="same"))


def gpu_report():
    times = {"dense 4095": (4000, 50000, 1e6), "dense 3072": (3000, 40000, 8e5), "1x11": (100, 1000, 5000)}
    levels = ("cuda", "cuda-bmm", "cuda-naive")
    lines = [
        GpuLine(layer, layer != "1x11", 3072 if "3072" in layer else 4095, level, us, 7, 0)
        for layer, all_us in times.items()
        for level, us in zip(levels, all_us, strict=True)
    ]
    return GpuReport("Some GPU", 4095, {}, lines)


def test_the_gpu_columns_show_ours_beside_the_papers(report):
    found = gpu_report()
    text = table_text(replace(report, gpu=found))
    rows = [row.split() for row in text.partition("On the GPU, Some GPU")[2].splitlines()]
    assert ["1x11", "40.0x", "(-)", "50.0x", "(39.45x)", "200.0x", "(117.83x)"] in rows
    assert ["dense", "3072", "1.33x", "(1.33x)", "1.25x", "(1.61x)", "1.25x", "(1.82x)"] in rows
    assert ["1x11", "100", "1000", "5000"] in rows
    assert max(map(len, text.splitlines())) <= 132
    part = replace(found, absent={"cuda": "a reason"}, lines=[f for f in found.lines if f.level != "cuda"])
    assert "Level cuda was not measured: a reason." in table_text(replace(report, gpu=part))
    json.dumps(replace(report, gpu=found).as_json(), allow_nan=False)


def test_without_a_gpu_one_line_says_so(report, monkeypatch):
    monkeypatch.setattr(cmm.bench.gpu, "why_not", lambda level: "no GPU here")
    found = measure_gpu(DATA, [TREE], 4095, lambda: None)
    assert found.lines == []
    assert table_text(replace(report, gpu=found)).splitlines().count("No GPU columns: no GPU here.") == 1


def test_the_json_is_complete_and_strict(report):
    read = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert len(read["lines"]) == len(report.lines)
    last = read["lines"][-1]
    assert (last["layer"], last["level"]) == ("1x11", "native")
    assert (last["over_fastest"], last["over_level"]) == pytest.approx((100, 100))
    assert read["lines"][0]["scaled"]
    assert not last["scaled"]
    assert read["blas"] == report.blas
    assert {"layer": "1x11", "level": "blas2", "over_level": 255.1, "over_fastest": 78.0} in read["paper"]
    assert Line(**{key: last[key] for key in Line.__dataclass_fields__}) == report.lines[-1]


def test_grid():
    assert grid([["a", "b"], ["ccc", "1"]]) == "  a    b\n  ccc  1"


def curve_of(report):
    lines = [replace(found, tokens=tokens) for tokens in (1, 64, 16384) for found in report.lines]
    return replace(report, lines=[found for found in lines if found.layer != "dense 3072"])


def test_the_curve_has_a_row_for_each_batch(report):
    rows = [row.split() for row in curve_text(curve_of(report)).splitlines()]
    for tokens in ("1", "64", "16384"):
        row = next(row for row in rows if row[:1] == [tokens])
        assert row[1:5] == ["40.0", "8.00", "5.00", "1.00"]  # naive, blas1, blas3, native
        assert row[-1] == "0.37"  # the floor


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("what", ["table", "curve"])
def test_figures(report, tmp_path, kind, what):
    plot = pytest.importorskip("cmm.bench.plot", reason="matplotlib is not installed", exc_type=ImportError)
    file = tmp_path / f"figure.{kind}"
    if what == "table":
        plot.table(report, file)
    else:
        plot.curve(curve_of(report), file)
    content = file.read_bytes()
    if kind == "png":
        assert content.startswith(b"\x89PNG\r\n")
    else:
        ElementTree.fromstring(content)
        # matplotlib writes every text as a comment before its outlines
        for text in ["100x", "131x", "native"] if what == "table" else ["1x11 native", "this machine"]:
            assert f"<!-- {text}".encode() in content


# ---- pytest bench --------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_pytest_bench_collects_and_runs():
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    folder = Path(__file__).parents[2] / "bench"
    wanted = "naive and 1x11 and not 128 and not 2048 and not 16384"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(folder),
            "-q",
            "-k",
            wanted,
            "-p",
            "no:cacheprovider",
            "--benchmark-disable",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
