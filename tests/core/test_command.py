"""The command `cmm`: what it prints, and how it says no."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cmm
import numpy
import pytest
import scipy
from cmm.__main__ import main
from cmm.bench import demo
from cmm.bench.harness import every_blas
from cmm.bench.roofline import Roofline

SMALL = ["bench", "--tokens", "32", "--width", "16", "--trees", "1x3,2x2", "--passes", "2"]
CPU_LEVELS = [level.name for level in cmm.levels() if level.available and not level.name.startswith("cuda")]


def run(*arguments, **options):
    """Run `python -m cmm` as its own process."""
    command = [sys.executable, "-m", "cmm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def refused(capsys, arguments):
    """Run the command, which must say no in one line; return that line."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("cmm")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_the_module_and_the_script_are_the_command():
    assert run("--version").stdout == f"cmm {cmm.__version__}\n"
    script = os.path.join(os.path.dirname(sys.executable), "cmm")
    if os.path.exists(script):  # absent where the package is used without being installed
        done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"cmm {cmm.__version__}\n"


@pytest.mark.parametrize(
    "command", [[], ["info"], ["demo"], ["bench"], ["completion"]], ids=lambda words: " ".join(["cmm", *words])
)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    name = " ".join(["cmm", *command])
    assert f"usage: {name} " in out
    assert "example" in out
    assert name in out.partition("example")[2]


# ---- info ----------------------------------------------------------------------------------------------------------


def test_info_names_everything(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (cmm.__version__, f"numpy {numpy.__version__}", f"scipy {scipy.__version__}", "cpu", "caches"):
        assert expected in out
    for level in cmm.levels():
        assert f"level {level.name} " in out
        assert level.available or level.reason in out
    current = cmm.blas.current()
    assert current.name in out
    assert current.file in out
    assert "threads" in out
    assert re.search(r"^ *compiler +\w+ [0-9.]+: .*-ffp-contract=off", out, re.MULTILINE)
    assert sum(line.split()[0] == "gpu" for line in out.splitlines() if line.split()) == 1


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("command", ["info", "demo"])
def test_info_says_what_was_built(monkeypatch, capsys, command, cuda):
    monkeypatch.setattr(cmm._native.cuda, "built", lambda: cuda)
    monkeypatch.setitem(sys.modules, "cmm_cuda13", None)
    monkeypatch.setattr(demo, "_layer", lambda: None)
    monkeypatch.setattr(demo, "_encoder", lambda: None)
    monkeypatch.setenv("CMM_CUDA_LIBRARY", "another.so")
    assert main([command]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[0].rstrip(":") == "built"
    assert ("libcmm and libcmm_cuda;" in line) == cuda
    assert ("without libcmm_cuda (pip install libcmm-cuda13 brings it, pip install . -C" in line) == (not cuda)
    assert "another.so is used, for CMM_CUDA_LIBRARY says so" in line


def test_info_says_what_the_environment_chose():
    isa, blas = cmm._dispatch.isas()[1][-1], cmm.blas._from_scipy().file
    done = run("info", env=os.environ | {"CMM_LEVEL": "naive", "CMM_ISA": isa, "CMM_BLAS": blas})
    assert done.returncode == 0, done.stderr
    assert "naive, for CMM_LEVEL says so" in done.stdout
    assert f"{isa}, for CMM_ISA says so" in done.stdout
    assert "named by CMM_BLAS" in done.stdout


# ---- bench ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """What a small `cmm bench` prints and writes."""
    folder = tmp_path_factory.mktemp("bench")
    done = run(*SMALL, "--json", str(folder / "table.json"), "--plot", str(folder / "table.png"))
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "table.json").read_text()), (folder / "table.png").read_bytes()


@pytest.fixture
def floors(monkeypatch):
    """Some floors, for they take seconds to measure; test_bench.py measures real ones."""
    rates = {"L1": 9.0, "L2": 8.0, "L3": 7.0, "memory": 6.0}
    some = Roofline(gflops=10.0, read=rates, copy=rates, caches={"L1": 1, "L2": 2, "L3": 3}, threads=1)
    monkeypatch.setattr("cmm.bench.command.measure_roofline", lambda *arguments: some)


def test_bench_measures_every_level_of_every_layer(bench):
    done, written, _ = bench
    measured = {(line["layer"], line["level"], line["blas"]) for line in written["lines"]}
    for layer in ("dense 15", "dense 14", "dense 3072", "1x3", "2x2"):
        for level in CPU_LEVELS:
            if level == "native" and layer.startswith("dense"):
                continue  # dense layers have no native level
            for blas in every_blas() if level.startswith("blas") else [""]:
                assert (layer, level, blas) in measured
                measured.remove((layer, level, blas))
    assert not measured
    for line in written["lines"]:
        assert line["passes"] == 2
        assert 0 < line["us_min"] <= line["us_q1"] <= line["us"] <= line["us_q3"] <= line["us_max"]
        assert line["leaves"] == (0 if line["dense"] else 8)
        assert line["over_fastest"] > 0
        assert line["over_level"] > 0
    assert done.stderr == ""  # which is no terminal, so it shows no progress


