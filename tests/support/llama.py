"""Random models of `transformers`' Llama-like families, with a tokenizer that has no mask token."""

import json
from pathlib import Path

import gguf
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

from asarm import load
from asarm.models.adapter import adapter_parameters, add_adapter, new_adapter_config, save_adapter
from asarm.models.load import model_folder
from asarm.utils.weights import weights_sha256

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GGUF_SHAPE = {"intermediate_size": 64, "tie_word_embeddings": True}  # widths that can be quantised


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


def write_gguf(path: Path, model, tokenizer, kind: str, without: str = "lm_head.weight") -> None:
    """A GGUF file of a Llama of `transformers`. kind: of its matrices, such as F32 and Q8_0. without: left out."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    ids = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in ids])
    writer.add_token_types([3] + [1] * (len(ids) - 1))
    writer.add_token_merges(
        [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    types = gguf.GGMLQuantizationType
    for name, weight in model.state_dict().items():
        if name not in ("lm_head.weight", without):
            how = types[kind] if weight.ndim == 2 else types.F32
            if "q_proj" in name or "k_proj" in name:  # pairs that are turned together stand side by side there
                weight = weight.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
            data = gguf.quants.quantize(weight.numpy(), how)
            writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_random_adapter(folder: Path, base: str | Path, rank: int = 3) -> None:
    """Write an adapter of a model, every parameter of which is drawn, as a training run does."""
    model, codec = load(base)
    add_adapter(model, new_adapter_config(rank, str(base), None, weights_sha256(base, model_folder(base))))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, folder, torch.float16)
    codec.save_pretrained(folder)
