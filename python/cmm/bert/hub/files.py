"""What Auto classes of transformers need beside weights: configuration, code, a tokenizer whose roles are said."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cmm._native import VERSION
from cmm.bert.config import parse_json
from cmm.bert.model import Model
from cmm.bert.tokenizer import FILE, ROLE_FILES, find_roles

_CODE = ("configuration_cmm.py", "modeling_cmm.py")
_TOKENIZER_CONFIG = ROLE_FILES[1]
_ROLES = ("pad", "unk", "sep", "cls", "mask")


def configuration(model: Model, arch: Mapping[str, Any], dtype: str, roles: Mapping[str, int]) -> dict[str, Any]:
    """Return ``config.json``, in which ``arch`` is the architecture block.

    Parameters
    ----------
    model : Model
    arch : mapping
        With the sizes of the vocabulary and of the classifier filled in.
    dtype : str
        Of the weights in the file.
    roles : mapping of str to int
        The ids of the tokenizer's special tokens.
    """
    classes = {"AutoModel": "CmmModel"}
    if model.has_decoder:
        classes["AutoModelForMaskedLM"] = "CmmForMaskedLM"
    if model.config.pooler is not None:  # a classifier, or what a new one is to be
        classes["AutoModelForSequenceClassification"] = "CmmForSequenceClassification"
    first = "AutoModelForMaskedLM" if model.has_decoder else "AutoModelForSequenceClassification"
    auto_map = {auto: f"modeling_cmm.{name}" for auto, name in classes.items()}
    return {
        "model_type": "cmm_bert",
        "architectures": [classes[first]],
        "auto_map": {"AutoConfig": "configuration_cmm.CmmConfig", **auto_map},
        "dtype": dtype,
        **({"pad_token_id": roles["pad"]} if "pad" in roles else {}),
        "cmm_version": VERSION,
        "arch": dict(arch),
    }


def code() -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files that transformers runs."""
    for name in _CODE:
        yield name, (resources.files("cmm.bert.hub") / name).read_bytes()


def tokenizer_files(
    stored: Sequence[tuple[str, bytes]], limit: int
) -> tuple[list[tuple[str, bytes]], dict[str, int]]:
    """Return a tokenizer's files as ``AutoTokenizer`` reads them, and the ids of its special tokens.

    ``tokenizer_config.json`` gets what it does not say: the class, the longest text, that there is one kind of token,
    and which tokens are special, as ``cmm.bert.Tokenizer`` finds out.

    Parameters
    ----------
    stored : sequence of (str, bytes)
        As ``cmm.bert.tokenizer.stored_files`` returns them; they may be none.
    limit : int
        Tokens of the longest text.

    Raises
    ------
    CheckpointError
        A token that a file names is not there, or not to be told.
    """
    blocks = {name: parse_json(content, name) for name, content in stored}
    if not blocks:
        return [], {}
    main = blocks[FILE]
    added = [one for one in main.get("added_tokens") or () if isinstance(one, dict) and "content" in one]
    vocabulary = (main.get("model") or {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids |= {one["content"]: one["id"] for one in added}
    special = {one["content"]: one["id"] for one in added if one.get("special")}
    named = {Path(name): blocks[name] for name in ROLE_FILES if name in blocks}
    roles = find_roles(_ROLES, Path(FILE), named, ids, special)
    tokens = {id: token for token, id in ids.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "model_input_names": ["input_ids", "attention_mask"],
        **blocks.get(_TOKENIZER_CONFIG, {}),
        **{f"{role}_token": tokens[id] for role, id in roles.items()},
    }
    text = json.dumps(config, indent=1) + "\n"
    return [*(one for one in stored if one[0] != _TOKENIZER_CONFIG), (_TOKENIZER_CONFIG, text.encode())], roles
