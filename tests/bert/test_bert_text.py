"""Text: the tokenizer's files decide, what is computed is what the ids give, nothing is cut or padded unsaid."""

import importlib
import json
import subprocess
import sys
import types
import warnings

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.bert import CheckpointError, EmptyTextWarning, Tokenizer, TruncationWarning, paths
from cmm.bert.text import batches

pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
import bert_tokenizer as tiny

pytestmark = pytest.mark.filterwarnings("ignore::cmm.bert.EmptyTextWarning")  # one of TEXTS is empty
LIMIT = 16
BLOCK = reference.architecture(embedding__max_seq_length=LIMIT)
# The same text in batches of other sizes: other orders of float32 sums, in values of order 1 (see test_bert_encoder).
TOLERANCE = 1e-5
TEXTS = [
    "The cat sat on the mat.",
    "the dog ran",
    "moon",
    "A dog sat on a cat.",
    ("the cat", "the dog"),
    "",
    "the dog ran under the moon, and the cat sat.",
    "a cat ran",
]


def folder_with(path, *, labels=None, decoder=True, vocab=tiny.SIZE, seed=0, **how):
    """A folder as training leaves it; returns it and the ids of the tokens."""
    reference.save_final(
        path, BLOCK, reference.state_dict(BLOCK, seed=1, vocab=vocab, labels=labels, decoder=decoder)
    )
    return path, tiny.save(path, seed, **how)


@pytest.fixture
def folder(tmp_path):
    return folder_with(tmp_path / "model", labels=3)[0]


@pytest.fixture
def model(folder):
    return cmm.bert.load(folder)


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [True, False], ids=["template in the file", "no template in the file"])
@pytest.mark.parametrize("seed", range(3))
def test_ids_of_a_text_and_of_a_pair(tmp_path, seed, template):
    ids = tiny.save(tmp_path, seed, template=template)
    tokenizer = Tokenizer(tmp_path)
    single, pair = tokenizer.encode(["The CÂTS sat…", ("unable", "zebra moon")])
    assert single == [ids[word] for word in ("the", "cat", "##s", "sat", "<sep>")]
    assert pair == [ids[word] for word in ("<cls>", "un", "##able", "<sep>", "<unk>", "moon", "<sep>")]
    assert {role: tokenizer.id_of(role) for role in ("mask", "sep", "cls")} == {
        role: ids[f"<{role}>"] for role in ("mask", "sep", "cls")
    }
    assert [tokenizer.token(id) for id in single] == ["the", "cat", "##s", "sat", "<sep>"]
    assert tokenizer.token(tiny.SIZE) is None
    np.testing.assert_array_equal(tokenizer.ids, np.arange(tiny.SIZE))


def test_a_template_of_the_files_own_is_followed(tmp_path):
    ids = tiny.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<cls>", "type_id": 0}})
    file.write_text(json.dumps(content))
    assert Tokenizer(tmp_path).encode(["moon"]) == [[ids["<cls>"], ids["moon"], ids["<sep>"]]]


@pytest.mark.parametrize("settings", [["truncation"], ["padding"], ["truncation", "padding"]])
def test_truncation_and_padding_of_the_file_are_off(tmp_path, settings):
    ids = tiny.save(tmp_path, settings=settings)
    words = ["the", "cat", "sat", "on", "a", "mat"]
    assert Tokenizer(tmp_path).encode([" ".join(words), "moon"]) == [
        [*(ids[word] for word in words), ids["<sep>"]],
        [ids["moon"], ids["<sep>"]],
    ]


ODD = {**tiny.SPECIAL, "mask": "[blank]", "sep": "[end]"}


def test_parts_by_special_tokens_map(tmp_path):
    ids = tiny.save(tmp_path, special=ODD)
    assert Tokenizer(tmp_path).id_of("mask") == ids["[blank]"]


