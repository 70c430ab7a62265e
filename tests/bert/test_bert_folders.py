"""Folders: a model keeps what lies in its own; an export writes all of it, nothing else, and leaves no rests."""

import json
import os
import shutil
import sys
from pathlib import Path

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.bert import CheckpointError, Tokenizer
from cmm.bert.links import followed
from cmm.bert.trained import TRAINED

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
import bert_tokenizer as tiny

BLOCK = reference.architecture()
TEXT = "the <mask> sat"
ROLE_FILES = ("special_tokens_map.json", "tokenizer_config.json")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    reference.save_final(path, BLOCK, reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE))
    tiny.save(path)
    (path / "tokenizer_config.json").write_text('{"mask_token": "<mask>"}')
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another current folder."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    return lambda: monkeypatch.chdir(place)


# ---- relative paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["model", "model/model.safetensors", ".", "../model"])
def test_a_model_keeps_its_tokenizer_when_the_current_folder_changes(folder, elsewhere, monkeypatch, path):
    expected = cmm.bert.load(folder).fill_mask(TEXT)
    monkeypatch.chdir(folder if path.startswith(".") else folder.parent)
    model = cmm.bert.load(path)
    elsewhere()
    assert model.fill_mask(TEXT) == expected
    assert model.folder.is_absolute()


def test_a_tokenizer_keeps_its_files_when_the_current_folder_changes(tmp_path, folder, elsewhere, monkeypatch):
    monkeypatch.chdir(folder)
    tokenizer = Tokenizer("tokenizer.json")
    elsewhere()
    model = cmm.bert.from_state_dict(reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE), BLOCK)
    model.tokenizer = tokenizer
    assert cmm.bert.load(cmm.bert.export(model, tmp_path / "out")).fill_mask(TEXT) == model.fill_mask(TEXT)


def test_export_of_a_live_model_after_the_current_folder_changed(tmp_path, folder, elsewhere, monkeypatch):
    monkeypatch.chdir(folder.parent)
    model = cmm.bert.load("model")
    elsewhere()
    out = cmm.bert.export(model, "out")
    assert {file.name for file in out.iterdir()} == {file.name for file in folder.iterdir()}
    for name in ("tokenizer.json", *ROLE_FILES):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert cmm.bert.load(out).fill_mask(TEXT) == cmm.bert.load(folder).fill_mask(TEXT)


# ---- all that a model has ------------------------------------------------------------------------------------------


def test_a_live_model_whose_tokenizer_is_gone_says_so(tmp_path, folder):
    model = cmm.bert.load(folder)
    for name in ("tokenizer.json", *ROLE_FILES):
        (folder / name).unlink()
    for call in (lambda: cmm.bert.export(model, tmp_path / "out"), lambda: model.fill_mask(TEXT)):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read: No such file"):
            call()
    assert not (tmp_path / "out").exists()
    out = cmm.bert.export(cmm.bert.load(folder), tmp_path / "without")  # which never had one
    assert {file.name for file in out.iterdir()} == {"model.safetensors", "model_config.json"}


def test_a_tokenizer_that_comes_later_is_found(folder):
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()
    model = cmm.bert.load(folder)
    (folder / "tokenizer.json").write_bytes(content)
    assert model.fill_mask(TEXT) == cmm.bert.load(folder).fill_mask(TEXT)


def test_export_fills_in_what_the_weights_say(tmp_path):
    state = reference.state_dict(BLOCK, labels=3, vocab=tiny.SIZE)
    out = cmm.bert.export(cmm.bert.from_state_dict(state, BLOCK), tmp_path / "out")
    arch = json.loads((out / "model_config.json").read_text())
    assert (arch["num_labels"], arch["embedding"]["vocab_size"]) == (3, tiny.SIZE)
    assert {key: arch[key] for key in BLOCK if key not in ("num_labels", "embedding")} == {
        key: BLOCK[key] for key in BLOCK if key not in ("num_labels", "embedding")
    }


@pytest.mark.parametrize("name", TRAINED)
def test_export_of_a_trained_model(tmp_path, monkeypatch, name):
    pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    monkeypatch.chdir(tmp_path)
    expected = cmm.bert.trained(name)
    for source in (name, Path(name)):
        out = cmm.bert.export(source, f"out-{type(source).__name__}")
        model = cmm.bert.load(out)
        assert model.fill_mask("a <mask>") == expected.fill_mask("a <mask>")
        assert model.tensors.keys() == expected.tensors.keys()
    with pytest.raises(CheckpointError, match="nosuch: cannot be read"):
        cmm.bert.export("nosuch", "more")
    (tmp_path / name).mkdir()  # a folder of that name comes first
    with pytest.raises(CheckpointError, match="has no weights"):
        cmm.bert.export(name, "more")


