"""The name that ``cmm.layers`` had in 0.1.0, which pickled layers of that version ask for."""

from cmm.layers import FFF, cmm_forward, ff_forward, fff_forward

__all__ = ["FFF", "cmm", "ff_forward", "fff_forward"]

cmm = cmm_forward
