"""Llama, Qwen2.5 and Qwen3 of `transformers` as any-subset models: the same weights, and nothing to train.

Other families are refused, as are settings of these that our backbone does not implement.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from asarm.models.conversion.vocabulary import vocabulary_size
from asarm.models.llama import AnyOrderLlama, AnyOrderLlamaConfig
from asarm.utils.errors import InputError

FAMILIES: Mapping[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
# The settings that change what a model computes, with the values that our backbone implements.
SETTINGS: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "quantization_config": (None,)}
# Frequencies that do not depend on the length of the sequence (for `dynamic` see `asarm.models.llama.RotaryAngles`).
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
SHAPE = (
    "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_parameters", "initializer_range", "tie_word_embeddings",
)  # fmt: skip


def check_supported(config: PreTrainedConfig, name: str | Path) -> None:
    """Raise InputError for a model that does not compute what our backbone does. name: of the model, for messages."""
    rope = config.rope_parameters or {}
    found = {setting: getattr(config, setting, None) for setting in SETTINGS} | {
        "rope_type": rope.get("rope_type"),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
        "layer_types": tuple(sorted(set(getattr(config, "layer_types", None) or ["full_attention"]))),
    }
    allowed = SETTINGS | {
        "rope_type": ROPE_TYPES,
        "partial_rotary_factor": (1.0,),
        "layer_types": (("full_attention",),),  # no sliding windows
    }
    for setting, value in found.items():
        if value not in allowed[setting]:
            known = " or ".join(map(repr, allowed[setting]))
            raise InputError(f"{setting}={value!r} in the config of {name}: our llama backbone knows {known} only")


def new_config(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> AnyOrderLlamaConfig:
    """Our config for a model of `transformers` and its tokenizer, which has a mask token."""
    has_bias = getattr(config, "attention_bias", False)  # Qwen2 has no such setting: its q, k and v have biases
    return AnyOrderLlamaConfig(
        vocab_size=vocabulary_size(tokenizer),
        head_dim=getattr(config, "head_dim", None) or 0,
        qkv_bias=has_bias or config.model_type == "qwen2",
        output_bias=has_bias,
        mlp_bias=getattr(config, "mlp_bias", False),
        qk_norm=config.model_type == "qwen3",
        mask_token_id=tokenizer.mask_token_id,
        **{name: getattr(config, name) for name in SHAPE},
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


@torch.no_grad()
def any_order_llama(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | Path) -> AnyOrderLlama:
    """Our backbone with the weights of a model that passes `check_supported`, in its dtype.

    The vocabulary is the tokenizer's, which has a mask token: rows of the embedding that belong to no token are left
    out. Raises InputError when the embedding has no rows for some of its other tokens.
    """
    config = new_config(source.config, tokenizer)
    weights = source.state_dict()
    embedding = weights["model.embed_tokens.weight"]
    if config.vocab_size > len(embedding) + 1:
        count = config.vocab_size - 1
        raise InputError(f"the tokenizer of {name} has {count} tokens, but its weights only {len(embedding)}")
    ids = torch.arange(min(config.vocab_size, len(embedding)))
    mean = embedding[ids[ids != config.mask_token_id]].mean(0, dtype=torch.float32)
    weights["model.query_vector"] = torch.zeros_like(mean).to(embedding.dtype)
    weights["model.no_left"] = mean.to(embedding.dtype)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        # The mask token's row may be any: it is neither read nor sampled.
        weights[key] = torch.cat((weights[key], mean[None].to(embedding.dtype)))[: config.vocab_size].clone()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return AnyOrderLlama.from_pretrained(None, config=config, state_dict=weights, dtype=source.dtype)
