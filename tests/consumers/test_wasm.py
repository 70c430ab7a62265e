"""libcmm as WebAssembly, and the page with the model in it: under node, and in a browser."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cmm
import numpy as np
import pytest
from building import ROOT, Build, build_with_tests, run, scratch, tool

pytestmark = pytest.mark.full

TOOLCHAIN = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake/wasm32-wasi.cmake'}"
CARD = ROOT / "python/libcmm-models/cmm_models/MODEL_CARD.md"
HERE = Path(__file__).parent / "page"


def zig() -> str:
    ziglang = pytest.importorskip("ziglang", reason="there is no zig here (pip install ziglang)")
    return f"-DCMM_ZIG={Path(ziglang.__file__).parent / 'zig'}"


def wasm_build() -> Build:
    tool("node")
    return build_with_tests("wasm", TOOLCHAIN, zig())


def test_wasm_warns_of_nothing() -> None:
    assert "warning:" not in wasm_build().log


LISTED = re.findall(r"^cmm_test\((\w+)", (ROOT / "tests/c/CMakeLists.txt").read_text(), re.MULTILINE)
C_TESTS = [*LISTED[: LISTED.index("threads")], "single"]


@pytest.mark.parametrize("name", C_TESTS)
def test_c_test_passes_under_node(name: str) -> None:
    """The stored hashes among them, so the bits are those of every other machine."""
    said = run(tool("ctest"), "--test-dir", wasm_build().folder, "-R", f"^{name}$", "--no-tests=error", "-V")
    assert name not in ("same_bits", "correctness") or "native/grouped on wasm" in said


# ---- the page ------------------------------------------------------------------------------------------------------


@functools.cache
def page() -> Path:
    """Return the folder of the page; CMM_PAGE names one that is there already."""
    if given := os.environ.get("CMM_PAGE"):
        return Path(given)
    tool("node")
    tool("cmake")
    zig()
    pytest.importorskip("tokenizers")
    pytest.importorskip("cmm_models")
    folder = scratch() / "page"
    run(sys.executable, ROOT / "docs/demo/build.py", folder)
    return folder


def card_sentences() -> list[str]:
    """The card's first ten held-out sentences, and the README's."""
    rows = re.findall(r"^\| (.*`<mask>`.*?) \| ", CARD.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 10
    return ["The function returns a <mask> of strings.", *(row.replace("`<mask>`", "<mask>") for row in rows)]


# node 20 knows relaxed SIMD by a flag, later ones without.
FLAGS = {"exact": [], "relaxed": ["--experimental-wasm-relaxed-simd"]}


@functools.cache
def answers(which: str) -> dict[str, Any]:
    """What the page says of the sentences, by the module of that name where this node has the choice."""
    tool("node")
    if FLAGS[which] and not run(tool("node"), "--version").startswith("v20."):
        pytest.skip("this node takes relaxed SIMD by itself, or not at all")
    sentences = card_sentences()
    file = scratch() / "sentences.json"
    file.write_text(json.dumps({"fff": sentences, "dense": sentences}))
    return dict(json.loads(run(tool("node"), *FLAGS[which], HERE / "logits.mjs", page(), file)))


@pytest.mark.parametrize("name", ["fff", "dense"])
@pytest.mark.parametrize("which", FLAGS)
def test_logits_in_the_page_are_those_of_numpy(which: str, name: str) -> None:
    """To 1e-4, and by the same paths."""
    pytest.importorskip("tokenizers")
    found = answers(which)[name]["answers"]
    model = cmm.bert.trained(name)
    for sentence, answer in zip(card_sentences(), found, strict=True):
        ids = model.tokenizer.encode(sentence)
        assert answer["ids"] == ids
        logits = model.logits(np.array([ids]))[0, answer["masks"]]
        assert np.abs(logits - np.array(answer["logits"])).max() <= 1e-4
        assert answer["words"] == [[one.token for one in mask] for mask in model.fill_mask(sentence, 5)]
        if name == "fff":
            nodes = model.trace(np.array([ids])).path_nodes[:, 0]
            assert np.array_equal(np.array(answer["path"]).reshape(nodes.shape), nodes)


def test_the_first_file_answers_the_examples_and_no_other_text_wrongly() -> None:
    """The README's sentence without the second file; a text that walks on waits for it."""
    first, *others = answers("exact")["fff"]["answers"]
    assert not first["fetched"]
    assert any(not answer["whole"] and answer["fetched"] for answer in others)
    sizes = {file.name: file.stat().st_size for file in page().iterdir()}
    needed = sum(sizes[name] for name in sizes if name not in ("fff.rest.gz", "dense.gz"))
    assert needed < 6_000_000


