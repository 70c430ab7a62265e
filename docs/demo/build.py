"""Assemble the page with the model in it: ``python docs/demo/build.py OUT [--work FOLDER]``.

OUT gets static files, to be served from any folder, which ask no other host for anything. It takes CMake, the Python
packages ziglang, numpy and cmm with its extra bert, and libcmm-models. FOLDER keeps what was compiled, so that
the next run is short; without it everything is compiled anew.

The weights are sent as they are stored, float16, and no bit is lost. The low and the high bytes stand apart, which
gzip likes better. Of the FFF model there are two files: ``fff.first`` has everything but the nodes that no token of
the first example visits, and ``fff.rest`` has those; another text needs the second only where a token walks into it.
"""

import argparse
import gzip
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ("index.html", "style.css", "page.js", "model.js", "tokenizer.js", "offline.js", "examples.json")
# Parts of a layer as encoder.c counts them, but for the rows of an FFF layer.
OF_LAYER = (
    "norm1.weight",
    "norm1.bias",
    "qkv",
    "dense",
    "norm2.weight",
    "norm2.bias",
    "ffn.bias",
    "ffn.w_in",
    "ffn.w_out",
)
OF_EMBEDDING = ("embedding.word", "embedding.scale", "embedding.norm.weight", "embedding.norm.bias")
OF_MODEL = (*OF_EMBEDDING, "final_norm.weight", "final_norm.bias")
ROWS = ("ffn.w_in", "ffn.w_out")


def compile_wasm(work: Path, relaxed: bool) -> bytes:
    """Return the module: libcmm and encoder.c."""
    if shutil.which("cmake") is None:
        raise SystemExit("the page takes CMake: pip install cmake ninja")
    try:
        import ziglang
    except ImportError:
        raise SystemExit("the page takes zig: pip install ziglang") from None
    zig = Path(ziglang.__file__).parent / "zig"
    folder = work / ("relaxed" if relaxed else "plain")
    toolchain = ROOT / "cmake/wasm32-wasi.cmake"
    words = ["cmake", "-S", ROOT, "-B", folder, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DCMM_ZIG={zig}"]
    words += [f"-DCMM_RELAXED_SIMD={'ON' if relaxed else 'OFF'}", *(["-G", "Ninja"] if shutil.which("ninja") else [])]
    run(words)
    run(["cmake", "--build", folder, "--target", "cmm_static"])
    module = work / f"cmm{'-relaxed' * relaxed}.wasm"
    flags = [
        "-target",
        "wasm32-wasi",
        "-mexec-model=reactor",
        "-msimd128",
        *["-mrelaxed-simd"] * relaxed,
        "-O3",
        "-s",
    ]
    library = folder / "libcmm/libcmm.a"
    run([zig, "cc", *flags, f"-I{ROOT / 'libcmm/include'}", HERE / "encoder.c", library, "-o", module])
    return module.read_bytes()


def run(words: list[Any]) -> None:
    """Run a command; what it said is shown where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def tensors(folder: Path) -> dict[str, NDArray[np.uint16]]:
    """Return the tensors of a model as the bits of float16."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    result = {}
    for name, about in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            if about["dtype"] != "F16":
                raise SystemExit(f"{folder.name} stores {name} as {about['dtype']}; the page reads F16")
            begin, end = (8 + length + offset for offset in about["data_offsets"])
            result[name] = np.frombuffer(content[begin:end], "<u2").reshape(about["shape"])
    return result


def visited(sentences: list[str], nodes: int) -> NDArray[np.bool_]:
    """Return which nodes, of (layers, trees, nodes), tokens of the sentences visit."""
    from cmm.bert import paths, trained

    return paths.of_texts(trained("fff"), sentences).usage[..., :nodes] > 0


def packed(parts: list[NDArray[np.uint16]]) -> bytes:
    """Return parts one after the other, all low bytes before all high bytes, compressed."""
    planes = np.concatenate([part.ravel() for part in parts]).view(np.uint8).reshape(-1, 2).T
    return gzip.compress(planes.tobytes(), 9, mtime=0)


def main() -> None:
    """Write the page and its data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, help="keep what was compiled here")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for relaxed in (False, True):
            name = f"cmm{'-relaxed' * relaxed}.wasm.gz"
            (out / name).write_bytes(gzip.compress(compile_wasm(work, relaxed), 9, mtime=0))
    for name in PAGE:
        shutil.copyfile(HERE / name, out / name)

    import cmm_models

    sentences = json.loads((HERE / "examples.json").read_text("utf-8"))
    about: dict[str, Any] = {"models": {}}
    for name, folder in cmm_models.FOLDERS.items():
        config = json.loads((folder / "model_config.json").read_text("utf-8"))
        stored = tensors(folder)
        layers = config["num_transformer_layers"]
        trees, nodes, _ = (
            stored["layers.0.ffn.w_in"].shape if name == "fff" else (0, len(stored["layers.0.ffn.w_in"]), 0)
        )
        first = [stored[part] for part in OF_MODEL]
        for layer in range(layers):
            first += [
                stored[f"layers.{layer}.{part}"]
                for part in OF_LAYER
                if not (name == "fff" and part in ROWS) and f"layers.{layer}.{part}" in stored
            ]
        model = {
            "layers": layers,
            "width": config["hidden_size"],
            "vocabulary": config["embedding"]["vocab_size"],
            "heads": config["attention"]["num_attention_heads"],
            "limit": config["embedding"]["max_seq_length"],
            "eps": config["norm_eps"],
            "trees": trees,
            "depth": config["intermed_depth"] if trees else 0,
            "neurons": (trees or 1) * nodes,
            "files": [name],
        }
        if trees:
            seen = visited(sentences[:1], nodes).reshape(layers, -1)
            model["files"] = ["fff.first", "fff.rest"]
            files = [first, []]
            for file, rows in zip(files, (np.argwhere(seen), np.argwhere(~seen)), strict=True):  # layer, neuron
                file += [
                    stored[f"layers.{layer}.{part}"].reshape(trees * nodes, -1)[at]
                    for layer, at in rows
                    for part in ROWS
                ]
            # A letter for each node of a layer: whether it is in the first file.
            model["rows"] = ["".join("01"[int(bit)] for bit in one) for one in seen]
        else:
            files = [first]
        for file, parts in zip(model["files"], files, strict=True):
            (out / f"{file}.gz").write_bytes(packed(parts))
        about["models"][name] = model
    tokenizer = json.loads((cmm_models.FOLDERS["fff"] / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    about["vocabulary"] = sorted(vocabulary, key=vocabulary.__getitem__)
    about["special"] = [token["content"] for token in tokenizer["added_tokens"]]
    about["sizes"] = {file.name: file.stat().st_size for file in sorted(out.glob("*.gz"))}
    (out / "about.json.gz").write_bytes(gzip.compress(json.dumps(about).encode(), 9, mtime=0))
    for file in sorted(out.iterdir()):
        sys.stdout.write(f"{file.stat().st_size:9d} {file.name}\n")


if __name__ == "__main__":
    main()
