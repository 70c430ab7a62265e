"""The encoder of ``cmm.bert`` in PyTorch, to train it, with the parameter names that training's files have.

A ``state_dict`` goes either way: ``cmm.bert.from_state_dict(model.state_dict(), config)`` runs what was trained here,
and ``model.load_state_dict`` takes what the authors' code has written. There is no dropout.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmm.bert.config import Config, parse
from cmm.bert.encoder import position_table
from cmm.errors import ArgumentError, ShapeError
from cmm.torch.fff import FFF

_STD = 0.02  # of every matrix when it is new


class Dense(nn.Module):
    """A dense feedforward layer without biases; GELUglu halves its neurons before the second matrix."""

    def __init__(self, width: int, neurons: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.dense_in = nn.Linear(width, neurons, bias=False)
        self.dense_out = nn.Linear(neurons // 2 if gated else neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (..., H) -> (..., H)."""
        hidden = self.dense_in(x)
        if self.gated:
            value, gate = hidden.chunk(2, dim=-1)
            return self.dense_out(functional.gelu(gate) * value)
        return self.dense_out(functional.gelu(hidden))


class _SelfAttention(nn.Module):
    norm_factor: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.register_buffer("norm_factor", torch.tensor((width // heads) ** -0.5))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        per_head = self.query_key_value(x).view(batch, length, self.heads, 3 * width // self.heads)
        q, k, v = per_head.transpose(1, 2).chunk(3, dim=-1)  # (B, A, S, H / A) each
        scale = (width // self.heads) ** -0.5
        context = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return context.transpose(1, 2).reshape(batch, length, width)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = _SelfAttention(width, heads)
        self.dense = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.dense(self.self_attention(x, mask))


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden
        self.norm1 = nn.LayerNorm(width, config.eps)
        self.attn = _Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, config.eps)
        if config.trees is not None and config.depth is not None:
            self.ffn: nn.Module = FFF(width, config.trees, config.depth)
        else:
            assert config.neurons is not None
            self.ffn = Dense(width, config.neurons, config.gated)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.ffn(self.norm2(x))


class _Positions(nn.Module):
    table: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.tensor([config.hidden**-0.5]))
        self.register_buffer("table", torch.empty(config.max_seq_length, config.hidden), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill in what files do not have, as after ``to_empty``."""
        self.table.copy_(torch.from_numpy(position_table(*self.table.shape)))

    def forward(self, length: int) -> Tensor:
        return self.scale_factor * self.table[:length]


class _Embedding(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.pos_embedding = _Positions(config)
        self.norm = nn.LayerNorm(config.hidden, config.eps)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.word_embedding(ids) + self.pos_embedding(ids.shape[1]))


class Encoder(nn.Module):
    """Token ids in, hidden states out: what ``cmm.bert.Model`` computes when it is called.

    Parameters
    ----------
    config : mapping or cmm.bert.Config
        An architecture block, with ``embedding.vocab_size`` filled in.

    Attributes
    ----------
    config : cmm.bert.Config

    Raises
    ------
    CheckpointError
        The configuration is not one of a model that ``cmm.bert`` computes.
    ArgumentError
        The size of the vocabulary is not filled in.
    """

    def __init__(self, config: Mapping[str, Any] | Config) -> None:
        super().__init__()
        self.config = config = _parsed(config)
        self.embedding = _Embedding(config)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden, config.eps)
        self.apply(_initialise)

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, before: list[Tensor] | None = None) -> Tensor:
        """Return the hidden states after the final norm.

        Parameters
        ----------
        ids : tensor of integers, shape (B, S)
            S is at most ``config.max_seq_length``.
        mask : tensor, shape (B, S), optional
            1 where a token may be attended to, 0 where not.
        before : list, optional
            Gets the hidden states before each layer, (B, S, H) each.

        Returns
        -------
        tensor, shape (B, S, H)

        Raises
        ------
        ShapeError
            ids or mask have another shape.
        """
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_seq_length:
            limit = self.config.max_seq_length
            raise ShapeError(f"ids has shape {tuple(ids.shape)}; it should be (B, S), S from 1 to {limit}")
        if mask is not None and mask.shape != ids.shape:
            raise ShapeError(f"mask has shape {tuple(mask.shape)}; it should be that of ids, {tuple(ids.shape)}")
        x = self.embedding(ids)
        added = None if mask is None else ((1 - mask.to(x.dtype)) * -10000.0)[:, None, None, :]
        for layer in self.layers:
            if before is not None:
                before.append(x)
            x = layer(x, added)
        return self.final_norm(x)


class _HeadTransform(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden, bias=False)
        self.norm = nn.LayerNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(functional.gelu(self.dense(x)))


class MaskedLanguageModel(nn.Module):
    """An encoder and a decoder that shares the word embedding. Parameters and errors are those of Encoder."""

    def __init__(self, config: Mapping[str, Any] | Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.config = config = self.encoder.config
        self.prediction_head: nn.Module | None = _HeadTransform(config) if config.head_transform else None
        assert config.vocab_size is not None
        self.decoder = nn.Linear(config.hidden, config.vocab_size, bias=False)
        self.apply(_initialise)
        self.decoder.weight = self.encoder.embedding.word_embedding.weight

    def forward(self, ids: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Return logits over the vocabulary.

        Parameters
        ----------
        ids, mask
            As for Encoder.
        places : tensor of integers, shape (B, M), optional
            Decode these places of each sequence only.

        Returns
        -------
        tensor, shape (B, S or M, V)
        """
        return self.decode(self.encoder(ids, mask), places)

    def decode(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Return logits, as for ``forward``, of the encoder's hidden states (B, S, H)."""
        if places is not None:
            x = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
        if self.prediction_head is not None:
            x = self.prediction_head(x)
        return self.decoder(x)


class _Pooler(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.pooler is None or config.head_dim is None:
            raise ArgumentError("config has no classification_head; a classifier needs its pooler and head_dim")
        self.pooler = config.pooler
        self.dense = nn.Linear(config.hidden, config.head_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Make one vector of each sequence, (B, S, H) -> (B, P), of the tokens where mask, (B, S), is 1."""
        is_out = None if mask is None else (mask == 0)[..., None]
        if self.pooler == "zero_index":
            x = x[:, 0]
        elif self.pooler == "avg" and is_out is not None:
            x = x.masked_fill(is_out, 0).sum(1) / (~is_out).sum(1).clamp(min=1)
        elif self.pooler == "avg":
            x = x.mean(1)
        else:
            x = x if is_out is None else x.masked_fill(is_out, -torch.inf)
            x = x.amax(1) if self.pooler == "max" else x.logsumexp(1)
        return torch.tanh(self.dense(x))


class Classifier(nn.Module):
    """An encoder and a classifier of sequences of one length; one that is padded is pooled with its padding.

    Parameters and errors are those of Encoder; the configuration has a ``classification_head`` and ``num_labels``.
    """

    def __init__(self, config: Mapping[str, Any] | Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.config = config = self.encoder.config
        if config.num_labels is None or config.head_dim is None:
            raise ArgumentError("config has no num_labels or no classification_head; a classifier needs both")
        self.pooler = _Pooler(config)
        self.head = nn.Linear(config.head_dim, config.num_labels)
        self.apply(_initialise)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits, (B, labels); parameters as for Encoder."""
        return self.head(self.pooler(self.encoder(ids, mask)))


def _parsed(config: Mapping[str, Any] | Config) -> Config:
    parsed = config if isinstance(config, Config) else parse(config)
    if parsed.vocab_size is None:
        raise ArgumentError("config has embedding.vocab_size null; a model in PyTorch needs the number")
    return parsed


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for matrices, 0 for biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
