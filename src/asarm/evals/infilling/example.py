"""A text with a gap, as tokens, and what is left of it where a model takes fewer."""

from dataclasses import dataclass, replace
from typing import TypeVar

from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError


@dataclass(kw_only=True)
class InfillExample:
    """A text with a gap. The tokens of the three parts, joined, decode to the whole text.

    index: its number, of which seeds are made. name: for messages. visible: tokens of each piece of the visible text
    that is of the gap's kind, such as sentences; what a law of the gap's length is learned from.
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


def without_mask_token(gap: SomeExample, codec: TextCodec, kind: str) -> SomeExample:
    """The same, or InputError when the text holds the mask token. kind: what the text is."""
    if codec.mask_token_id in gap.prefix_tokens + gap.reference_tokens + gap.suffix_tokens:
        raise InputError(f"{kind} {gap.name} holds {codec.mask_token}, which stands for what is to be filled")
    return gap


def truncate_context(gap: SomeExample, length: int, longest: int | None) -> SomeExample:
    """The same with `length` tokens in its gap and at most `longest` in all (None: no limit), fewer than `longest` of
    them in the gap.

    The far ends of prefix and suffix are cut off. Each keeps half of the room, or more where the other needs less.
    """
    if longest is None or gap.context_length + length <= longest:
        return gap
    room = longest - length
    before = min(len(gap.prefix_tokens), max(room - len(gap.suffix_tokens), (room + 1) // 2))
    return replace(
        gap,
        prefix_tokens=gap.prefix_tokens[len(gap.prefix_tokens) - before :],
        suffix_tokens=gap.suffix_tokens[: room - before],
    )
