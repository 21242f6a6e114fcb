"""The data of a training run: held-out sequences, batches from any step on, and text for a tokenizer of its own."""

from dataclasses import dataclass

import numpy as np

from asarm.data.config import DataConfig
from asarm.data.packed import LocalBatches, blocks, evenly, local_corpus
from asarm.data.streaming import StreamBatches, held_out_blocks, tokenizer_texts
from asarm.data.tokenizer_training import corpus_text, train_tokenizer
from asarm.data.unpacked import Texts
from asarm.tokenization.codec import TextCodec


def train_codec(config: DataConfig, vocab_size: int, white_space: str) -> TextCodec:
    """A codec with a tokenizer trained on the data. white_space: as in `TextCodec`, or auto, which is plain."""
    texts = corpus_text(config) if config.train_files else tokenizer_texts(config)
    return TextCodec(train_tokenizer(texts, vocab_size), "plain" if white_space == "auto" else white_space)


def sequences(stream: np.ndarray, config: DataConfig, codec: TextCodec) -> np.ndarray | Texts:
    """The sequences [n, N] of a stream of tokens: packed, or one document each."""
    if config.unpacked:
        return Texts(stream, codec.document_end(config.document_end), config.block_size)
    return blocks(stream, config.block_size)


@dataclass
class TrainingData:
    """Sequences of a corpus of local files or of a streamed dataset, packed or not.

    train_blocks: [n, N] tokens of local files; None for a stream. held_out: [m, N] tokens for validation. Unpacked ones
    have PADDING (see `asarm.tokenization.batch`) after their ends.
    """

    config: DataConfig
    codec: TextCodec
    train_blocks: np.ndarray | Texts | None
    held_out: np.ndarray

    @classmethod
    def load(cls, config: DataConfig, codec: TextCodec, eval_blocks: int, validates: bool) -> "TrainingData":
        """Open the data, with at most `eval_blocks` held-out sequences. validates: whether this process needs those.

        Raises InputError for data that cannot be read, or has less than one sequence for training or validation.
        """
        if config.train_files:
            train, held_out = (sequences(stream, config, codec) for stream in local_corpus(config, codec))
            return cls(config, codec, train, evenly(held_out, eval_blocks))
        none = np.empty((0, config.block_size), dtype=np.int32)
        return cls(config, codec, None, held_out_blocks(config, codec, eval_blocks) if validates else none)

    @property
    def training_blocks(self) -> int | None:
        """The number of sequences to train on; None for a stream."""
        return None if self.train_blocks is None else len(self.train_blocks)

    def batches(
        self, batch: int, seed: int, rank: int, ranks: int, start: int, states: dict[int, dict]
    ) -> LocalBatches | StreamBatches:
        """Batches [batch, N] of process `rank` of `ranks`, after the first `start` that it had before.

        states: of all readers of a stream at that point; readers that are missing begin at the beginning.
        """
        if self.train_blocks is not None:
            return LocalBatches(self.train_blocks, batch, seed, rank, ranks, start)
        return StreamBatches(self.config, self.codec, batch, seed, rank, ranks, start, states)
