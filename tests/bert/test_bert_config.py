"""The configuration: what is read, what is refused by name, and that nothing is silently ignored."""

import json

import bert_reference as reference
import cmm.bert
import pytest
from cmm.bert import CheckpointError
from cmm.bert.config import parse

REFUSED = {
    "norm": ["RMSNorm", "ScaleNorm", None],
    "norm_scheme": ["post", "sandwich"],
    "nonlin": ["ReLU", "SiLU", "gelu", "SiLUglu", 3],
    "tie_weights": [False],
    "decoder_bias": [True],
    "objective_layout": ["SCRIPT"],
    "ffn_layer_frequency": [2, 0, True],
    "use_bias": [True, 1],
    "final_norm": [False],
    "intermed_type": ["moe", None, 1],
    "skip_head_transform": ["yes", 1, None],
    "embedding.pos_embedding": ["learned", "sinusoidal", "rotary", None],
    "embedding.normalization": [False],
    "embedding.embedding_dim": [12, 48, "24"],
    "attention.type": ["flash", "pytorch", "none"],
    "attention.causal_attention": [True],
    "attention.skip_output_projection": [True],
    "attention.qkv_bias": [True],
    "attention.rotary_embedding": [True, "v2"],
    "attention.sequence_op": ["torch-norm", "none", "cumsum"],
    "classification_head.pooler": ["attention", "cls", 1],
    "classification_head.include_ff_layer": [False],
    "classification_head.nonlin": ["ReLU", "Identity"],
    # what is not a flag of these models might change the result
    "deepnorm_scaling": [True, False, None],
    "layer_drop_theta": [0.5],
    "embedding.factorized": [True],
    "attention.hybrid_layers": [[1]],
}

IMPOSSIBLE = {
    "num_transformer_layers": [0, -1, 1.0, True, "2", 2**31, 10**4000],
    "hidden_size": [0, 25, -24, 24.0, [24]],
    "intermed_size": [0, -1, 2.0, False],
    "intermed_depth": [-1, 31, 10**9, 3.0, True],
    "norm_eps": [0, -1e-12, 1e-46, 5e-324, 1, "1e-12", True, float("nan"), float("inf"), 10**400],
    "embedding.max_seq_length": [0, "16"],
    "embedding.vocab_size": [0, -5, 50.0, True],
    "attention.num_attention_heads": [0, 5, 48, 3.0],
    "num_labels": [0, "2", 1.5],
    "classification_head.head_dim": [0, 1.5],
    "embedding": [[], 5, "x"],
    "attention": [[1], True],
    "classification_head": [5],
}

REQUIRED = [
    "num_transformer_layers",
    "hidden_size",
    "intermed_size",
    "intermed_depth",
    "norm_eps",
    "embedding",
    "embedding.max_seq_length",
    "attention",
    "attention.num_attention_heads",
    "classification_head.pooler",
    "classification_head.head_dim",
]


def pairs(table):
    return [(flag, value) for flag, values in table.items() for value in values]


def short(value):
    return str(value)[:20]


@pytest.mark.parametrize(("flag", "value"), pairs(REFUSED) + pairs(IMPOSSIBLE), ids=short)
def test_refused_by_name(flag, value):
    block = reference.architecture(**{flag.replace(".", "__"): value})
    with pytest.raises(CheckpointError) as caught:
        parse(block, "some file")
    inner = {"embedding": "embedding.max_seq_length", "attention": "attention.num_attention_heads"}
    assert caught.value.key in (flag, inner.get(flag))
    assert str(caught.value).startswith(f"some file: {caught.value.key}: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("flag", REQUIRED)
def test_required(flag):
    block = reference.architecture()
    place, _, name = flag.rpartition(".")
    del (block[place] if place else block)[name]
    with pytest.raises(CheckpointError, match="is missing") as caught:
        parse(block)
    assert caught.value.key.startswith(flag)


def test_gelu_glu_is_for_dense_layers_of_even_width():
    with pytest.raises(CheckpointError, match=r"nonlin: .* an FFF layer has GELU"):
        parse(reference.architecture(nonlin="GELUglu"))
    with pytest.raises(CheckpointError, match="intermed_size: is 7; GELUglu needs an even number"):
        parse(reference.architecture(nonlin="GELUglu", intermed_type="ff", intermed_size=7))


@pytest.mark.parametrize("block", [[], None, "x", 5])
def test_not_an_object(block):
    with pytest.raises(CheckpointError, match="should be a json object"):
        parse(block)
    with pytest.raises(CheckpointError, match="arch: should be a json object"):
        parse({"arch": block})


def test_flags_of_training_do_not_matter():
    plain = parse(reference.architecture())
    block = reference.architecture(
        architectures=["ScriptableCrammedBERT"],
        hidden_dropout_prob=0.1,
        sparse_prediction=0.25,
        loss="cross-entropy",
        init={"type": "normal", "std": 0.02},
        embedding__dropout_prob=0.1,
        embedding__pad_token_id=0,
        embedding__stable_low_precision=True,
        attention__dropout_prob=0.1,
        attention__seq_op_in_fp32=True,
        classification_head__classifier_dropout=0.1,
    )
    assert plain.differs(parse(block)) is None


def test_the_released_configuration():
    config = parse(cmm.bert.ULTRAFASTBERT_1X11_LONG)
    assert (config.layers, config.hidden, config.heads, config.max_seq_length, config.eps) == (
        16,
        768,
        12,
        128,
        1e-12,
    )
    assert (config.trees, config.depth, config.nodes, config.vocab_size) == (1, 11, 4095, 32768)
    assert (config.head_transform, config.pooler, config.head_dim) == (False, "avg", 1024)
    assert json.loads(json.dumps(cmm.bert.ULTRAFASTBERT_1X11_LONG)) == cmm.bert.ULTRAFASTBERT_1X11_LONG


def test_hub_nesting_and_the_name_of_logsumexp():
    block = reference.architecture(classification_head__pooler="lse")
    nested = parse({"arch": block, "model_type": "crammedBERT", "transformers_version": "4.0"})
    assert nested.pooler == "logsumexp"
    assert parse(block).differs(nested) is None
