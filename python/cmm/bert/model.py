"""The model a user holds: checks at the door, then the functions of ``encoder.py`` and, for text, ``text.py``."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmm._dispatch import choose, thread_count
from cmm._interop import as_numpy
from cmm.bert import data_parallel, encoder, gpu
from cmm.bert.config import Config, Pooler
from cmm.bert.device import CPU, Device, find
from cmm.bert.encoder import Call, Weights
from cmm.bert.errors import CheckpointError
from cmm.bert.text import Prediction, fill_mask, in_batches
from cmm.bert.tokenizer import FILE, Text, Tokenizer
from cmm.errors import ArgumentError, DtypeError, ShapeError, UnusableError, listed
from cmm.layers import FFF
from cmm.typing import LevelName
from cmm.typing import Weights as Rows

DtypeName = Literal["float32", "bfloat16", "float16"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Trace:
    """What happened on the way through the encoder. L layers, B sequences of S tokens, width H, K trees of depth D.

    Attributes
    ----------
    embedding_out : ndarray of float32, (B, S, H)
        Tokens and positions, normalised.
    attn_out, ffn_in, ffn_out : ndarray of float32, (L, B, S, H)
        What attention adds, the normalised input of the feedforward layer, what that layer adds.
    layer_out : ndarray of float32, (L, B, S, H)
        The hidden state after each layer.
    encoder_out : ndarray of float32, (B, S, H)
        The hidden state after the final norm: what the model returns.
    path_nodes : ndarray of int32, (L, B, S, K, D + 1), or None for dense layers
        The nodes that each token visited, root first, numbered within their tree.
    path_logits : ndarray of float32, (L, B, S, K, D + 1), or None for dense layers
        Their logits, bias included.
    """

    embedding_out: Floats
    attn_out: Floats
    ffn_in: Floats
    ffn_out: Floats
    layer_out: Floats
    encoder_out: Floats
    path_nodes: Ints | None
    path_logits: Floats | None


class Model:
    """An UltraFastBERT or crammedBERT encoder. Made by ``load``, ``from_state_dict`` and ``random``.

    It is on the CPU until ``to`` takes it to a GPU. There results are CuPy arrays, but for those of text. They are
    float32, whatever the model's dtype.

    ``fill_mask``, ``embed`` and ``classify`` take text. The others take token ids and, optionally, a mask:

    ids : array_like of int, (B, S)
        ``S`` is at most ``config.max_seq_length``. B may be 0.
    mask : array_like of bool, int or float, (B, S) or (B, S, S), optional
        1 where a token may be attended to, 0 where not; in three dimensions ``mask[b, q, k]`` says it of query ``q``
        and key ``k``. Without a mask every token attends to every token, as in pretraining.
    level : str, optional
        The level of ``cmm.fff_forward`` and ``cmm.ff_forward``.
    threads : int, optional
        At most this many; None is what it is for ``cmm.fff_forward``. Sequences are shared out among them, where
        there are enough and the package ``threadpoolctl`` is installed; else they are those of ``cmm.fff_forward``,
        and numpy's matrix products use as many as its BLAS is set to. Means nothing on a GPU.

    They raise ShapeError, DtypeError or ArgumentError, which name the argument. Several threads may use one model at
    the same time. A model can be copied and pickled, with its tokenizer; so can one of a derived class.

    Attributes
    ----------
    config : Config
    tensors : mapping of str to ndarray of float32
        The weights by the names of ``state_dict_map.tensors``. Not to be changed.
    device : Device
        Where they are. Its ``name`` is ``"cpu"``, ``"cuda:0"``, ...
    dtype : str
        What products are of: "float32", or on a GPU what ``to`` was asked for.
    source : str
        Where the weights came from.
    folder : Path or None
        The folder they came from, where a tokenizer may lie.
    has_decoder : bool
        Whether ``logits`` works: the weights came with a masked-language-model head.

    All of them can only be read: an assignment would not change what is computed. ``tokenizer`` can be assigned.
    """

    def __init__(
        self,
        config: Config,
        tensors: dict[str, Floats],
        *,
        has_decoder: bool,
        source: str,
        folder: Path | None = None,
        device: Device = CPU,
        weights: Rows | None = None,
        exact_path: bool | float = False,
    ) -> None:
        self._config = config
        self._has_decoder = has_decoder
        self._source = source
        self._folder = folder
        self._had_tokenizer = folder is not None and os.path.lexists(folder / FILE)
        self._tokenizer: Tokenizer | None = None
        self._prepared: tuple[FFF, ...] = ()  # the feedforward layers, where their rows are narrow
        self._put(device, tensors)
        if weights is not None or exact_path is not False:
            self._narrow(weights, exact_path)

    def _ops_on(self, device: Device, dtype: str) -> encoder.Ops:
        """Return what computes there; dtype is that of the products."""
        if device.xp is np:
            return encoder.ArrayOps()
        return gpu.GpuOps(device, dtype, self._config.hidden, self._config.heads)

    def _put(self, device: Device, tensors: dict[str, Floats], dtype: str = "float32") -> None:
        """Take weights, which are on that device and as its ops store them."""
        self._ops = self._ops_on(device, dtype)
        self._dtype = dtype
        self._device = device
        self._tensors = tensors
        self._weights: Weights = encoder.assemble(tensors, self._config.layers, self._prepared)
        self._ops.settle()  # calls may come on any stream
        self._positions: Any = ()  # on the device

    def _narrow(self, weights: Any, exact_path: Any) -> None:
        """Keep the rows of the feedforward layers in another type from now on; see load()."""
        ffns = [layer.ffn for layer in self._weights.layers]
        if not all(isinstance(ffn, encoder.FFF) for ffn in ffns):
            asked = f"weights is {weights!r}" if weights is not None else f"exact_path is {exact_path!r}"
            raise ArgumentError(f"{asked}, which is for FFF layers, and {self._source} has dense ones")
        how: Any = {"weights": weights, "exact_path": exact_path}
        self._prepared = tuple(FFF(ffn.w_in, ffn.w_out, ffn.bias, **how) for ffn in cast("list[encoder.FFF]", ffns))
        self._put(self._device, {name: tensor for name, tensor in self._tensors.items() if ".ffn." not in name})

    @property
    def config(self) -> Config:
        """The configuration."""
        return self._config

    @property
    def tensors(self) -> Mapping[str, Floats]:
        """The weights by their names; of those in fewer bits what they hold, made anew each time."""
        if self._dtype != "float32":
            with self._device.active():
                return MappingProxyType({name: self._ops.wide(tensor) for name, tensor in self._tensors.items()})
        held = {
            f"layers.{index}.ffn.{name}": getattr(ffn, name)
            for index, ffn in enumerate(self._prepared)
            for name in ("w_in", "bias", "w_out")
        }
        return MappingProxyType(self._tensors | held)

    @property
    def weights(self) -> Weights:
        """The weights in their places."""
        return self._weights

    @property
    def device(self) -> Device:
        """Where the weights are."""
        return self._device

    @property
    def dtype(self) -> str:
        """What products are of, "float32" but on a GPU: see ``to``."""
        return self._dtype

    @property
    def source(self) -> str:
        """Where the weights came from."""
        return self._source

    @property
    def folder(self) -> Path | None:
        """The folder they came from."""
        return self._folder

    @property
    def has_decoder(self) -> bool:
        """Whether ``logits`` works."""
        return self._has_decoder

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """What fine-tuning called the labels of the classifier, in the order of the logits; None where it did not.

        Raises
        ------
        CheckpointError
            The configuration has another number of names than the classifier has labels.
        """
        names, classifier = self.config.label_names, self.weights.classifier
        if names is None or classifier is None:
            return None
        if len(names) != len(classifier.head_bias):
            problem = f"has {len(names)} label_names, and the classifier has {len(classifier.head_bias)} labels"
            raise CheckpointError(self.source, problem)
        return names

    def __getstate__(self) -> object:
        """Return the attributes, and how each tensor is aligned, on which the bits of a BLAS's sums may depend."""
        own, slots = _parts(super().__getstate__())
        own["_places"] = {name: _place(tensor) for name, tensor in self._tensors.items()}
        del own["_weights"], own["_positions"], own["_ops"]  # made anew
        return (own, slots) if slots else own

    def __setstate__(self, state: object) -> None:
        own, slots = _parts(state)
        places = own.pop("_places")
        self.__dict__.update(own)
        for name, value in slots.items():
            setattr(self, name, value)
        with self._device.active():  # CuPy's arrays come back on the GPU that is current
            placed = {name: _placed(tensor, places[name]) for name, tensor in self._tensors.items()}
            self._put(self._device, {name: self._device.put(tensor) for name, tensor in placed.items()}, self._dtype)

    def __repr__(self) -> str:
        c = self.config
        ffn = f"FFF {c.trees}x{c.depth}" if c.trees is not None else f"dense {c.neurons}{' gated' if c.gated else ''}"
        shape = f"{c.layers} layers, width {c.hidden}, {c.heads} heads, {ffn}, vocabulary {len(self.weights.word)}"
        where = "" if self.device is CPU else f"{self.dtype} on {self.device.name}, "
        return f"<cmm.bert.Model: {shape}, {self.parameters} parameters, {where}from {self.source}>"

    def to(self, device: str, dtype: DtypeName | None = None) -> Self:
        """Return this model on another device or of another dtype, or itself where it is that already.

        Parameters
        ----------
        device : str
            ``"cpu"``, ``"cuda"`` for CuPy's current GPU, or ``"cuda:1"`` for one by its number. A GPU needs CuPy and
            libcmm_cuda.
        dtype : {"float32", "bfloat16", "float16"}, optional
            What products multiply: weights are rounded to it, and so is what they are multiplied with. Sums, norms,
            the softmax, the hidden state between the layers and all results stay float32. On a CPU it should be
            float32. None is the dtype that the model has, or float32 on a CPU.

        Returns
        -------
        Model
            With a copy of the weights there, the same tokenizer and all other attributes. This one stays as it is:
            a model of 16 bits that goes back has the rounded weights.

        Raises
        ------
        ArgumentError
            That is no name of a device, or no dtype for it; a weight is too large for float16; or the model was
            loaded with narrow rows.
        UnusableError
            There is no CuPy or no such GPU.
        """
        there = find(device)
        if dtype is None:
            dtype = "float32" if there is CPU else cast("DtypeName", self.dtype)
        if not isinstance(dtype, str) or dtype not in gpu.STORED:
            raise ArgumentError(f"dtype is {dtype!r}; it should be None or one of {listed(gpu.STORED)}")
        if there is CPU and dtype != "float32":
            problem = f"dtype is {dtype!r}, and device is {device!r}, where it should be 'float32'"
            raise ArgumentError(f"{problem}; load(..., weights=) keeps rows in fewer bits there")
        if there.name == self.device.name and dtype == self.dtype:
            return self
        if self._prepared:
            raise ArgumentError(
                f"device is {device!r}, and the model's rows are {self._prepared[0].weights!r}, which are for a CPU: "
                "load it without weights; 16 bits there are to(device, dtype)"
            )
        other = copy.copy(self)
        with there.active():
            ops = self._ops_on(there, dtype)
            tensors = {}
            for name, tensor in self.tensors.items():
                values = self.device.host(tensor)
                if dtype == "float16" and (np.abs(values) >= _FLOAT16_INFINITY).any():
                    problem = f"dtype is 'float16', and {name} has a weight that is too large for it"
                    raise ArgumentError(f"{problem}; 'bfloat16' has the range of float32")
                tensors[name] = ops.stored(name, there.put(values))
            other._put(there, tensors, dtype)
        return other

    @property
    def parameters(self) -> int:
        """The number of weights."""
        tensors = self.tensors if self._prepared else self._tensors
        return sum(tensor.size for tensor in tensors.values())

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, from the folder of the weights, or the one that was assigned.

        Raises
        ------
        UnusableError
            There is none, or the package ``tokenizers`` is not installed.
        CheckpointError
            It cannot be read, or belongs to another vocabulary.
        """
        if self._tokenizer is None:
            file = self.tokenizer_file
            if file is None:
                where = self.source if self.folder is None else self.folder
                problem = f"there is no {FILE} with {where}; assign one: model.tokenizer = cmm.bert.Tokenizer(path)"
                raise UnusableError(problem)
            self.tokenizer = Tokenizer(file)
        assert self._tokenizer is not None
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, Tokenizer):
            raise DtypeError(f"tokenizer is {tokenizer!r}; it should be a cmm.bert.Tokenizer")
        largest, words = int(tokenizer.ids[-1]), len(self.weights.word)
        if largest >= words:
            problem = f"has the id {largest}, but the model's vocabulary has {words} entries: it is another model's"
            raise CheckpointError(tokenizer.file, problem)
        self._tokenizer = tokenizer

    @property
    def tokenizer_file(self) -> Path | None:
        """The file of the tokenizer, or None where there is none; it may have gone since the model was loaded."""
        if self._tokenizer is not None:
            return self._tokenizer.file
        file = None if self.folder is None else self.folder / FILE
        return file if file is not None and (self._had_tokenizer or os.path.lexists(file)) else None

    @overload
    def fill_mask(  # type: ignore[overload-overlap]  # a text is a sequence of characters
        self,
        text: Text,
        k: int = 5,
        *,
        targets: Sequence[str] | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> list[list[Prediction]]: ...
    @overload
    def fill_mask(
        self,
        text: Sequence[Text],
        k: int = 5,
        *,
        targets: Sequence[str] | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> list[list[list[Prediction]]]: ...
    def fill_mask(
        self,
        text: Text | Sequence[Text],
        k: int = 5,
        *,
        targets: Sequence[str] | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> list[list[Prediction]] | list[list[list[Prediction]]]:
        """Say which tokens may stand in place of the masks of a text, or of each text of a list.

        Parameters
        ----------
        text : str, (str, str), or sequence of these
            With at least one mask, written as the tokenizer writes it, as in ``"The sun is <mask>."``. A tuple is a
            pair; anything else but a string is a sequence of texts. Each of these runs alone.
        k : int, optional
            How many tokens, at least 1.
        targets : sequence of str, optional
            Only these words, or tokens as the vocabulary writes them, all of them and each once, whatever k is. Their
            probabilities are still those among all tokens.
        level, threads
            As for calling the model.

        Returns
        -------
        list of list of Prediction
            For each mask, in the order of the text, the k likeliest tokens, likeliest first: ``token``, ``id``,
            ``probability`` and ``logit``. The masks are filled independently of each other. For a sequence of texts,
            a list of such lists, one for each text.

        Raises
        ------
        ArgumentError
            There is no mask in a text, it is longer than the model's limit, or one of the targets is no single token.
        DtypeError
            text is no string, pair of strings or sequence of these.
        UnusableError
            The model came without a masked-language-model head or without a tokenizer.
        """
        self._need_decoder()

        def compute(ids: list[int], places: list[int]) -> Floats:
            logits: Floats = self.device.host(self.decode(self([ids], level=level, threads=threads)[0, places]))
            return logits

        return fill_mask(self.tokenizer, self.config.max_seq_length, compute, text, k, targets)

    def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        pooler: Pooler = "avg",
        normalize: bool = False,
        batch_size: int | None = None,
        truncate: bool = False,
        progress: bool | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> Floats:
        """Make one vector of each text, from the hidden states after the final norm.

        Texts of equal length run together, without padding: a text's vector depends on its neighbours by rounding
        alone, for products of more texts may add in another order.

        Parameters
        ----------
        texts : str, (str, str), or sequence of these
            One text is a string, and a pair a tuple of two; anything else is a sequence of texts. Of a text of which
            nothing but special tokens is left, an EmptyTextWarning tells the number.
        pooler : {"avg", "zero_index", "max", "logsumexp"}, optional
            How the tokens' hidden states, of special tokens too, become one: their mean, the first one, the largest
            value of each component, or the logarithm of the sum of exponentials.
        normalize : bool, optional
            Divide each vector by its length, so that products of vectors are cosines. One of length 0 stays as it is.
        batch_size : int, optional
            At most so many texts run together. None is as many as have 2048 tokens.
        truncate : bool, optional
            Cut texts that are longer than the model's limit, and warn, instead of raising.
        progress : bool, optional
            Show a progress bar after two seconds, if ``tqdm`` is installed. None means where stderr is a terminal.
        level, threads
            As for calling the model.

        Returns
        -------
        ndarray of float32, (texts, H)
            Of one text (H,).

        Raises
        ------
        ArgumentError
            A text is longer than the model's limit or has no tokens, or pooler is not one of those.
        DtypeError
            texts are no string, pair of strings or sequence of these.
        UnusableError
            The model came without a tokenizer.
        """
        if pooler not in encoder.POOLERS:
            raise ArgumentError(f"pooler is {pooler!r}; it should be one of {', '.join(encoder.POOLERS)}")

        def compute(ids: NDArray[np.intp]) -> Floats:
            with self.device.active():
                pooled = encoder.pool(self._call(), self(ids, level=level, threads=threads), pooler)
                result: Floats = self.device.host(pooled)
            return result

        vectors = in_batches(
            self.tokenizer,
            self.config.max_seq_length,
            compute,
            texts,
            self.config.hidden,
            truncate=truncate,
            progress=progress,
            batch_size=batch_size,
        )
        if normalize:
            # In float64, where the squares of no float32 overflow.
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
            vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return vectors

    def classify(
        self,
        texts: Text | Sequence[Text],
        *,
        truncate: bool = False,
        progress: bool | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> Floats:
        """Return the logits of the sequence classifier for each text, float32, (texts, labels), of one (labels,).

        Parameters and errors are those of ``embed``, and an UnusableError where the model came without a classifier.
        """
        labels = len(self._need_classifier().head_bias)

        def compute(ids: NDArray[np.intp]) -> Floats:
            result: Floats = self.device.host(self.classify_ids(ids, level=level, threads=threads))
            return result

        return in_batches(
            self.tokenizer,
            self.config.max_seq_length,
            compute,
            texts,
            labels,
            truncate=truncate,
            progress=progress,
        )

    def __call__(
        self, ids: ArrayLike, mask: ArrayLike | None = None, *, level: LevelName = "auto", threads: int | None = None
    ) -> Floats:
        """Return the hidden states after the final norm, float32, (B, S, H)."""
        return self._encode(ids, mask, self._call(level, threads))

    def logits(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        places: ArrayLike | None = None,
        level: LevelName = "auto",
        threads: int | None = None,
    ) -> Floats:
        """Return the logits of the masked-language-model head, float32, (B, S, V), or (B, M, V) of some places.

        Parameters
        ----------
        ids, mask, level, threads
            As for calling the model.
        places : array_like of int, (B, M), optional
            Decode these places of each sequence only, from 0 to S - 1: the decoder is a large part of the work.

        Raises
        ------
        UnusableError
            The weights came without that head.
        ShapeError, DtypeError, ArgumentError
            Of places: another shape, no whole numbers, a place that is not in the sequence.
        """
        self._need_decoder()
        wanted = None if places is None else checked_places(self.device.host(places), self.device.host(ids))
        with self.device.active():
            hidden = self(ids, mask, level=level, threads=threads)
            if wanted is not None:
                rows = self.device.xp.arange(len(wanted))[:, None]
                hidden = hidden[rows, self.device.put(wanted)]  # (B, M, H)
            return self.decode(hidden)

    def decode(self, hidden: ArrayLike) -> Floats:
        """Return the logits of the masked-language-model head for hidden states, so that only some can be decoded.

        Parameters
        ----------
        hidden : array_like of float32, (..., H)
            Rows of what calling the model returns.

        Returns
        -------
        ndarray of float32, (..., V)
        """
        self._need_decoder()
        with self.device.active():
            states: Floats = as_numpy("hidden", hidden) if self.device is CPU else self.device.put(hidden)
            if states.dtype != np.float32:
                raise DtypeError(f"hidden is {states.dtype}; it should be float32")
            if states.ndim < 1 or states.shape[-1] != self.config.hidden:
                raise ShapeError(f"hidden has shape {states.shape}; its last length should be {self.config.hidden}")
            result: Floats = self._ops.decode(self._call(), self.weights, states)
        return result

    def classify_ids(
        self, ids: ArrayLike, mask: ArrayLike | None = None, *, level: LevelName = "auto", threads: int | None = None
    ) -> Floats:
        """Return the logits of the sequence classifier, float32, (B, labels).

        Raises
        ------
        UnusableError
            The weights came without a classifier.
        """
        classifier, pooler = self._need_classifier(), self.config.pooler
        assert pooler is not None  # or the classifier would have been refused
        with self.device.active():
            hidden = self(ids, mask, level=level, threads=threads)
            result: Floats = encoder.classify(self._call(), classifier, hidden, pooler)
        return result

    def trace(
        self, ids: ArrayLike, mask: ArrayLike | None = None, *, level: LevelName = "auto", threads: int | None = None
    ) -> Trace:
        """Run the encoder and return a :class:`Trace`: every layer's hidden state and the nodes that were visited."""
        taps: dict[int, dict[str, list[NDArray[Any]]]] = {}  # by the first of the sequences that ran together

        def tap_of(some: slice) -> encoder.Tap:
            mine = taps[some.start] = {}

            def tap(name: str, _: int, value: NDArray[Any]) -> None:
                mine.setdefault(name, []).append(value.copy())

            return tap

        def stacked(name: str) -> Any:
            xp, length = self.device.xp, hidden.shape[1]
            shares = [xp.stack(taps[first][name]) for first in sorted(taps)]  # (L, b * S, ...) each
            shares = [share.reshape(len(share), -1, length, *share.shape[2:]) for share in shares]
            return shares[0] if len(shares) == 1 else xp.concatenate(shares, axis=1)  # (L, B, S, ...)

        with self.device.active():
            hidden = self._encode(ids, mask, self._call(level, threads), tap_of)
            fff = self.config.trees is not None
            return Trace(
                embedding_out=stacked("embedding_out")[0],
                **{name: stacked(name) for name in ("attn_out", "ffn_in", "ffn_out", "layer_out")},
                encoder_out=hidden,
                path_nodes=stacked("path_nodes") if fff else None,
                path_logits=stacked("path_logits") if fff else None,
            )

    def _need_decoder(self) -> None:
        if not self.has_decoder:
            raise UnusableError(f"{self.source} has no masked-language-model head (decoder.weight)")

    def _need_classifier(self) -> encoder.Classifier:
        if self.weights.classifier is None:
            raise UnusableError(
                f"{self.source} has no classifier (head.weight, pooler.dense.weight), "
                "which docs/examples/finetune.py adds"
            )
        return self.weights.classifier

    def _call(self, level: LevelName = "auto", threads: int | None = None) -> Call:
        return Call(self.device, self.config.heads, self.config.eps, level, threads, None, self._ops)

    def _encode(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None,
        call: Call,
        tap_of: Callable[[slice], encoder.Tap] | None = None,
    ) -> Floats:
        """Encode checked arguments; tap_of makes the tap of sequences that run together."""
        device, parts = self.device, None
        with device.active():
            tokens = checked_ids(device.host(ids), len(self.weights.word), self.config.max_seq_length)
            allowed = checked_mask(device.host(mask), *tokens.shape)
            batch, length = tokens.shape
            if device is CPU:
                choose(call.level, None, call.threads, self.config.trees is None)  # raises what is wrong
                parts = data_parallel.shares(batch, length, thread_count(call.threads))
            each = call if parts is None else call._replace(threads=1)
            positions = self._positions
            if len(positions) < length:  # made on first use: the limit comes from a file and may be anything
                positions = device.put(encoder.position_table(length, self.config.hidden))
                self._ops.settle()
                self._positions = positions
            tokens, allowed = device.put(tokens), None if allowed is None else device.put(allowed)
            hidden: Floats = device.xp.empty((batch, length, self.config.hidden), np.float32)

            def work(some: slice) -> None:
                masked = None if allowed is None else allowed[some]
                mine = each if tap_of is None else each._replace(tap=tap_of(some))
                encoder.encode(mine, self.weights, tokens[some], masked, positions[:length], hidden[some])

            if parts is None:
                work(slice(0, batch))
            else:
                data_parallel.run(work, parts)
        return hidden