def test_parts_by_tokenizer_config(tmp_path):
    ids = tiny.save(tmp_path, special=ODD, map_file=False)
    content = {"mask_token": {"content": "[blank]", "lstrip": False}, "sep_token": "[end]", "cls_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.special == {"mask": ids["[blank]"], "sep": ids["[end]"], "cls": ids["<cls>"]}


@pytest.mark.parametrize("mask", ["<mask>", "[MASK]", "[mask]"])
def test_parts_by_the_names_of_special_tokens(tmp_path, mask):
    ids = tiny.save(tmp_path, special={**tiny.SPECIAL, "mask": mask}, map_file=False)
    assert Tokenizer(tmp_path / "tokenizer.json").id_of("mask") == ids[mask]


def test_parts_that_nothing_names(tmp_path):
    tiny.save(tmp_path, special=ODD, map_file=False)
    with pytest.raises(CheckpointError, match=r"no special token for 'mask'.*special_tokens_map\.json"):
        Tokenizer(tmp_path).id_of("mask")
    tiny.save(tmp_path, special=ODD, map_file=False, template=False)
    with pytest.raises(CheckpointError, match="no special token for 'sep'"):
        Tokenizer(tmp_path)


def test_special_tokens_map_overrules_tokenizer_config(tmp_path):
    ids = tiny.save(tmp_path, special={**tiny.SPECIAL, "other": "[other]"})
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "[other]"}')
    assert Tokenizer(tmp_path).id_of("mask") == ids["<mask>"]


def test_a_token_that_is_not_special_plays_no_part(tmp_path):
    tiny.save(tmp_path, map_file=False)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (mask,) = (token for token in content["added_tokens"] if token["content"] == "<mask>")
    mask["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no special token for 'mask'"):
        Tokenizer(tmp_path).id_of("mask")


def test_parts_that_several_tokens_could_play(tmp_path):
    tiny.save(tmp_path, special={**tiny.SPECIAL, "other": "[MASK]"}, map_file=False)
    with pytest.raises(CheckpointError, match="several special tokens for 'mask'"):
        Tokenizer(tmp_path)


def test_a_part_of_a_token_that_is_not_there(tmp_path):
    tiny.save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": "<blank>"}')
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json: mask_token: is '<blank>'"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]" * 9, b"\xff\xfe", b'{"a":' * 100_000, b"null{}"], ids=lambda data: repr(data[:9])
)
def test_broken_files(tmp_path, name, content):
    tiny.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}:")
    assert str(caught.value).isprintable()


def test_a_byte_order_mark_in_the_files_of_a_tokenizer(tmp_path):
    tiny.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    expected = Tokenizer(tmp_path)
    for name in ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text(), encoding="utf-8-sig")
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.special == expected.special
    assert tokenizer.encode(["the cat"]) == expected.encode(["the cat"])


def test_every_truncation_of_a_tokenizer(tmp_path):
    tiny.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = file.read_bytes()
    for length in range(0, len(content), 61):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            Tokenizer(tmp_path)


