"""The mask token, which the tokenizers of other models lack."""

from transformers import PreTrainedTokenizerBase


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
