"""Unpacked sequences: one document each, cut or padded to the block size, for comparison with packed ones."""

import numpy as np

from asarm.tokenization.batch import PADDING
from asarm.utils.errors import InputError

PART = 1 << 24  # tokens of a stream that are searched at once


def one_sequence(ids: np.ndarray, block_size: int, end: list[int]) -> np.ndarray:
    """Token ids [n] of a document as one sequence [block_size] int32, PADDING after it; [0] if it is its end alone."""
    if len(ids) <= len(end):
        return np.empty(0, dtype=np.int32)
    sequence = np.full(block_size, PADDING, dtype=np.int32)
    sequence[: len(ids)] = ids[:block_size]
    return sequence


class Texts:
    """The documents of a stream of tokens [n], in which each has the same end, as sequences that are made on demand.

    end: its last token is eos, which is nowhere else. Indexed by an array of their numbers [k] it gives
    [k, block_size] int32. Raises InputError if there are none.
    """

    def __init__(self, stream: np.ndarray, end: list[int], block_size: int):
        self.stream, self.end, self.block_size = stream, end, block_size
        parts = [
            start + np.flatnonzero(stream[start : start + PART] == end[-1]) for start in range(0, len(stream), PART)
        ]
        stops = np.concatenate([np.empty(0, dtype=np.int64), *parts]) + 1
        starts = np.concatenate((np.zeros(1, dtype=np.int64), stops))[:-1]
        is_text = stops - starts > len(end)
        self.bounds = np.stack((starts, stops), axis=1)[is_text]  # [texts, 2]
        if not len(self.bounds):
            raise InputError(f"the text has {len(stream)} tokens, and no document among them")

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack(
            [one_sequence(self.stream[start:stop], self.block_size, self.end) for start, stop in self.bounds[numbers]]
        )
