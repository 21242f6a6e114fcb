"""The texts of the decoding evaluation: read, packed into sequences of one length, and masked."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from asarm.data.packed import blocks
from asarm.data.readers import read_lines, read_text
from asarm.evals.decoding.config import OPENWEBTEXT, ROWS, WIKITEXT, DecodingEvalConfig
from asarm.evals.hub import hub_rows, hub_stream
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
WIKITEXT_SOURCE = ("Salesforce/wikitext", "wikitext-103-raw-v1", "test")  # wikitext-2 has the same test articles
OPENWEBTEXT_SOURCE = ("Skylion007/openwebtext", "train")


@dataclass
class Sequences:
    """What is decoded. index: the number of each sequence among all packed ones. batch: [n, N], tokens not masked."""

    index: list[int]
    batch: InfillBatch


def load_documents(text: str, packing: str) -> Iterable[str]:
    """The documents of a local file, of WikiText's test part (also text=""), or of OpenWebText.

    With packing "rows" each line is a document, or each row of files with rows, empty ones, too; with "joined" all of
    the text is one. OpenWebText has documents of its
    own, which are downloaded as they are read. Raises InputError when they cannot be had.
    """
    if text == OPENWEBTEXT:
        return _OpenWebText()
    if text in ("", WIKITEXT):
        rows = [row.fields["text"] for row in hub_rows(WIKITEXT_SOURCE, "--text", ["text"])]
        return rows if packing == ROWS else ["".join(rows)]
    return read_lines(text) if packing == ROWS else [read_text(text)]


class _OpenWebText:
    """Its documents, from the first one on each time they are asked for."""

    def __iter__(self) -> Iterator[str]:
        return (row.fields["text"] for row in hub_stream(OPENWEBTEXT_SOURCE, "--text", ["text"]))


def token_stream(documents: Iterable[str], codec: TextCodec, packing: str, wanted: int | None) -> np.ndarray:
    """The tokens of documents, each closed by eos: [n] int32. wanted: how many are enough; None for all.

    With packing "rows" the tokenizer adds its special tokens to each: XLNet's ends it with <sep><cls>, before eos.
    """
    if codec.eos_token_id is None:
        raise InputError("the model's tokenizer has no eos token to end the text with: choose another model")
    parts, count = [], 0
    for document in documents:
        if packing == ROWS:
            ids = codec.tokenizer.encode(codec.write_white_space(document), verbose=False)
        else:
            ids = codec.encode(document)
        if reserved := codec.reserved_in(ids):
            raise InputError(f"the text holds {reserved}, which stands for what is to be decoded: take it out")
        parts.append(np.array([*ids, codec.eos_token_id], dtype=np.int32))
        count += len(parts[-1])
        if wanted is not None and count >= wanted:
            break
    return np.concatenate(parts)


def choose_sequences(documents: Iterable[str], codec: TextCodec, config: DecodingEvalConfig, length: int) -> Sequences:
    """Pack documents into blocks of `length` tokens, take `num_texts` of them, and choose what stays visible.

    The blocks are the first ones, or the first of an order that depends on the seed. The visible positions of a block
    are the first ones, or a uniform choice that depends on the seed and the block alone.
    """
    wanted = config.num_texts * length if config.text == OPENWEBTEXT else None
    packed = blocks(token_stream(documents, codec, config.packing, wanted), length)
    order = np.random.default_rng(config.seed).permutation(len(packed)) if config.shuffle else np.arange(len(packed))
    index = order[: config.num_texts].tolist()
    if len(index) < config.num_texts:
        logger.info("the text has %d blocks of %d tokens, fewer than num_texts", len(index), length)
    given = torch.zeros(len(index), length, dtype=torch.bool)
    for row, block in enumerate(index):
        shuffled = np.random.default_rng([config.seed, block]).permutation(length)
        given[row, (np.arange(length) if config.left_to_right else shuffled)[: config.visible(length)]] = True
    return Sequences(index, InfillBatch(torch.from_numpy(packed[index]).long(), given, ~given))


def prompt_text(codec: TextCodec, tokens: list[int], given: list[bool]) -> str:
    """The visible tokens, with every run of n masked ones written as `___n`."""
    pieces = []
    for seen, run in groupby(zip(tokens, given, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        pieces.append(codec.decode(ids) if seen else f" ___{len(ids)}")
    return "".join(pieces)
