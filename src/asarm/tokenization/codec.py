"""`TextCodec`: text to token ids and back, with white space written as tokens for code models."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from asarm.utils.errors import InputError

# The mapping of the released code models, applied in this order: three spaces become the token of two and one space,
# never the pad token.
WHITE_SPACE = {"\n": "cls_token", "\t": "sep_token", "  ": "unk_token", "   ": "pad_token"}

GAP_END = "<gap_end>"


def find_white_space_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """White space -> the token written for it. InputError when one is missing or two are the same."""
    tokens = {white: getattr(tokenizer, name) for white, name in WHITE_SPACE.items()}
    if None in tokens.values() or len(set(tokens.values())) < len(tokens):
        found = ", ".join(f"{name} {tokens[white]}" for white, name in WHITE_SPACE.items())
        raise InputError(f"this tokenizer cannot write white space as tokens ({found}): use --white_space plain")
    return tokens


class TextCodec:
    """A tokenizer of `transformers`, used the way its model was trained.

    white_space: "plain" leaves the text to the tokenizer; "tokens" first writes newlines, tabs and pairs of spaces as
        its cls, sep and unk tokens, and turns these back into white space when decoding. Raises InputError when the
        tokenizer has no such tokens.

    Encoding loses what the tokenizer normalises. XLNet's turns any white space into one space, removes accents, and
    reads '' and `` as ". With "tokens" lines and their indentation survive, but carriage returns do not, nor does a
    single space next to other white space: three spaces come back as two, and the space between a word and a newline
    is lost. A character that is not in the vocabulary comes back as two spaces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, white_space: str = "plain"):
        if white_space not in ("plain", "tokens"):
            raise InputError(f"unknown white_space {white_space!r}: choose plain or tokens")
        self.tokenizer = tokenizer
        self.white_space_tokens = find_white_space_tokens(tokenizer) if white_space == "tokens" else {}
        self.white_space_of = {  # token id -> white space
            tokenizer.convert_tokens_to_ids(token): white for white, token in self.white_space_tokens.items()
        }

    @property
    def mask_token(self) -> str:
        """The mask token, which the tokenizer of every any-subset model has (`load_tokenizer` sees to it)."""
        return self.tokenizer.mask_token

    @property
    def mask_token_id(self) -> int:
        return self.tokenizer.mask_token_id

    @property
    def eos_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def gap_end_token_id(self) -> int | None:
        """The token that ends the text of a gap of unknown length; None if the tokenizer has none."""
        found = self.tokenizer.convert_tokens_to_ids(GAP_END)  # the unknown token's, if there is no such token
        return found if found is not None and self.tokenizer.convert_ids_to_tokens(found) == GAP_END else None

    def reserved_in(self, ids: Sequence[int]) -> str | None:
        """The mask token, or the one that ends gaps, if a text's ids hold it: neither may stand in a text."""
        return next((self.tokenizer.convert_ids_to_tokens(token) for token in self.reserved() if token in ids), None)

    def reserved(self) -> list[int]:
        """Ids of the tokens that may not stand in a text."""
        return [token for token in (self.mask_token_id, self.gap_end_token_id) if token is not None]

    def textless(self) -> list[int]:
        """Ids of the tokens that stand for no text, such as the end of a document; without the one that ends gaps."""
        others = {self.gap_end_token_id, *self.white_space_of}
        return [token for token in self.tokenizer.all_special_ids if token not in others]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    def line_ends(self) -> list[int]:
        """Ids of the tokens that end a line: those whose text ends with a newline, and eos."""
        return [token for token in range(len(self)) if token == self.eos_token_id or self.decode([token])[-1:] == "\n"]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer. The model's config says how white space is written (see `asarm.models.load`)."""
        self.tokenizer.save_pretrained(folder)

    def write_white_space(self, text: str) -> str:
        """The text with tokens for white space, as the tokenizer gets it. Idempotent."""
        for white, token in self.white_space_tokens.items():
            text = text.replace(white, token)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer.encode(self.write_white_space(text), add_special_tokens=False, verbose=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of several texts, in less time."""
        self.encode("")  # so that `transformers` switches off truncation and padding, if they are on
        written = [self.write_white_space(text) for text in texts]
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(written, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def document_end(self, kind: str) -> list[int]:
        """Ids that end a document. kind: "eos", or "tokenizer" for what the tokenizer puts after a text, and eos.

        Raises InputError for "tokenizer" when the tokenizer puts something before a text, too.
        """
        if kind == "eos":
            return [cast(int, self.eos_token_id)]
        text = self.tokenizer("a", return_special_tokens_mask=True)
        if text["special_tokens_mask"][0]:
            first = self.tokenizer.convert_ids_to_tokens(text["input_ids"][0])
            raise InputError(f"this tokenizer also begins a text, with {first}: use --document_end eos")
        pairs = zip(text["input_ids"], text["special_tokens_mask"], strict=True)
        after = [token for token, special in pairs if special]
        return [*after, cast(int, self.eos_token_id)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included (not those that end gaps), without any clean-up of white
        space."""
        text, gap_end = "", self.gap_end_token_id
        ids = [token for token in ids if token != gap_end]
        # The tokenizer puts a space before each section between special tokens, and removes it from what it decodes.
        for is_white, section in groupby(ids, key=self.white_space_of.__contains__):
            if is_white:
                text += "".join(self.white_space_of[token] for token in section)
            else:
                decoded = self.tokenizer.decode(
                    list(section), skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                text += cast(str, decoded)  # of a list of ids, not of a list of lists
        return text
