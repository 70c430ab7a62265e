"""Broken and hostile files: one family of errors, nothing executed, within a second and bounded memory."""

import importlib.util
import io
import json
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.bert import CheckpointError
from cmm.bert._safetensors import HEADER_LIMIT, SafeTensors
from cmm.bert.config import JSON_LIMIT

BLOCK = reference.architecture()
STATE = reference.state_dict(BLOCK)
MEMORY = 64 << 20  # beyond the size of the file
SECONDS = 1.0

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch, which reads these files, is not installed"
)


def framed(header, data=b"", length=None):
    """A safetensors file of any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def nested(depth, opening=b"[", closing=b"]"):
    return opening * depth + closing * depth


EIGHT = b"\0" * 8

# name: (bytes of the file, what the error says)
FILES = {
    "empty": (b"", "truncated: 0 bytes"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "truncated: 7 bytes"),
    "no header": (framed(b""), "does not start with {"),
    "header beyond the file": (framed(b"{}", length=3), "truncated: a header of 3 bytes"),
    "header of 2^63 bytes": (framed(b"{}", length=2**63), "claims a header of 9223372036854775808 bytes"),
    "header of 2^64 - 1 bytes": (framed(b"{}", length=2**64 - 1), "claims a header of"),
    "header above the limit": (framed(b"{" + b" " * HEADER_LIMIT + b"}"), "claims a header of"),
    "not json": (framed(b"{nothing}"), "not json that can be read"),
    "an array": (framed(b"[]"), "does not start with {"),
    "two objects": (framed(b"{}{}"), "not json that can be read: not valid"),
    "not UTF-8": (framed(b'{"\xff": 1}'), "not UTF-8"),
    "byte order mark": (framed(b"\xef\xbb\xbf{}"), "does not start with {"),
    "deep arrays": (framed(b'{"a": ' + nested(200_000) + b"}"), "nested too deeply"),
    "deep objects": (framed(b'{"a":' * 150_000), "nested too deeply|not valid"),
    "a number of 200 000 digits": (framed(b'{"a": 1' + b"0" * 200_000 + b"}"), "not json that can be read"),
    "NaN": (framed(b'{"a": NaN}'), "NaN is not a json number"),
    "many objects": (framed(b'{"a": [' + b"{}," * 300_000 + b"{}]}"), "a: should have dtype, shape and data_offsets"),
    "many keys": (
        framed(b"{" + b",".join(b'"%d":{}' % i for i in range(90_000)) + b"}"),
        "0: should have dtype, shape and data_offsets",
    ),
    "a key twice": (framed(b'{"a": 1, "a": 1}'), "the key a is there twice"),
    "a field twice": (framed(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "the key dtype is there twice"),
    "metadata of numbers": (framed({"__metadata__": {"a": 1}}), "__metadata__: should be an object of strings"),
    "metadata of a string": (framed({"__metadata__": "a"}), "__metadata__: should be an object of strings"),
    "an entry of a number": (framed({"a": 5}), "a: should have dtype, shape and data_offsets"),
    "no shape": (framed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "a: should have"),
    "more than a shape": (framed({"a": {**entry(), "x": 1}}, EIGHT), "a: should have .* nothing else"),
    "unknown dtype": (framed({"a": entry("F31")}, EIGHT), "a: unknown dtype 'F31'"),
    "dtype of a list": (framed({"a": entry([1])}, EIGHT), r"a: unknown dtype \[1\]"),
    "shape of a number": (framed({"a": {**entry(), "shape": 2}}, EIGHT), "a: shape is 2"),
    "negative shape": (framed({"a": entry(shape=(-2,))}, EIGHT), r"a: shape is \[-2\]"),
    "shape of a float": (framed({"a": entry(shape=(2.0,))}, EIGHT), r"a: shape is \[2.0\]"),
    "shape of true": (framed({"a": entry("I8", (True,), (0, 1))}, b"\0"), r"a: shape is \[True\]"),
    "shape of 2^63": (framed({"a": entry(shape=(2**63,))}, EIGHT), r"a: shape is \[9223372036854775808\]"),
    "shape that overflows": (
        framed({"a": entry(shape=(2**32, 2**32))}, EIGHT),
        "a: .* takes 73786976294838206464 bytes",
    ),
    "shape that overflows to 0": (framed({"a": entry(shape=(2**62, 8), offsets=(0, 0))}), "takes 1475739"),
    "nine dimensions": (framed({"a": entry(shape=[1] * 9, offsets=(0, 4))}, b"\0" * 4), "at most 8 numbers"),
    "shape and offsets differ": (framed({"a": entry(shape=(3,))}, EIGHT), r"a: \(3,\) F32 takes 12 bytes"),
    "room for more than the shape": (framed({"a": entry(shape=(1,))}, EIGHT), r"a: \(1,\) F32 takes 4 bytes"),
    "half a byte": (framed({"a": entry("F4", (3,), (0, 1))}, b"\0"), "a: "),
    "one offset": (framed({"a": entry(offsets=(0,))}, EIGHT), "a: data_offsets is"),
    "offsets reversed": (framed({"a": entry(offsets=(8, 0))}, EIGHT), "a: data_offsets is"),
    "negative offset": (framed({"a": entry(offsets=(-8, 0))}, EIGHT), "a: data_offsets is"),
    "offset of a string": (framed({"a": entry(offsets=("0", "8"))}, EIGHT), "a: data_offsets is"),
    "outside the file": (framed({"a": entry(offsets=(8, 16))}, EIGHT), "a: ends at byte 16 of 8"),
    "far outside": (framed({"a": entry(offsets=(2**62, 2**62 + 8))}, EIGHT), "a: ends at byte 4611686018427387912"),
    "data truncated": (framed({"a": entry()}, EIGHT[:-1]), "a: ends at byte 8 of 7 .*truncated"),
    "overlap": (framed({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "b: starts at byte 4, inside"),
    "the same place": (framed({"a": entry(), "b": entry()}, EIGHT), "b: starts at byte 0, inside"),
    "hole": (framed({"a": entry(), "b": entry(offsets=(9, 17))}, b"\0" * 17), "b: starts at byte 9, 1 bytes after"),
    "hole at the start": (framed({"a": entry(offsets=(1, 9))}, b"\0" * 9), "a: starts at byte 1"),
    "bytes left over": (framed({"a": entry()}, EIGHT + b"\0"), "has 1 bytes after its last tensor"),
    "only another tensor": (framed({"a": entry()}, EIGHT), "word_embedding.weight: is missing"),
    "no tensor": (framed({}), "word_embedding.weight: is missing"),
    "a key of 100 000 characters": (framed({"k" * 100_000: entry("F31")}, EIGHT), "k+'?... .*: unknown dtype"),
    "a key of control characters": (framed({"\x1b[2J\n\u202e": entry("F31")}, EIGHT), r"\\x1b\[2J\\n\\u202e"),
    "a key of other letters": (framed({"\u0434\u0430": entry("F31")}, EIGHT), r"'\\u0434\\u0430'"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "claims a header of"),
}


def resident(name):
    """Bytes of this process by its status, such as VmRSS and VmHWM, the most since it was reset; 0 where unknown."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return 0