_FLOAT16_INFINITY = 65520.0  # what is rounded to more than the largest, 65504


# ---- copies --------------------------------------------------------------------------------------------------------

_ALIGNMENT = 64


def _parts(state: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return copies of the two parts of a state: the attributes, and those that a derived class has in slots."""
    own, slots = state if isinstance(state, tuple) else (state, None)
    return dict(own or {}), dict(slots or {})


def _place(tensor: Any) -> int:
    """Return how far after a multiple of the alignment a tensor of numpy starts."""
    return int(tensor.ctypes.data) % _ALIGNMENT if isinstance(tensor, np.ndarray) else 0


def _placed(tensor: Any, place: int) -> Any:
    """Return a tensor that starts there: itself, or a copy."""
    if not isinstance(tensor, np.ndarray) or _place(tensor) == place:
        return tensor
    memory = np.empty(tensor.nbytes + _ALIGNMENT, np.uint8)
    start = (place - memory.ctypes.data) % _ALIGNMENT
    result = memory[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    result[...] = tensor
    return result


# ---- arguments -----------------------------------------------------------------------------------------------------


def checked_ids(ids: ArrayLike, vocab_size: int, max_seq_length: int) -> NDArray[np.intp]:
    """Return token ids as an index array (B, S), or say what is wrong with them."""
    try:
        tokens = as_numpy("ids", ids)
    except ShapeError as error:
        raise ShapeError(f"{error}; sequences of a batch should be equally long") from None
    if tokens.dtype.kind not in "iu":
        if tokens.size or tokens.ndim != 2:
            raise DtypeError(f"ids has dtype {tokens.dtype}; it should be an integer one")
        tokens = tokens.astype(np.intp)
    if tokens.ndim != 2:
        raise ShapeError(f"ids has shape {tokens.shape}; it should be (batch, tokens): wrap one sequence as [ids]")
    if tokens.shape[1] < 1:
        raise ShapeError(f"ids has shape {tokens.shape}; there should be at least one token in a sequence")
    if tokens.shape[1] > max_seq_length:
        raise ShapeError(f"ids has {tokens.shape[1]} tokens in a sequence; the model's limit is {max_seq_length}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        row, column = (int(i) for i in np.argwhere((tokens < 0) | (tokens >= vocab_size))[0])
        problem = f"ids[{row}, {column}] is {tokens[row, column]}"
        raise ArgumentError(f"{problem}; token ids should be from 0 to {vocab_size - 1}")
    return tokens.astype(np.intp, copy=False)


def checked_places(places: ArrayLike, ids: ArrayLike) -> NDArray[np.intp]:
    """Return places of sequences as an index array (B, M), or say what is wrong with them."""
    values, shape = as_numpy("places", places), as_numpy("ids", ids).shape
    if values.dtype.kind not in "iu":
        raise DtypeError(f"places has dtype {values.dtype}; it should be an integer one")
    if len(shape) == 2:  # or ids are refused
        if values.ndim != 2 or len(values) != shape[0]:
            raise ShapeError(f"places has shape {values.shape}; it should be ({shape[0]}, places of each sequence)")
        outside = (values < 0) | (values >= shape[1])
        if outside.any():
            row, column = (int(i) for i in np.argwhere(outside)[0])
            problem = f"places[{row}, {column}] is {values[row, column]}"
            raise ArgumentError(f"{problem}; places should be from 0 to {shape[1] - 1}")
    return values.astype(np.intp)


def checked_mask(mask: ArrayLike | None, batch: int, length: int) -> NDArray[np.bool_] | None:
    """Return a mask as booleans, or None where there is none to apply, or say what is wrong with it."""
    if mask is None:
        return None
    values = as_numpy("mask", mask)
    if values.dtype.kind not in "biuf":
        raise DtypeError(f"mask has dtype {values.dtype}; it should be bool, an integer or a float one")
    if values.shape not in ((batch, length), (batch, length, length)):
        expected = f"{(batch, length)} or {(batch, length, length)}"
        raise ShapeError(f"mask has shape {values.shape}; it should be {expected}")
    ones = values == 1
    wrong = ~(ones | (values == 0))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ArgumentError(f"mask{list(place)} is {values[place]}; it should be 1 (attend) or 0")
    return None if ones.all() else ones