# ---- where to ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [".", "", "link", "link/", "link/.", "empty", "empty/../empty", "new", "a/b/c"])
def test_empty_and_new_folders_are_good_targets(tmp_path, folder, monkeypatch, target):
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.chmod(0o751)
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(empty if target in (".", "") else tmp_path)
    cmm.bert.export(folder, target)
    assert {file.name for file in Path(target).iterdir()} == {file.name for file in folder.iterdir()}
    model = cmm.bert.load(target)  # the current folder is still the one that was made
    assert model.fill_mask(TEXT) == cmm.bert.load(folder).fill_mask(TEXT)
    assert (tmp_path / "link").is_symlink()
    assert empty.stat().st_mode & 0o777 == 0o751
    if target not in ("new", "a/b/c"):
        assert (empty / "model.safetensors").exists()
    else:
        assert not any(empty.iterdir())


def everything(place):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in [place, *place.rglob("*")])


REFUSALS = {
    "dtype": lambda folder, target: cmm.bert.export(folder, target, dtype="int8"),
    "source": lambda folder, target: cmm.bert.export(folder / "none", target),
    "tokenizer": lambda folder, target: cmm.bert.export(folder, target, tokenizer=folder / "none"),
    "configuration": lambda folder, target: cmm.bert.export(folder, target, config={}),
    "state": lambda folder, target: cmm.bert.export({}, target, config=BLOCK),
}


@pytest.mark.parametrize("target", ["empty", "link", "new", "a/b/c"])
@pytest.mark.parametrize("why", [*REFUSALS, "what is written", "the last step"])
def test_a_refusal_leaves_nothing_behind(tmp_path, folder, monkeypatch, why, target):
    place = tmp_path / "place"
    (place / "empty").mkdir(parents=True)
    (place / "link").symlink_to("empty")
    before = everything(place)
    if why in REFUSALS:
        with pytest.raises((cmm.CmmError, OSError)):
            REFUSALS[why](folder, place / target)
        assert everything(place) == before
        return
    if why == "what is written":
        monkeypatch.setattr(sys.modules["cmm.bert.export"], "_same", lambda *_: False)
        problem = "does not read back as it was written"
    else:
        real, problem = Path.rename, "no room"

        def rename(self, other):
            if self.name in ("model", "model.safetensors"):
                raise OSError(problem)
            return real(self, other)

        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match=problem):
        cmm.bert.export(folder, place / target)
    assert [path for path, _ in everything(place)] == [path for path, _ in before]


