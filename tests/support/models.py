"""Small random models for tests: every parameter is drawn, so that nothing is zero or one by accident."""

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.llama import AnyOrderLlama, AnyOrderLlamaConfig
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.tokenization.batch import InfillBatch


def randomise(model: AnyOrderModel, scale: float, seed: int = 0) -> AnyOrderModel:
    """Draw all parameters from a normal distribution of the given scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_gpt2(vocab_size: int = 5, scale: float = 0.6, **shape) -> AnyOrderModel:
    """A two-layer `gpt2` backbone; the last token id is the mask."""
    shape = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2} | shape
    return randomise(
        AnyOrderGPT2(AnyOrderGPT2Config(vocab_size=vocab_size, mask_token_id=vocab_size - 1, **shape)), scale
    )


def tiny_xlnet(vocab_size: int = 5, scale: float = 0.6, **shape) -> AnyOrderModel:
    """A two-layer `xlnet` backbone; the last token id is the mask."""
    shape = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 64} | shape
    return randomise(
        AnyOrderXLNet(AnyOrderXLNetConfig(vocab_size=vocab_size, mask_token_id=vocab_size - 1, **shape)), scale
    )


def tiny_llama(vocab_size: int = 5, scale: float = 0.6, **shape) -> AnyOrderModel:
    """A two-layer `llama` backbone with all of its parts, two heads a key; the last token id is the mask."""
    shape = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "qkv_bias": True, "qk_norm": True,
    } | shape  # fmt: skip
    return randomise(
        AnyOrderLlama(AnyOrderLlamaConfig(vocab_size=vocab_size, mask_token_id=vocab_size - 1, **shape)), scale
    )


def random_batch(batch: int, length: int, vocab_size: int, seed: int, rate: float = 0.6) -> InfillBatch:
    """Random sequences with ragged ends; every row has a target, some have no prompt."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size - 1, (batch, length), generator=generator)
    target = torch.rand(batch, length, generator=generator) < rate
    target[:, 0] = True
    absent = torch.arange(length) >= torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    given = ~target & ~absent
    if batch > 1:
        target[-1], given[-1] = True, False
    return InfillBatch(tokens, given, target & ~absent)
