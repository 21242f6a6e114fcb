"""Which tokens may be written: bad words and patterns of text as token ids."""

import re
from collections.abc import Iterable

import torch

from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import encode_segment, text_after
from asarm.utils.errors import InputError


def ids_of_words(codec: TextCodec, words: Iterable[str]) -> list[list[int]]:
    """Token ids of words as the tokenizer writes them, with and without a space before them.

    A word may have other spellings in tokens, which are not among them. Raises InputError for an empty word.
    """
    found = []
    for word in words:
        if not word.strip():
            raise InputError(f"a bad word is empty: {word!r}")
        for ids in (encode_segment(codec, word, continues=True), codec.encode(f" {word.strip()}")):
            if ids not in found:
                found.append(ids)
    return found


def tokens_that_match(codec: TextCodec, pattern: str, vocab_size: int) -> torch.Tensor:
    """Which tokens' whole text, the space before it included, matches a regular expression: [vocab_size] bool.

    Special tokens do not, except for the one that ends gaps. Raises InputError for what is no regular expression, and
    if no token matches.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}") from error
    left, special = codec.encode("a"), set(codec.tokenizer.all_special_ids)
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    for token in range(min(len(codec), vocab_size)):
        if token not in special:
            allowed[token] = compiled.fullmatch(text_after(codec, left, [token])) is not None
    allowed[codec.reserved()] = False
    if not allowed.any():
        raise InputError(f"no token matches {pattern!r}: allow more (a token's text may begin with a space)")
    if codec.gap_end_token_id is not None:
        allowed[codec.gap_end_token_id] = True
    return allowed
