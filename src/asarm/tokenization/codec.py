"""Text to token ids and back, as a model was trained: for code models white space is written as tokens."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from asarm.utils.errors import InputError

# The released code models' mapping, in its order: three spaces become the token of two and one space, never pad.
WHITE_SPACE = {"\n": "cls_token", "\t": "sep_token", "  ": "unk_token", "   ": "pad_token"}


def white_space_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """White space -> the token that is written for it. InputError when the tokenizer lacks one or has one for two."""
    tokens = {white: getattr(tokenizer, name) for white, name in WHITE_SPACE.items()}
    if None in tokens.values() or len(set(tokens.values())) < len(tokens):
        found = ", ".join(f"{name} {tokens[white]}" for white, name in WHITE_SPACE.items())
        raise InputError(f"this tokenizer cannot write white space as tokens ({found}): use --white_space plain")
    return tokens


class TextCodec:
    """A tokenizer of `transformers`, used the way its model was trained.

    white_space: "plain" leaves the text to the tokenizer; "tokens" writes newlines, tabs and pairs of spaces as its
        cls, sep and unk tokens first, and gives them back when decoding. InputError when it has no such tokens.

    What comes back is what the tokenizer keeps. XLNet's makes one space of any white space, takes accents off, and
    reads '' and `` as ". With "tokens" it gives back lines and their indentation, but no carriage returns, and no
    single space that stands before or behind other white space: three spaces come back as two, and the space between
    a word and a newline is gone. A character it does not know comes back as two spaces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, white_space: str = "plain"):
        if white_space not in ("plain", "tokens"):
            raise InputError(f"unknown white_space {white_space!r}: choose plain or tokens")
        self.tokenizer = tokenizer
        self.written = white_space_tokens(tokenizer) if white_space == "tokens" else {}  # white space -> token
        self.read = {tokenizer.convert_tokens_to_ids(token): white for white, token in self.written.items()}

    @property
    def mask_token(self) -> str | None:
        return self.tokenizer.mask_token

    @property
    def mask_token_id(self) -> int | None:
        return self.tokenizer.mask_token_id

    @property
    def eos_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    def line_ends(self) -> list[int]:
        """The tokens that end a line: those whose text ends with a newline, and eos."""
        return [token for token in range(len(self)) if token == self.eos_token_id or self.decode([token])[-1:] == "\n"]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer; how white space is written stands in the model's config (see `asarm.models.load`)."""
        self.tokenizer.save_pretrained(folder)

    def write_white_space(self, text: str) -> str:
        """The text as the tokenizer gets it, with tokens for white space. Doing it twice changes nothing more."""
        for white, token in self.written.items():
            text = text.replace(white, token)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer.encode(self.write_white_space(text), add_special_tokens=False, verbose=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included, with no white space tidied."""
        text = ""
        # The tokenizer puts a space before each section between special tokens, and takes it off what it decodes.
        for is_white, section in groupby(ids, key=self.read.__contains__):
            if is_white:
                text += "".join(self.read[token] for token in section)
            else:
                text += self.tokenizer.decode(
                    list(section), skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
        return text
