"""Random models of `transformers`' Llama-like families, with a tokenizer that has no mask token."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def random_llama(family: str = "llama", seed: int = 0, **settings) -> PreTrainedModel:
    """A model whose every parameter is drawn, on scales that keep activations near 1 and make attention choosy."""
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**TINY | settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + name.endswith("norm.weight"))
            else:
                choosy = "q_proj" in name or "k_proj" in name
                parameter.copy_(noise * (2.0 if choosy else 1.0) / parameter.shape[1] ** 0.5)
    return model


def byte_tokenizer(text: str, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose only special token is eos, as causal models have it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def save_llama(folder: Path, text: str, family: str = "llama", **settings) -> PreTrainedModel:
    """Write a random model and a tokenizer of 300 tokens, or fewer where the text does not give them."""
    model = random_llama(family, **settings)
    model.save_pretrained(folder)
    byte_tokenizer(text).save_pretrained(folder)
    return model
