"""The configuration of a model of libcmm, for ``transformers.AutoConfig``. Copied into exports."""

from typing import Any

from transformers import PreTrainedConfig


class CmmConfig(PreTrainedConfig):
    """An architecture block, as ``cmm.bert`` reads it, and what every configuration of transformers has.

    Parameters
    ----------
    arch : dict, optional
        The block. Sizes are in it alone; the attributes below only show them.
    **kwargs
        Of ``PreTrainedConfig``. Where there is neither ``id2label`` nor ``num_labels``, the block says it, by
        ``num_labels`` and ``label_names``.
    """

    model_type = "cmm_bert"

    def __init__(self, arch: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.arch = dict(arch or {})
        if kwargs.get("id2label") is None and kwargs.get("num_labels") is None:
            names = self.arch.get("label_names") or ()
            if names:
                kwargs["id2label"] = dict(enumerate(names))
                kwargs["label2id"] = {name: number for number, name in enumerate(names)}
            elif self.arch.get("num_labels"):
                kwargs["num_labels"] = self.arch["num_labels"]
        kwargs["tie_word_embeddings"] = True  # the decoder is the word embedding
        super().__init__(**kwargs)

    def with_classifier(self, wanted: bool) -> None:
        """Write the number and the names of the labels into the block, for a model that has a classifier, or none."""
        names = [*self.id2label.values()]
        are_names = len({*names}) == len(names) and names != [f"LABEL_{number}" for number in self.id2label]
        self.arch = {
            **self.arch,
            "num_labels": self.num_labels if wanted else None,
            "label_names": names if wanted and are_names else None,
        }

    def save_pretrained(self, *arguments: Any, **how: Any) -> None:
        """Write ``config.json``, with the names of the labels as they are now."""
        self.with_classifier(self.arch.get("num_labels") is not None)
        super().save_pretrained(*arguments, **how)

    @property
    def vocab_size(self) -> int | None:
        """Rows of the word embedding."""
        return (self.arch.get("embedding") or {}).get("vocab_size")

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.arch = {**self.arch, "embedding": {**self.arch["embedding"], "vocab_size": size}}

    @property
    def max_position_embeddings(self) -> int | None:
        """Tokens of a sequence at most."""
        return (self.arch.get("embedding") or {}).get("max_seq_length")

    @property
    def hidden_size(self) -> int | None:
        """Width of the hidden states."""
        return self.arch.get("hidden_size")

    @property
    def num_hidden_layers(self) -> int | None:
        """Layers."""
        return self.arch.get("num_transformer_layers")

    @property
    def num_attention_heads(self) -> int | None:
        """Heads of attention."""
        return (self.arch.get("attention") or {}).get("num_attention_heads")
