"""Causal code models trained to fill in the middle: their marks, and a prompt that shows prefix and suffix."""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

# Tokens before the prefix, before the suffix, and before the middle, which the model writes.
FAMILIES = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, Stable Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # CodeLlama
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek Coder
)


class Fim(NamedTuple):
    """The ids of a model's marks."""

    prefix: int
    suffix: int
    middle: int

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """What the model is given: the middle is to follow."""
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]


def find_fim(tokenizer: PreTrainedTokenizerBase) -> Fim | None:
    """The marks of one of the known families, if the tokenizer has them."""
    vocabulary = tokenizer.get_vocab()
    found = (marks for marks in FAMILIES if all(mark in vocabulary for mark in marks))
    return next((Fim(*(vocabulary[mark] for mark in marks)) for marks in found), None)