TEXTS = [
    "The function returns a <mask> of strings.",
    "Na\u00efve caf\u00e9s, \u0130stanbul & \u212aelvin's <mask>!!  x\u00a0y\tz",
    "snake_case->call(a[0], 'b') == 0x1F; <mask> <mask>",
    "\u0424\u0443\u043d\u043a\u0446\u0438\u044f <mask> \u65e5\u672c",
    "supercalifragilistic " + "a" * 101 + " <mask> <sep> <unk>x",
    "",
]


def test_the_tokenizer_of_the_page_is_that_of_the_model(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = cmm.bert.trained("fff").tokenizer
    script = tmp_path / "encode.mjs"
    script.write_text(
        f"import {{ Tokenizer }} from {json.dumps((ROOT / 'docs/demo/tokenizer.js').as_uri())};"
        f"const t = new Tokenizer({json.dumps([tokenizer.token(id) for id in tokenizer.ids.tolist()])},"
        '["<pad>", "<unk>", "<sep>", "<cls>", "<mask>"]);'
        f"process.stdout.write(JSON.stringify({json.dumps(TEXTS)}.map((x) => t.encode(x))));"
    )
    found = json.loads(run(tool("node"), script))
    assert found == [tokenizer.encode(text) for text in TEXTS]


def package(name: str) -> Path:
    """Return a package of npm below the folder that CMM_NPM names; the test is skipped where there is none."""
    folder = Path(os.environ.get("CMM_NPM", ROOT)) / "node_modules" / name
    if not folder.exists():
        pytest.skip(f"there is no {name} here (npm install {name}; CMM_NPM names the folder)")
    return folder


def test_types_of_the_page() -> None:
    words = "--noEmit --checkJs --allowJs --strict --target es2022 --module es2022 --moduleResolution bundler"
    compiler = package("typescript") / "bin/tsc"
    run(tool("node"), compiler, *words.split(), "--lib", "es2022,dom,dom.iterable", ROOT / "docs/demo/page.js")


def test_the_page_in_a_browser() -> None:
    """The README's sentence gives the README's words; by keyboard, offline, on a narrow screen."""
    chromium, playwright = tool("chromium"), package("playwright-core")
    done = subprocess.run(
        [tool("node"), HERE / "browser.mjs", playwright.resolve(), chromium, page(), *PICTURES],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    readme = re.search(r"```text\n(list +0\..*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert readme is not None
    expected = [line.split() for line in readme[1].splitlines()]
    assert seen["words"] == [[word, f"{100 * float(share):.1f} %"] for word, share in expected]
    assert seen["offline"] == seen["words"]
    assert seen["errors"] == []
    assert seen["elsewhere"] == []
    assert seen["used"].startswith("96 of 1008 neurons of layer 1 did the work")
    assert "layer 2" in seen["layer"]
    assert seen["token"] != seen["layer"]
    assert len(seen["trees"]) == 16
    assert "no blank" in seen["noMask"]
    assert "no word is left" in seen["letters"]
    assert seen["inserted"] == "The <mask> to hide is here."
    assert "WebAssembly" in seen["noSimd"]
    assert [row[1] for row in seen["times"][1:]] == ["96 of 1008", "1020 of 1020"]
    assert seen["overflow"] <= 0


PICTURES = [os.environ["CMM_PICTURES"]] if "CMM_PICTURES" in os.environ else []
"""CMM_PICTURES names a folder for screenshots."""
