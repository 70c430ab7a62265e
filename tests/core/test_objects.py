"""Models, layers and tokenizers as objects: copies, pickles, derived classes, weak references; no more threads."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import data_parallel

IDS = np.arange(64 * 16).reshape(64, 16) % 50
BLOCKS = {
    "fff": reference.architecture(),
    "dense": reference.architecture(intermed_type="ff", intermed_size=30),
    "gated, transform": reference.architecture(
        intermed_type="ff", intermed_size=30, nonlin="GELUglu", skip_head_transform=False
    ),
}


class Model(cmm.bert.Model):
    """A derived class, with an attribute, one in a slot, and a behaviour."""

    __slots__ = ("slot",)

    def __call__(self, ids, mask=None, **how):
        return super().__call__(ids, mask, **how) * self.factor


class Layer(cmm.FFF):
    """The same of a layer; and it is made of other arguments."""

    def __init__(self, width):
        rng = np.random.default_rng(1)
        super().__init__(*rng.standard_normal((2, 2, 7, width), np.float32), activation="relu", tie="right")
        self.factor = 2.0

    def __call__(self, x, **how):
        return super().__call__(x, **how) * self.factor


class Slotted(cmm.FFF):
    __slots__ = ("factor",)


class Picky(Layer):
    """A derived class that says what is kept of it."""

    def __getstate__(self):
        return {"kept": self.factor}

    def __setstate__(self, state):
        self.factor = state["kept"] + 1


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": lambda one, p=protocol: pickle.loads(pickle.dumps(one, p)) for protocol in range(2, 6)},
}


def made(name="fff", kind=cmm.bert.Model):
    state = reference.state_dict(BLOCKS[name], labels=3)
    model = cmm.bert.from_state_dict(state, BLOCKS[name])
    if kind is not cmm.bert.Model:
        how = {"has_decoder": True, "source": "here"}
        model = kind(model.config, dict(model.tensors), **how)
        model.factor, model.slot = 3.0, "kept"
    return model


def layers():
    rng = np.random.default_rng(0)
    w_in, w_out = rng.standard_normal((2, 3, 15, 33))
    bias = rng.standard_normal((3, 15))
    slotted = Slotted(w_in, w_out, bias)
    slotted.factor = 5
    return {
        "float64": cmm.FFF(w_in, w_out, bias, activation="silu", tie="right"),
        "float32": cmm.FFF(*(a.astype(np.float32) for a in (w_in, w_out, bias))),
        "one tree": cmm.FFF(w_in[0], w_out[0], bias[0]),
        "no bias": cmm.FFF(w_in, w_out),
        "bfloat16 rows": cmm.FFF(*(a.astype(np.float32) for a in (w_in, w_out, bias)), weights="bfloat16"),
        "one node": cmm.FFF(w_in[0, :1, :1], w_out[0, :1, :1]),
        "derived": Layer(33),
        "in slots": slotted,
    }


# ---- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_model_survives(name, way):
    model = made(name)
    other = WAYS[way](model)
    assert type(other) is cmm.bert.Model
    assert other is not model
    for threads in (1, 2):
        assert other(IDS, threads=threads).tobytes() == model(IDS, threads=threads).tobytes()
    assert other.classify_ids(IDS).tobytes() == model.classify_ids(IDS).tobytes()
    assert other.logits(IDS[:3]).tobytes() == model.logits(IDS[:3]).tobytes()
    assert repr(other) == repr(model)
    assert other.device is model.device
    assert other.to("cpu") is other
    assert (other.config, other.source, other.has_decoder) == (model.config, model.source, model.has_decoder)
    for key, tensor in other.tensors.items():
        assert (tensor is model.tensors[key]) == (way == "copy")  # a deep one has weights of its own
        assert tensor.ctypes.data % 64 == model.tensors[key].ctypes.data % 64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_model_survives_with_its_tokenizer(way, mmap):
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    cmm_models = pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    model = cmm.bert.load(cmm_models.FOLDERS["fff"], mmap=mmap)
    before = WAYS[way](model)  # before its tokenizer was read
    expected = model.fill_mask("a <mask>", 1)
    ids = np.arange(64 * 20).reshape(64, 20) % 500
    for other in (before, WAYS[way](model)):
        assert other(ids, threads=2).tobytes() == model(ids, threads=2).tobytes()
        assert other.fill_mask("a <mask>", 1) == expected
        assert repr(other) == repr(model)
        assert other.folder == model.folder
    tokenizer = WAYS[way](model.tokenizer)
    assert tokenizer.encode(["a <mask>"]) == model.tokenizer.encode(["a <mask>"])
    assert (tokenizer.file, tokenizer.special) == (model.tokenizer.file, model.tokenizer.special)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_a_derived_class_survives(way):
    model = made(kind=Model)
    other = WAYS[way](model)
    assert type(other) is Model
    assert (other.factor, other.slot) == (3.0, "kept")
    assert other(IDS).tobytes() == model(IDS).tobytes()
    assert repr(other) == repr(model)


def test_a_model_of_a_derived_class_stays_one_on_another_device(monkeypatch):
    model = made(kind=Model)
    there = cmm.bert.device.CPU._replace(name="there", put=np.array)
    monkeypatch.setattr("cmm.bert.model.find", lambda name: there)
    other = model.to("there")
    assert type(other) is Model
    assert (other.factor, other.slot, other.device) == (3.0, "kept", there)
    assert all(tensor is not model.tensors[name] for name, tensor in other.tensors.items())
    np.testing.assert_allclose(other(IDS), model(IDS), rtol=0, atol=3e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", layers())
def test_a_layer_survives(name, way):
    layer = layers()[name]
    other = WAYS[way](layer)
    assert type(other) is type(layer)
    assert getattr(other, "factor", None) == getattr(layer, "factor", None)
    x = np.random.default_rng(2).standard_normal((40, layer.d_in)).astype(layer.dtype)
    assert other(x).tobytes() == layer(x).tobytes()
    assert repr(other) == repr(layer)
    for attribute in ("w_in", "w_out", "bias"):
        np.testing.assert_array_equal(getattr(other, attribute), getattr(layer, attribute))


@pytest.mark.parametrize("way", WAYS)
def test_a_derived_class_may_say_what_is_kept(way):
    other = WAYS[way](Picky(33))
    assert other.factor == 3.0
    x = np.ones((2, 33), np.float32)
    np.testing.assert_array_equal(other(x), cmm.FFF.__call__(other, x) * 3)


def computed(model, layer):
    return model(IDS).tobytes(), repr(model), layer(np.ones((3, 33), np.float32)).tobytes(), repr(layer)


@pytest.mark.full
def test_spawned_processes_get_models_and_layers():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for model, layer in ((made(), layers()["float32"]), (made(kind=Model), Layer(33))):
            assert pool.submit(computed, model, layer).result(120) == computed(model, layer)


# ---- attributes ----------------------------------------------------------------------------------------------------


def test_attributes_that_would_lie_can_only_be_read():
    model, layer = made(), layers()["float32"]
    for one, names in (
        (model, ["config", "tensors", "weights", "device", "source", "folder", "has_decoder", "parameters"]),
        (model, ["tokenizer_file"]),
        (layer, ["trees", "depth", "nodes", "d_in", "d_out", "dtype", "activation", "tie"]),
        (layer, ["weights", "w_in", "w_out", "bias"]),
    ):
        for name in names:
            value = getattr(one, name)
            with pytest.raises(AttributeError):
                setattr(one, name, value)
            with pytest.raises(AttributeError):
                delattr(one, name)
    with pytest.raises(TypeError):
        model.tensors["embedding.word"] = model.tensors["embedding.word"]
    with pytest.raises(AttributeError):
        layer.another = 1


def test_attributes_of_a_tokenizer_can_only_be_read():
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    tokenizer = cmm.bert.trained().tokenizer
    for name in ("file", "ids", "special"):
        with pytest.raises(AttributeError):
            setattr(tokenizer, name, getattr(tokenizer, name))


def test_weak_references():
    for one in (made(), *layers().values(), cmm.blas.current()):
        assert weakref.ref(one)() is one
    gone = weakref.ref(made())
    assert gone() is None


# ---- without threads -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_is_enough(monkeypatch):
    pytest.importorskip("threadpoolctl", reason="the package threadpoolctl is not installed")
    monkeypatch.setattr(data_parallel, "_LEAST_TOKENS", 1)


@pytest.mark.parametrize("message", ["can't start new thread", "can't create new thread at interpreter shutdown"])
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_batch_where_no_more_threads_can_be_started(small_is_enough, monkeypatch, allowed, message):
    model = made()
    expected = model.trace(IDS, threads=4)
    real, started = threading.Thread.start, []

    def start(self):
        if len(started) == allowed:
            raise RuntimeError(message)
        started.append(self)
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    found = model.trace(IDS, threads=4)
    assert len(started) == allowed
    for name, value in vars(expected).items():
        assert getattr(found, name).tobytes() == value.tobytes(), name


def test_every_part_is_done_once_where_threads_are_missing(monkeypatch):
    real, started, done = threading.Thread.start, [], []

    def start(self):
        started.append(self)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    data_parallel.share(lambda part: done.append(part.start), [slice(i, i + 1) for i in range(4)])
    assert sorted(done) == [0, 1, 2, 3]


def run(code):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_text_in_an_atexit_handler():
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    out = run("""
        import atexit, concurrent.futures, cmm.bert
        model, texts = cmm.bert.trained(), ["the file is read"] * 200
        expected = model.embed(texts, threads=2)
        def last():
            again = model.embed(texts, threads=2)
            print((again == expected).all(), cmm.bert.random(model.config.arch).parameters == model.parameters)
            try:
                concurrent.futures.ThreadPoolExecutor(1).submit(print)
            except RuntimeError:
                print("no pool")
        atexit.register(last)
    """)
    assert out == "True True\nno pool\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_NPROC is Linux's")
def test_text_where_the_system_has_no_thread_left():
    pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
    out = run("""
        import os, resource, threading, cmm.bert
        model, texts = cmm.bert.trained(), ["the file is read"] * 200
        ids = model.tokenizer.encode(["the file is read"]) * 200
        expected = model(ids, threads=1)
        model.embed(["the file"])  # imports what is imported late
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        if os.getuid() == 0:
            os.setuid(65534)  # root has no limit
        try:
            threading.Thread(target=print).start()
            print("threads can be started")
        except RuntimeError as error:
            print(error)
        print(abs(model.embed(texts, threads=2) - expected.mean(axis=1)).max() < 1e-5)
        print(model.fill_mask("a <mask>", 1) == model.fill_mask("a <mask>", 1))
        print(cmm.bert.random(model.config.arch).parameters == model.parameters)
    """)
    assert out == "can't start new thread\nTrue\nTrue\nTrue\n"