def reset_peak():
    """Let VmHWM start anew; return whether that is possible here."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


class Limits:
    """Fails when the block takes more than a second, or more memory than the file's size and 64 MiB.

    Memory by Python's own account, to the byte, and by the system's, which counts PyTorch's too.
    """

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resident("VmRSS") if reset_peak() else None
        tracemalloc.start()
        self.start = time.process_time()  # not the wall clock: other processes may have the machine

    def __exit__(self, *error):
        took = time.process_time() - self.start
        peaks = [tracemalloc.get_traced_memory()[1]]
        tracemalloc.stop()
        if self.before is not None:
            peaks.append(resident("VmHWM") - self.before)
        assert max(peaks) < self.size + MEMORY, f"{peaks} bytes for a file of {self.size}"
        assert took < SECONDS, f"{took} s"


@pytest.mark.parametrize("name", FILES)
def test_broken_files(tmp_path, name):
    data, message = FILES[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with Limits(len(data)), pytest.raises(CheckpointError, match=message) as caught:
        cmm.bert.load(file, config=BLOCK)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert text.isprintable()
    assert len(text) < 600 + len(str(file))


CONFIGS = {
    "empty": b"",
    "not json": b"{",
    "not UTF-8": b"\xff\xfe",
    "deep": nested(400_000),
    "deep objects": b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
    "huge": b"[" + b"0," * (1 << 20) + b"0]",
    "a number of 100 000 digits": json.dumps(BLOCK).encode().replace(b"24", b"2" * 100_000),
    "a number of 4000 digits": json.dumps(BLOCK).encode().replace(b"24", b"2" * 4000),
    "an array": b"[]",
    "null": b"null",
    "a key twice": b'{"norm": "LayerNorm", "norm": "LayerNorm"}',
    "NaN": json.dumps(BLOCK).encode().replace(b"1e-12", b"NaN"),
    "arch is null": b'{"arch": null}',
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("file", ["model_config.json", "config.json"])
def test_broken_configurations(tmp_path, name, file):
    folder = reference.save_final(tmp_path, BLOCK, STATE)
    (folder / "model_config.json").unlink()
    (folder / file).write_bytes(CONFIGS[name])
    with Limits(len(CONFIGS[name])), pytest.raises(CheckpointError) as caught:
        cmm.bert.load(folder)
    assert str(folder / file) in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(folder))


def tensors_of_nothing(count):
    return {f"{i:x}": entry("U8", (0,), (0, 0)) for i in range(count)}


def indexed(places):
    return json.dumps({"weight_map": places}).encode()


# name: (the index, what is in each shard that is there)
INDICES = {
    "many shards that are not there": (indexed({str(i): f"{i}.safetensors" for i in range(30_000)}), {}),
    "many keys that are not there": (indexed({str(i): "a.safetensors" for i in range(30_000)}), {"a": framed({})}),
    "larger than the limit": (b"{" + b" " * JSON_LIMIT + b"}", {}),
    "deep": (b'{"weight_map":' + nested(200_000) + b"}", {}),
    "a key twice": (b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', {"a": framed({})}),
    "a long name": (indexed({"a": "n" * 100_000 + ".safetensors"}), {}),
    "shards with more than the index says": (
        indexed({str(i): f"{i}.safetensors" for i in range(8)}),
        {str(i): framed(tensors_of_nothing(20_000)) for i in range(8)},
    ),
    "shards of many tensors": (
        indexed({f"{i:x}": "a.safetensors" for i in range(20_000)}),
        {"a": framed(tensors_of_nothing(20_000))},
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_broken_indices(tmp_path, name):
    index, shards = INDICES[name]
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    for stem, data in shards.items():
        (tmp_path / f"{stem}.safetensors").write_bytes(data)
    with Limits(len(index) + sum(map(len, shards.values()))), pytest.raises(CheckpointError) as caught:
        cmm.bert.load(tmp_path, config=BLOCK)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700 + len(str(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_shards_that_are_no_files(tmp_path, kind):
    (tmp_path / "model.safetensors.index.json").write_bytes(indexed({"a": "a.safetensors"}))
    shard = tmp_path / "a.safetensors"
    if kind == "pipe":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    else:
        shard.symlink_to("/dev/zero")
    with Limits(0), pytest.raises(CheckpointError, match=r"is not a regular file|is a link out of its folder"):
        cmm.bert.load(tmp_path, config=BLOCK)


def test_the_largest_json(tmp_path):
    """A byte more than the limit is refused, even where it is a blank."""
    reference.save_final(tmp_path / "model", BLOCK, STATE)
    file = tmp_path / "model" / "model_config.json"
    text = file.read_bytes()
    file.write_bytes(text + b" " * (JSON_LIMIT - len(text)))
    cmm.bert.load(tmp_path / "model")
    file.write_bytes(text + b" " * (JSON_LIMIT - len(text) + 1))
    with pytest.raises(CheckpointError, match=f"is {JSON_LIMIT + 1} bytes; json of more than {JSON_LIMIT} bytes"):
        cmm.bert.load(tmp_path / "model")


def test_deep_json_in_what_is_ignored(tmp_path):
    text = json.dumps({**BLOCK, "init": 0}).replace('"init": 0', f'"init": {nested(500).decode()}')
    (reference.save_final(tmp_path, BLOCK, STATE) / "model_config.json").write_text(text)
    with Limits(200_000):
        cmm.bert.load(cmm.bert.export(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("num_transformer_layers", 2**31 - 1),
        ("hidden_size", 2**31 - 2),
        ("intermed_size", 2**31 - 1),
        ("intermed_depth", 30),
        ("embedding__vocab_size", 2**31 - 1),
        ("num_labels", 2**31 - 1),
    ],
)
def test_huge_configurations_cost_nothing(tmp_path, flag, value):
    block = reference.architecture(**{flag: value})
    block["embedding"].pop("embedding_dim")
    if flag == "hidden_size":
        block["attention"]["num_attention_heads"] = 2
    folder = reference.save_final(tmp_path, block, STATE)
    with Limits(200_000), pytest.raises(CheckpointError):
        cmm.bert.load(folder)


def test_a_huge_limit_of_positions_costs_nothing(tmp_path):
    block = reference.architecture(embedding__max_seq_length=2**31 - 1)
    folder = reference.save_final(tmp_path, block, STATE)
    with Limits(200_000):
        assert cmm.bert.load(folder)([[1, 2]]).shape == (1, 2, 24)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nothing", "device"])
def test_places_that_are_no_files(tmp_path, kind):
    folder = reference.save_final(tmp_path, BLOCK, STATE)
    for name in ("model.safetensors", "model_config.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        if kind == "fifo":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to("/dev/zero" if kind == "device" else "/nonexistent/x")
        with Limits(0), pytest.raises(CheckpointError):
            cmm.bert.load(folder)
        (folder / name).rmdir() if kind == "folder" else (folder / name).unlink()
        (folder / name).write_bytes(kept)
    cmm.bert.load(folder)


# ---- pickles -------------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pytorch_zip(path, pickled, **how):
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")


IN_A_ZIP = [pytest.param("zip", marks=needs_torch), pytest.param("training state", marks=needs_torch)]


@pytest.mark.parametrize("where", ["bare", *IN_A_ZIP])
@pytest.mark.parametrize("name", ["model.pth", "intermediate_state.pth", "pytorch_model.bin"])
def test_pickles_run_nothing(tmp_path, name, where):
    victim, file = tmp_path / "victim", tmp_path / name
    pickled = pickle.dumps(Attack(victim))
    if where == "bare":
        file.write_bytes(pickled)
    elif where == "zip":
        pytorch_zip(file, pickled)
    else:
        import torch

        state = {key: torch.from_numpy(value) for key, value in STATE.items()}
        torch.save({"model": state, "metadata": Attack(victim)}, file)
    for path in (file, tmp_path):
        with pytest.raises(CheckpointError, match="might run code, and is not unpickled") as caught:
            cmm.bert.load(path, config=BLOCK)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not victim.exists()
    pickle.loads(pickled).close()
    assert victim.exists(), "the attack would not have worked: this test shows nothing"


@needs_torch
def test_zip_bombs(tmp_path):
    pytorch_zip(tmp_path / "model.pth", b"\0" * (300 << 20), compression=zipfile.ZIP_DEFLATED)
    with Limits(1 << 20), pytest.raises(CheckpointError, match="is a compressed zip file"):
        cmm.bert.load(tmp_path, config=BLOCK)


@needs_torch
@pytest.mark.parametrize("value", [5, [1, 2], {"model": 5}, {"model": {}}, {"optim": {}}, None, "text"])
def test_pytorch_files_of_other_things(tmp_path, value):
    import torch

    torch.save(value, tmp_path / "model.pth")
    with pytest.raises(CheckpointError):
        cmm.bert.load(tmp_path, config=BLOCK)


@needs_torch
def test_pytorch_tensors_larger_than_their_storage(tmp_path):
    """A stride of 0 makes a tensor of any size out of one element."""
    import torch

    state = {key: torch.from_numpy(value) for key, value in STATE.items()}
    state["decoder.weight"] = torch.zeros(1).expand(2**20, 2**20)
    torch.save(state, tmp_path / "model.pth")
    with Limits(1 << 20), pytest.raises(CheckpointError, match=r"decoder\.weight: shape \(1048576, 1048576\)"):
        cmm.bert.load(tmp_path, config=BLOCK)


# ---- mutations -----------------------------------------------------------------------------------------------------

# Files in all, of all layouts; CONTRIBUTING.md says how 100 000 are run.
FUZZ_FILES = int(os.environ.get("CMM_FUZZ", "4000"))

_INTERESTING = [
    0,
    1,
    -1,
    2,
    7,
    8,
    24,
    255,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    1.5,
    True,
    None,
    "F32",
    [],
]


def mutate_safetensors(rng, data):
    """Change a file in one to three ways, in its header, its header's json or its bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        length = min(struct.unpack("<Q", (bytes(data) + b"\0" * 8)[:8])[0], len(data))
        near = min(8 + length, len(data))  # most of the ways to go wrong are in the header
        kind = rng.randrange(9)
        if not data:
            return bytes(data)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[rng.randrange(near)] = rng.randrange(256)
        elif kind == 2:
            del data[rng.randrange(len(data)) :]
        elif kind == 3:
            at = rng.randrange(near)
            del data[at : at + rng.choice((1, 2, 7, 8, 64, 1000))]
        elif kind == 4:
            at = rng.randrange(len(data) + 1)
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        elif kind == 5:
            at, to = rng.randrange(near), rng.randrange(near)
            data[at:at] = data[to : to + rng.choice((1, 8, 40, 400))]
        elif kind == 6:
            data[:8] = struct.pack(
                "<Q", rng.choice((0, 1, 7, length - 1, length + 1, length + 8, 2**20, 2**40, 2**63)) % 2**64
            )
        elif kind == 7:
            at = rng.randrange(max(1, len(data) - 4))
            data[at : at + 4] = struct.pack("<f", rng.choice((np.nan, np.inf, -np.inf, 0.0, 1e38, 1e-40)))
        else:
            data = bytearray(mutate_header(rng, bytes(data), length))
    return bytes(data)


