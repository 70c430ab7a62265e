"""The manual page and the shell completion, made from the command's parsers, fit them, and are installed."""

import argparse
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

import pytest
from building import ROOT, run, tool
from cmm.__main__ import main, make_parser
from cmm.completion import FILES

PAGE = ROOT / "docs/man/cmm.1"


def parsers() -> dict[str, argparse.ArgumentParser]:
    found = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices)


def options() -> Iterator[tuple[str, str]]:
    for command, parser in parsers().items():
        for action in parser._actions:
            yield from ((command, option) for option in action.option_strings if option not in ("-h", "--help"))


@pytest.mark.parametrize("command", parsers())
def test_every_command_and_option_is_there(command: str) -> None:
    page = PAGE.read_text(encoding="utf-8").replace("\\-", "-")
    section = page.partition(f".SS \\fBcmm {command}\\fR")[2].partition(".SS ")[0]
    assert section
    for name, option in options():
        if name == command:
            assert f"\\fB{option}\\fR" in section, option
            for file in FILES.values():
                assert option in file.read_text(encoding="utf-8"), option


def test_they_are_what_the_script_makes() -> None:
    """But for white space and the folds of a usage, which are those of a version of Python."""
    for package in ("argparse_manpage", "shtab"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    spec = importlib.util.spec_from_file_location("make_manual", ROOT / "docs/man/make_manual.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = list(script.pages())
    assert len(made) == 3
    for file, content in made:
        assert file.read_text(encoding="utf-8").split() == content.split(), (
            f"{file.name}: run docs/man/make_manual.py"
        )


def test_bash_completes() -> None:
    bash = tool("bash")
    for words, expected in (
        (["cmm", "fi"], ["fill-mask"]),
        (["cmm", "bench", "--js"], ["--json"]),
        (["cmm", "completion", "z"], ["zsh"]),
        (["cmm", "export", "--dtype", "float1"], ["float16"]),
    ):
        script = f"source '{FILES['bash']}'; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        script += f'_shtab_cmm cmm {words[-1]} {words[-2]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        assert run(bash, "-c", script).split() == expected


def test_zsh_can_read_its_file() -> None:
    run(tool("zsh"), "-n", FILES["zsh"])


def test_the_command_prints_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, file in FILES.items():
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == file.read_text(encoding="utf-8")
        assert file.read_text(encoding="utf-8") == (ROOT / "python/cmm/completion" / file.name).read_text()


def test_they_are_installed_where_they_are_looked_for() -> None:
    installed = {str(file) for file in metadata.files("libcmm") or []}
    for name in ("man/man1/cmm.1", "bash-completion/completions/cmm", "zsh/site-functions/_cmm"):
        assert any(file.endswith(f"share/{name}") for file in installed), name


def test_the_page_has_no_mistakes() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("there is no groff here")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", PAGE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
