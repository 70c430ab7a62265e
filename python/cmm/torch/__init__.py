"""Fast feedforward layers and the encoder in PyTorch, to train them: ``pip install torch``.

>>> import torch, cmm.torch
>>> layer = cmm.torch.FFF(768, trees=1, depth=11)       # an nn.Module, trained like any other
>>> y = layer(torch.randn(128, 768))                    # with gradients, through visited nodes only
>>> with torch.no_grad():
...     y = layer.eval()(torch.randn(128, 768))         # computed by libcmm
"""

from cmm.errors import UnusableError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise UnusableError(f"cmm.torch needs PyTorch: pip install torch ({error})") from None

from cmm.torch.fff import FFF, Routing, set_softness
from cmm.torch.model import Classifier, Encoder, MaskedLanguageModel
from cmm.torch.sharded import ShardedFFF, balanced_placement, sharded_parameters

__all__ = [
    "FFF",
    "Classifier",
    "Encoder",
    "MaskedLanguageModel",
    "Routing",
    "ShardedFFF",
    "balanced_placement",
    "set_softness",
    "sharded_parameters",
]
