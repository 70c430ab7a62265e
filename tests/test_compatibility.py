"""What 0.1.0 offered in Python and this version has still, also where it has another name now."""

import base64
import importlib
import pickle
from typing import Any

import cmm
import numpy as np
import pytest

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


def test_level_has_its_fields() -> None:
    level = cmm.levels()[0]
    name, usable, why = level
    assert (level.name, level.usable, level.why) == (name, usable, why)


def test_a_layer_pickled_by_0_1_0_can_be_loaded() -> None:
    layer: Any = pickle.loads(base64.b85decode(PICKLED))
    assert type(layer) is cmm.FFF
    assert repr(layer) == "FFF(1x1, d_in=2, d_out=1, float32, bias=yes, activation='relu', tie='right')"
    assert layer(np.array([[1, 0], [0, -1]], np.float32)).tolist() == [[1.5], [35.0]]
