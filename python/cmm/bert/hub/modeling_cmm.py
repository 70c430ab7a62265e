"""Models of libcmm for ``transformers``' Auto classes: the modules of ``cmm.torch``. Copied into exports.

AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
"""

from typing import Any, ClassVar

from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_cmm import CmmConfig

_NEEDS = "0.2"
try:  # transformers would name the package cmm, and pip has it as libcmm
    import cmm
    from cmm.torch import Classifier, Encoder, MaskedLanguageModel

    if Version(cmm.__version__) < Version(_NEEDS):
        raise ImportError(f"libcmm {cmm.__version__} is installed")
except ImportError as error:
    raise ImportError(f"this model needs libcmm {_NEEDS} or newer: pip install -U libcmm ({error})") from None


class CmmPreTrainedModel(PreTrainedModel):
    """What the models here share: an encoder of ``cmm.torch`` as ``encoder``, under the names of training's files."""

    config_class = CmmConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding."""
        return self.encoder.embedding.word_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take another word embedding."""
        self.encoder.embedding.word_embedding = value

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "reset_buffers"):  # which files do not have
            module.reset_buffers()

    def _encode(
        self, ids: Tensor, mask: Tensor | None, wants_states: bool | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return hidden states after the final norm, and those before each layer and after the final norm."""
        if wants_states is None:
            wants_states = self.config.output_hidden_states
        before: list[Tensor] | None = [] if wants_states else None
        hidden = self.encoder(ids, mask, before=before)
        return hidden, None if before is None else (*before, hidden)


class CmmModel(CmmPreTrainedModel):
    """The encoder alone, for ``AutoModel``."""

    def __init__(self, config: CmmConfig) -> None:
        super().__init__(config)
        config.with_classifier(False)
        self.encoder = Encoder(config.arch)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutput:
        """Return hidden states after the final norm, (B, S, H); ids and mask are (B, S)."""
        _of_loss(others)
        hidden, states = self._encode(input_ids, attention_mask, output_hidden_states)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=states)


class CmmForMaskedLM(CmmPreTrainedModel):
    """The encoder and a decoder that is the word embedding, for ``AutoModelForMaskedLM``."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"decoder.weight": "encoder.embedding.word_embedding.weight"}

    def __init__(self, config: CmmConfig) -> None:
        super().__init__(config)
        config.with_classifier(False)
        model = MaskedLanguageModel(config.arch)
        self.encoder, self.prediction_head, self.decoder = model.encoder, model.prediction_head, model.decoder
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take another decoder."""
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> MaskedLMOutput:
        """Return logits, (B, S, V), and with labels (B, S), of which -100 does not count, their cross-entropy."""
        of_loss = _of_loss(others)
        hidden, states = self._encode(input_ids, attention_mask, output_hidden_states)
        logits = self.decoder(hidden if self.prediction_head is None else self.prediction_head(hidden))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **of_loss)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=states)


class CmmForSequenceClassification(CmmPreTrainedModel):
    """The encoder and a classifier of texts, for ``AutoModelForSequenceClassification``.

    Tokens that ``attention_mask`` hides are not pooled, so that a text has the same logits alone and in a batch.
    """

    def __init__(self, config: CmmConfig) -> None:
        super().__init__(config)
        config.with_classifier(True)
        model = Classifier(config.arch)
        self.encoder, self.pooler, self.head = model.encoder, model.pooler, model.head
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput:
        """Return logits, (B, labels), and with labels the loss that ``config.problem_type`` names."""
        of_loss = _of_loss(others)
        hidden, states = self._encode(input_ids, attention_mask, output_hidden_states)
        logits = self.head(self.pooler(hidden, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **of_loss)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)


def _of_loss(others: dict[str, Any]) -> dict[str, Any]:
    """Return what a trainer gives the loss; tools also name arguments that they leave open, and no other is known."""
    given = {name: value for name, value in others.items() if value is not None and value is not False}
    if unknown := sorted(given.keys() - {"num_items_in_batch"}):
        raise TypeError(f"{unknown[0]} is given, and a model of libcmm has no such argument")
    return given
