"""The encoder of UltraFastBERT and crammedBERT: numpy and cmm's feedforward layers; for text, a tokenizer too.

>>> import cmm.bert
>>> model = cmm.bert.load("folder")         # as training or cmm.bert.export left it
>>> hidden = model(ids)                     # (B, S) token ids -> (B, S, H) float32
>>> logits = model.logits(ids)              # (B, S, V)
>>> nodes = model.trace(ids).path_nodes     # (L, B, S, K, D + 1)
>>> model.fill_mask("The sun is <mask>.")   # the likeliest tokens for each mask
>>> vectors = model.embed(texts)            # a list of str -> (len(texts), H)
"""

from cmm.bert._random import random
from cmm.bert.checkpoint import from_state_dict, load
from cmm.bert.config import ULTRAFASTBERT_1X11_LONG, Config
from cmm.bert.errors import CheckpointError
from cmm.bert.export import export
from cmm.bert.model import Model, Trace
from cmm.bert.text import EmptyTextWarning, Prediction, TruncationWarning
from cmm.bert.tokenizer import Tokenizer
from cmm.bert.trained import trained

__all__ = [
    "ULTRAFASTBERT_1X11_LONG",
    "CheckpointError",
    "Config",
    "EmptyTextWarning",
    "Model",
    "Prediction",
    "Tokenizer",
    "Trace",
    "TruncationWarning",
    "export",
    "from_state_dict",
    "load",
    "random",
    "trained",
]
