"""The command in a pipe, a cron job, on a full disk and an old terminal: a line or silence, and the right status."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.__main__ import main

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")

COMMAND = [sys.executable, "-X", "dev", "-X", "warn_default_encoding", "-W", "error", "-m", "cmm"]
BENCH = ["bench", "--tokens", "32", "--width", "16", "--trees", "1x3", "--levels", "naive", "--passes", "1"]
# What prints something, quickly.
PRINTING = {
    "--help": ["--help"],
    "--version": ["--version"],
    "embed --help": ["embed", "--help"],
    "info": ["info"],
    "fill-mask": ["fill-mask", "a <mask>"],
    "embed": ["embed", "fff", "a file"],
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
linux = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def run(*arguments, command=COMMAND, environment=(), **how):
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, "check": False, **how}
    return subprocess.run([*command, *arguments], env={**os.environ, **dict(environment)}, **how)


def shell(script, *arguments, **how):
    """Run the command as "$@" of a script."""
    return run(*arguments, command=["sh", "-c", script, "sh", *COMMAND], **how)


# ---- where output goes ---------------------------------------------------------------------------------------------


@linux
@pytest.mark.sample(4)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", PRINTING)
def test_a_full_standard_output(name, unbuffered):
    with open("/dev/full", "wb") as full:
        done = run(*PRINTING[name], stdout=full, environment={"PYTHONUNBUFFERED": unbuffered})
    start = f"cmm {name}" if name in ("info", "fill-mask", "embed") else "cmm"
    assert (
        done.stderr == f"{start}: error: the standard output cannot be written to: No space left on device\n".encode()
    )
    assert done.returncode == 2


@linux
def test_a_full_standard_output_of_which_the_first_pages_do_not_fit_either(tmp_path):
    (tmp_path / "texts").write_text("a file\n" * 200)
    with open("/dev/full", "wb") as full:
        done = run("embed", "fff", "--file", tmp_path / "texts", stdout=full)
    assert done.stderr.startswith(b"cmm embed: error:")
    assert (done.stderr.count(b"\n"), done.returncode) == (1, 2)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", PRINTING)
def test_a_closed_standard_output(name):
    done = shell('"$@" >&-', *PRINTING[name])
    assert done.stdout == b""
    start = f"cmm {name}" if name in ("info", "fill-mask", "embed") else "cmm"
    assert done.stderr == f"{start}: error: the standard output cannot be written to: it is closed\n".encode()
    assert done.returncode == 2


@pytest.mark.sample(2)
@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm_to_files(tmp_path, closed):
    """A file that is opened must not get the number of a stream, and be written to as that."""
    out = tmp_path / "vectors.npy"
    done = shell(f'"$@" {closed}', "embed", "fff", "a file", "--out", out)
    assert done.returncode == (2 if ">&-" in closed.split() else 0)  # the vectors are there all the same
    np.testing.assert_array_equal(np.load(out), cmm.bert.trained().embed(["a file"]))
    assert [file.name for file in tmp_path.iterdir()] == ["vectors.npy"]


def test_a_closed_standard_input():
    done = shell('"$@" <&-', "embed", "fff", "--file", "-")
    assert done.stderr == b"cmm embed: error: --file - is the standard input, which is closed\n"
    assert done.returncode == 2


def test_a_closed_standard_error():
    assert shell('"$@" 2>&-', "embed", "fff").returncode == 2
    assert shell('"$@" 2>&-', "embed", "nosuch", "a").stdout == b""
    assert shell('"$@" 2>&-', "nosuch").stdout == b""


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", PRINTING)
def test_a_reader_that_has_had_enough(name):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*PRINTING[name], stdout=writer, environment={"PYTHONUNBUFFERED": ""})
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- what a terminal cannot show -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"caf\\xe9 \\u65e5"), ("latin-1", b"caf\xe9 \\u65e5")])
def test_text_that_a_terminal_cannot_show(tmp_path, encoding, shown):
    (tmp_path / "texts").write_text("café 日\n", encoding="utf-8")
    done = run(
        "classify", classifier(tmp_path), "--file", tmp_path / "texts", environment={"PYTHONIOENCODING": encoding}
    )
    said = rb"cmm classify: texts[0] 'caf\xe9 \u65e5': nothing but special tokens is left"
    assert (done.returncode, done.stderr.strip()) == (0, said)
    assert done.stdout.splitlines()[1].endswith(shown)


def classifier(tmp_path):
    """The folder of a small model with a classifier and a tokenizer."""
    import bert_reference as reference
    import bert_tokenizer as tiny

    block = reference.architecture(num_labels=None)
    reference.save_final(tmp_path / "model", block, reference.state_dict(block, vocab=tiny.SIZE, labels=3))
    tiny.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", [b"caf\xc3\xa9", b"\xff\xfe"])
@pytest.mark.parametrize(
    "environment", [{}, ASCII, {"PYTHONIOENCODING": "ascii:strict"}], ids=["usual", "C", "ascii"]
)
def test_names_of_files_that_a_terminal_cannot_show(tmp_path, environment, name):
    odd = os.fsencode(tmp_path) + b"/" + name
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    done = run("embed", "fff", "a file", "--out", odd + b"/v.npy", environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"/v.npy: 1 vectors of 192 numbers\n")
    assert np.load(os.fsdecode(odd + b"/v.npy")).shape == (1, 192)
    for wrong in (["embed", odd + b"/none", "a"], ["embed", "fff", "a", "--out", odd + b"/none/v.npy"]):
        done = run(*wrong, environment=environment)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
        assert done.stderr.startswith(b"cmm embed: error:")


@pytest.mark.full
@pytest.mark.parametrize("environment", [{}, ASCII], ids=["usual", "C"])
def test_models_and_pictures_whose_names_a_terminal_cannot_show(tmp_path, environment):
    odd = os.fsencode(tmp_path) + b"/\xff\xfe"
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    done = run("export", "fff", odd + b"/model", environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    out = odd + b"/ways"
    done = run("explain", odd + b"/model", "a file", "--out", out, "--json", out + b".json", environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(os.listdir(odd)) == [b"model", b"ways.json", b"ways.png", b"ways.svg"]


def test_a_text_that_is_no_unicode_is_refused_in_a_line():
    done = run("embed", "fff", b"a \xff")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"cmm embed: error: texts[0] 'a \\udcff' is not valid Unicode: surrogates not allowed\n"


# ---- texts that begin with - ---------------------------------------------------------------------------------------


@pytest.fixture
def printed(capsys):
    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


DASHES = ["-5 degrees", "-hello", "-k is a letter", "--truncate the text", "- a list", "-", "-5°", "-ing", "-x"]


@pytest.mark.parametrize("text", DASHES)
def test_a_text_that_begins_with_a_dash(printed, tmp_path, text):
    """Alone it is taken for an option only where it looks like one, and after -- never."""
    folder = classifier(tmp_path)
    orders = [["classify", folder, "--json", "--", "the cat", text], ["classify", folder, "--", "the cat", text]]
    if text != "-x":
        orders += [["classify", folder, "the cat", text, "--json"], ["classify", folder, "--json", "the cat", text]]
    for order in orders:
        lines = printed(*order).splitlines()
        if "--json" in order:
            assert [json.loads(line)["text"] for line in lines] == ["the cat", text]
        else:
            assert [line.split(maxsplit=2)[2] for line in lines[1:]] == ["the cat", text]


def test_masks_after_a_dash(printed):
    text = "-5 is a <mask>"
    expected = printed("fill-mask", "fff", text)
    for arguments in (
        [text],
        ["--", text],
        ["fff", "--", text],
        ["-k", "5", text],
        ["-k5", "fff", text],
        ["fff", "-k", "5", text],
        ["fff", "--level", "auto", "--", text],
    ):
        assert printed("fill-mask", *arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["embed", "fff", "a", "--nosuch"],
            "unrecognized arguments: --nosuch (a text that begins with - goes after --)",
        ),
        (["embed", "fff", "a", "-x"], "unrecognized arguments: -x (a text that"),
        (["fill-mask", "-x5", "a <mask>"], "unrecognized arguments: -x5 (a text that"),
        (["fill-mask", "fff", "a <mask>", "more"], "unrecognized arguments: more"),
        (["fill-mask", "fff", "-k", "x", "a <mask>"], "invalid int value"),
        (["export", "fff", "a", "b"], "unrecognized arguments: b"),
        (["info", "--nosuch"], "unrecognized arguments: --nosuch\n"),
        (["bench", "--tokens", "-3"], "--tokens: '-3' is not a whole number"),
    ],
)
def test_unknown_options_are_errors(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


# ---- interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_an_interruption_is_one_line_and_130(tmp_path):
    """While the command waits for texts: it has read the beginning of one from a named pipe."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    pipe = tmp_path / "texts"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*COMMAND, "embed", "fff", "--file", pipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with open(pipe, "wb", buffering=0) as stream:
        stream.write(b"the beginning of a text")
        while fcntl.ioctl(stream, termios.FIONREAD, bytes(4)) != bytes(4):  # not read yet
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, b"", b"cmm embed: stopped\n")