def mutate_header(rng, data, length):
    try:
        header = json.loads(data[8 : 8 + length])
        name = rng.choice(list(header))
        entry = header[name]
        field = rng.choice(list(entry))
    except (ValueError, TypeError, IndexError, RecursionError, AttributeError):
        return data
    way = rng.randrange(5)
    if way == 0:
        entry[field] = rng.choice(_INTERESTING)
    elif way == 1 and isinstance(entry[field], list) and entry[field]:
        entry[field][rng.randrange(len(entry[field]))] = rng.choice(_INTERESTING)
    elif way == 2:
        entry["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "F4", "X", ""))
    elif way == 3:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], header[name]
    else:
        header[rng.choice(("a", name[:-1], "_orig_mod." + name))] = header.pop(name) if rng.random() < 0.5 else entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def mutate_pytorch(rng, data):
    """Change bytes, or, with its checksum made right again, the pickle within."""
    if rng.random() < 0.5:
        data = bytearray(data)
        for _ in range(rng.choice((1, 1, 2))):
            start = rng.choice((0, max(0, len(data) - 4000)))  # pickles and zip directories are at the ends
            change(rng, data, start, min(start + 4000, len(data)))
        return bytes(data)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for member in old.infolist():
            content = bytearray(old.read(member))
            if member.filename.endswith(("data.pkl", "byteorder")):
                for _ in range(rng.choice((1, 1, 2, 4))):
                    change(rng, content, 0, len(content))
            new.writestr(member.filename, bytes(content))
    return result.getvalue()


