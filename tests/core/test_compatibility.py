"""What 0.1.0 offered in Python and this version has still, also where it has another name now."""

import base64
import importlib
import pickle
import re
from typing import Any, get_args

import cmm
import direct
import numpy as np
import pytest
from building import ROOT
from cmm._libcmm import ffi, lib
from cmm.typing import Algorithm

# By module, the public names of 0.1.0.
NAMES = {
    "cmm": """FFF ArgumentError ArrayMemoryError CmmError DtypeError Level LevelError ShapeError UnusableError
        __version__ bert blas cmm dead_subtrees ff_forward fff_forward get_include levels node_usage""",
    "cmm.blas": "Blas current load use available",
    "cmm.errors": "ArgumentError ArrayMemoryError CmmError DtypeError LevelError ShapeError UnusableError BY_STATUS",
    "cmm.fff": "FFF cmm ff_forward fff_forward",
    "cmm.usage": "dead_subtrees node_usage",
    "cmm.bert": """CheckpointError Config Model Prediction Tokenizer Trace TruncationWarning ULTRAFASTBERT_1X11_LONG
        export from_state_dict load random trained""",
}

# A layer of depth 1, pickled by 0.1.0.
PICKLED = (
    "fCQCU0RR910001t31)R}V{~tCY;%;12XJ9>bZKF1l#`T<2V-q*E@ozCl#ByLMn;sAl!cU1lqhHgDSebEj0$06bZK^BbZKvHl#B#&Wo&hnj01FO"
    "Wt5Bsa%pF1bd+^Ybd+L@7H)NIaCt6YV{dY0E^T#ebZKF7a$$Ltj0|6LWn*t{b98cbV|0|0l#B&#b!~8Yl#B;%WMOi0VR@93luH1GltTexl!ug3"
    "lqgF9O9M*+hLmU#j0I$Ld2nTvla!1CW;B$Eh=-I?lqgFBi~&59PEJlr|NsC0O8@`=|4RULlwyfP7ytl(KL7v#KmY(hKmY)MzyJWCzyJWiK$LWp"
    "VrUR(6H5SvlxP))lv0!^O94v*O96(IXdQ_|3;+OtKL7wAK>z^ALX>orVrUR(6H5SvlxP))lv0!^O94v*g_LL=i9-wk002J#006%L0DwM}bd+L;"
    "lv0!~"
)


@pytest.mark.parametrize("module", NAMES)
def test_names(module: str) -> None:
    there = importlib.import_module(module)
    for name in NAMES[module].split():
        assert hasattr(there, name), name


def test_aliases_are_what_they_stand_for() -> None:
    fff, usage = (importlib.import_module(f"cmm.{name}") for name in ("fff", "usage"))
    assert cmm.cmm is cmm.cmm_forward is fff.cmm
    assert (fff.FFF, fff.fff_forward, fff.ff_forward) == (cmm.FFF, cmm.fff_forward, cmm.ff_forward)
    assert (usage.node_usage, usage.dead_subtrees) == (cmm.node_usage, cmm.dead_subtrees)


@pytest.mark.parametrize(("old", "new"), [("walk", "per_token"), ("group", "grouped")])
def test_algorithms_have_their_old_names_in_c(old: str, new: str) -> None:
    """cmm_run.method is cmm_run.algorithm, and takes the values of 0.1.0; Python never had them."""
    rng = np.random.default_rng(1)
    x, w_in, w_out = (rng.standard_normal(shape, np.float32) for shape in ((40, 33), (2, 15, 33), (2, 15, 7)))
    results = [np.full((40, 7), np.nan, np.float32) for _ in range(2)]
    for y, name in zip(results, (old, new), strict=True):
        direct.fff(x, w_in, None, w_out, y, None, None, level="native", algorithm=name)
    assert results[0].tobytes() == results[1].tobytes()
    run = ffi.new("cmm_run *", {"method": ffi.NULL})
    run.method = kept = ffi.new("char[]", old.encode())
    assert run.algorithm == kept
    info = ffi.new("cmm_kernel_info *", {"size": ffi.sizeof("cmm_kernel_info")})
    assert lib.cmm_kernel_get(lib.cmm_kernel_count() - 1, info) == 0
    assert info.algorithm == info.method
    for alias in ("block", "wide", "walks"):  # of the GPU, or of nothing
        with pytest.raises(cmm.ArgumentError, match="run->algorithm is not an algorithm of this level"):
            direct.fff(x, w_in, None, w_out, results[0], None, None, level="native", algorithm=alias)


def test_every_old_name_of_an_algorithm_is_in_the_dispatcher_and_the_glossary() -> None:
    """libcmm_cuda, which needs a GPU, has the same dispatcher."""
    source = (ROOT / "libcmm/src/dispatch.c").read_text(encoding="utf-8")
    table = re.search(r"ALIASES\[\] = \{(.*)\};", source)
    assert table is not None
    aliases = dict(re.findall(r'\{"(\w+)", "(\w+)"\}', table[1]))
    assert aliases == {"per_token": "walk", "grouped": "group", "generic": "block", "small_batch": "wide"}
    assert set(aliases) == set(get_args(Algorithm)) - {"grouped_gemm", "dense_routed"}  # which 0.1.0 did not have
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    for name, old in aliases.items():
        assert re.search(rf"^\| `{name}` \(`{old}`", glossary, re.MULTILINE), name


def test_level_has_its_fields() -> None:
    level = cmm.levels()[0]
    name, usable, why = level
    assert (level.name, level.usable, level.why) == (name, usable, why)
    for level in cmm.levels():
        assert (level.usable, level.why) == (level.available, level.reason)
    assert {level.available for level in cmm.levels() if level.name in ("naive", "native")} == {True}


@pytest.mark.parametrize("info", ["cmm_level_info", "cmm_level", "cmm_kernel_info"])
def test_infos_have_their_old_names_in_c(info: str) -> None:
    get = lib.cmm_kernel_get if info == "cmm_kernel_info" else lambda i, to: lib.cmm_level_get(i, ffi.NULL, to)
    found = set()
    for index in range(5):
        it = ffi.new(f"{info} *", {"size": ffi.sizeof(info)})
        assert get(index, it) == 0
        assert (it.usable, it.why) == (it.available, it.reason)
        found.add(it.usable)
    assert 1 in found


def test_a_layer_pickled_by_0_1_0_can_be_loaded() -> None:
    layer: Any = pickle.loads(base64.b85decode(PICKLED))
    assert type(layer) is cmm.FFF
    assert repr(layer) == "FFF(1x1, d_in=2, d_out=1, float32, bias=yes, activation='relu', tie='right')"
    assert layer(np.array([[1, 0], [0, -1]], np.float32)).tolist() == [[1.5], [35.0]]
