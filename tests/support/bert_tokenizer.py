"""A tiny tokenizer as training leaves it: WordPiece, NFD, lowercase, no accents, nothing but ASCII, ids shuffled."""

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = {"pad": "<pad>", "unk": "<unk>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"}
WORDS = ["the", "a", "cat", "dog", "mat", "sat", "ran", "on", "under", "and", "moon", "un", "##s", "##able", ".", ","]
SIZE = len(SPECIAL) + len(WORDS)


def save(folder, seed=0, *, special=SPECIAL, template=True, map_file=True, settings=()):
    """Write tokenizer.json, and what names its special tokens; return the ids of all tokens.

    Parameters
    ----------
    folder : Path
    seed : int
        Of the shuffle.
    special : dict of str to str
        The special tokens by their parts.
    template : bool
        Whether the file says how special tokens are added.
    map_file : bool
        Whether special_tokens_map.json names the parts.
    settings : sequence of str
        "truncation" and "padding" are written into the file, as tools that encode batches do.
    """
    tokens = [*special.values(), *WORDS]
    random.Random(seed).shuffle(tokens)
    ids = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=special["unk"]))
    only_ascii = normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")
    steps = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents(), only_ascii]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(special.values()))
    if template:
        cls, sep = special["cls"], special["sep"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", sep], pair=[cls, "$A", sep, "$B", sep], special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
        )
    if "truncation" in settings:
        tokenizer.enable_truncation(3)
    if "padding" in settings:
        tokenizer.enable_padding(length=12)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if map_file:
        names = {f"{part}_token": token for part, token in special.items()}
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return ids