def test_no_tokenizer(tmp_path):
    reference.save_final(tmp_path, BLOCK, reference.state_dict(BLOCK))
    for call in (lambda model: model.fill_mask("a"), lambda model: model.embed(["a"]), lambda model: model.tokenizer):
        with pytest.raises(cmm.UnusableError, match=r"no tokenizer\.json with .*model\.tokenizer = "):
            call(cmm.bert.load(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path)
    with pytest.raises(cmm.DtypeError, match="tokenizer is 'x'"):
        cmm.bert.load(tmp_path).tokenizer = "x"


def test_the_tokenizer_of_another_model(tmp_path):
    folder, _ = folder_with(tmp_path, vocab=tiny.SIZE - 1)
    with pytest.raises(CheckpointError, match=f"has the id {tiny.SIZE - 1}, but .* {tiny.SIZE - 1} entries"):
        cmm.bert.load(folder).embed(["the cat"])


def test_a_word_without_any_token(tmp_path):
    """A WordPiece file whose token for unknown words is not in its vocabulary."""
    folder, _ = folder_with(tmp_path)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["unk_token"] = "<none>"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot encode a text"):
        cmm.bert.load(folder).embed(["zebra"])


def test_a_template_that_makes_the_package_panic(tmp_path, capfd):
    tiny.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer"):
        Tokenizer(tmp_path).encode(["moon"])
    capfd.readouterr()  # Rust says it on stderr too


def test_an_assigned_tokenizer(tmp_path):
    ids = tiny.save(tmp_path / "elsewhere", 3)
    model = cmm.bert.from_state_dict(reference.state_dict(BLOCK, vocab=tiny.SIZE), BLOCK)
    model.tokenizer = Tokenizer(tmp_path / "elsewhere")
    expected = model([[ids["moon"], ids["<sep>"]]])[0].mean(axis=0)
    np.testing.assert_allclose(model.embed(["moon"])[0], expected, rtol=0, atol=TOLERANCE)


def test_the_package_is_asked_for_in_one_line(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(cmm.UnusableError, match=r"tokenizers: pip install tokenizers"):
        model.fill_mask("the <mask>")


def test_the_package_is_imported_for_text_alone(folder):
    code = f"""
import sys, cmm.bert
model = cmm.bert.load({str(folder)!r})
model.logits([[1, 2]])
assert not {{"tokenizers", "tqdm", "matplotlib", "torch"}} & set(sys.modules), sys.modules.keys()
model.fill_mask("the <mask>")
assert "tokenizers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- fill_mask -----------------------------------------------------------------------------------------------------


def expected_predictions(model, ids, place, k):
    """The k best by the model's logits: sorted by logit, then by id, with the softmax in float64."""
    logits = model.logits([ids])[0, place].astype(np.float64)
    weights = np.exp(logits - logits.max())
    best = sorted(range(tiny.SIZE), key=lambda id: (-logits[id], id))[:k]
    return best, logits[best], weights[best] / weights.sum()


@pytest.mark.parametrize("seed", range(3))
def test_fill_mask(tmp_path, seed):
    folder, ids = folder_with(tmp_path, seed=seed)
    model = cmm.bert.load(folder)
    text = "The <mask> sat on the <mask>."
    tokens = [ids[word] for word in ("the", "<mask>", "sat", "on", "the", "<mask>", ".", "<sep>")]
    found = model.fill_mask(text, 7)
    assert len(found) == 2
    names = {id: token for token, id in ids.items()}
    for mask, place in zip(found, (1, 5), strict=True):
        best, logits, probabilities = expected_predictions(model, tokens, place, 7)
        assert [one.id for one in mask] == best
        assert [one.token for one in mask] == [names[id] for id in best]
        np.testing.assert_allclose([one.logit for one in mask], logits, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose([one.probability for one in mask], probabilities, rtol=0, atol=TOLERANCE)
        assert [one.logit for one in mask] == sorted((one.logit for one in mask), reverse=True)
    assert model.fill_mask(text, 7) == found
    assert cmm.bert.load(folder).fill_mask(text, 7) == found
    assert [mask[:3] for mask in found] == model.fill_mask(text, k=3)
    assert [len(mask) for mask in model.fill_mask(text)] == [5, 5]


def test_fill_mask_gives_all_tokens_and_no_more(tmp_path):
    """The decoder may have more rows than there are tokens; equal logits come in the order of their ids."""
    folder, _ = folder_with(tmp_path, vocab=tiny.SIZE + 30)
    model = cmm.bert.load(folder)
    (mask,) = model.fill_mask("the <mask>", k=1000)
    assert sorted(one.id for one in mask) == list(range(tiny.SIZE))
    weights = np.exp(model.logits(model.tokenizer.encode(["the <mask>"]))[0, 1].astype(np.float64))
    share = weights[: tiny.SIZE].sum() / weights.sum()  # the other 30 have theirs
    assert share < 0.99
    assert sum(one.probability for one in mask) == pytest.approx(share, abs=TOLERANCE)
    state = reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE)
    for key in ("decoder.weight", "encoder.embedding.word_embedding.weight"):
        state[key][:] = state[key][0]
    equal = cmm.bert.from_state_dict(state, BLOCK)
    equal.tokenizer = model.tokenizer
    (mask,) = equal.fill_mask("the <mask>", k=1000)
    assert [one.id for one in mask] == list(range(tiny.SIZE))
    assert sum(one.probability for one in mask) == pytest.approx(1)


def test_fill_mask_of_a_pair(tmp_path):
    folder, ids = folder_with(tmp_path)
    model = cmm.bert.load(folder)
    tokens = [ids[word] for word in ("<cls>", "the", "cat", "<sep>", "a", "<mask>", "<sep>")]
    ((first, *_),) = model.fill_mask(("the cat", "a <mask>"), np.int64(1))
    assert [first.id] == expected_predictions(model, tokens, 5, 1)[0]


@pytest.mark.parametrize(
    ("text", "k", "error", "message"),
    [
        ("the cat", 5, cmm.ArgumentError, r"text 'the cat' has no mask; the one of this tokenizer is <mask>"),
        ("the [MASK]", 5, cmm.ArgumentError, "is <mask>"),
        ("<mask>" * LIMIT, 5, cmm.ArgumentError, f"text .* has {LIMIT + 1} tokens; the model's limit is {LIMIT}$"),
        ("the <mask>", 0, cmm.ArgumentError, "k is 0"),
        ("the <mask>", True, cmm.ArgumentError, "k is True"),
        ("the <mask>", 1.0, cmm.ArgumentError, r"k is 1\.0"),
        (
            ("the <mask>",),
            5,
            cmm.DtypeError,
            r"text is \('the <mask>',\); it should be a string or a pair of strings",
        ),
        (["the <mask>", "the cat"], 5, cmm.ArgumentError, r"text\[1\] 'the cat' has no mask"),
        (["the <mask>", ["a", "<mask>"]], 5, cmm.DtypeError, r"text\[1\] is \['a', '<mask>'\]; .* which is a tuple"),
        (["the " * LIMIT], 5, cmm.ArgumentError, rf"text\[0\] 'the .* has {LIMIT + 1} tokens; .* is {LIMIT}$"),
        (None, 5, cmm.DtypeError, "text is a NoneType"),
        (b"<mask>", 5, cmm.DtypeError, r"text is bytes; .* text\.decode\(\)"),
        ("\ud800 <mask>", 5, cmm.ArgumentError, "not valid Unicode"),
    ],
)
def test_wrong_calls_of_fill_mask(model, text, k, error, message):
    with pytest.raises(error, match=message):
        model.fill_mask(text, k)


def test_fill_mask_without_a_head(tmp_path):
    folder, _ = folder_with(tmp_path, labels=2, decoder=False)
    with pytest.raises(cmm.UnusableError, match=r"decoder\.weight"):
        cmm.bert.load(folder).fill_mask("the <mask>")


# ---- embed and classify --------------------------------------------------------------------------------------------


POOLERS = {
    "avg": lambda hidden: hidden.mean(axis=0),
    "zero_index": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.max(axis=0),
    "logsumexp": lambda hidden: np.log(np.exp(hidden.astype(np.float64)).sum(axis=0)),
}


@pytest.mark.parametrize("pooler", POOLERS)
def test_embed_is_every_text_on_its_own(model, pooler):
    """In the order of the texts, whatever their lengths, and as if there were no other text."""
    found = model.embed(TEXTS, pooler=pooler)
    assert found.shape == (len(TEXTS), 24)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        hidden = model(model.tokenizer.encode([text]))[0]
        np.testing.assert_allclose(vector, POOLERS[pooler](hidden), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(vector, model.embed([text], pooler=pooler)[0], rtol=0, atol=TOLERANCE)
    assert len(np.unique(found.round(3), axis=0)) == len(TEXTS)


def test_the_default_pooler_is_the_mean(model):
    np.testing.assert_array_equal(model.embed(TEXTS), model.embed(TEXTS, pooler="avg"))


def test_classify_is_every_text_on_its_own(model):
    found = model.classify(TEXTS)
    assert found.shape == (len(TEXTS), 3)
    for text, logits in zip(TEXTS, found, strict=True):
        expected = model.classify_ids(model.tokenizer.encode([text]))[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_batches_have_one_length_and_no_padding(model, monkeypatch):
    calls = []
    original = cmm.bert.Model._encode

    def encode(self, ids, mask, *rest):
        assert mask is None
        calls.append(ids.shape)
        return original(self, ids, mask, *rest)

    monkeypatch.setattr(cmm.bert.Model, "_encode", encode)
    model.embed(TEXTS)
    lengths = [len(ids) for ids in model.tokenizer.encode(TEXTS)]
    assert sum(batch * length for batch, length in calls) == sum(lengths)
    assert [length for _, length in calls] == sorted(set(lengths), reverse=True)


def test_large_batches_are_split():
    lengths = [128] * 40 + [3] + [128] * 5 + [5000] * 2
    found = list(batches(lengths))
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert [len(some) for some in found] == [1, 1, 16, 16, 13, 1]
    assert all(len({lengths[index] for index in some}) == 1 for some in found)
    assert list(batches([])) == []


def test_no_texts(model):
    assert model.embed([]).shape == (0, 24)
    assert model.classify([]).shape == (0, 3)


def test_texts_of_every_kind_of_sequence(model):
    expected = model.embed(["moon", "the cat"])
    for texts in (np.array(["moon", "the cat"]), iter(["moon", "the cat"]), {"moon": 1, "the cat": 2}):
        np.testing.assert_array_equal(model.embed(texts), expected)


@pytest.mark.parametrize("text", ["the cat sat", ("the cat", "a moon"), np.str_("moon")])
def test_one_text_is_a_string_or_a_tuple_and_gives_what_one_in_a_list_gives(model, text):
    for method in (model.embed, model.classify):
        (expected,) = method([text])
        found = method(text)
        assert found.tobytes() == expected.tobytes()
        assert found.shape == expected.shape
    assert [model.tokenizer.encode(text)] == model.tokenizer.encode([text])


def test_fill_mask_of_a_list_gives_a_list_for_each_text(model):
    texts = ["the <mask> sat", "a <mask> and a <mask>", ("the cat", "a <mask>"), "the <mask> sat"]
    alone = [model.fill_mask(text, 3) for text in texts]
    assert model.fill_mask(texts, 3) == alone  # to the bit
    assert model.fill_mask(texts[:1], 3) == alone[:1]
    assert model.fill_mask(iter(texts), 3) == alone
    assert [len(masks) for masks in alone] == [1, 2, 1, 1]
    assert model.fill_mask([]) == []
    pair = model.fill_mask(("the <mask>", "a <mask>"), 3)  # a tuple is one text, a list two
    assert len(pair) == 2
    assert model.fill_mask(["the <mask>", "a <mask>"], 3) != [pair[:1], pair[1:]]


def test_encode_of_a_text_of_a_pair_and_of_a_list(tmp_path):
    ids = tiny.save(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    the, moon, sep, cls = (ids[word] for word in ("the", "moon", "<sep>", "<cls>"))
    assert tokenizer.encode("the moon") == [the, moon, sep]
    assert tokenizer.encode(("the", "moon")) == [cls, the, sep, moon, sep]
    assert tokenizer.encode(["the", "moon"]) == [[the, sep], [moon, sep]]
    assert tokenizer.encode("the moon", 2) == [the, sep]
    assert tokenizer.encode(["the moon"] * 100) == [[the, moon, sep]] * 100  # by the package's threads
    assert tokenizer.encode([]) == []
    for wrong in (5, None, b"the", ["the", 5], [["the", "moon"]], ("a", "b", "c")):
        with pytest.raises(cmm.DtypeError, match=r"^texts(\[\d\])? is "):
            tokenizer.encode(wrong)


def test_a_text_of_which_nothing_is_left_is_warned_of_by_its_number(model):
    """The tokenizer drops what is not ASCII; a mask is something."""
    for texts, message in (
        (["moon", "\u65e5\u672c"], r"^texts\[1\] '.u65e5.u672c': nothing but special tokens is left$"),
        ("", r"^texts '': nothing but special tokens is left$"),
        ([("", " ")], r"^texts\[0\] \('', ' '\): nothing but special"),
        (["", "moon", "<sep>", "zebra"], r"^texts\[0\] '': .* is left; so it is of texts\[2\], texts\[3\]$"),
        ([""] * 20, r"is left; so it is of texts\[1\], .*, texts\[7\] and 12 more$"),
    ):
        for method in (model.embed, model.classify, lambda texts: paths.of_texts(model, texts)):
            with pytest.warns(EmptyTextWarning, match=message) as caught:
                method(texts)
            assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed(["moon", "<mask>", "the zebra"])
        model.fill_mask(["<mask>", "\u65e5<mask>"])


def test_neighbours_change_a_text_by_rounding_alone(model):
    """And nothing where it runs alone: that has the same bits every time."""
    texts = ["the cat sat", "a dog ran", "the moon"] * 30
    found = model.embed(texts)
    for index in (0, 1, 2, 89):
        alone = model.embed(texts[index])
        np.testing.assert_allclose(found[index], alone, rtol=0, atol=TOLERANCE)
        assert model.embed([texts[index]])[0].tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (b"moon", cmm.DtypeError, r"texts is bytes; .*: texts\.decode\(\)"),
        (
            ("moon", "the cat", "a"),
            cmm.DtypeError,
            r"texts is \('moon', 'the cat', 'a'\); it should be a string or a",
        ),
        ([["a", "moon"]], cmm.DtypeError, r"texts\[0\] is \['a', 'moon'\]; .* a pair of strings, which is a tuple"),
        (5, cmm.DtypeError, "texts is a int"),
        (["moon", 5], cmm.DtypeError, r"texts\[1\] is 5"),
        (["moon", b"moon"], cmm.DtypeError, r"texts\[1\] is b'moon'"),
        ([("moon",)], cmm.DtypeError, r"texts\[0\] is \('moon',\)"),
        ([("a", "b", "c")], cmm.DtypeError, r"texts\[0\] is"),
        ([("a", None)], cmm.DtypeError, r"texts\[0\] is \('a', None\)"),
        (["a", "\ud800"], cmm.ArgumentError, r"texts\[1\] '.ud800' is not valid Unicode"),
        (
            ["a", "the " * LIMIT],
            cmm.ArgumentError,
            rf"texts\[1\] 'the the .* has {LIMIT + 1} tokens.*is {LIMIT} .*truncate",
        ),
    ],
)
def test_wrong_texts(model, texts, error, message):
    for method in (model.embed, model.classify):
        with pytest.raises(error, match=message):
            method(texts)


def test_wrong_pooler(model):
    with pytest.raises(cmm.ArgumentError, match="pooler is 'mean'; it should be one of avg, "):
        model.embed(["moon"], pooler="mean")


def test_a_text_without_tokens(tmp_path):
    folder, _ = folder_with(tmp_path)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["post_processor"]["single"][1]
    file.write_text(json.dumps(content))
    with pytest.raises(cmm.ArgumentError, match=r"texts\[1\] '' has no tokens"):
        cmm.bert.load(folder).embed(["moon", ""])


def test_no_classifier(tmp_path):
    folder, _ = folder_with(tmp_path)
    with pytest.raises(cmm.UnusableError, match=r"head\.weight"):
        cmm.bert.load(folder).classify(["moon"])


def test_level_and_threads_reach_the_encoder(model):
    for method in (model.embed, model.classify):
        with pytest.raises(cmm.LevelError):
            method(["moon"], level="no such level")
        with pytest.raises(cmm.ArgumentError, match="threads"):
            method(["moon"], threads=-1)
    with pytest.raises(cmm.LevelError):
        model.fill_mask("<mask>", level="no such level")


# ---- long texts ----------------------------------------------------------------------------------------------------


def test_texts_as_long_as_the_limit(model):
    assert model.embed(["the " * (LIMIT - 1)]).shape == (1, 24)


def test_truncation_is_said_and_keeps_the_special_tokens(tmp_path):
    folder, ids = folder_with(tmp_path)
    model = cmm.bert.load(folder)
    long, pair = "the " * 12 + "cat " * 12, ("moon " * 20, "dog")
    with pytest.warns(TruncationWarning, match=r"2 of 3 texts .* limit of 16 tokens.*texts\[0\] .* has 25") as caught:
        found = model.embed([long, "moon", pair], truncate=True)
    assert [warning.filename for warning in caught] == [__file__]
    expected = [
        [ids["the"]] * 12 + [ids["cat"]] * 3 + [ids["<sep>"]],
        [ids["moon"], ids["<sep>"]],
        [ids["<cls>"], *[ids["moon"]] * 12, ids["<sep>"], ids["dog"], ids["<sep>"]],
    ]
    for vector, tokens in zip(found, expected, strict=True):
        np.testing.assert_allclose(vector, model([tokens])[0].mean(axis=0), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(model.embed(["moon"], truncate=True), model.embed(["moon"]))  # nothing to say


def test_truncation_does_not_outlive_its_call(model):
    with pytest.warns(TruncationWarning):
        model.embed(["the " * 40], truncate=True)
    with pytest.raises(cmm.ArgumentError, match="has 41 tokens"):
        model.embed(["the " * 40])


# ---- progress ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """Stand in for tqdm; the bars that were made, as (total, disable, steps)."""
    made = []

    class Bar:
        def __init__(self, *, total, disable, **how):
            self.steps = []
            made.append((total, disable, self.steps))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, count):
            self.steps.append(count)

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    return made


def test_progress(model, bars):
    model.embed(TEXTS)
    model.classify(TEXTS, progress=True)
    model.embed(TEXTS, progress=False)
    assert [(total, disable, sum(steps)) for total, disable, steps in bars] == [(8, None, 8), (8, False, 8)]


def test_progress_of_the_real_package_is_silent_where_stderr_is_no_terminal(model, capfd):
    importlib.import_module("tqdm")
    model.embed(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_without_tqdm(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert model.embed(TEXTS, progress=True).shape == (len(TEXTS), 24)


# ---- export --------------------------------------------------------------------------------------------------------


def test_export_keeps_the_tokenizer(tmp_path, folder):
    text = "the <mask> sat"
    expected = cmm.bert.load(folder).fill_mask(text)
    exported = cmm.bert.load(cmm.bert.export(folder, tmp_path / "a"))
    assert exported.fill_mask(text) == expected
    again = cmm.bert.load(cmm.bert.export(exported, tmp_path / "b"))
    assert again.fill_mask(text) == expected
    for name in ("tokenizer.json", "special_tokens_map.json"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("how", ["folder", "file of another name", "assigned"])
def test_export_takes_a_tokenizer_from_elsewhere(tmp_path, folder, how):
    text = "the <mask> sat"
    expected = cmm.bert.load(folder).fill_mask(text)
    state = reference.state_dict(BLOCK, seed=1, vocab=tiny.SIZE)
    source, place = state, folder
    if how == "file of another name":
        place = (folder / "tokenizer.json").rename(folder / "WordPiece-32768.json")
    if how == "assigned":
        source = cmm.bert.from_state_dict(state, BLOCK)
        source.tokenizer = Tokenizer(folder)
        cmm.bert.export(source, tmp_path / "out")
    else:
        cmm.bert.export(source, tmp_path / "out", config=BLOCK, tokenizer=place)
    assert cmm.bert.load(tmp_path / "out").fill_mask(text) == expected


def test_export_of_a_tokenizer_that_is_not_there(tmp_path, folder):
    with pytest.raises(CheckpointError, match="cannot be read"):
        cmm.bert.export(folder, tmp_path / "out", tokenizer=tmp_path / "none.json")
    assert not (tmp_path / "out").exists()


# ---- targets, lengths, places, decoding ----------------------------------------------------------------------------


def test_targets_are_all_said_with_their_probabilities(model):
    text = "the <mask> sat"
    everything = {one.token: one for one in model.fill_mask(text, k=tiny.SIZE)[0]}
    found = model.fill_mask(text, k=1, targets=["moon", "Dog", "##s", "dog"])[0]
    assert {one.token for one in found} == {"moon", "dog", "##s"}
    assert found == sorted((everything[one.token] for one in found), key=lambda one: -one.logit)
    for targets, message in (
        (["unable"], "targets.0. is 'unable', which is no single token.*un ##able"),
        ([], "empty"),
    ):
        with pytest.raises(cmm.ArgumentError, match=message):
            model.fill_mask(text, targets=targets)
    with pytest.raises(cmm.DtypeError, match="targets is 'moon'"):
        model.fill_mask(text, targets="moon")


def test_normalized_vectors_and_batches(model):
    plain, unit = model.embed(TEXTS), model.embed(TEXTS, normalize=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6)
    assert model.embed("the cat", normalize=True).shape == (24,)
    np.testing.assert_allclose(model.embed(TEXTS, batch_size=1), plain, atol=TOLERANCE)
    lengths = [3, 2, 3, 3, 3]
    assert [some.tolist() for some in batches(lengths, 2)] == [[0, 2], [3, 4], [1]]
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(cmm.ArgumentError, match="batch_size is"):
            model.embed(TEXTS, batch_size=wrong)


def test_logits_of_some_places(model):
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    places = np.array([[3, 0, 0], [1, 2, 1]])
    whole = model.logits(ids)
    np.testing.assert_allclose(
        model.logits(ids, places=places), np.take_along_axis(whole, places[..., None], 1), atol=TOLERANCE
    )
    assert model.logits(ids, places=np.empty((2, 0), int)).shape == (2, 0, tiny.SIZE)
    for wrong, message in (
        ([[0, 4], [0, 0]], r"places\[0, 1\] is 4; places should be from 0 to 3"),
        ([[0], [-1]], r"places\[1, 0\] is -1"),
        ([0, 1], r"places has shape \(2,\)"),
        ([[0.0], [1.0]], "places has dtype float64"),
    ):
        with pytest.raises(cmm.CmmError, match=message):
            model.logits(ids, places=wrong)


def test_decoding(model):
    tokenizer = model.tokenizer
    ids = tokenizer.encode("The cats sat.")
    assert tokenizer.decode(ids) == "the cats sat."
    assert tokenizer.decode(ids, special=True) == "the cats sat. <sep>"
    assert tokenizer.decode([ids, np.array(ids[:1])]) == ["the cats sat.", "the"]
    assert tokenizer.decode(np.array([ids[:1]])) == ["the"]
    assert tokenizer.decode([]) == ""
    for wrong, kind in (
        ([tiny.SIZE], cmm.ArgumentError),
        ([-1], cmm.ArgumentError),
        ([1.5], cmm.DtypeError),
        (7, cmm.DtypeError),
    ):
        with pytest.raises(kind, match="ids "):
            tokenizer.decode(wrong)
