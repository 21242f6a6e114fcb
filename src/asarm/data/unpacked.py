"""Unpacked sequences: one document each, cut or padded to the block size, for comparison with packed ones."""

import numpy as np

from asarm.tokenization.batch import PADDING
from asarm.utils.errors import InputError

PART = 1 << 24  # tokens of a stream that are searched at once


def one_sequence(ids: np.ndarray, block_size: int) -> np.ndarray:
    """Token ids [n] of a document as one sequence [block_size] int32, PADDING at its end; [0] if it is eos alone."""
    if len(ids) < 2:
        return np.empty(0, dtype=np.int32)
    sequence = np.full(block_size, PADDING, dtype=np.int32)
    sequence[: len(ids)] = ids[:block_size]
    return sequence


class Texts:
    """The documents of a stream of tokens [n], in which each is closed by eos, as sequences that are made on demand.

    Indexed by an array of their numbers [k] it gives [k, block_size] int32. Raises InputError if there are none.
    """

    def __init__(self, stream: np.ndarray, eos: int, block_size: int):
        self.stream, self.block_size = stream, block_size
        parts = [start + np.flatnonzero(stream[start : start + PART] == eos) for start in range(0, len(stream), PART)]
        stops = np.concatenate([np.empty(0, dtype=np.int64), *parts]) + 1
        starts = np.concatenate((np.zeros(1, dtype=np.int64), stops))[:-1]
        is_text = stops - starts > 1  # more than its eos
        self.bounds = np.stack((starts, stops), axis=1)[is_text]  # [texts, 2]
        if not len(self.bounds):
            raise InputError(f"the text has {len(stream)} tokens, and no document among them")

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack(
            [one_sequence(self.stream[start:stop], self.block_size) for start, stop in self.bounds[numbers]]
        )