def test_bench_prints_the_table(bench):
    done, written, png = bench
    for expected in ("Table 2", "dense 3072", "2x2", "floors", "1 thread", *written["blas"]):
        assert expected in done.stdout
    assert written["machine"]["cpu"] in done.stdout
    assert written["gpu"]["lines"] or "No GPU columns: " in done.stdout
    assert png.startswith(b"\x89PNG")


def test_json_on_the_standard_output_is_all_that_is_there(floors, capsys, tmp_path):
    for more, word in ([], "Table 2"), (["--curve", "--plot", str(tmp_path / "a.svg")], "tokens"):
        assert main([*SMALL, "--levels", "naive", *more, "--json", "-"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["version"] == cmm.__version__
        assert word in err
        assert "wrote -" not in err
        assert ("wrote" in err) == bool(more)
    assert not os.path.exists("-")


def test_json_on_the_standard_output_with_a_closed_standard_error():
    code = (
        "import sys; sys.stderr = None; from cmm import _json; _json.say('-', 'words'); _json.write('-', [1])\n"
        "_json.say(None, 'more')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\nmore\n"


def test_bench_narrow_rows(floors, tmp_path, capsys):
    file = tmp_path / "narrow.json"
    small = ["bench", "--table", "narrow", "--tokens", "64", "--width", "32", "--trees", "1x3,2x2", "--passes", "1"]
    assert main([*small, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    lines = json.loads(file.read_text())["lines"]
    packings = {(line["weights"], line["exact_path"]) for line in lines if line["layer"] == "2x2"}
    without = {(rows, False) for rows in ("float32", "bfloat16", "float16", "int8")}
    assert packings == without | {("int8", 6)} | {(rows, True) for rows in ("bfloat16", "float16", "int8")}
    assert {line["layer"] for line in lines} == {"dense 15", "dense 14", "1x3", "2x2"}
    assert {line["level"] for line in lines} == {"blas3", "native"}
    for line in lines:
        assert (line["recomputed"] is None) == (not line["exact_path"])
        assert line["off_path"] == 0 or line["exact_path"] is not True
        assert line["tokens"] == 64
        dense = [one for one in lines if one["dense"] and one["neurons"] == line["neurons"]]
        assert line["over_fastest"] == pytest.approx(min(one["us"] for one in dense) / line["us"])
    assert sum("sigmas" in row.split() for row in out.splitlines()) == 2


@pytest.mark.full
def test_bench_forests(floors, tmp_path, capsys):
    file = tmp_path / "forests.json"
    small = ["bench", "--table", "forests", "--tokens", "16", "--passes", "1", "--json", str(file)]
    assert main([*small, "--weights", "float32,int8"]) == 0
    assert "off path" in capsys.readouterr().out
    lines = json.loads(file.read_text())["lines"]
    trees = {(line["layer"], line["d_in"], line["weights"]) for line in lines if not line["dense"]}
    names = ("16x5", "32x4", "64x3", "128x4", "4x9")
    assert trees == {(name, width, rows) for name in names for width in (192, 768) for rows in ("float32", "int8")}
    for line in lines:
        same = [one["us"] for one in lines if one["dense"] and (one["neurons"], one["d_in"]) == key(line)]
        assert line["over_fastest"] == pytest.approx(min(same) / line["us"])


def key(line):
    return line["neurons"], line["d_in"]


def test_bench_same_routing_says_so(floors, tmp_path, capsys):
    file = tmp_path / "same.json"
    assert main([*SMALL, "--routing", "same", "--levels", "naive", "--json", str(file)]) == 0
    assert "ALL TOKENS TOOK ONE PATH" in capsys.readouterr().out
    lines = json.loads(file.read_text())["lines"]
    assert ("dense 15", "blas3") in {(line["layer"], line["level"]) for line in lines}  # the baseline, always
    assert {line["layer"]: line["leaves"] for line in lines if not line["dense"]} == {"1x3": 1, "2x2": 2}


def test_bench_curve(floors, tmp_path, capsys):
    file, figure = tmp_path / "curve.json", tmp_path / "curve.svg"
    arguments = ["--curve", "--levels", "naive,blas3", "--json", str(file), "--plot", str(figure)]
    assert main([*SMALL, *arguments]) == 0
    out = capsys.readouterr().out
    lines = json.loads(file.read_text())["lines"]
    for level in ("naive", "blas3"):
        tokens = {line["tokens"] for line in lines if (line["layer"], line["level"]) == ("1x3", level)}
        assert tokens == {1, 4, 16, 32}
    rows = [row.split()[0] for row in out.splitlines() if row.split()]
    assert {"1", "4", "16", "32"} <= set(rows)
    ElementTree.parse(figure)


@pytest.mark.full
def test_bench_shows_progress_on_a_terminal():
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    termios = pytest.importorskip("termios")
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))  # a window without columns has no room for a bar
    command = [sys.executable, "-m", "cmm", *SMALL, "--levels", "naive"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=120, check=False)
    os.set_blocking(reader, False)  # so that nothing to read is an error here
    shown = os.read(reader, 1 << 16)
    os.close(writer)
    os.close(reader)
    assert done.returncode == 0
    assert b"timing" in shown
    assert b"timing" not in done.stdout


def test_bench_without_tqdm(floors, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main([*SMALL, "--levels", "naive"]) == 0
    assert "Table 2" in capsys.readouterr().out


def test_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.delitem(sys.modules, "cmm.bench.plot", raising=False)
    monkeypatch.delattr(cmm.bench, "plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = refused(capsys, ["bench", "--full", "--plot", str(tmp_path / "x.png")])
    assert "matplotlib" in error
    assert "pip install" in error


def test_a_wrong_result_is_an_error_and_not_a_figure(floors, monkeypatch, capsys, tmp_path):
    def wrong(x, w_in, w_out, *, out, **options):
        out[:] = 1

    monkeypatch.setattr(cmm, "ff_forward", wrong)
    file = tmp_path / "table.json"
    assert "not timed" in refused(capsys, [*SMALL, "--json", str(file)])
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["nosuch"], "'nosuch'"),
        (["info", "more"], "more"),
        (["bench", "--nosuch"], "--nosuch"),
        (["bench", "--tokens", "0"], "--tokens: '0' is not a whole number from 1"),
        (["bench", "--tokens", "-3"], "--tokens"),
        (["bench", "--tokens", "1e3"], "'1e3'"),
        (["bench", "--width", "99999999999"], "--width"),
        (["bench", "--passes", "0"], "--passes"),
        (["bench", "--seed", "x"], "--seed"),
        (["bench", "--threads", "100000"], "--threads"),
        (["bench", "--dtype", "float16"], "float16"),
        (["bench", "--routing", "left"], "'left'"),
        (["bench", "--trees", "1y11"], "'1y11' is not KxD"),
        (["bench", "--trees", "1x11,"], "'' is not KxD"),
        (["bench", "--trees", "1x31"], "from 0 to 30"),
        (["bench", "--trees", "1x30"], "GB of memory are free"),
        (["bench", "--table", "wide"], "'wide'"),
        (["bench", "--table", "narrow", "--weights", "int4"], "'int4' is not TYPE or TYPE/TYPE"),
        (["bench", "--table", "narrow", "--curve"], "--curve is for the paper's table"),
        (["bench", "--table", "narrow", "--full"], "--full is for the paper's table"),
        (["bench", "--table", "forests", "--levels", "naive"], "--levels is for the paper's table"),
        (["bench", "--table", "forests", "--plot", "a.svg"], "--plot is for the paper's table"),
        (["bench", "--table", "narrow", "--dtype", "float64"], "float32, not of --dtype float64"),
        (["bench", "--weights", "int8"], "--weights goes with --table narrow or forests"),
        (["bench", "--levels", "fastest"], "naive, blas1"),
        (["bench", "--full", "--tokens", "1"], "--full"),
        (["bench", "--full", "--passes", "1"], "--passes"),
        (["bench", "--plot", "figure.docx"], "figure.docx"),
        (["bench", "--plot", "figure"], ".png"),
        (["bench", "--json", "no/such/folder/x.json"], "there is no folder"),
        (["bench", "--json", "."], "cannot be written"),
    ],
    ids=" ".join,
)
def test_wrong_calls_are_refused_in_one_line(capsys, arguments, said):
    assert said in refused(capsys, arguments)


def test_a_blas_that_is_none_is_refused_in_one_line():
    for command in ("info", "bench"):
        done = run(command, env=os.environ | {"CMM_BLAS": "/no/such/library.so"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"cmm {command}: error: CMM_BLAS is '/no/such/library.so'")
        assert done.stderr.count("\n") == 1


def test_output_that_nobody_reads_is_no_error():
    command = [sys.executable, "-m", "cmm", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cmm.bench.info.facts", lambda: interrupted(None))
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "cmm info: stopped\n"


# ---- demo ----------------------------------------------------------------------------------------------------------


def test_demo(monkeypatch, capsys):
    """The demonstration on a small layer and a small encoder: the real one is the README's first command."""
    config = cmm.bert.ULTRAFASTBERT_1X11_LONG
    small = config | {
        "num_transformer_layers": 2,
        "hidden_size": 64,
        "intermed_depth": 4,
        "embedding": config["embedding"] | {"vocab_size": 300, "embedding_dim": 64},
        "attention": config["attention"] | {"num_attention_heads": 4},
    }
    monkeypatch.setattr(cmm.bert, "ULTRAFASTBERT_1X11_LONG", small)
    monkeypatch.setattr(demo, "_TOKENS", 512)
    monkeypatch.setattr(demo, "_WIDTH", 64)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    shapes = "x (512, 64), w_in (1, 4095, 64)", "ids (8, 128)", "hidden (8, 128, 64)"
    for expected in (*shapes, "us per token", "leaves"):
        assert expected in out
    for level in CPU_LEVELS:
        assert f" {level} " in out
