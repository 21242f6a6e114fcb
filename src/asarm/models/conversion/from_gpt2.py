"""`start_from`: the model that training starts from, a model that `load` knows or one made of GPT-2's weights.

GPT-2's weights serve both streams of our `gpt2` backbone. Its learned positions `wpe` are dropped, as positions are
rotary here. Training has to compensate for that, and to teach the model bidirectional prompts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from asarm.models.backbone import AnyOrderModel
from asarm.models.conversion.vocabulary import add_mask_token, vocabulary_size
from asarm.models.gpt2 import AnyOrderGPT2, Block, new_gpt2
from asarm.models.load import KNOWN, load, model_folder, read_config, read_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import check_at_least
from asarm.utils.errors import InputError
from asarm.utils.hub_errors import config_errors
from asarm.utils.weights import read_weights

GPT2 = GPT2Config.model_type
# The settings of GPT-2's config that change what it computes, with the values that our `gpt2` backbone implements.
# `reorder_and_upcast_attn` is not among them, as it changes the rounding only; nor is dropout, which we do not have.
SETTINGS = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three ways to write GELU-tanh
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}


class GPT2Weights(GPT2LMHeadModel):
    """The GPT-2 of `transformers`, to read checkpoints with. Older ones also hold the constants of causal masks."""

    _keys_to_ignore_on_load_unexpected = [r"(^|\.)attn\.(masked_)?bias$"]  # noqa: RUF012 (transformers' name)


def start_from(
    name: str | Path, revision: str | None = None, white_space: str = "auto"
) -> tuple[AnyOrderModel, TextCodec]:
    """A model to train, in float32, and its codec, from any-subset, XLNet, Llama-like or GPT-2 weights.

    name, revision: as in `model_folder`. white_space: as in `load`; for GPT-2 "auto" is "plain".

    GPT-2's tokenizer gets a mask token <mask>, and its eos token as pad token, where it has none. The vocabulary is
    the tokenizer's: rows of the embedding that belong to no token are left out.

    Raises InputError as `load` does, and for a GPT-2 whose embeddings are not tied, with settings that our backbone
    does not implement, or with fewer rows of embeddings than its tokenizer has tokens.
    """
    folder = model_folder(name, revision, weights=False)
    config = read_config(name, folder, known=(*KNOWN, GPT2))
    if not isinstance(config, GPT2Config):
        return load(name, revision, white_space=white_space)
    check_supported(config, name)
    tokenizer, known = new_tokenizer(name, folder)
    if known > config.vocab_size:
        raise InputError(f"the tokenizer of {name} has {known} tokens, but its weights only {config.vocab_size}")
    codec = TextCodec(tokenizer, "plain" if white_space == "auto" else white_space)
    gpt2 = read_weights(GPT2Weights, name, model_folder(name, revision), torch.float32)
    if not torch.equal(gpt2.lm_head.weight, gpt2.transformer.wte.weight):
        raise InputError(f"the output layer of {name} is not tied to its embedding; that of our gpt2 backbone is")
    model = new_model(config, codec)
    copy_weights(gpt2, model, known)
    return model.eval(), codec


def check_supported(config: GPT2Config, name: str | Path) -> None:
    """Raise InputError for a GPT-2 that does not compute what our backbone does."""
    with config_errors(name):
        check_at_least(config, vocab_size=1, n_positions=1, n_embd=1, n_layer=1, n_head=1)
    allowed = {"n_inner": (None, 4 * config.n_embd)} | SETTINGS
    for setting, values in allowed.items():
        value = getattr(config, setting, None)
        if value not in values:
            known = " or ".join(map(repr, values))
            raise InputError(f"{setting}={value!r} in the config of {name}: our gpt2 backbone knows {known} only")
    if config.n_embd % (2 * config.n_head):
        raise InputError(f"n_embd={config.n_embd} of {name} gives no n_head={config.n_head} heads of even width")


def new_tokenizer(name: str | Path, folder: Path) -> tuple[PreTrainedTokenizerBase, int]:
    """A GPT-2's tokenizer with a mask token and a pad token, and its `vocabulary_size` before these were added."""
    tokenizer = read_tokenizer(name, folder)
    return tokenizer, add_mask_token(tokenizer)


def new_model(config: GPT2Config, codec: TextCodec) -> AnyOrderGPT2:
    """Our backbone with random weights, in the shape of a GPT-2 and with the vocabulary of a codec."""
    names = ("n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon", "initializer_range")
    return new_gpt2(
        codec,
        vocab_size=vocabulary_size(codec.tokenizer),
        white_space="tokens" if codec.white_space_tokens else "plain",
        **{name: getattr(config, name) for name in names},
    )


@torch.no_grad()
def copy_weights(gpt2: GPT2LMHeadModel, model: AnyOrderGPT2, known: int) -> None:
    """Copy GPT-2's weights into our backbone. known: how many rows of GPT-2's embedding belong to tokens."""
    theirs = gpt2.transformer
    embedding = theirs.wte.weight[:known]
    model.wte.weight[:known] = embedding
    # New tokens start as the average token. The mask token's row stays so, as it is neither read nor sampled.
    model.wte.weight[known:] = embedding.mean(0)
    # A query starts as what GPT-2's first block reads without the token: the average position. That favours no token,
    # whereas the average token would, through the tied output layer, favour tokens like itself (for a small GPT-2 the
    # joint loss after 100 steps was 0.3 nats a token higher). Zeros do almost as well, but the layer norm that reads
    # them makes their gradient explode.
    model.query_vector.copy_(theirs.wpe.weight.mean(0))
    model.ln_f.load_state_dict(theirs.ln_f.state_dict())
    for block, source in zip(cast(Iterable[Block], model.blocks), cast(Iterable[GPT2Block], theirs.h), strict=True):
        block.ln_1.load_state_dict(source.ln_1.state_dict())
        block.ln_2.load_state_dict(source.ln_2.state_dict())
        for ours, conv1d in (
            (block.attn.qkv, source.attn.c_attn),
            (block.attn.proj, source.attn.c_proj),
            (block.fc, source.mlp.c_fc),
            (block.proj, source.mlp.c_proj),
        ):
            ours.weight.copy_(conv1d.weight.t())  # Conv1D has [in, out], a linear layer [out, in]
            ours.bias.copy_(conv1d.bias)