@pytest.mark.parametrize("place", ["options", "run"])
def test_an_interruption_anywhere(capsys, monkeypatch, place):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cmm.bench.info.facts" if place == "run" else "cmm.__main__.import_module", interrupted)
    assert main(["info"]) == 130
    name = "cmm info" if place == "run" else "cmm"
    assert capsys.readouterr() == ("", f"{name}: stopped\n")


# ---- files ---------------------------------------------------------------------------------------------------------

# What writes a file: the command, and the names of what it writes.
WRITING = {
    "embed": (["embed", "fff", "a file", "--out", "a.npy"], ["a.npy"]),
    "explain": (["explain", "fff", "a file", "--out", "a", "--json", "a.json"], ["a.json", "a.png", "a.svg"]),
    "bench": ([*BENCH, "--json", "a.json", "--plot", "a.svg"], ["a.json", "a.svg"]),
    "bench --model": (["bench", "--model", "--passes", "1", "--json", "a.json"], ["a.json"]),
}
# Under a limit of this many bytes for a file, which is a full disk's error but for its number.
LIMITED = (
    "import resource, sys; from cmm.__main__ import main\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name != "embed")) for name in WRITING]
)
def test_a_file_is_whole_or_the_old_one(tmp_path, name):
    arguments, files = WRITING[name]
    for file in files:
        (tmp_path / file).write_bytes(b"old")
        (tmp_path / file).chmod(0o640)
    code = f"{LIMITED}sys.exit(main(sys.argv[1:]))"
    done = run(*arguments, command=[sys.executable, "-B", "-c", code], cwd=tmp_path)  # -B: no bytecode is written
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done.stderr
    assert any(file.encode() in done.stderr for file in files)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == dict.fromkeys(files, b"old")
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    for file in files:
        assert (tmp_path / file).stat().st_size > 100
        assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o640
        assert file.encode() in done.stdout


def test_figures_may_go_to_the_standard_output(tmp_path):
    done = run("explain", "fff", "a file", "--out", tmp_path / "a", "--json", "/dev/stdout")
    assert json.loads(done.stdout.splitlines()[0])["tokens"][:2] == ["a", "file"]
