"""`InfillExample`: a text with a gap as tokens, and how its context is truncated for a model that takes fewer."""

from dataclasses import dataclass, replace
from typing import TypeVar

from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError


@dataclass(kw_only=True)
class InfillExample:
    """A text with a gap. The tokens of prefix, reference and suffix, joined, decode to the whole text.

    index: its number, from which seeds are made. name: for messages. visible: numbers of tokens of the pieces of the
    visible text that are of the gap's kind, such as sentences; the distribution of the gap's length is estimated
    from them.
    """

    index: int
    name: str
    prefix_tokens: list[int]
    reference_tokens: list[int]
    suffix_tokens: list[int]
    visible: list[int]

    @property
    def context_length(self) -> int:
        """Tokens of prefix and suffix."""
        return len(self.prefix_tokens) + len(self.suffix_tokens)


SomeExample = TypeVar("SomeExample", bound=InfillExample)


def without_mask_token(example: SomeExample, codec: TextCodec, kind: str) -> SomeExample:
    """The example itself. Raises InputError if its text holds the mask token, or that which ends gaps. kind: what the
    text is."""
    if reserved := codec.reserved_in(example.prefix_tokens + example.reference_tokens + example.suffix_tokens):
        raise InputError(f"{kind} {example.name} holds {reserved}, which stands for what is to be filled")
    return example


def truncate_context(example: SomeExample, length: int, longest: int | None) -> SomeExample:
    """The example with as much context as fits into `longest` with a gap of `length` tokens (None: no limit).

    The far ends of prefix and suffix are cut off. Each keeps half of the room, or more where the other needs less.
    length: less than `longest`.
    """
    if longest is None or example.context_length + length <= longest:
        return example
    room = longest - length
    before = min(len(example.prefix_tokens), max(room - len(example.suffix_tokens), (room + 1) // 2))
    return replace(
        example,
        prefix_tokens=example.prefix_tokens[len(example.prefix_tokens) - before :],
        suffix_tokens=example.suffix_tokens[: room - before],
    )