def mutate_json(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.choice(b'0123456789.-e[]{}":,ntf \\\xff')
        else:
            change(rng, data, 0, len(data))
    return bytes(data)


def change(rng, data, start, stop):
    """Replace up to 8 bytes by others, more or fewer."""
    at = rng.randrange(start, max(start + 1, stop))
    data[at : at + rng.choice((0, 1, 1, 8))] = rng.randbytes(rng.choice((0, 1, 1, 8)))


def half(state, kind):
    """The weights in 16 bits."""
    if kind == "float16":
        return {key: value.astype(np.float16) for key, value in state.items()}
    return {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in state.items()}


def make(layout, folder):
    """Write a model; return its file to be mutated, and how."""
    if layout == "final":
        return reference.save_final(folder, BLOCK, STATE) / "model.safetensors", mutate_safetensors
    if layout == "hub, compiled":
        folder.mkdir()
        state = {f"_orig_mod.{key}": value for key, value in STATE.items()}
        reference.save_safetensors(folder / "model.safetensors", state, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"arch": BLOCK, "model_type": "crammedBERT"}))
        return folder / "model.safetensors", mutate_safetensors
    if layout == "legacy, bfloat16":
        state = {key: value for key, value in STATE.items() if "word_embedding" not in key}
        reference.save_final(folder, BLOCK, half(state, "bfloat16"))
        return folder / "model.safetensors", mutate_safetensors
    if layout == "classifier, float16":
        state = reference.state_dict(BLOCK, labels=3, decoder=False)
        reference.save_final(folder, BLOCK, half(state, "float16"))
        return folder / "model.safetensors", mutate_safetensors
    if layout == "exported":
        return cmm.bert.export(STATE, folder, config=BLOCK) / "model.safetensors", mutate_safetensors
    if layout == "configuration":
        return reference.save_final(folder, BLOCK, STATE) / "model_config.json", mutate_json
    import torch

    folder.mkdir()
    state = {f"module.{key}": torch.from_numpy(value) for key, value in STATE.items()}
    torch.save({"model": state, "optim": {}, "metadata": {"step": 1}}, folder / "intermediate_state.pth")
    (folder / "model_config.json").write_text(json.dumps(BLOCK))
    return folder / "intermediate_state.pth", mutate_pytorch


