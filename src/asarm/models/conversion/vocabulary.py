"""The tokens that other models lack: the mask token, and the one that ends a gap of unknown length."""

from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from asarm.models.backbone import AnyOrderModel
from asarm.tokenization.codec import GAP_END


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows an embedding of all tokens has."""
    return max(tokenizer.get_vocab().values()) + 1


def add_mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a tokenizer a mask token <mask>, and its eos token as pad token, where it has none.

    The mask token stands for what is to be decoded: it is neither read by a model nor sampled. All other tokens keep
    their ids. Returns the `vocabulary_size` before.
    """
    known = vocabulary_size(tokenizer)
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is never read: it needs no token of its own
    return known


def add_gap_end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a tokenizer a token <gap_end> where it has none, and return its id. All other tokens keep theirs."""
    tokenizer.add_special_tokens({"additional_special_tokens": [GAP_END]}, replace_extra_special_tokens=False)
    return cast(int, tokenizer.convert_tokens_to_ids(GAP_END))


@torch.no_grad()
def add_gap_end_row(model: AnyOrderModel, gap_end_token_id: int) -> None:
    """Give a model's vocabulary a row for this id, which is the next one. It begins as a copy of the eos token's."""
    model.resize_token_embeddings(gap_end_token_id + 1, mean_resizing=False)
    model.config.gap_end_token_id = gap_end_token_id
    for parameter in {model.get_input_embeddings().weight, *filter(torch.is_tensor, model.output_layer())}:
        parameter[gap_end_token_id] = parameter[model.config.eos_token_id]
