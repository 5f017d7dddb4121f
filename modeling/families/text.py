"""Networks that take token ids: encoders, and decoders as classifiers. Each is a row of paths (see `driven`)."""

from __future__ import annotations

from typing import Any

from .driven import DrivenFamily


def _bert(model_type: str, base: str, **others: Any) -> DrivenFamily:
    """As BERT: embeddings, `encoder.layer`, and for some tasks a pooler."""
    return DrivenFamily(
        model_type,
        **{"base": base, "layer_list": "encoder.layer", "before": ("embeddings",), "after": ("pooler",)} | others,
    )


def _llama(model_type: str, **others: Any) -> DrivenFamily:
    """As Llama: rotary tables that no block has, and a norm after the layers."""
    return DrivenFamily(
        model_type,
        **{"base": "model", "layer_list": "layers", "before": ("embed_tokens",), "after": ("norm",)} | others,
    )


TEXT_FAMILIES = (
    # Encoders.
    _bert("bert", "bert"),
    _bert("roberta", "roberta", counts_after_padding=True),
    _bert("xlm-roberta", "roberta", counts_after_padding=True),
    _bert("camembert", "roberta", counts_after_padding=True),
    _bert("data2vec-text", "data2vec_text", counts_after_padding=True),
    _bert("ernie", "ernie"),
    _bert("electra", "electra", before=("embeddings", "embeddings_project")),
    _bert("mpnet", "mpnet", shared=("encoder.relative_attention_bias",), gives_tuples=True, counts_after_padding=True),
    _bert("roberta-prelayernorm", "roberta_prelayernorm", after=("LayerNorm", "pooler"), counts_after_padding=True),
    _bert("xlm-roberta-xl", "roberta", after=("encoder.LayerNorm", "pooler"), counts_after_padding=True),
    _bert(
        "deberta-v2",
        "deberta",
        after=(),
        heads=("pooler", "classifier"),
        shared=("encoder.rel_embeddings", "encoder.LayerNorm"),
        follows={0: "encoder.conv"},
        gives_tuples=True,
    ),
    _bert(
        "deberta",
        "deberta",
        after=(),
        heads=("pooler", "classifier"),
        shared=("encoder.rel_embeddings",),
        gives_tuples=True,
    ),
    _bert("distilbert", "distilbert", layer_list="transformer.layer", after=(), heads=("pre_classifier", "classifier")),
    _bert("modernbert", "model", layer_list="layers", after=("final_norm",), heads=("head", "classifier")),
    # Decoders.
    _llama("llama"),
    _llama("mistral"),
    _llama("qwen2"),
    _llama("qwen3"),
    _llama("gemma"),
    _llama("gemma2"),
    _llama("gemma3_text"),
    _llama("phi", after=("final_layernorm",)),
    _llama("phi3"),
    _llama("olmo2"),
    _llama("smollm3"),
    _llama("stablelm"),
    _llama("starcoder2"),
    DrivenFamily("gpt2", base="transformer", layer_list="h", before=("wte", "wpe", "drop"), after=("ln_f",)),
    DrivenFamily(
        "gpt_neox",
        base="gpt_neox",
        layer_list="layers",
        before=("embed_in", "emb_dropout"),
        after=("final_layer_norm",),
    ),
    DrivenFamily(
        "opt",
        base="model.decoder",
        layer_list="layers",
        before=("embed_tokens", "embed_positions", "project_in"),
        after=("final_layer_norm", "project_out"),
    ),
)