LAYOUTS = [
    "final",
    "hub, compiled",
    "legacy, bfloat16",
    "classifier, float16",
    "exported",
    "configuration",
    pytest.param("training state", marks=needs_torch),
]


@pytest.mark.sample(3)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, about what it finds in the files
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_files(tmp_path, layout):
    """Each loads as a model of the same architecture or raises a CheckpointError, within the limits."""
    file, mutate = make(layout, tmp_path / "model")
    original = file.read_bytes()
    shapes = {name: tensor.shape for name, tensor in cmm.bert.load(file.parent).tensors.items()}
    count, loaded = -(-FUZZ_FILES // len(LAYOUTS)), 0
    for number in range(count):  # the number is the seed
        data = mutate(random.Random(number), original)
        file.write_bytes(data)
        try:
            with Limits(len(data)):
                model = cmm.bert.load(file.parent)
        except CheckpointError:
            continue
        except BaseException as error:
            raise AssertionError(f"file number {number}") from error
        loaded += 1
        assert {name: tensor.shape for name, tensor in model.tensors.items()} == shapes, f"file number {number}"
        assert all(np.isfinite(tensor).all() for tensor in model.tensors.values()), f"file number {number}"
    print(f"{layout}: {loaded} of {count} mutated files loaded")
    assert 0.01 < loaded / count < 0.6, "most mutations should matter, and some should not"


def test_every_truncation(tmp_path):
    reference.save_final(tmp_path, BLOCK, STATE)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for length in (
        *range(0, header, 37),
        *range(header - 2, header + 3),
        *range(header, len(data), 4099),
        len(data) - 1,
    ):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            cmm.bert.load(tmp_path)
    file.write_bytes(data)
    SafeTensors(file)
    cmm.bert.load(tmp_path)