def test_targets_that_are_no_empty_folder(tmp_path, folder):
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    os.mkfifo(tmp_path / "pipe")
    before = everything(tmp_path)
    for name in ("nowhere", "file", "full", "pipe"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is not an empty folder"):
            cmm.bert.export(folder, tmp_path / name)
    with pytest.raises(OSError, match="file"):
        cmm.bert.export(folder, tmp_path / "file" / "more")
    assert everything(tmp_path) == before


# ---- what is copied ------------------------------------------------------------------------------------------------

SECRET = '{"password": "secret"}'


def break_it(file, kind):
    """Put something else in the place of a file."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "link out of the folder":
        (file.parent.parent / "private").write_text(SECRET)
        file.symlink_to("../private")
    elif kind == "absolute link":
        (file.parent.parent / "private").write_text(SECRET)
        file.symlink_to(file.parent.parent / "private")
    elif kind == "link by a folder":
        (file.parent / "way").symlink_to("..")
        (file.parent.parent / "private").write_text(SECRET)
        file.symlink_to("way/private")
    elif kind == "link to nothing":
        file.symlink_to("nothing")
    elif kind == "link to itself":
        file.symlink_to(file.name)
    elif kind == "text":
        file.write_text("not json")
    elif kind == "list":
        file.write_text("[1, 2]")
    elif kind == "large":
        with open(file, "wb") as large:
            large.truncate(1 << 40)


KINDS = ["pipe", "device", "folder", "link out of the folder", "absolute link", "link by a folder", "link to nothing"]
KINDS += ["link to itself", "text", "list", "large"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokenizer.json", *ROLE_FILES])
def test_what_is_copied_is_small_regular_json_of_the_folder(tmp_path, folder, name, kind):
    model = cmm.bert.load(folder)
    break_it(folder / name, kind)
    for source in (folder, model, folder / "model.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            cmm.bert.export(source, tmp_path / "out")
        assert name in str(caught.value)
        assert str(caught.value).isprintable()
        assert "secret" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    state = reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE)
    with pytest.raises(CheckpointError):
        cmm.bert.export(state, tmp_path / "out", config=BLOCK, tokenizer=folder)


def test_links_within_the_folder_and_its_hub_cache_are_followed(tmp_path, folder):
    expected = cmm.bert.load(folder).fill_mask(TEXT)
    (folder / "real").mkdir()
    for name in ("tokenizer.json", *ROLE_FILES):
        (folder / name).rename(folder / "real" / name)
        (folder / name).symlink_to(f"real/{name}")
    (tmp_path / "by").symlink_to(folder)
    assert cmm.bert.load(cmm.bert.export(tmp_path / "by", tmp_path / "a")).fill_mask(TEXT) == expected

    hub = tmp_path / "hub" / "models--a--b"
    snapshot, blobs = hub / "snapshots" / "0123", hub / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(file for file in folder.iterdir() if file.is_file())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    out = cmm.bert.export(snapshot, tmp_path / "b")
    assert cmm.bert.load(out).fill_mask(TEXT) == expected
    assert not any(file.is_symlink() for file in out.iterdir())
    # Of another model in the same cache, and what is no blob, nothing is taken.
    (hub.with_name("models--c--d") / "blobs").mkdir(parents=True)
    (hub.with_name("models--c--d") / "blobs" / "0").write_text(SECRET)
    (hub / "refs").write_text(SECRET)
    (blobs / "deep").mkdir()
    (blobs / "deep" / "0").write_text(SECRET)
    for target in ("../../../models--c--d/blobs/0", "../../refs", "../../blobs/deep/0"):
        (snapshot / "tokenizer_config.json").unlink()
        (snapshot / "tokenizer_config.json").symlink_to(target)
        with pytest.raises(CheckpointError, match="is a link out of its folder"):
            cmm.bert.export(snapshot, tmp_path / "c")


def test_blobs_are_those_of_a_hub_cache_alone(tmp_path):
    """Two folders up lies `blobs` for other folders too."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_text(SECRET)
    place = tmp_path / "models" / "mine"
    place.mkdir(parents=True)
    (place / "tokenizer_config.json").symlink_to("../../blobs/0")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        followed(place / "tokenizer_config.json")


def test_a_tokenizer_that_is_named_may_be_a_link(tmp_path, folder):
    link = tmp_path / "link.json"
    link.symlink_to(folder / "tokenizer.json")
    state = reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE)
    out = cmm.bert.export(state, tmp_path / "out", config=BLOCK, tokenizer=link)
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_file_that_is_swapped_after_the_look_is_not_followed(tmp_path, folder, monkeypatch):
    """What was looked at is what is opened: a link or a pipe that takes its place in between is refused."""
    (tmp_path / "private").write_text(SECRET)
    target = folder / "tokenizer_config.json"
    content = target.read_bytes()
    real = os.stat
    for put in (lambda: target.symlink_to(tmp_path / "private"), lambda: os.mkfifo(target)):
        puts = [put]

        def stat(path, *rest, puts=puts, **how):
            found = real(path, *rest, **how)
            if path == target and puts and how == {"follow_symlinks": False}:
                put = puts.pop()
                target.unlink()
                put()
            return found

        monkeypatch.setattr("cmm.bert.config.os.stat", stat)
        with pytest.raises(CheckpointError, match=r"cannot be read|is not a regular file"):
            cmm.bert.export(folder, tmp_path / "out")
        monkeypatch.undo()
        target.unlink()
        target.write_bytes(content)
    assert not (tmp_path / "out").exists()


def test_training_copies_as_carefully(tmp_path, folder):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    from cmm.torch import MaskedLanguageModel
    from cmm.torch.training import save_final

    torch.manual_seed(0)
    model = MaskedLanguageModel(reference.architecture(embedding__vocab_size=tiny.SIZE))
    save_final(tmp_path / "a", model, folder)
    assert (tmp_path / "a" / "tokenizer_config.json").read_bytes() == (folder / "tokenizer_config.json").read_bytes()
    expected = model.eval()(torch.tensor([[1, 2]])).detach().numpy()
    np.testing.assert_allclose(cmm.bert.load(tmp_path / "a").logits([[1, 2]]), expected, rtol=0, atol=1e-4)
    break_it(folder / "tokenizer_config.json", "link out of the folder")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        save_final(tmp_path / "b", model, folder)


def test_a_folder_whose_name_is_no_unicode(tmp_path, folder, elsewhere):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe model")
    try:
        folder.rename(odd)
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    model = cmm.bert.load(odd)
    out = cmm.bert.export(odd, odd + " out")
    assert cmm.bert.load(out).fill_mask(TEXT) == model.fill_mask(TEXT)
    header = (out / "model.safetensors").read_bytes()[8:].partition(b"}")[0]
    assert b"udcff" in header
    assert json.loads(header + b"}}")["__metadata__"]["source"].encode()  # which other readers can read
